"""The longest time for which an event loop was held: between two of its turns nothing else can run.

It is steadier than the latency of a client, which also shows the client's own delays. `python loop_lag.py DB PORT` is
the broker of `broker_process.py` with this watch on its loop: each line on its standard input starts a new measurement,
and it prints the result of the last one as ``held SECONDS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.support.broker_process import serve

TURN_S = 0.001
"""How often the watch asks for a turn, seconds: the shortest hold that it sees."""


class LoopLag:
    """Measures the loop that it is started in."""

    def __init__(self) -> None:
        self._longest_s = 0.0

    def take(self) -> float:
        """The longest hold since the last call, in seconds."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            asked_s = time.monotonic()
            await asyncio.sleep(TURN_S)
            self._longest_s = max(self._longest_s, time.monotonic() - asked_s - TURN_S)


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

    def held_s(self) -> float:
        """The longest hold of its loop since the last call, in seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        return float(self._answer("held"))

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
                sys.stdout.write(f"held {lag.take()}\n")
                sys.stdout.flush()

        asyncio.get_running_loop().add_reader(sys.stdin, report)
        await serve(path, port)


if __name__ == "__main__":
    from qtasks.broker.server import event_loop

    event_loop.tune_interpreter()
    event_loop.run(_serve_watched(sys.argv[1], int(sys.argv[2])))
