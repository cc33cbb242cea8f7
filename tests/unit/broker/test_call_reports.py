"""The numbers of what a dispatcher says of a call: each can be told to a browser."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from qtasks.broker.console.asked_calls import MAX_VALUES, read_report

CALL: dict[str, Any] = {"id": "c", "task": "t", "state": "running", "attempt": 1, "updatedMs": 1}


def report(call: dict[str, Any] | None = None, sequence: tuple[Any, ...] = ()) -> bytes:
    flow = {"id": "f", "state": "running", "sequence": sequence}
    return json.dumps({"v": 1, "results": True, "call": call, "flow": flow}).encode()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (report({**CALL, "updatedMs": 2**64}), "call.updatedMs"),
        (report({**CALL, "attempt": -(2**70)}), "call.attempt"),
        (report({**CALL, "progress": {"done": 10**400, "total": None, "note": ""}}), "call.progress.done"),
        (report(sequence=({"leftOut": {"queued": 2**64}},)), "leftOut.queued"),
    ],
    ids=["time", "attempt", "progress", "count"],
)
def test_a_number_that_no_page_can_read_is_refused(content: bytes, place: str) -> None:
    with pytest.raises(ValueError, match=place):
        read_report(content)


def test_an_answer_of_very_many_values_is_refused() -> None:
    with pytest.raises(ValueError, match="values"):
        read_report(report(sequence=({"leftOut": {}},) * MAX_VALUES))


def test_large_progress_is_told_as_nearly_as_a_browser_reads_it() -> None:
    read = read_report(report({**CALL, "progress": {"done": 2**70, "total": 2**71, "note": ""}}))
    told = orjson.loads(orjson.dumps(read))
    assert (told["call"]["progress"]["done"], told["call"]["progress"]["total"]) == (2.0**70, 2.0**71)


def test_a_result_stays_exact() -> None:
    result = {"form": "json", "bytes": 30, "text": "123456789012345678901234567890"}
    read = read_report(report({**CALL, "result": result}))
    assert read["call"] is not None
    assert read["call"]["result"] == {**result, "isCut": None}
