"""Unique calls: the key of a call, and its lock."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks.results.backend import Lock, ResultBackend, ResultStatus

log = logging.getLogger("qtasks.unique")

UNTIL_DONE_MS = 24 * 60 * 60 * 1000
"""How long a unique key stays locked, beyond the delay of its call, if the call never ends: it may be a dead letter."""


@dataclass(frozen=True, slots=True)
class Unique:
    """The key that only one call may have: for `window_ms`, or until the call has ended if `window_ms` is None."""

    key: str
    window_ms: int | None = None

    def lock(self, call_id: str, now_ms: int, delay_ms: int) -> Lock:
        """The lock that `call_id` takes before it is sent, `delay_ms` before it is due."""
        span_ms = UNTIL_DONE_MS + delay_ms if self.window_ms is None else self.window_ms
        return Lock(self.key, call_id, now_ms + span_ms)


def key_of(
    task: str,
    choice: bool | str | Sequence[str],
    values: Mapping[str, Any],
    parameters: Collection[str],
    digest: Callable[[bytes], str],
) -> str:
    """The key of a call with these plain JSON values, of which it has a `digest`; without those that are the default.

    A default has no part in the key: it may be another one in another process, such as the time of its start. Raises
    DefinitionError for a parameter that does not exist.
    """
    choices = (choice,) if isinstance(choice, str) else choice
    names = sorted(values) if isinstance(choices, bool) else choices
    for name in names:
        if name not in parameters:
            raise DefinitionError(
                f"{task}: unique={choice!r}, but there is no parameter {name!r}", code=ErrorCode.OPTION_INVALID
            )
    pairs = [[name, values[name]] for name in names if name in values]
    text = json.dumps(pairs, sort_keys=True, ensure_ascii=True)
    return f"unique:{task}:{digest(text.encode())}"


def take(
    backend: ResultBackend, lock: Lock, now_ms: int, is_dead: Callable[[Lock, int], bool] = lambda _, __: False
) -> str | None:
    """Try to take `lock`. Returns the id of the call that has it, or None if it was free. Raises ResultError.

    ``is_dead(lock, age_ms)`` is true for a call that the service has given up: its key is free. `age_ms` is how much
    earlier than `lock` it was taken. The key of a cancelled call is free, too: who cancels it may not know the key. So
    is that of a failed one whose hooks are being called.
    """
    (valid,) = backend.lock([lock], now_ms=now_ms)
    if valid.owner != lock.owner and (
        _has_ended(backend, valid.owner) or is_dead(valid, lock.until_ms - valid.until_ms)
    ):
        unlock(backend, valid)
        (valid,) = backend.lock([lock], now_ms=now_ms)
    if valid.owner == lock.owner:
        return None
    log.info("not sent: call %s takes its place", valid.owner, extra={"action": "unique", "call_id": valid.owner})
    return valid.owner


def _has_ended(backend: ResultBackend, call_id: str) -> bool:
    record = backend.read(call_id)
    return record is not None and (record.status is ResultStatus.CANCELLED or record.owes_hooks)


def unlock(backend: ResultBackend, lock: Lock) -> None:
    """Free the key of a call that was not sent after all."""
    backend.write((), [lock])
