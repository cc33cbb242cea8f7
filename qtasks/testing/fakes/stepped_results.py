"""Results in memory, in a world that moves only when it is told to: whoever would wait for ever hears why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from qtasks.errors import ResultTimeout
from qtasks.tasks.context import current_context
from qtasks.tasks.results.backend import Record, Watchers
from qtasks.tasks.results.memory import MemoryResults

KEPT_MS: Final = 100 * 366 * 24 * 60 * 60 * 1000
"""A test may travel for years, and looks at its results at the end."""


@dataclass(eq=False, slots=True)
class _Wait:
    """Somebody waits for the result of `key`; `call` is the running call that does, None for anybody else."""

    key: str
    call: str | None
    wake: Callable[[], None]
    hopeless: bool = False


_own: ContextVar[_Wait | None] = ContextVar("qtasks_wait", default=None)


class Waits(Watchers):
    """Who waits for what.

    `moving` says whether calls run at the moment, or are just about to; `changed` is called, on any thread, when a wait
    begins.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moving = False
        self.changed: Callable[[], None] = lambda: None
        self._guard = threading.Lock()
        self._waits: list[_Wait] = []

    def begin(self) -> bool:
        """Calls are about to run; False if they do already."""
        with self._guard:
            begun, self.moving = not self.moving, True
        return begun

    def end(self) -> None:
        """Calls run no more: whoever waits still, waits in vain."""
        self.moving = False
        self.give_up()

    @contextmanager
    def waiting(self, key: str, wake: Callable[[], None]) -> Iterator[None]:
        """See `Watchers.waiting`."""
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
        """The running calls that can do nothing but wait for another one."""
        with self._guard:
            waits = list(self._waits)
        return {one.call for one in waits if one.call is not None and not one.hopeless and not is_final(one.key)}

    def give_up(self, *, running: bool = False) -> None:
        """Tell those who wait now, or of them the running calls, that nothing will come of it."""
        with self._guard:
            waits = [one for one in self._waits if one.call is not None or not running]
        for one in waits:
            one.hopeless = True
            one.wake()


class KeptResults(MemoryResults):
    """Results in memory, kept however far a test travels."""

    def __init__(self) -> None:
        super().__init__(ttl_ms=KEPT_MS)

    def found(self, key: str) -> Record | None:
        """What is kept of a call, without any wait being meant."""
        return MemoryResults.read(self, key)

    def forget(self, call_id: str) -> None:
        """Lose everything about a call, as a process does that dies before it has written it down."""
        with self._lock:
            if (record := self._records.pop(call_id, None)) is not None:
                self._calls.pop(record.message_id, None)


class SteppedResults(KeptResults):
    """`explain` makes, from a call id and what is known of it, the error for whoever waits in vain."""

    def __init__(self, explain: Callable[[str, Record | None], ResultTimeout]) -> None:
        super().__init__()
        self.waits = Waits()
        self.watchers = self.waits
        self._explain = explain

    def read(self, key: str) -> Record | None:
        """See `ResultBackend.read`. Raises ResultTimeout in a wait that nothing can end."""
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
        """Whether the call has ended."""
        record = self.found(key)
        return record is not None and record.status.is_final
