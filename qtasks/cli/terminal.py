"""What the terminal shows: one line an event, aligned, in plain ASCII where the stream knows no more."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from qtasks.broker.events import MessageEvent
from qtasks.cli.output import TextStream
from qtasks.masking import MASK, is_secret_name, mask_pairs, mask_values, secrets_in
from qtasks.protocol import durations
from qtasks.protocol.messages import Message, Response, State

_MARKS: Final = {"queued": "→", "tick": "◷", "done": "✓", "failed": "✗", "again": "↻", "cancelled": "–"}
_PLAIN_MARKS: Final = {"queued": ">", "tick": "@", "done": "+", "failed": "x", "again": "~", "cancelled": "-"}
_COLOURS: Final = {"queued": "2", "tick": "36", "done": "32", "failed": "31", "again": "33", "cancelled": "2"}
_VALUE_WIDTH: Final = 60
_USERINFO: Final = re.compile(r"//[^/]*@")
_ERROR_WIDTH: Final = 100
_ERROR_READ: Final = 4096
"""Characters of an error that are searched for secrets, of which the first `_ERROR_WIDTH` are shown."""
_NAME_WIDTH: Final = 16
_NAME_MOST: Final = 40
_DEPTH: Final = 8
"""Levels of a value that are shown; the rest is dots."""


@dataclass
class OutcomeCounts:
    """What came of the messages while we watched."""

    done: int = 0
    retried: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.done} done, {self.retried} retried, {self.failed} failed"


@dataclass
class EventPrinter:
    """Prints broker events; give `tell` to the broker as a watcher."""

    stream: TextStream = field(default_factory=lambda: sys.stdout)
    base_url: str = ""
    """Deliveries below it are shown by the name of their task, others by their URL."""
    colour: bool | None = None
    """None: as the stream and `NO_COLOR` say."""
    parameters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Task name to the names of its positional parameters, which tell where a positional argument is a secret."""
    tally: OutcomeCounts = field(default_factory=OutcomeCounts)

    def __post_init__(self) -> None:
        if self.colour is None:
            self.colour = self.stream.isatty() and not os.environ.get("NO_COLOR")
        self._marks = _MARKS if _can_encode(self.stream, "".join(_MARKS.values())) else _PLAIN_MARKS

    def tell(self, event: MessageEvent) -> None:
        """Print one event; an attempt's start is shown by its end."""
        described = self._describe(event)
        if described is not None:
            kind, detail = described
            self.stream.write(self._line(event, kind, detail) + "\n")
            self.stream.flush()

    def _describe(self, event: MessageEvent) -> tuple[str, str] | None:
        message = event.message
        attempts = f"{message.retried + 1}/{message.max_retries + 1}"
        took = "" if event.duration_ms is None else f"{_span(event.duration_ms)}  "
        if event.state is State.CREATED:
            when = "" if event.next_delivery_ms is None else f"  in {_until(event.next_delivery_ms, event.time_ms)}"
            kind = "queued" if message.schedule_id is None else "tick"
            return kind, f"{self._arguments(message)}{when}"
        if event.state is State.DELIVERED:
            self.tally.done += 1
            number = f"{attempts}  " if message.retried else ""
            return "done", f"{number}{took}{_result(event.outcome)}"
        if event.state is State.RETRY:
            self.tally.retried += 1
            again = _until(event.next_delivery_ms or event.time_ms, event.time_ms)
            return "again", f"{attempts}  {self._error(event)}  retry in {again}"
        if event.state is State.FAILED:
            self.tally.failed += 1
            return "failed", f"{attempts}  {self._error(event)}  kept in the dead letters"
        if event.state is State.CANCELED:
            return "cancelled", "cancelled"
        return None

    def _line(self, event: MessageEvent, kind: str, detail: str) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(event.time_ms / 1000))
        mark = self._marks[kind]
        if self.colour:
            mark = f"\x1b[{_COLOURS[kind]}m{mark}\x1b[0m"
        name = self._name(event.message)
        # Everything behind the mark may be somebody else's text; the mark's colour is the only escape sequence.
        rest = f"{name:<{_NAME_WIDTH}}  {short_id(event.message.id)}  {detail}".rstrip()
        return f"{clock}  {mark}  {printable(rest, self.stream)}"

    def _arguments(self, message: Message) -> str:
        """``2, b='x'`` of a task's envelope, the model of a chat request; the size of anything else."""
        document = _json(message.body)
        if isinstance(document, dict) and isinstance(document.get("messages"), list):
            return shorten(f"asks {document.get('model')}")
        if isinstance(document, dict) and {"sourceMessageId", "status"} <= document.keys():
            return shorten(f"is told of {document['status']}")
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
        return shorten(", ".join(values))

    def _positional_names(self, message: Message, count: int) -> list[str]:
        names = self.parameters.get(self._task(message) or "", ())
        return [*names[:count], *[""] * (count - len(names))]

    def _error(self, event: MessageEvent) -> str:
        """The endpoint's own words where it gave some, else what the broker saw; secrets are masked."""
        text = event.error or "failed"
        if isinstance(event.outcome, Response):
            document = _json(event.outcome.body)
            error = document.get("error") if isinstance(document, dict) else None
            error = error.get("message") if isinstance(error, dict) else error  # as providers of language models do
            text = error if isinstance(error, str) else text
        exception, colon, reason = text[:_ERROR_READ].partition(": ")
        if not (exception.isidentifier() and exception[0].isupper()):
            exception, colon, reason = "", "", text[:_ERROR_READ]
        # The name of an exception is not the name of a secret: what follows "TokenExpired: " is shown.
        masked = exception + colon + mask_pairs(mask_values(reason, self._secrets(event.message)))
        return shorten(masked.partition("\n")[0], _ERROR_WIDTH)

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
        """The name of the task that `message` calls; None for a message to another place."""
        prefix = self.base_url + "/"
        # What calls a task back, such as a request to a language model, belongs to that task.
        for url in (message.url, message.options.callback or ""):
            if self.base_url and url.startswith(prefix):
                return unquote(url.removeprefix(prefix).partition("?")[0])
        return None

    def _name(self, message: Message) -> str:
        if (task := self._task(message)) is not None:
            return shorten(task, _NAME_MOST)
        return shorten(_USERINFO.sub("//***@", message.url.partition("?")[0]), _NAME_MOST)


def short_id(message_id: str) -> str:
    """The end of an id, which is random; its beginning is the time and alike for all."""
    return f"msg_..{message_id[-6:]}"


def printable(text: str, stream: TextStream) -> str:
    """`text` with control characters and what `stream` cannot encode as ``?``: printing never fails, nor acts."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean.encode(stream.encoding or "utf-8", "replace").decode(stream.encoding or "utf-8")


def shorten(text: str, width: int = _VALUE_WIDTH) -> str:
    """`text` in at most `width` characters."""
    return text if len(text) <= width else text[: width - 3] + "..."


def _can_encode(stream: TextStream, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _result(outcome: object) -> str:
    if not isinstance(outcome, Response) or not outcome.body:
        return ""
    document = _json(outcome.body)
    return "" if document is None else shorten(_value(document))


def _value(value: Any, depth: int = 0) -> str:
    """As Python writes it, with secrets masked at every level."""
    if isinstance(value, (dict, list)) and depth >= _DEPTH:
        return "..."
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_masked(name, one, depth + 1)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(one, depth + 1) for one in value) + "]"
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


def _until(due_ms: int, now_ms: int) -> str:
    left_ms = max(0, due_ms - now_ms)
    # Beyond ten seconds fractions only distract; below, the last digit is the time it took to get here.
    return durations.format(round(left_ms, -1 if left_ms < 10_000 else -3))
