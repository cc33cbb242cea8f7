"""Keeping records for async code: one thread flushes, and everybody who waited meanwhile shares the next flush."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from qtasks.errors import ResultError
from qtasks.tasks.results.backend import Hold, Record, ResultBackend

log = logging.getLogger("qtasks.results")

Waiter = asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands after somebody tried to get holds: whose they are, and the record of the call."""

    holds: tuple[Hold, ...]
    record: Record | None


@dataclass(slots=True)
class Wish:
    """Holds that somebody wants, and the call they are for."""

    holds: tuple[Hold, ...]
    call_id: str | None
    now_ms: int
    waiter: asyncio.Future[Standing | None] | None = None


class Keeper:
    """Writes to one backend on behalf of any number of event loops. A failure to write is logged, never raised.

    A task that is done is done: to run it again because its result has no place would be worse than losing the result.
    """

    def __init__(self, results: ResultBackend) -> None:
        self._results = results
        self._changed = threading.Condition()
        self._waiting: list[Waiter] = []
        self._wishes: list[Wish] = []
        self._thread: threading.Thread | None = None
        self._asked = False

    def put(self, record: Record) -> None:
        """Hand in a record, to be kept with the next flush."""
        self._results.put(record)

    def release(self, hold: Hold) -> None:
        """Let go of a hold with the next flush."""
        self._results.release(hold)

    async def stand(self, holds: Sequence[Hold], call_id: str | None, *, now_ms: int) -> Standing | None:
        """Try to get `holds` and read the record of `call_id`; what stands then, or None where it cannot be told."""
        wish = Wish(tuple(holds), call_id, now_ms)
        if not self._results.blocking:
            return self._stand([wish])[0]
        wish.waiter = asyncio.get_running_loop().create_future()
        with self._changed:
            self._wishes.append(wish)
            self._start()
        return await wish.waiter

    async def keep(self) -> None:
        """Return when every record that was put before is kept."""
        if not self._results.blocking:
            self._flush()
            return
        waiter = asyncio.get_running_loop().create_future()
        self.ask(waiter)
        await waiter

    def ask(self, *waiters: Waiter) -> None:
        """Have what was put kept soon, and `waiters` told."""
        if not self._results.blocking:
            self._flush()
            return
        with self._changed:
            self._waiting.extend(waiters)
            self._asked = True
            self._start()

    def _start(self) -> None:
        """Have the thread look at what there is to do; the lock is held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="qtasks-results", daemon=True)
            self._thread.start()
        self._changed.notify()

    def close(self) -> None:
        """Keep what is left and end the thread; a later use begins again. Idempotent."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while (work := self._next()) is not None:
            waiters, wishes, flush = work
            self._grant(wishes)
            if flush:
                self._flush()
            for loop in {waiter.get_loop() for waiter in waiters}:
                mine = [waiter for waiter in waiters if waiter.get_loop() is loop]
                with contextlib.suppress(RuntimeError):  # a loop that has closed: nobody waits there any more
                    loop.call_soon_threadsafe(_wake, mine)

    def _next(self) -> tuple[Sequence[Waiter], Sequence[Wish], bool] | None:
        """Those who wait for a flush and for holds, and whether to flush; None when no more will come."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._asked or self._wishes or self._thread is not threading.current_thread()
            )
            if not self._asked and not self._wishes:
                return None
            flush, self._asked = self._asked, False
            waiters, self._waiting = self._waiting, []
            wishes, self._wishes = self._wishes, []
        return waiters, wishes, flush

    def _grant(self, wishes: Sequence[Wish]) -> None:
        for wish, standing in zip(wishes, self._stand(wishes) if wishes else (), strict=True):
            assert wish.waiter is not None
            with contextlib.suppress(RuntimeError):  # as in `_work`
                wish.waiter.get_loop().call_soon_threadsafe(_answer, wish.waiter, standing)

    def _stand(self, wishes: Sequence[Wish]) -> list[Standing | None]:
        """All wishes in one transaction. A failure is logged: whoever asked has to go on without."""
        try:
            held = iter(
                self._results.acquire(
                    [hold for wish in wishes for hold in wish.holds], now_ms=max(wish.now_ms for wish in wishes)
                )
            )
            return [
                Standing(
                    tuple(next(held) for _ in wish.holds),
                    self._results.read(wish.call_id) if wish.call_id is not None else None,
                )
                for wish in wishes
            ]
        except ResultError:
            log.exception("holds could not be taken", extra={"action": "hold_lost"})
            return [None for _ in wishes]

    def _flush(self) -> None:
        try:
            self._results.flush()
        except ResultError:
            log.exception("a result was lost", extra={"action": "result_lost"})


def _wake(waiters: Sequence[Waiter]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _answer(waiter: asyncio.Future[Standing | None], standing: Standing | None) -> None:
    if not waiter.done():
        waiter.set_result(standing)
