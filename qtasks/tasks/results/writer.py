"""Writing to a result backend from async code: one thread writes; what arrives during a write shares the next one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from qtasks.tasks.results.backend import Lock, ResultBackend, ResultRecord, read_record
from qtasks.tasks.results.outage import Outage


class LockState(NamedTuple):
    """The state after an attempt to lock: the valid lock of each key, ours or not, and the record of the call."""

    locks: Sequence[Lock]
    record: ResultRecord | None


@dataclass(slots=True)
class _LockRequest:
    """Locks to take, and the call that they are for."""

    locks: Sequence[Lock]
    call_id: str | None
    now_ms: int
    answer: asyncio.Future[LockState | None] | None = None


_Answer = tuple[asyncio.Future[LockState | None], LockState | None]


class ResultWriter:
    """Writes to one backend on behalf of any number of event loops; with no backend it does nothing.

    A failure is logged, never raised, and tasks run as they would without a backend: running a finished task again
    because its result cannot be written would be worse than losing the result.
    """

    def __init__(self, backend: ResultBackend | None) -> None:
        self.is_enabled: Final = backend is not None
        """True if there is a backend."""
        self.is_blocking: Final = backend is not None and backend.blocking
        """True if the backend writes to a disk or a network."""
        self.backend = backend
        self._changed = threading.Condition()
        self._records: list[ResultRecord] = []
        self._unlocked: list[Lock] = []
        self._released: list[str] = []
        self._flush_waiters: list[asyncio.Future[None]] = []
        self._lock_requests: list[_LockRequest] = []
        self._thread: threading.Thread | None = None
        self._flush_requested = False
        self._write_outage = Outage("results cannot be written", "records lost")
        self._lock_outage = Outage("locks cannot be taken", "deliveries that may run twice")

    async def read(self, key: str) -> ResultRecord | None:
        """The record of a call id or a message id; None without a backend. Raises ResultError."""
        return None if self.backend is None else await read_record(self.backend, key)

    def while_hooks_run(self, call_id: str) -> contextlib.AbstractContextManager[None]:
        """See `ResultWatchers.while_hooks_run`."""
        return contextlib.nullcontext() if self.backend is None else self.backend.watchers.while_hooks_run(call_id)

    def record(self, records: Iterable[ResultRecord]) -> None:
        """Add records, to be written with the next flush."""
        with self._changed:
            self._records.extend(records)

    async def lock(self, locks: Sequence[Lock], call_id: str | None, *, now_ms: int) -> LockState | None:
        """Try to take `locks` and read the record of `call_id`; None without a backend, or if it cannot be reached."""
        if self.backend is None:
            return None
        request = _LockRequest(locks, call_id, now_ms)
        if not self.is_blocking:
            return self._lock(self.backend, [request])[0]
        request.answer = asyncio.get_running_loop().create_future()
        with self._changed:
            is_first = not self._lock_requests
            self._lock_requests.append(request)
            if is_first:  # for the others the thread is awake already
                self._wake_thread()
        return await request.answer

    def unlock(self, locks: Iterable[Lock]) -> None:
        """End locks with the next flush."""
        with self._changed:
            self._unlocked.extend(locks)

    def release(self, call_ids: Iterable[str]) -> None:
        """With the next flush, the records of these calls are no longer kept."""
        with self._changed:
            self._released.extend(call_ids)

    async def flush(self) -> None:
        """Return when everything added before is written."""
        if not self.is_blocking:
            self._flush()
            return
        waiter = asyncio.get_running_loop().create_future()
        with self._changed:
            self._flush_waiters.append(waiter)
            self._request_flush()
        await waiter

    def flush_soon(self) -> None:
        """Start to write what was added, without waiting for it."""
        if not self.is_blocking:
            self._flush()
            return
        with self._changed:
            self._request_flush()

    def close(self) -> None:
        """Write what is left and end the thread; a later use begins again. Idempotent."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        self._flush()

    def _request_flush(self) -> None:
        if not self._flush_requested:
            self._flush_requested = True
            self._wake_thread()

    def _wake_thread(self) -> None:
        """Start the thread or wake it; the condition is held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="qtasks-results", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _work(self) -> None:
        while (work := self._next_work()) is not None:
            waiters, requests, flush = work
            self._answer(requests)
            if flush:
                self._flush()
            for loop in {waiter.get_loop() for waiter in waiters}:
                on_loop = [waiter for waiter in waiters if waiter.get_loop() is loop]
                with contextlib.suppress(RuntimeError):  # the loop has closed: nothing waits there any more
                    loop.call_soon_threadsafe(_wake, on_loop)

    def _next_work(self) -> tuple[Sequence[asyncio.Future[None]], Sequence[_LockRequest], bool] | None:
        """Those who wait for a flush, the locks to take, and whether to flush; None when the writer has closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._flush_requested or self._lock_requests or self._thread is not threading.current_thread()
            )
            if not self._flush_requested and not self._lock_requests:
                return None
            flush, self._flush_requested = self._flush_requested, False
            waiters, self._flush_waiters = self._flush_waiters, []
            requests, self._lock_requests = self._lock_requests, []
        return waiters, requests, flush

    def _answer(self, requests: Sequence[_LockRequest]) -> None:
        if not requests or self.backend is None:
            return
        answers: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
        for request, state in zip(requests, self._lock(self.backend, requests), strict=True):
            assert request.answer is not None
            answers.setdefault(request.answer.get_loop(), []).append((request.answer, state))
        for loop, of_loop in answers.items():
            with contextlib.suppress(RuntimeError):  # as in `_work`
                loop.call_soon_threadsafe(_set_states, of_loop)

    def _flush(self) -> None:
        with self._changed:
            records, self._records = self._records, []
            unlocked, self._unlocked = self._unlocked, []
            released, self._released = self._released, []
        if self.backend is None or not (records or unlocked or released):
            return
        try:
            self.backend.write(records, unlocked, released)
        except Exception as error:  # every exception: the thread must go on
            self._write_outage.failed(error, len(records))
        else:
            self._write_outage.worked()

    def _lock(self, backend: ResultBackend, requests: Sequence[_LockRequest]) -> list[LockState | None]:
        """All requests in one transaction. A failure is logged: the callers have to go on without locks."""
        locks: list[Lock] = []
        now_ms = 0
        for request in requests:
            locks.extend(request.locks)
            now_ms = max(now_ms, request.now_ms)
        states: list[LockState | None] = []
        begin = 0
        try:
            valid = backend.lock(locks, now_ms=now_ms)
            call_ids = [request.call_id for request in requests if request.call_id is not None]
            records = iter(backend.read_calls(call_ids))
            for request in requests:
                record = next(records) if request.call_id is not None else None
                end = begin + len(request.locks)
                states.append(LockState(valid[begin:end], record))
                begin = end
        except Exception as error:  # as in `_flush`
            self._lock_outage.failed(error, len(requests))
            return [None] * len(requests)
        self._lock_outage.worked()
        return states


def _wake(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def _set_states(answers: Sequence[_Answer]) -> None:
    for future, state in answers:
        if not future.done():
            future.set_result(state)
