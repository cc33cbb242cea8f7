"""The labels by which a call is found by one of its arguments (docs/protocol.md 3.10). Pure.

    qtasks.arg.user_id=42         the argument is 42, or the text "42"
    qtasks.arg.user_id#73475cb4   a longer or an unusual value, by its hash
    qtasks.arg.user_id            the call does not have the argument

An object, an array or a float has no label. A message without any label of that name may have the
argument all the same: it must be read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from qtasks.protocol import strict_json

PREFIX: Final = "qtasks.arg."
MAX_NAMES: Final = 8
"""Arguments of a task that may have labels: a message has 64 labels at most, of which some are the user's."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_PLAIN: Final = re.compile(r"[!-+\--~]{1,64}")
"""A value that is in its label as it is: visible ASCII characters, without the comma that separates labels."""
_HASH_DIGITS: Final = 32


def is_name(name: str) -> bool:
    """True if an argument of this name can have a label."""
    return _NAME.fullmatch(name) is not None


def labels_of(searchable: Mapping[str, int | None], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a call with these plain JSON values.

    `searchable` are names, each with its position; None for an argument that is passed by name only.
    """
    labels: list[str] = []
    for name, place in searchable.items():
        if name in kwargs:
            text = text_of(kwargs[name])
        elif place is not None and place < len(args):
            text = text_of(args[place])
        else:
            labels.append(PREFIX + name)
            continue
        if text is not None:
            labels.append(label_of(name, text))
    return tuple(labels)


def relabelled(
    labels: Sequence[str], body: bytes, searchable: Mapping[str, int | None] | None = None
) -> tuple[str, ...]:
    """The labels of a call like one with these `labels`, with another body.

    `searchable` is as for `labels_of`. Where it is unknown, an argument that the new call may have by its position gets
    no label.
    """
    others = without(labels)
    try:
        call = strict_json.loads(body, big_integers=True)
    except ValueError:
        return others
    args, kwargs = (call.get("args"), call.get("kwargs")) if isinstance(call, dict) else (None, None)
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        return others
    names = {name_in(label) for label in labels if is_argument_label(label)}
    if searchable is None:
        searchable = {name: None for name in sorted(names) if name in kwargs or not args}
    return (*others, *labels_of(searchable, args, kwargs))


def label_of(name: str, text: str) -> str:
    """The label of an argument with this value as text."""
    if _PLAIN.fullmatch(text) is not None:
        return f"{PREFIX}{name}={text}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    return f"{PREFIX}{name}#{digest}"


def text_of(value: Any) -> str | None:
    """A plain JSON value as it is written in a filter; None for one that has no label: an object, an array, a float."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, (str, int)) else None


def is_argument_label(label: str) -> bool:
    """True for a label of this module."""
    return label.startswith(PREFIX)


def name_in(label: str) -> str:
    """The name of the argument in a label of this module."""
    return re.split(r"[=#]", label.removeprefix(PREFIX), maxsplit=1)[0]


def without(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels that are not of this module: those that users have chosen, and those of schedules."""
    return tuple(label for label in labels if not is_argument_label(label))
