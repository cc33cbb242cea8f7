"""Until when a server runs: the first SIGINT or SIGTERM asks it to stop, the second ends it at once."""

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
    """An event that the first signal sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for one in STOPPING:
            loop.remove_signal_handler(one)
        end_at_the_next()

    for one in STOPPING:
        loop.add_signal_handler(one, first)
    yield stop


def end_at_the_next() -> None:
    """From now on either signal ends the process, whatever it is doing."""
    for one in STOPPING:
        # The kernel's own way needs nothing of a busy process; but the first process of a container is spared it.
        signal.signal(one, signal.SIG_DFL if os.getpid() != 1 else _end)


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
