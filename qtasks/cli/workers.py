"""Several processes that serve one application on one socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from qtasks.cli.child_process import ChildProcess
from qtasks.cli.loader import AppLocation
from qtasks.cli.signals import stop_signals
from qtasks.cli.uvicorn_server import OVERTIME_S
from qtasks.errors import ConfigurationError

log = logging.getLogger("qtasks.run")

PAUSE_S: Final = 1.0
"""Before a worker that died is started again: whatever killed it may do so again at once."""


class WorkerPool:
    """`count` processes; each that dies is replaced, and all end with this one."""

    def __init__(
        self,
        count: int,
        target: AppLocation,
        listener: socket.socket,
        origin: str,
        *,
        drain_s: float,
        started: Callable[[], None],
    ) -> None:
        os.set_inheritable(listener.fileno(), True)
        self._count = count
        self._target = target
        self._listener = listener
        self._origin = origin
        self._drain_s = drain_s
        self._started = started
        self._children: list[ChildProcess] = []

    def serve(self) -> int:
        """Serve until a signal; the exit status. Raises AppError when no worker can start."""
        asyncio.run(self._serve())
        return 0

    async def _serve(self) -> None:
        with stop_signals() as stop:
            await self._start_all()
            self._started()
            keeping = [asyncio.create_task(self._keep(place)) for place in range(self._count)]
            await stop.wait()
            for keeper in keeping:
                keeper.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            await self._stop_all()

    async def _start_all(self) -> None:
        begun = await asyncio.gather(*(self._start() for _ in range(self._count)), return_exceptions=True)
        self._children = [one for one in begun if isinstance(one, ChildProcess)]
        for failure in begun:
            if isinstance(failure, BaseException):
                await self._stop_all()
                raise failure

    async def _stop_all(self) -> None:
        await asyncio.gather(*(child.stop(self._drain_s + 1.5 * OVERTIME_S) for child in self._children))

    async def _start(self) -> ChildProcess:
        return await ChildProcess.start(
            self._target, self._listener, self._origin, os.environ, drain_s=self._drain_s, production=True
        )

    async def _keep(self, place: int) -> None:
        while True:
            status = await self._children[place].wait()
            log.error("a worker ended with status %d; another takes its place", status)
            await self._children[place].stop()
            await asyncio.sleep(PAUSE_S)
            try:
                self._children[place] = await self._start()
            except ConfigurationError as error:
                log.error("%s %s", error.code, error)
