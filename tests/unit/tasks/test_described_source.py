"""The code around the places where an attempt failed: lines of functions of the application alone, without secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qtasks.protocol.dispatcher_questions import MAX_PLACES, MAX_SOURCE_QUESTION
from qtasks.tasks.web.described_source import source_report
from qtasks.user_frames import places_of

BESIDE = "what stands outside of the function"


def charge() -> None:
    api_key = "sk-live-4242"
    orders = [1, 2, 3]
    raise TimeoutError(api_key, orders)


def told(*places: str) -> list[dict[str, Any]]:
    report = json.loads(source_report(json.dumps({"v": 1, "at": places}).encode()))
    assert report["v"] == 1
    return list(report["frames"])


def place_of_charge() -> str:
    with pytest.raises(TimeoutError) as caught:
        charge()
    return places_of(caught.value)[-1]


def test_the_lines_of_the_function_around_a_place_are_told_without_secrets() -> None:
    [frame] = told(place := place_of_charge())
    assert frame["at"] == place
    assert frame["lines"] == [
        "def charge() -> None:",
        "    api_key = ***",
        "    orders = [1, 2, 3]",
        "    raise TimeoutError(api_key, orders)",
    ]
    line = int(place.split(":")[1].split()[0])
    assert frame["first"] == line - 3


def test_of_a_function_that_is_not_at_the_line_any_more_nothing_is_told() -> None:
    place = place_of_charge()
    assert told(place.replace(" in charge", " in refund")) == []
    path = place.split(":")[0]
    assert told(f"{path}:1 in charge", f"{path}:999999 in charge", f"{path}:14 in <module>") == []


@pytest.mark.parametrize(
    "place",
    [
        "/etc/passwd:1 in root",
        "../../secrets.py:1 in x",
        "json/decoder.py:337 in decode",
        "caused by KeyError",
        "",
        ":",
    ],
)
def test_of_files_that_are_no_code_of_the_application_nothing_is_told(place: str) -> None:
    assert told(place) == []


def test_a_place_is_answered_once_and_too_many_are_left_out() -> None:
    place = place_of_charge()
    assert len(told(place, place)) == 1
    assert told(*["caused by KeyError"] * MAX_PLACES, place) == []


@pytest.mark.parametrize(
    "question",
    [b"", b"[]", b'{"v": 2, "at": []}', b'{"v": 1}', b'{"v": 1, "at": [1]}', b" " * (MAX_SOURCE_QUESTION + 1)],
)
def test_what_is_no_question_is_refused(question: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        source_report(question)
