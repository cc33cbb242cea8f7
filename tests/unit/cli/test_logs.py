"""What the log of a process looks like: lines for people, or objects for programs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from qtasks.cli.logs import LogOptions, log_by_default, log_options, log_to
from qtasks.tasks.context import CURRENT, TaskContext


@contextlib.contextmanager
def a_new_process() -> Iterator[logging.Logger]:
    """The root logger without the handlers of the test runner."""
    logger = logging.getLogger()
    before = logger.handlers[:]
    logger.handlers[:] = []
    try:
        yield logger
    finally:
        logger.handlers[:] = before


def test_a_record_is_a_line_with_its_time() -> None:
    with a_new_process():
        log_to(stream := io.StringIO())
        logging.getLogger("qtasks.test").warning("seen %s", "it")
        date, clock, rest = stream.getvalue().split(" ", 2)
        assert len(date) == 10
        assert "," in clock
        assert rest == "WARNING seen it\n"


def test_strangers_cannot_begin_a_line_of_the_log() -> None:
    with a_new_process():
        log_to(stream := io.StringIO())
        logging.getLogger("qtasks.test").error("refused %s", "a\n2026-01-01 INFO forged\x1b[2J\u2028")
        assert stream.getvalue().endswith("refused a\n    2026-01-01 INFO forged\\x1b[2J\\u2028\n")


def test_an_error_keeps_its_traceback_and_a_stop_has_none() -> None:
    with a_new_process():
        log_to(stream := io.StringIO())
        log = logging.getLogger("qtasks.test")
        for error in (ValueError("real"), asyncio.CancelledError("stopped")):
            try:
                raise error
            except BaseException:
                log.exception("failed")
        assert "Traceback" in stream.getvalue()
        assert "ValueError: real" in stream.getvalue()
        assert "CancelledError" not in stream.getvalue()


def test_an_application_that_has_said_where_its_log_goes_is_left_alone() -> None:
    with a_new_process() as root:
        chosen = logging.NullHandler()
        root.addHandler(chosen)
        log_to(io.StringIO())
        assert root.handlers == [chosen]


def test_a_message_of_several_lines_keeps_them_and_a_traceback_is_part_of_its_record() -> None:
    with a_new_process():
        log_to(stream := io.StringIO())
        try:
            raise ValueError("real")
        except ValueError:
            logging.getLogger("qtasks.test").exception("first\nsecond")
        first, *others = stream.getvalue().splitlines()
        assert first.endswith(" ERROR first")
        assert others[0] == "    second"
        assert others[1] == "    Traceback (most recent call last):"
        assert others[-1] == "    ValueError: real"
        assert all(line.startswith("    ") for line in others)


def test_json_is_one_object_a_line_with_the_fields_of_the_record() -> None:
    with a_new_process():
        log_to(stream := io.StringIO(), LogOptions(form="json"))
        log = logging.getLogger("qtasks.test")
        log.error("failed:\n%s \u2028 ü", "x", extra={"action": "retry", "message_id": "msg_1", "attempt": 2})
        try:
            raise ValueError("real")
        except ValueError:
            log.exception("broken")
        first, second = (json.loads(line) for line in stream.getvalue().splitlines())
        assert first.pop("time").endswith("Z")
        assert first == {
            "level": "error",
            "logger": "qtasks.test",
            "message": "failed:\nx \u2028 ü",
            "action": "retry",
            "message_id": "msg_1",
            "attempt": 2,
        }
        assert second["exception"].endswith("ValueError: real")
        assert stream.getvalue().isascii()


def test_json_says_in_which_run_of_a_task_a_line_was_logged() -> None:
    context = TaskContext(task="charge", call_id="call_1", message_id="msg_1", attempt=2, retries=3)
    with a_new_process():
        log_to(stream := io.StringIO(), LogOptions(form="json"))
        log = logging.getLogger("shop")
        token = CURRENT.set(context)
        log.error("in the task", extra={"order": 7, "attempt": 9})
        CURRENT.reset(token)
        log.error("outside")
        inside, outside = (json.loads(line) for line in stream.getvalue().splitlines())
        expected = {"task": "charge", "call_id": "call_1", "message_id": "msg_1", "order": 7, "attempt": 9}
        assert inside.items() >= expected.items()
        assert outside.keys() == {"time", "level", "logger", "message"}


def test_a_level_is_that_of_qtasks_and_of_no_library() -> None:
    qtasks = logging.getLogger("qtasks")
    before = qtasks.level
    with a_new_process() as root:
        root_level = root.level
        log_to(stream := io.StringIO(), LogOptions("debug"))
        logging.getLogger("qtasks.test").debug("ours")
        logging.getLogger("library").debug("theirs")
        assert root.level == root_level
        assert "ours" in stream.getvalue()
        assert "theirs" not in stream.getvalue()
    qtasks.setLevel(before)


def test_without_a_configuration_warnings_have_their_level_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    last = logging.lastResort
    assert last is not None
    before = last.formatter, last.level, list(last.filters)
    try:
        with a_new_process():
            log_by_default(LogOptions())
            logging.getLogger("qtasks.test").warning("a\nb")
            logging.getLogger("uvicorn.error").error("Cancel %s running task(s), timeout", 2)
        assert capsys.readouterr().err == "WARNING qtasks.test: a\n    b\n"
    finally:
        last.formatter, last.level, last.filters[:] = before


def test_a_command_has_the_options_and_their_defaults() -> None:
    @click.command()
    @log_options("info")
    def command(log_level: str, log_format: str) -> None:
        click.echo(f"{log_level} {log_format}")

    assert CliRunner().invoke(command, []).output == "info text\n"
    assert CliRunner().invoke(command, ["--log-level", "error", "--log-format", "json"]).output == "error json\n"
    assert "'loud' is not one of 'debug', 'info', 'warning', 'error'" in (
        CliRunner().invoke(command, ["--log-level", "loud"]).output
    )
