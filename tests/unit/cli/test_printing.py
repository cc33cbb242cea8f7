"""Tables, progress and questions of the commands, where there is no terminal and on a narrow one."""

from __future__ import annotations

import io
import sys

import click
import pytest

from qtasks.cli.changes import confirmed, progress
from qtasks.cli.printing import TableColumn, age, counted, echo_json, echo_table, span

COLUMNS = (TableColumn("ID"), TableColumn("N", is_number=True), TableColumn("TEXT", is_flexible=True))


def test_a_table_is_cut_to_the_terminal_where_it_may_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    echo_table(COLUMNS, [("msg_1", "7", "x" * 100), ("msg_22", "1,234", "short")], ["e" * 100, ""])
    assert capsys.readouterr().out.splitlines() == [
        "ID          N  TEXT",
        f"msg_1       7  {'x' * 22}...",
        f"    {'e' * 33}...",
        "msg_22  1,234  short",
    ]


def test_text_of_others_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    echo_table(COLUMNS, [("msg_1", "1", "a\x1b[31mred\nline")], ["\x07bell"])
    out = capsys.readouterr().out
    assert "a?[31mred line" in out
    assert "\x1b" not in out.replace("\n", "")
    assert "    ?bell" in out


def test_json_is_ascii_where_the_terminal_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", written)
    echo_json({"text": "→"})
    written.flush()
    assert written.buffer.getvalue() == b'{\n  "text": "\\u2192"\n}\n'


def test_long_work_is_reported_by_the_tenth_and_short_work_not_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    for length in (500, 2_000):
        with progress("retry", length) as report:
            for done in range(100, length + 1, 100):
                report(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "retry: 200 of 2,000"
    assert lines[-1] == "retry: 2,000 of 2,000"
    assert len(lines) == 10


def test_a_question_names_what_it_touches_and_no_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"msg_{number}" for number in range(12)]
    with pytest.raises(click.UsageError, match="this would cancel 12 messages: confirm it with --yes"):
        confirmed("cancel 12 messages", names, yes=False, dry_run=False)
    assert capsys.readouterr().err.splitlines()[-1] == "  ... and 2 more"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(click, "confirm", lambda *_, **__: False)
    with pytest.raises(SystemExit) as end:
        confirmed("cancel 12 messages", names, yes=False, dry_run=False)
    assert end.value.code == 1
    assert confirmed("cancel", names, yes=True, dry_run=False)
    assert not confirmed("cancel", names, yes=True, dry_run=True)


def test_numbers_spans_and_ages_are_short() -> None:
    assert [counted(number, word) for number, word in ((1, "queue"), (1_200, "entry"))] == ["1 queue", "1,200 entries"]
    assert [span(ms) for ms in (0, 999, 59_000, 3_600_000, 90_000_000)] == ["0s", "0s", "59s", "1h", "1d"]
    assert [age(then, 60_000) for then in (None, 0, 120_000)] == ["", "1m", "in 1m"]
