"""JSON as fast as this installation can: by orjson where it is installed, else by the standard library.

For text between our own programs. Input from outside is read by `strict_json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final


def _of_standard_library() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
    return lambda value: encoder.encode(value).encode(), json.loads


def _quickest() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any], bool]:
    try:
        import orjson
    except ImportError:  # only the extra `broker` has it
        return *_of_standard_library(), False
    return orjson.dumps, orjson.loads, True


_DUMPS, _LOADS, _IS_QUICK = _quickest()

is_quick: Final = _IS_QUICK
"""True if orjson is installed. It reads an integer of more than 64 bits as a float, so its text shows that."""

dumps: Final = _DUMPS
"""A value as compact JSON, in UTF-8."""
loads: Final = _LOADS
"""The value of JSON text in UTF-8. Raises ValueError."""
