"""The form that runs a task gives a call the labels that the framework would give it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks.protocol.labels import argument_labels
from tests.support.programs import program

HERE = Path(__file__).parent
LIBRARY = HERE.parents[1] / "qtasks/broker/console/static/lib"

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[Any] = st.one_of(
    TEXTS, NUMBERS, st.booleans(), st.none(), st.lists(NUMBERS, max_size=2), st.dictionaries(TEXTS, NUMBERS, max_size=2)
)
CALLS = st.dictionaries(st.sampled_from(["user_id", "order", "_x1"]), VALUES, max_size=3)


@settings(max_examples=5, deadline=None)
@given(calls=st.lists(CALLS, min_size=100, max_size=100))
def test_the_page_makes_the_labels_that_the_framework_makes(calls: list[dict[str, Any]]) -> None:
    names = ["user_id", "order"]
    texts = [
        {"names": names, "values": {name: json.dumps(value) for name, value in call.items()}, "headers": []}
        for call in calls
    ]
    expected = [argument_labels.labels_of(dict.fromkeys(names), (), call) for call in calls]
    assert made(texts) == [[["Upstash-Label", ",".join(labels)]] if labels else [] for labels in expected]


def test_they_stand_behind_the_labels_of_the_task() -> None:
    headers = [["Upstash-Retries", "3"], ["Upstash-Label", "a,b"]]
    [lines] = made([{"names": ["n"], "values": {"n": "7"}, "headers": headers}])
    assert lines == [["Upstash-Retries", "3"], ["Upstash-Label", "a,b,qtasks.arg.n=7"]]


def made(calls: list[dict[str, Any]]) -> list[list[list[str]]]:
    lines = "\n".join(map(json.dumps, calls))
    done = subprocess.run(
        [program("node"), HERE / "argument_labels.mjs", LIBRARY], input=lines.encode(), capture_output=True, check=True
    )
    result: list[list[list[str]]] = json.loads(done.stdout)
    return result
