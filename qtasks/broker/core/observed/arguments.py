"""Looks an argument up in the body of a message: an envelope of the framework, or any JSON object. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

_MISSING: Final = object()


def has_value(body: bytes, path: Sequence[str], values: Sequence[str]) -> bool:
    """True if the argument at `path` is one of `values`, as text.

    The first part of the path is a name, or a position in the arguments; the others are members of objects, or
    positions in arrays. A text is compared as it is, anything else as JSON.
    In any other body the path begins at its top.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return any(_text_of(value) in values for value in _arguments(document, path))


def _arguments(document: Any, path: Sequence[str]) -> list[Any]:
    roots = [document]
    if isinstance(document, dict) and isinstance(document.get("args"), list) and isinstance(document.get("v"), int):
        roots = [document["args"], document.get("kwargs")]
    reached = (_at(root, path) for root in roots)
    return [value for value in reached if value is not _MISSING]


def _at(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and len(part) < 6 and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
