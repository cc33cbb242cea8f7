"""What servers run on: uvloop where the platform has it (a third of the CPU), and an interpreter tuned for them."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop that nothing runs on yet."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def tune_interpreter() -> None:
    """Set a started server's process up for throughput; call it once everything that stays has been made.

    A thread may keep the interpreter for 1 ms instead of 5, which is what a finished commit would wait for a busy
    event loop. What start-up made is no more looked at for garbage, and the rest less often: by default the
    collector takes a third of the time of a delivery, and finds nothing.
    """
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
