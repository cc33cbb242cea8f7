"""Stop signals of a server: the first SIGINT or SIGTERM asks it to stop, the second ends the process at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """Yield an event that the first signal sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for stop_signal in STOPPING:
            loop.remove_signal_handler(stop_signal)
        end_at_the_next()

    for stop_signal in STOPPING:
        loop.add_signal_handler(stop_signal, first)
    yield stop


def end_at_the_next() -> None:
    """Let the next SIGINT or SIGTERM end the process, even if it is busy."""
    for stop_signal in STOPPING:
        # The default action of the kernel works even if the process is busy, but the kernel does not apply it to
        # process 1, the first process of a container.
        signal.signal(stop_signal, signal.SIG_DFL if os.getpid() != 1 else _end)


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
