"""Results in memory for virtual time: a wait that could never end raises an error that says why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from qtasks.errors import ResultTimeout
from qtasks.tasks.context import current_context
from qtasks.tasks.results.backend import ResultRecord, ResultWatchers
from qtasks.tasks.results.memory import MemoryResults


@dataclass(eq=False, slots=True)
class _Wait:
    """A wait for the result of `key`; `call` is the id of the running call that waits, None outside of calls."""

    key: str
    call: str | None
    wake: Callable[[], None]
    hopeless: bool = False


_own: ContextVar[_Wait | None] = ContextVar("qtasks_wait", default=None)


class Waits(ResultWatchers):
    """The waits for results.

    `moving` is true while calls run or are about to run; `changed` is called, on any thread, when a wait begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moving = False
        self.changed: Callable[[], None] = lambda: None
        self._guard = threading.Lock()
        self._waits: list[_Wait] = []

    def begin(self) -> bool:
        """Note that calls are about to run; False if calls run already."""
        with self._guard:
            begun, self.moving = not self.moving, True
        return begun

    def end(self) -> None:
        """Note that calls do not run any more, and end the waits that remain."""
        self.moving = False
        self.give_up()

    @contextmanager
    def waiting(self, key: str, wake: Callable[[], None]) -> Iterator[None]:
        """See `ResultWatchers.waiting`."""
        context = current_context()
        wait = _Wait(key, None if context is None else context.call_id, wake)
        with self._guard:
            self._waits.append(wait)
        outer = _own.set(wait)
        try:
            with self.watching(key, wake):
                self.changed()
                yield
        finally:
            _own.reset(outer)
            with self._guard:
                self._waits.remove(wait)

    def blocked(self, is_final: Callable[[str], bool]) -> set[str]:
        """Ids of the running calls that wait for another call."""
        with self._guard:
            waits = list(self._waits)
        return {wait.call for wait in waits if wait.call is not None and not wait.hopeless and not is_final(wait.key)}

    def give_up(self, *, running: bool = False) -> None:
        """End the current waits, or with `running` only those of running calls: their results will not arrive."""
        with self._guard:
            waits = [wait for wait in self._waits if wait.call is not None or not running]
        for wait in waits:
            wait.hopeless = True
            wait.wake()


UNTIL_THE_END_MS: Final = 100 * 366 * 24 * 60 * 60 * 1000
"""Longer than a test advances its clock."""


class EnvironmentResults(MemoryResults):
    """Results in memory of a test. They are kept until its end, or for as long as `keep_for` says."""

    def __init__(self) -> None:
        super().__init__(ttl_ms=UNTIL_THE_END_MS)

    def keep_for(self, ttl_ms: int) -> None:
        """From now on, delete finished records `ttl_ms` after their last change, on the clock of the test."""
        self._ttl_ms = ttl_ms

    def found(self, key: str) -> ResultRecord | None:
        """The record of a call; unlike `read`, it never ends a wait."""
        return MemoryResults.read(self, key)

    def forget(self, call_id: str) -> None:
        """Drop the record of a call, like a process that dies before it writes the record."""
        with self._lock:
            if (record := self._records.pop(call_id, None)) is not None:
                self._calls.pop(record.message_id, None)


class SteppedResults(EnvironmentResults):
    """Results for virtual time. `explain` makes the error of a wait that cannot end, from call id and record."""

    def __init__(self, explain: Callable[[str, ResultRecord | None], ResultTimeout]) -> None:
        super().__init__()
        self.waits = Waits()
        self.watchers = self.waits
        self._explain = explain

    def read(self, key: str) -> ResultRecord | None:
        """See `ResultBackend.read`. Raises ResultTimeout in a wait that cannot end."""
        record = super().read(key)
        wait = _own.get()
        if (
            wait is not None
            and wait.key == key
            and (wait.hopeless or not self.waits.moving)
            and not (record is not None and record.status.is_final)
        ):
            raise self._explain(key, record)
        return record

    def is_final(self, key: str) -> bool:
        """True if the call has ended."""
        record = self.found(key)
        return record is not None and record.status.is_final
