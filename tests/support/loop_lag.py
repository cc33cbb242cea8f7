"""The longest time for which an event loop was held: between two of its turns nothing else can run.

It is steadier than the latency of a client, which also shows the client's own delays. `python loop_lag.py DB PORT` is
the broker of `broker_process.py` with this watch on its loop: each line on its standard input starts a new measurement,
and it prints the result of the last one as ``held SECONDS CPU-SECONDS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.broker_process import serve

TURN_S = 0.001
"""How often the watch asks for a turn, seconds: the shortest hold that it sees."""


class Held(NamedTuple):
    """The longest time between two turns of a loop, in seconds."""

    wall_s: float
    """As a client sees it: on a busy machine other processes are a part of it."""
    cpu_s: float
    """Spent by the loop's own thread: the same on an idle and on a busy machine."""


class LoopLag:
    """Measures the loop that it is started in."""

    def __init__(self) -> None:
        self._held = Held(0.0, 0.0)

    def take(self) -> Held:
        """The longest hold since the last call."""
        held, self._held = self._held, Held(0.0, 0.0)
        return held

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            wall_s, cpu_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(TURN_S)
            held = Held(time.monotonic() - wall_s - TURN_S, time.thread_time() - cpu_s)
            self._held = Held(*map(max, held, self._held))


@contextlib.asynccontextmanager
async def loop_lag() -> AsyncIterator[LoopLag]:
    """Watch the running loop."""
    lag = LoopLag()
    watch = asyncio.create_task(lag.run())
    await asyncio.sleep(0)
    try:
        yield lag
    finally:
        watch.cancel()


class WatchedBroker:
    """A broker in a process of its own, on a free port, whose loop is watched."""

    def __init__(self, database: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.loop_lag", str(database), "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.port = int(self._answer("ready"))

    def held(self) -> Held:
        """The longest hold of its loop since the last call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        return Held(*map(float, self._answer("held").split()))

    def _answer(self, word: str) -> str:
        assert self._process.stdout is not None
        first, _, answer = self._process.stdout.readline().partition(" ")
        assert first == word, f"the broker has ended with status {self._process.wait()}"
        return answer

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def watched_broker(database: Path) -> Iterator[WatchedBroker]:
    broker = WatchedBroker(database)
    try:
        yield broker
    finally:
        broker.stop()


async def _serve_watched(path: str, port: int) -> None:
    async with loop_lag() as lag:

        def report() -> None:
            if sys.stdin.readline():
                sys.stdout.write("held {} {}\n".format(*lag.take()))
                sys.stdout.flush()

        asyncio.get_running_loop().add_reader(sys.stdin, report)
        await serve(path, port)


if __name__ == "__main__":
    from qtasks.broker.server import event_loop

    event_loop.tune_interpreter()
    event_loop.run(_serve_watched(sys.argv[1], int(sys.argv[2])))
