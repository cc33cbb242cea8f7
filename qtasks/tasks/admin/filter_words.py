"""The words of a filter (docs/console.md): how they are read, written, and compared with a message.

A broker of ours compares them itself, by its console API. For other services this module does: the words that their API
has become its parameters, the others are compared here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypedDict

from qtasks.errors import InvalidCallError, did_you_mean
from qtasks.protocol import durations
from qtasks.protocol.labels import argument_labels
from qtasks.tasks.admin.summaries import MessageSummary

STATUSES: Final = ("scheduled", "waiting", "running", "retrying", "delivered", "failed", "canceled")
NAMES: Final = ("task", "url", "status", "error", "id", "queue", "key", "label", "schedule", "after", "before")
_ARGUMENT: Final = "arg."
_NAMED: Final = re.compile(r"(-?)([a-z]+|arg\.[^:\s]+):(.*)", re.DOTALL)
_PART: Final = re.compile(r'"([^"]*)"|([^\s,"]+)')
_WORD: Final = re.compile(r'(?:"[^"]*"|[^\s"])+')
_FORMS: Final = "write it as 2026-11-28, 2026-11-28T10:00, or an age such as 15m, 2h or 3d"


class FilterOptions(TypedDict, total=False):
    """The words of a filter as keyword arguments. A list: one of its values must hold."""

    task: str | list[str]
    """Name of the task."""
    url: str | list[str]
    """The destination, whole or up to a ``*`` at the end."""
    status: str | list[str]
    """One of `STATUSES`."""
    error: str | list[str]
    """A part of the error of a failed attempt, in any case."""
    queue: str | list[str]
    """Name of the queue."""
    key: str | list[str]
    """The flow-control key."""
    label: str | list[str]
    """A label."""
    schedule: str | list[str]
    """Id of the schedule."""
    after: str | datetime
    """Published at this time or later: a time, or an age such as ``2h``."""
    before: str | datetime
    """Published before this time."""


@dataclass(frozen=True, slots=True)
class FilterWord:
    """One condition: one of `values` must hold, or none of them if it is negated. A bare word has no name."""

    name: str
    values: tuple[str, ...]
    negated: bool = False


def read(text: str) -> tuple[FilterWord, ...]:
    """The words of a filter. Raises InvalidCallError for one that cannot be read."""
    if text.count('"') % 2:
        raise InvalidCallError(f"the filter {text!r} has a quotation mark without its partner", fix='write "..."')
    return tuple(_read_word(word.group()) for word in _WORD.finditer(text))


def written(text: str, options: Mapping[str, Any]) -> str:
    """The filter `text` with the words of `options` behind it. Raises InvalidCallError for an unknown name."""
    words = [text] if text else []
    for name, value in options.items():
        if name not in NAMES:
            raise InvalidCallError(f"a filter has no word {name!r}{did_you_mean(name, NAMES)}")
        values = [_text_of(each) for each in (value if isinstance(value, (list, tuple)) else (value,))]
        words.append(f"{name}:{','.join(map(_quoted, values))}")
    combined = " ".join(words)
    read(combined)
    return combined


def _text_of(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value)


def _quoted(value: str) -> str:
    if '"' in value:
        raise InvalidCallError(f"a value of a filter cannot contain a quotation mark: {value!r}")
    return f'"{value}"' if not value or re.search(r"[\s,]", value) else value


def _read_word(text: str) -> FilterWord:
    match = _NAMED.fullmatch(text)
    if match is None or text.lstrip("-").startswith(("http://", "https://", '"')):
        negated = text.startswith("-") and len(text) > 1
        return FilterWord("", (text.removeprefix("-" if negated else "").replace('"', ""),), negated)
    negated, name, rest = bool(match[1]), match[2], match[3]
    if name not in NAMES and not name.startswith(_ARGUMENT):
        names = f"; known: {', '.join(NAMES)}, arg.NAME"
        raise InvalidCallError(f"a filter has no word {name!r}{did_you_mean(name, NAMES) or names}")
    values = tuple(quoted or plain for quoted, plain in _PART.findall(rest))
    if not values:
        raise InvalidCallError(f"the filter {text!r} lacks a value", fix=f"{name}:VALUE")
    if name == "status" and (unknown := [value for value in values if value not in STATUSES]):
        hint = did_you_mean(unknown[0], STATUSES) or f"; known: {', '.join(STATUSES)}"
        raise InvalidCallError(f"there is no status {unknown[0]!r}{hint}")
    return FilterWord(name, values, negated)


def time_ms(text: str, now_ms: int) -> int:
    """The time that `text` names, Unix milliseconds: a date, a time (UTC without an offset), or an age."""
    try:
        return now_ms - durations.parse(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidCallError(f"{text!r} is not a time", fix=_FORMS) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def positive(words: Iterable[FilterWord], name: str) -> list[str]:
    """The values of the words `name` that are not negated; empty without exactly one such word."""
    values = [word.values for word in words if word.name == name and not word.negated]
    return list(values[0]) if len(values) == 1 else []


_COMPARISONS: Final[Mapping[str, Callable[[MessageSummary, str], bool]]] = {
    "": lambda message, value: (
        value in (message.message_id, message.call_id)
        or value.casefold() in (message.task or message.destination).casefold()
    ),
    "task": lambda message, value: message.task == value,
    "url": lambda message, value: _same_url(message.destination, value),
    "status": lambda message, value: message.status == value,
    "error": lambda message, value: value.casefold() in (message.error or "").casefold(),
    "id": lambda message, value: value in (message.message_id, message.call_id),
    "queue": lambda message, value: message.queue == value,
    "key": lambda message, value: message.flow_key == value,
    "label": lambda message, value: value in message.labels,
    "schedule": lambda message, value: message.schedule_id == value,
}


@dataclass(frozen=True, slots=True)
class FilterMatcher:
    """Compares messages with the words of a filter. `now_ms` is what ages count from."""

    words: tuple[FilterWord, ...]
    now_ms: int

    def matches(self, message: MessageSummary) -> bool:
        """True if all words hold."""
        return all(
            any(self._compare(word.name, value, message) for value in word.values) != word.negated
            for word in self.words
        )

    def _compare(self, name: str, value: str, message: MessageSummary) -> bool:
        if name == "after":
            return message.created_ms >= time_ms(value, self.now_ms)
        if name == "before":
            return message.created_ms < time_ms(value, self.now_ms)
        if name.startswith(_ARGUMENT):
            path = name.removeprefix(_ARGUMENT).split(".")
            if len(path) == 1 and (labels := labels_of_argument(message, path[0])):
                return argument_labels.label_of(path[0], value) in labels
            return any(_text(argument) == value for argument in _argument(message, path))
        return _COMPARISONS[name](message, value)


def searchable(words: Iterable[FilterWord]) -> FilterWord | None:
    """The first word about an argument that may have labels, by which a service finds messages; None without one."""
    names = (word for word in words if word.name.startswith(_ARGUMENT) and not word.negated)
    return next((word for word in names if argument_labels.is_name(word.name.removeprefix(_ARGUMENT))), None)


def labels_of(word: FilterWord) -> list[str]:
    """The labels of messages for which a word about an argument holds."""
    name = word.name.removeprefix(_ARGUMENT)
    return [argument_labels.label_of(name, value) for value in word.values]


def has_labels_of(word: FilterWord, message: MessageSummary) -> bool:
    """True if a message has any label of the argument that a word is about."""
    return bool(labels_of_argument(message, word.name.removeprefix(_ARGUMENT)))


def labels_of_argument(message: MessageSummary, name: str) -> list[str]:
    """The labels that a message has of an argument: they say all about it."""
    return [label for label in message.argument_labels if argument_labels.name_in(label) == name]


def _same_url(destination: str, value: str) -> bool:
    return destination.startswith(value[:-1]) if value.endswith("*") else destination == value.partition("?")[0]


def _argument(message: MessageSummary, path: list[str]) -> Iterator[object]:
    """The argument at `path`, by its name or its position; nothing if the message has no such argument."""
    value: object = message.arguments
    for step in path:
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return
    yield value


def _text(value: object) -> str:
    """How a value is written in a filter: as JSON writes it, a text without its quotation marks."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
