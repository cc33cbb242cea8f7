"""Where an exception was raised, in the user's code alone, without values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtasks.user_frames import MAX_FRAMES, places_of, user_frames


def read(text: str) -> object:
    return json.loads(text)


def read_again(text: str) -> object:
    try:
        return read(text)
    except ValueError as error:
        raise LookupError(text) from error


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    raise RuntimeError


def raised(call: object, *args: object) -> BaseException:
    try:
        call(*args)  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


def test_frames_of_libraries_are_left_out() -> None:
    *_, last = places_of(raised(read, "secret"))
    assert last.split(":")[0].endswith("test_user_frames.py")
    assert last.endswith(" in read")


def test_causes_follow_with_their_type_and_without_their_text() -> None:
    places = places_of(raised(read_again, "secret"))
    assert "caused by JSONDecodeError" in places
    assert "secret" not in "".join(places)


def test_only_the_innermost_frames_are_told() -> None:
    assert len(places_of(raised(deep, 50))) == MAX_FRAMES


def test_an_exception_that_was_never_raised_has_no_place() -> None:
    assert places_of(ValueError("made, not raised")) == []


def test_an_exception_without_a_frame_of_the_user_has_its_innermost_one() -> None:
    error = raised(json.loads, "{")
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    [place] = places_of(error)
    assert place.endswith(" in raw_decode")
    assert not place.startswith("/")


def test_paths_are_relative_to_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    assert places_of(raised(read, ""))[-1].startswith("test_user_frames.py:")


def test_source_lines_are_read_if_they_are_asked_for() -> None:
    error = raised(read, "")
    assert [frame.source for frame in user_frames(error, "/", with_source=True)][-1] == "return json.loads(text)"
    assert {frame.source for frame in user_frames(error, "/")} == {""}


def test_nothing_of_an_exception_or_of_the_machine_makes_it_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hostile(Exception):
        @property
        def __cause__(self) -> BaseException:  # type: ignore[override]
            raise OSError

    class Circle(Exception):
        pass

    gone = tmp_path / "gone"
    gone.mkdir()
    error = Circle()
    error.__cause__ = error
    places = places_of(raised(_raise, error))
    assert places[-1].endswith(" in _raise")
    assert not [place for place in places if place.startswith("caused by")], "it is its own cause"
    assert isinstance(places_of(Hostile()), list)
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert places_of(raised(read, "")) == []


def _raise(error: BaseException) -> None:
    raise error


def test_a_place_is_one_short_line() -> None:
    source = "def long_name():\n    raise ValueError\nlong_name()".replace("long_name", "x" * 5_000)
    *_, last = places_of(raised(exec, compile(source, "a\nb.py", "exec")))
    assert last.startswith("a b.py:2 in xxx")
    assert len(last) <= 200
