"""Stop signals of a server: the first SIGINT or SIGTERM asks it to stop, the second ends the process at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

log = logging.getLogger("qtasks.signals")

STOPPING: Final = (signal.SIGINT, signal.SIGTERM)
SECOND: Final = "a second Ctrl-C stops now"
SENT_AGAIN: Final = "and the broker sends the tasks that run once more"
"""What follows if a server of tasks stops now."""
NO_RELOAD: Final = (
    "SIGHUP reloads nothing: options are read at the start (restart to change them); tokens and keys in the database "
    "are noticed by themselves"
)


@dataclass(frozen=True, slots=True)
class StopRequests:
    """The requests to stop that have come."""

    once: asyncio.Event = field(default_factory=asyncio.Event)
    twice: asyncio.Event = field(default_factory=asyncio.Event)
    """Set only if the second signal does not end the process."""


@contextmanager
def stop_signals(*, second_ends: bool = True) -> Iterator[StopRequests]:
    """Yield what the signals set. The second one ends the process at once; not `second_ends`: the third one does.

    SIGHUP stops the process if its terminal has closed; otherwise it changes nothing, and the log says so.
    """
    stop = StopRequests()
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.once.set()
        for stop_signal in STOPPING:
            loop.remove_signal_handler(stop_signal)
        if second_ends:
            end_at_the_next()
            return
        for stop_signal in STOPPING:
            signal.signal(stop_signal, second)

    def second(_number: int, _: FrameType | None) -> None:
        end_at_the_next()
        loop.call_soon_threadsafe(stop.twice.set)

    for stop_signal in STOPPING:
        loop.add_signal_handler(stop_signal, first)
    on_hangup(loop, lambda: None if stop.once.is_set() else first())
    yield stop


def on_hangup(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Handle SIGHUP: `stop` if the process has a terminal, which has closed then; else log that nothing is reloaded."""
    if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # ignored: started by nohup
        return
    has_terminal = sys.stdin is not None and sys.stdin.isatty()
    loop.add_signal_handler(signal.SIGHUP, stop if has_terminal else lambda: log.warning(NO_RELOAD))


def end_at_the_next() -> None:
    """Let the next SIGINT or SIGTERM end the process, even if it is busy."""
    for stop_signal in STOPPING:
        # The default action of the kernel works even if the process is busy, but the kernel does not apply it to
        # process 1, the first process of a container.
        signal.signal(stop_signal, signal.SIG_DFL if os.getpid() != 1 else _end)


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
