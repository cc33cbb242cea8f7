"""Calls that are made once: the key of a call, and holding it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks.results.backend import Hold, ResultBackend

log = logging.getLogger("qtasks.unique")

UNTIL_DONE_MS = 24 * 60 * 60 * 1000
"""How long a call is waited for that is never heard of again, its delay not counted: it may be a dead letter."""


@dataclass(frozen=True, slots=True)
class Unique:
    """The key under which a call is the only one, for `window_ms` or, when that is None, until it is done."""

    key: str
    window_ms: int | None = None

    def hold(self, call_id: str, now_ms: int, delay_ms: int) -> Hold:
        """What `call_id` has to get before it is sent."""
        span_ms = UNTIL_DONE_MS + delay_ms if self.window_ms is None else self.window_ms
        return Hold(self.key, call_id, now_ms + span_ms)


def key_of(task: str, choice: bool | str | Sequence[str], values: Mapping[str, Any]) -> str:
    """The key of a call with these plain JSON values. Raises DefinitionError for a parameter that does not exist."""
    given = (choice,) if isinstance(choice, str) else choice
    names = sorted(values) if isinstance(given, bool) else given
    for name in names:
        if name not in values:
            raise DefinitionError(
                f"{task}: unique={choice!r}, but there is no parameter {name!r}", code=ErrorCode.OPTION_INVALID
            )
    text = json.dumps([[name, values[name]] for name in names], sort_keys=True, ensure_ascii=True)
    return f"unique:{task}:{hashlib.sha256(text.encode()).hexdigest()}"


def taken(backend: ResultBackend, wanted: Hold, now_ms: int) -> str | None:
    """The call that has the key already, None when it is ours now. Raises ResultError."""
    (held,) = backend.acquire([wanted], now_ms=now_ms)
    if held.owner == wanted.owner:
        return None
    log.info("not sent: call %s stands for it", held.owner, extra={"action": "unique", "call_id": held.owner})
    return held.owner


def release(backend: ResultBackend, hold: Hold) -> None:
    """Let go of a key whose call was not sent after all."""
    backend.release(hold)
    backend.flush()
