"""Several worker processes that serve one application on one socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from qtasks.cli.loader import AppLocation
from qtasks.cli.logs import LogOptions
from qtasks.cli.serving.child_process import ChildProcess
from qtasks.cli.serving.uvicorn_server import OVERTIME_S
from qtasks.cli.signals import SECOND, SENT_AGAIN, stop_signals
from qtasks.errors import ConfigurationError

log = logging.getLogger("qtasks.run")

NOTICE_S: Final = 0.3
"""Seconds after which a stop says what it waits for."""
RESTART_DELAY_S: Final = 1.0
"""Seconds to wait before a worker that died is started again, because it may die again at once."""


class WorkerPool:
    """Runs `count` worker processes: starts a new one for each that dies, and stops all of them with this process."""

    def __init__(
        self,
        count: int,
        target: AppLocation,
        listener: socket.socket,
        origin: str,
        *,
        drain_s: float,
        started: Callable[[], None],
        logs: LogOptions,
    ) -> None:
        os.set_inheritable(listener.fileno(), True)
        self._count = count
        self._target = target
        self._listener = listener
        self._origin = origin
        self._drain_s = drain_s
        self._started = started
        self._logs = logs
        self._children: list[ChildProcess] = []

    def serve(self) -> int:
        """Serve until a stop signal; return the exit status. Raises AppError if a worker cannot start."""
        asyncio.run(self._serve())
        return 0

    async def _serve(self) -> None:
        with stop_signals() as stop:
            await self._start_all()
            self._started()
            restarters = [asyncio.create_task(self._restart_forever(index)) for index in range(self._count)]
            await stop.once.wait()
            for restarter in restarters:
                restarter.cancel()
            await asyncio.gather(*restarters, return_exceptions=True)
            stopping = asyncio.create_task(self._stop_all())
            if not (await asyncio.wait({stopping}, timeout=NOTICE_S))[0]:
                log.warning("stopping: waiting up to %g s for the workers; %s, %s", self._drain_s, SECOND, SENT_AGAIN)
            await stopping

    async def _start_all(self) -> None:
        started = await asyncio.gather(*(self._start() for _ in range(self._count)), return_exceptions=True)
        self._children = [child for child in started if isinstance(child, ChildProcess)]
        for failure in started:
            if isinstance(failure, BaseException):
                await self._stop_all()
                raise failure

    async def _stop_all(self) -> None:
        await asyncio.gather(*(child.stop(self._drain_s + 1.5 * OVERTIME_S) for child in self._children))

    async def _start(self) -> ChildProcess:
        return await ChildProcess.start(
            self._target,
            self._listener,
            self._origin,
            os.environ,
            drain_s=self._drain_s,
            production=True,
            logs=self._logs,
        )

    async def _restart_forever(self, index: int) -> None:
        while True:
            status = await self._children[index].wait()
            log.error("a worker ended with status %d; a new one replaces it", status)
            await self._children[index].stop()
            await asyncio.sleep(RESTART_DELAY_S)
            try:
                self._children[index] = await self._start()
            except ConfigurationError as error:
                log.error("%s %s", error.code, error)
