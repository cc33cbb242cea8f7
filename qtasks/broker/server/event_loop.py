"""The event loop and the interpreter settings of a server: uvloop where available, which saves a third of the CPU."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_DESCRIPTORS: Final = 10_240
"""The most that macOS allows."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop: uvloop's if it is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def raise_descriptor_limit() -> None:
    """Let this process and its children open as many files and connections as the system allows, up to `_DESCRIPTORS`.

    Some systems begin with 256, which is less than the deliveries that a broker makes at a time.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < highest:
        with contextlib.suppress(ValueError, OSError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))


def tune_interpreter() -> None:
    """Tune the process of a server for throughput. Call it when all long-lived objects have been created.

    A thread may keep the interpreter for 1 ms instead of 5: a finished commit would otherwise wait that long for a
    busy event loop. The garbage collector ignores the objects created so far and runs less often: by default it takes
    a third of the time of a delivery and finds no garbage.
    """
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` as `asyncio.run` does, on `new_event_loop`."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
