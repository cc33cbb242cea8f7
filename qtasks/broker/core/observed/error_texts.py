"""What an attempt failed with, in words, and which errors are the same failure. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import orjson

MAX_SHOWN: Final = 2_000
"""Characters of an error that are shown."""
_COMPARED: Final = 600
"""Characters of an error that count for its pattern."""
_CUT_ERROR: Final = re.compile(rb'\{"error":"((?:[^"\\]|\\.)*)')

_KEPT: Final = r"(?P<kept>\banswered [1-5]\d\d\b)"
_CHANGING: Final = re.compile(
    "|".join(
        (
            _KEPT,
            r'"[^"]*"',
            r"(?<!\w)'[^']*'(?!\w)",
            r"`[^`]*`",
            r"\b[a-z][a-z0-9+.-]{1,15}://[^\s'\"<>]+",
            r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b",
            r"(?<!\w)\[?(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}\]?(?::\d+)?(?!\w)",
            r"\b[A-Za-z]{1,12}_[0-9A-Za-z_-]*\d[0-9A-Za-z_-]*",
            r"\b0[xX][0-9A-Fa-f]+\b",
            r"\b(?=[0-9A-Za-z]{0,63}\d)[0-9A-Za-z]{8,64}\b",
            r"\d+(?:[.,:]\d+)*",
        )
    )
)
"""What may differ between two errors of one failure: quoted values, URLs, addresses, ids, numbers. A status stays."""


def text_of(error: str | None, body: bytes | None, *, is_task: bool) -> str:
    """The error of a failed attempt: what a dispatcher's answer says, else the text of the log.

    `body` is that of the answer, which may be cut (`log_entries.cut_answer`).
    """
    answer = _error_in(body) if is_task and body else None
    return (answer or error or "no reason is known")[:MAX_SHOWN]


def places_in(body: bytes | None) -> list[str]:
    """Where in the user's code the error of a dispatcher's answer was raised, the innermost last; empty if not told."""
    try:
        document = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        return []
    places = document.get("at") if isinstance(document, dict) else None
    return [place for place in places if isinstance(place, str)] if isinstance(places, list) else []


def _error_in(body: bytes) -> str | None:
    """The member `error` of a JSON object; None without one."""
    if not body.startswith(b"{"):
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        beginning = _CUT_ERROR.match(body)
        return None if beginning is None else _unescaped(beginning[1])
    error = document.get("error")
    return error if isinstance(error, str) else None


def _unescaped(escaped: bytes) -> str:
    try:
        return str(orjson.loads(b'"%s"' % escaped))
    except orjson.JSONDecodeError:  # half of an escaped character at its end
        return escaped.decode(errors="replace")


def pattern_of(text: str) -> str:
    """The text without what may differ between two errors of one failure."""
    return _CHANGING.sub(lambda match: match["kept"] or "…", text[:_COMPARED])


def fingerprint(url: str, pattern: str) -> str:
    """The name of a failure: 16 hex digits, the same for all errors of that pattern at a destination."""
    return hashlib.sha256(f"{url}\n{pattern}".encode(errors="replace")).hexdigest()[:16]
