"""Counts the deliveries that run in this process, says how many more may begin, and when the last one has ended."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Final

from qtasks.tasks.run.thread_pool import ThreadPool

MAX_RUNNING: Final = 256
"""Deliveries beyond which none is asked for. One that is made all the same runs, if it does not come in a bundle."""
_WEIGHT: Final = 1 / 32
"""Of the latest delivery in the part of them that need a thread."""


class RunSlots:
    """The deliveries that run. Those of a ``def`` need one of `threads`, now or in a moment.

    It may be used from any thread. The embedded broker may change loops when an application starts, so two of them may
    count at once.
    """

    def __init__(self, threads: ThreadPool) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self.running = 0
        """How many deliveries run."""
        self._in_threads = 0
        """How many of them need a thread."""
        self.all_ended: Future[None] | None = None
        """Done when the last delivery has ended; None while more are taken."""
        self._thread_share = 0.0
        """The part of the latest deliveries that needed a thread, those without room included."""

    def take(self, *, needs_thread: bool) -> None:
        """A delivery begins."""
        with self._lock:
            self._note(needs_thread)
            self.running += 1
            self._in_threads += needs_thread

    def take_free(self, *, needs_thread: bool) -> bool:
        """A delivery begins if there is room for it; False if there is none."""
        with self._lock:
            self._note(needs_thread)
            if self.running >= MAX_RUNNING or (needs_thread and self._room_in_threads() <= 0):
                return False
            self.running += 1
            self._in_threads += needs_thread
            return True

    def give_back(self, *, needs_thread: bool) -> None:
        """A delivery has ended."""
        with self._lock:
            self.running -= 1
            self._in_threads -= needs_thread
            self._end_if_last()

    def free(self) -> int:
        """How many deliveries may begin now, if threads are needed as often as by the latest ones; 0 after `close`.

        One of them may find no thread, and is handed back. So while long calls hold all threads, deliveries that need
        none still come.
        """
        if self.all_ended is not None:
            return 0
        free, room = max(0, MAX_RUNNING - self.running), max(0, self._room_in_threads()) + 1
        return free if free * self._thread_share <= room else int(room / self._thread_share)

    def close(self) -> Future[None]:
        """Offer no more slots. The future is done when the last delivery has ended."""
        with self._lock:
            if self.all_ended is None:
                self.all_ended = Future()
            self._end_if_last()
            return self.all_ended

    def _note(self, needs_thread: bool) -> None:
        self._thread_share += (needs_thread - self._thread_share) * _WEIGHT

    def _end_if_last(self) -> None:
        if self.running == 0 and self.all_ended is not None and not self.all_ended.done():
            self.all_ended.set_result(None)

    def _room_in_threads(self) -> int:
        """A delivery may not have its thread yet, and a thread may run on after the time of its delivery."""
        return self._threads.room() - max(0, self._in_threads - self._threads.calls)
