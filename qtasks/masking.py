"""Which names hold secrets, and how their values are kept out of what people and assistants see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

MASK: Final = "***"
"""Shown in place of a secret."""

_PARTS: Final = r"passw|passphrase|pwd|secret|token|authorization|api_?-?key|access_?-?key|private_?-?key|credential"
_SECRET_NAME: Final = re.compile(_PARTS, re.IGNORECASE)
_QUOTED: Final = r"\"(?:[^\"\\]|\\.)*(?:\"|\Z)|'(?:[^'\\]|\\.)*(?:'|\Z)|\\+\"[^\"\\]*(?:\\+\"|\Z)"
_PAIR: Final = re.compile(
    rf"""
    (?P<name>(?<![\w.-])(?=[\w.-]*?(?:{_PARTS}))[\w.-]++)  # read once: the time grows with the text, not its square
    (?P<sign>\\*["']?\s*[:=]\s*)
    (?!"\*{{3}}"|'\*{{3}}'|\\+"\*{{3}}\\+"|\*{{3}}(?:[\s,;)\]}}"'\\]|\Z))  # masked already
    (?:{_QUOTED}|(?:bearer|basic)\s+[^\s,;]+|[^\s,;)\]}}]+)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_IN_URL: Final = re.compile(r"(?<=://)(?P<user>[^\s/:@\"]*):[^\s/?\"]+@")
"""The user and the password of a URL, up to the last ``@`` before its path."""
_SIGNATURE: Final = "signature"
"""The member with the signature of a task, whose defaults its application has masked: ``token: str`` names a type."""
_SHORT: Final = 4
"""Values with fewer characters are masked as whole words only: a single letter occurs in every word."""


def is_secret_name(name: str) -> bool:
    """True if a parameter, key or header with this name is treated as a secret, such as ``db_password``."""
    return _SECRET_NAME.search(name) is not None


def mask_pairs(text: str) -> str:
    """`text` with the values of pairs such as ``token=abc`` or ``"password": "x"``, and passwords in URLs, masked."""
    text = _IN_URL.sub(lambda url: f"{url['user']}:{MASK}@", text)
    return _PAIR.sub(lambda pair: f"{pair['name']}{pair['sign']}{MASK}", text)


def mask_values(text: str, secrets: Iterable[object]) -> str:
    """`text` with every occurrence of the `secrets` masked, as plain text and as Python writes them."""
    spellings = {spelling for secret in secrets for spelling in (str(secret), repr(secret)[1:-1], repr(secret))}
    for spelling in sorted(spellings, key=lambda it: (-len(it), it)):  # a longer one may contain a shorter one
        if len(spelling) >= _SHORT:
            text = text.replace(spelling, MASK)
        elif spelling:
            text = re.sub(rf"(?<!\w){re.escape(spelling)}(?!\w)", MASK, text)
    return text


def masked(value: Any) -> Any:
    """JSON data with the values of secret names masked, also inside its texts, which may be JSON themselves."""
    if isinstance(value, dict):
        return {name: masked_member(name, member) for name, member in value.items()}
    if isinstance(value, list):
        return [masked(member) for member in value]
    return masked_text(value) if isinstance(value, str) else value


def masked_member(name: str, value: Any) -> Any:
    """The value of a member with this name, masked."""
    if is_secret_name(name):
        return MASK
    return value if name == _SIGNATURE and isinstance(value, str) else masked(value)


def masked_text(text: str) -> str:
    """A text, which may be JSON, with the values of secret names masked."""
    try:
        document = json.loads(text)
        changed = masked(document)
    except (ValueError, RecursionError):
        return mask_pairs(text)
    return text if changed == document else json.dumps(changed, ensure_ascii=False)


def secrets_in(value: object, *, is_secret: bool = False, depth: int = 32) -> Iterator[str | int | float]:
    """The texts and numbers in JSON data whose name, at any level above them, is that of a secret.

    Levels below `depth` are not searched.
    """
    if depth == 0:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from secrets_in(inner, is_secret=is_secret or is_secret_name(str(name)), depth=depth - 1)
    elif isinstance(value, list):
        for inner in value:
            yield from secrets_in(inner, is_secret=is_secret, depth=depth - 1)
    elif is_secret and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield value
