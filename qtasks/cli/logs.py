"""The log of a process: its level, and its form as text or as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

import click

from qtasks.cli.output import TextStream
from qtasks.tasks.context import LOG_FIELDS, current_context

F = TypeVar("F", bound=Callable[..., Any])

LEVELS: Final = ("debug", "info", "warning", "error")
_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
_SHORT_FORMAT: Final = "%(levelname)s %(name)s: %(message)s"
_CANCELLING: Final = "Cancel %s running task(s)"
"""How the text of uvicorn begins that says how many requests a stop cancels."""
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""Attributes of every record. The others are the fields that `extra` has added."""
_INDENT: Final = "    "


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How to log."""

    level: str | None = None
    """The level of the lines of qtasks, such as ``info``; None: that of the application, or else ``warning``."""
    form: Literal["text", "json"] = "text"


def log_options(default: str | None, *, events: bool = False) -> Callable[[F], F]:
    """The options `--log-level` and `--log-format` of a command, as the parameters `log_level` and `log_format`.

    `events`: the command also prints what happens, and does so in that form.
    """
    level = click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default=default,
        show_default=default or "warning",
        help="Log lines of this level and above.",
    )
    form = click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help=f"{'Print and log' if events else 'Log'} as text, or as JSON, one object a line.",
    )
    return lambda command: level(form(command))


class TextFormatter(logging.Formatter):
    """A line with time and level for each record; its further lines are indented.

    So text of other parties in a message cannot begin a line of its own, nor control the terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return f"\n{_INDENT}".join(map(_printable, super().format(record).rstrip("\n").split("\n")))


class JsonFormatter(logging.Formatter):
    """One JSON object for each record: ``time`` (UTC), ``level``, ``logger``, ``message``, and the record's fields.

    Fields are, where they apply, ``action``, ``message_id``, ``task``, ``call_id``, ``url``, ``attempt``, ``attempts``,
    ``status``, ``error`` and others; ``exception`` is a traceback. Inside of a task, each record has those of its run.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, in ASCII."""
        context = current_context()
        run = {} if context is None else {name: getattr(context, name) for name in LOG_FIELDS}
        fields = run | {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        facts = {
            "time": time,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in fields.items() if name not in ("time", "level", "logger")},
        }
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return json.dumps(facts, default=str)


def log_to(stream: TextStream, options: LogOptions = LogOptions()) -> None:
    """Send the log of this process to `stream`, unless the application has configured logging already."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter() if options.form == "json" else TextFormatter(_FORMAT))
        handler.addFilter(_is_not_cancelled)
        root.addHandler(handler)
    _set_level(options)


def log_by_default(options: LogOptions) -> None:
    """Print warnings of this process as text, until the application configures logging: then as it says."""
    if (handler := logging.lastResort) is not None:
        handler.setFormatter(TextFormatter(_SHORT_FORMAT))
        handler.addFilter(_is_not_cancelled)
        handler.setLevel(logging.NOTSET)  # the levels of the loggers decide
    _set_level(options)


def _set_level(options: LogOptions) -> None:
    if options.level is not None:
        logging.getLogger("qtasks").setLevel(options.level.upper())


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _is_not_cancelled(record: logging.LogRecord) -> bool:
    """False for what uvicorn logs about cancelled requests: the code that cancels logs one line; it would add forty."""
    if record.name == "uvicorn.error" and str(record.msg).startswith(_CANCELLING):
        return False
    if not record.exc_info:
        return True
    from asyncio import CancelledError  # here: `--help` and completion read the options of this module

    return not isinstance(record.exc_info[1], CancelledError)
