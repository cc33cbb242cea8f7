"""Print what happens under `qtasks dev`: one aligned line for each event, in ASCII if the stream supports no more.

Under the line of a failure are the frames of the user's code, as the application has reported them.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from qtasks.broker.core.message_builder import LLM_URL
from qtasks.broker.events import MessageEvent
from qtasks.cli.output import TextStream
from qtasks.masking import MASK, is_secret_name, mask_pairs, mask_values, secrets_in
from qtasks.protocol import durations
from qtasks.protocol.messages import Message, Response, State
from qtasks.tasks.encode.encryption import is_sealed
from qtasks.tasks.send.end_callback import END_TASK

_MARKS: Final = {
    "queued": "→",
    "tick": "◷",
    "done": "✓",
    "failed": "✗",
    "again": "↻",
    "cancelled": "–",
    "request": "·",
}
_PLAIN_MARKS: Final = {
    "queued": ">",
    "tick": "@",
    "done": "+",
    "failed": "x",
    "again": "~",
    "cancelled": "-",
    "request": ".",
}
_COLOURS: Final = {
    "queued": "2",
    "tick": "36",
    "done": "32",
    "failed": "31",
    "again": "33",
    "cancelled": "2",
    "request": "2",
}
_VALUE_WIDTH: Final = 60
_USERINFO: Final = re.compile(r"//[^/]*@")
_ERROR_WIDTH: Final = 100
_ERROR_READ: Final = 4096
"""Characters of an error that are searched for secrets, of which the first `_ERROR_WIDTH` are shown."""
_NAME_WIDTH: Final = 16
_INDENT: Final = " " * 13
"""Up to the first column after the mark."""
_LEAST_WIDTH: Final = 12
"""Characters that are left of a text, however narrow the terminal is."""
_MAX_KEPT: Final = 1_000
"""Failures that were reported and whose event has not come."""
_NAME_MOST: Final = 40
_KEPT: Final = "kept in the dead letters"
_DEPTH: Final = 8
"""Levels of a nested value that are shown; deeper levels are shown as dots."""


@dataclass
class OutcomeCounts:
    """Numbers of deliveries that succeeded, were retried, and failed."""

    done: int = 0
    retried: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.done} done, {self.retried} retried, {self.failed} failed"


@dataclass
class EventPrinter:
    """Prints broker events: add its method `print_event` to the watchers of a broker."""

    stream: TextStream = field(default_factory=lambda: sys.stdout)
    base_url: str = ""
    """Messages to a URL below this one are shown by the name of their task, others by their URL."""
    colour: bool | None = None
    """True for colours; None decides by the stream and by `NO_COLOR`."""
    columns: Callable[[], int | None] = lambda: None
    """The width of the terminal; None: lines are not cut."""
    model: str = "the language model"
    """What answers `api/llm`, in words."""
    parameters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Task name to the names of its positional parameters, which tell where a positional argument is a secret."""
    tally: OutcomeCounts = field(default_factory=OutcomeCounts)
    running: dict[str, str] = field(default_factory=dict)
    """The messages whose attempt runs: the id, and the name that is shown."""
    _failures: dict[str, Sequence[str]] = field(default_factory=dict, init=False)
    """The lines under a failure, by message id."""

    def __post_init__(self) -> None:
        if self.colour is None:
            self.colour = self.stream.isatty() and not os.environ.get("NO_COLOR")
        self._marks = _MARKS if _can_encode(self.stream, "".join(_MARKS.values())) else _PLAIN_MARKS

    def print_event(self, event: MessageEvent) -> None:
        """Print one event. The start of an attempt is not printed, only its end.

        End callbacks, and callbacks that report a failure, are printed only if they fail: they are not work of the
        application, and the failure itself has a line.
        """
        message = event.message
        if event.state is State.ACTIVE:
            self.running[message.id] = self._name(message)
        elif event.state is not State.CREATED:
            self.running.pop(message.id, None)
        frames = self._failures.pop(message.id, ()) if event.state in (State.RETRY, State.FAILED) else ()
        if self._is_end_callback(message) or _reports_failure(message):
            detail = self._describe_callback(event)
        else:
            detail = self._describe(event)
        if detail is not None:
            self._show(event, detail, [self._masked_text(frame, message) for frame in frames])

    def note_failure(self, message_id: str, lines: Sequence[str]) -> None:
        """Keep the lines to print under the next failure of a message."""
        self._failures[message_id] = lines
        if len(self._failures) > _MAX_KEPT:
            del self._failures[next(iter(self._failures))]

    def print_request(self, method: str, path: str, status: int, took_ms: float, *, now_ms: int) -> None:
        """Print a request that the application has answered, and that was not a delivery."""
        detail = Detail("request", f"{status}  {_span(took_ms)}")
        self.write([self._line(now_ms, f"{shorten(f'{method} {path}', _NAME_MOST):<{_NAME_WIDTH}}", detail)])

    def _show(self, event: MessageEvent, detail: Detail, frames: Sequence[str], /) -> None:
        name = f"{self._name(event.message):<{_NAME_WIDTH}}  {short_id(event.message.id)}"
        self.write([self._line(event.time_ms, name, detail), *(self._cut(_INDENT + frame) for frame in frames)])

    def write(self, lines: Sequence[str]) -> None:
        """Write lines as they are."""
        self.stream.write("".join(line + "\n" for line in lines))
        self.stream.flush()

    def _describe_callback(self, event: MessageEvent) -> Detail | None:
        what = "end callback" if self._is_end_callback(event.message) else "callback"
        if event.state is State.RETRY:
            return Detail("again", f"{what}  {self._error(event)}", _retry_in(event))
        if event.state is State.FAILED:
            return Detail("failed", f"{what}  {self._error(event)}", _KEPT)
        return None

    def _describe(self, event: MessageEvent) -> Detail | None:
        message = event.message
        attempts = f"{message.retried + 1}/{message.max_retries + 1}"
        took = "" if event.duration_ms is None else f"{_span(event.duration_ms)}  "
        if event.state is State.CREATED:
            when = "" if event.next_delivery_ms is None else f"in {_until(event.next_delivery_ms, event.time_ms)}"
            kind = "queued" if message.schedule_id is None else "tick"
            return Detail(kind, self._arguments(message), when)
        if event.state is State.DELIVERED:
            self.tally.done += 1
            number = f"{attempts}  " if message.retried else ""
            return Detail("done", f"{number}{took}{result_text(event)}")
        if event.state is State.RETRY:
            self.tally.retried += 1
            return Detail("again", f"{attempts}  {self._error(event)}", _retry_in(event))
        if event.state is State.FAILED:
            self.tally.failed += 1
            return Detail("failed", f"{attempts}  {self._error(event)}", _KEPT)
        if event.state is State.CANCELED:
            return Detail("cancelled", "cancelled")
        return None

    def _line(self, time_ms: int, name: str, detail: Detail) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(time_ms / 1000))
        mark = self._marks[detail.kind]
        if self.colour:
            mark = f"\x1b[{_COLOURS[detail.kind]}m{mark}\x1b[0m"
        text, end = detail.text, f"  {detail.end}" if detail.end else ""
        if (columns := self.columns()) is not None:
            text = shorten(text, max(_LEAST_WIDTH, columns - len(f"{_INDENT}{name}  {end}")))
        # What follows the mark may be text of other parties: no escape sequence but the colour of the mark is written.
        rest = self._cut(f"{_INDENT}{name}  {text}{end}".rstrip())[len(_INDENT) :]
        return f"{clock}  {mark}  {rest}"

    def _cut(self, line: str) -> str:
        """`line` as it can be printed, not longer than the terminal is wide."""
        columns = self.columns()
        return printable(line if columns is None else shorten(line, columns), self.stream)

    def _arguments(self, message: Message) -> str:
        """The arguments of a call (``2, b='x'``), the model of a chat request, or the size of any other body."""
        document = _json(message.body)
        if isinstance(document, dict) and isinstance(document.get("messages"), list):
            where = self.model if message.url == LLM_URL else urlsplit(message.url).hostname
            return shorten(f"asks {document.get('model')} at {where}")
        if isinstance(document, dict) and {"sourceMessageId", "status"} <= document.keys():
            return shorten(f"callback with status {document['status']}")
        if not isinstance(document, dict) or "v" not in document:
            return f"{len(message.body)} bytes"
        positional, named = document.get("args", []), document.get("kwargs", {})
        if not isinstance(positional, list) or not isinstance(named, dict):
            return f"{len(message.body)} bytes"
        names = self._positional_names(message, len(positional))
        values = [_masked(name, value) for name, value in zip(names, positional, strict=True)]
        values += [f"{name}={_masked(name, value)}" for name, value in named.items()]
        if isinstance(pickled := document.get("pickled"), str):
            values.append(f"a pickle of {len(pickled):,} characters")
        if isinstance(coded := document.get("coded"), str):
            values.append(f"{'encrypted' if is_sealed(coded) else 'encoded'}, {len(coded):,} characters")
        return shorten(", ".join(values))

    def _positional_names(self, message: Message, count: int) -> list[str]:
        names = self.parameters.get(self._task(message) or "", ())
        return [*names[:count], *[""] * (count - len(names))]

    def _error(self, event: MessageEvent) -> str:
        """The error text of the endpoint or, if it gave none, that of the broker, with secrets masked."""
        text = event.error or "failed"
        if isinstance(event.outcome, Response):
            document = _json(event.outcome.body)
            error = document.get("error") if isinstance(document, dict) else None
            error = error.get("message") if isinstance(error, dict) else error  # the form of language model providers
            text = error if isinstance(error, str) else text
        return shorten(self._masked_text(text[:_ERROR_READ], event.message).partition("\n")[0], _ERROR_WIDTH)

    def _masked_text(self, text: str, message: Message) -> str:
        """A text about a call, with the values of its secret arguments and of secret names masked."""
        exception, colon, reason = text.partition(": ")
        if not (exception.isidentifier() and exception[0].isupper()):
            exception, colon, reason = "", "", text
        # The name of an exception is not the name of a secret: what follows "TokenExpired: " is shown.
        return exception + colon + mask_pairs(mask_values(reason, self._secrets(message)))

    def _secrets(self, message: Message) -> list[object]:
        """The values of the secret arguments of a call."""
        document = _json(message.body)
        if not isinstance(document, dict):
            return []
        positional, named = document.get("args"), document.get("kwargs")
        values = positional if isinstance(positional, list) else []
        names = self._positional_names(message, len(values))
        by_position = [{name: value} for name, value in zip(names, values, strict=True)]
        return list(secrets_in([*by_position, named]))

    def _task(self, message: Message) -> str | None:
        """The name of the task that `message` calls or reports on; None for a message to another place."""
        if self._is_end_callback(message):
            return parse_qs(message.url.partition("?")[2]).get("task", [None])[0]
        prefix = self.base_url + "/"
        # What calls a task back, such as a request to a language model, belongs to that task.
        for url in (message.url, message.options.callback or ""):
            if self.base_url and url.startswith(prefix):
                return unquote(url.removeprefix(prefix).partition("?")[0])
        return None

    def _is_end_callback(self, message: Message) -> bool:
        return bool(self.base_url) and message.url.startswith(f"{self.base_url}/{END_TASK}?")

    def _name(self, message: Message) -> str:
        if (task := self._task(message)) is not None:
            return shorten(task, _NAME_MOST)
        return shorten(_USERINFO.sub("//***@", message.url.partition("?")[0]), _NAME_MOST)


class Detail(NamedTuple):
    """What a line says after the name: its mark, a text that may be cut, and an end that stays."""

    kind: str
    text: str
    end: str = ""


def _reports_failure(message: Message) -> bool:
    """True for a callback that reports an attempt without success."""
    if message.options.callback is not None:  # it is a request, whose body may look like anything
        return False
    document = _json(message.body) if b"sourceMessageId" in message.body else None
    status = document.get("status") if isinstance(document, dict) and "sourceMessageId" in document else None
    return isinstance(status, int) and not 200 <= status < 300


def short_id(message_id: str) -> str:
    """The last characters of a message id, which are random; the first ones are a time and differ little."""
    return f"msg_..{message_id[-6:]}"


def printable(text: str, stream: TextStream) -> str:
    """`text` with ``?`` for control characters and for what `stream` cannot encode.

    So printing never fails, and text of other parties cannot control the terminal.
    """
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean.encode(stream.encoding or "utf-8", "replace").decode(stream.encoding or "utf-8")


def shorten(text: str, width: int = _VALUE_WIDTH) -> str:
    """`text`, cut to at most `width` characters."""
    return text if len(text) <= width else text[: width - 3] + "..."


def _can_encode(stream: TextStream, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def result_text(event: MessageEvent) -> str:
    """The value that an endpoint returned; of an answer of a language model, its text."""
    outcome = event.outcome
    if not isinstance(outcome, Response) or not outcome.body:
        return ""
    document = _json(outcome.body)
    if b'"messages"' in event.message.body and (text := _model_text(document)) is not None:
        document = text
    return "" if document is None else shorten(_value(document))


def _model_text(document: Any) -> str | None:
    """The text in an answer of a language model, in the form of OpenAI or of Anthropic; None if it has none."""
    match document:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"content": [{"text": str(text)}, *_]}:
            return text
    return None


def _value(value: Any, depth: int = 0) -> str:
    """`value` as Python writes it, with secrets masked at every level."""
    if isinstance(value, (dict, list)) and depth >= _DEPTH:
        return "..."
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_masked(name, item, depth + 1)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item, depth + 1) for item in value) + "]"
    return repr(value)


def _masked(name: str, value: Any, depth: int = 0) -> str:
    return MASK if is_secret_name(name) else _value(value, depth)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _span(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def _retry_in(event: MessageEvent) -> str:
    return f"retry in {_until(event.next_delivery_ms or event.time_ms, event.time_ms)}"


def _until(due_ms: int, now_ms: int) -> str:
    remaining_ms = max(0, due_ms - now_ms)
    # Round to seconds above ten seconds and to 10 ms below: the last digit is only the time taken so far.
    return durations.format(round(remaining_ms, -1 if remaining_ms < 10_000 else -3))
