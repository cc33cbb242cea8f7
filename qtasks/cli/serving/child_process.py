"""A child process that serves the user's application, on a socket that the parent keeps open."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qtasks.cli.loader import AppError, AppLocation
from qtasks.cli.logs import LogOptions
from qtasks.cli.serving.child_options import RETIRE, ChildOptions
from qtasks.error_codes import ErrorCode

DRAIN_S: Final = 10.0
"""Seconds that the tasks of a child may continue after SIGTERM."""
STOP_S: Final = 15.0
"""Seconds that a child may take to end after SIGTERM before it is killed."""


@dataclass(frozen=True, slots=True)
class StartedApp:
    """The report of a child whose application has started to serve."""

    target: str
    base_url: str
    parameters: Mapping[str, Sequence[str]]
    """The name of each task, and the names of its positional parameters."""
    schedules: int
    """Number of schedules that the code declares."""
    synced: str
    """The changes of the sync of schedules, in words; empty if there were none."""

    def __str__(self) -> str:
        """The numbers of tasks and schedules in words."""
        return counts_in_words(len(self.parameters), self.schedules)


def counts_in_words(tasks: int, schedules: int) -> str:
    """The numbers in words, such as ``3 tasks`` or ``1 task, 2 schedules``."""
    words = [f"{tasks} task{'' if tasks == 1 else 's'}"]
    if schedules:
        words.append(f"{schedules} schedule{'' if schedules == 1 else 's'}")
    return ", ".join(words)


class ChildProcess:
    """A running child process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        started_app: StartedApp,
        reports: _ReportReader,
        lifeline: int,
        note: Callable[[dict[str, Any]], None],
    ) -> None:
        self.started_app = started_app
        self._process = process
        self._reports = reports
        self._lifeline = lifeline
        self._end_requested = False
        self._retired = asyncio.Event()
        self._reading = asyncio.create_task(self._read_reports(note), name="qtasks-child-reports")

    @classmethod
    async def start(
        cls,
        target: AppLocation,
        listener: socket.socket,
        origin: str,
        environment: Mapping[str, str],
        *,
        drain_s: float = DRAIN_S,
        production: bool = False,
        may_have_schedules: bool = False,
        hosts: Sequence[str] = (),
        logs: LogOptions = LogOptions(),  # noqa: B008 - it is frozen
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> ChildProcess:
        """Start the application and return once it serves. Raises AppError with the error that the child reports.

        With `production` the child logs with times, lingers before it ends, and does not sync schedules; without, it
        answers to the names of this machine and to `hosts` only. `note` is called with each report of `child_reports`.
        """
        report_in, report_out = os.pipe()
        lifeline_in, lifeline_out = os.pipe()
        options = ChildOptions(
            folder=str(target.folder),
            module=target.module,
            attribute=target.attribute,
            origin=origin,
            listener=listener.fileno(),
            report=report_out,
            lifeline=lifeline_in,
            drain_s=drain_s,
            production=production,
            may_have_schedules=may_have_schedules,
            hosts=hosts,
            log_level=logs.level,
            log_format=logs.form,
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "qtasks.cli.serving.child_main",
                options.dump(),
                env=dict(environment),
                pass_fds=(listener.fileno(), report_out, lifeline_in),
            )
        except BaseException:
            os.close(report_in)
            os.close(lifeline_out)
            raise
        finally:
            os.close(report_out)
            os.close(lifeline_in)
        reports = await _ReportReader.open(report_in)
        try:
            started_app = await _started(process, reports)
        except BaseException:
            reports.close()
            os.close(lifeline_out)  # the child ends when it sees this
            raise
        return cls(process, started_app, reports, lifeline_out, note)

    async def wait(self) -> int:
        """Wait until the process has ended; return its exit status."""
        return await self._process.wait()

    def _request_end(self, stop_signal: signal.Signals) -> None:
        """Send the signal if none has been sent: a second one would end the process at once."""
        if not self._end_requested and self._process.returncode is None:
            self._end_requested = True
            self._process.send_signal(stop_signal)

    async def retire(self) -> None:
        """Ask a replaced child to end. Returns when it takes no more requests; some may still run."""
        self._request_end(RETIRE)
        await self._retired.wait()

    async def _read_reports(self, note: Callable[[dict[str, Any]], None]) -> None:
        """Pass reports on until the child has closed its end."""
        try:
            while (report := await self._reports.next()) is not None:
                if "retired" in report:
                    self._retired.set()
                else:
                    note(report)
        finally:
            self._retired.set()  # it takes no more requests

    async def stop(self, limit_s: float = STOP_S) -> None:
        """Ask the process to end, and kill it after `limit_s` seconds. Idempotent."""
        self._request_end(signal.SIGTERM)
        if self._process.returncode is None:
            try:
                async with asyncio.timeout(limit_s):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._lifeline >= 0:
            self._reading.cancel()
            self._reports.close()
            os.close(self._lifeline)
            self._lifeline = -1


async def _started(process: asyncio.subprocess.Process, reports: _ReportReader) -> StartedApp:
    """The first report of a child. Raises AppError when it is an error, or when the child ends without one."""
    facts = await reports.next()
    if facts is None:
        status = await process.wait()
        raise AppError(
            f"the application ended while starting, with status {status}",
            code=ErrorCode.APPLICATION_ENDED,
        )
    if "error" in facts:
        await process.wait()
        raise AppError(**facts["error"])
    return StartedApp(facts["target"], facts["base_url"], facts["parameters"], facts["schedules"], facts["synced"])


class _ReportReader:
    """Reads the reports of a child, each one line of JSON."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        self._reader = reader
        self._transport = transport

    @classmethod
    async def open(cls, descriptor: int) -> _ReportReader:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
        )
        return cls(reader, transport)

    async def next(self) -> dict[str, Any] | None:
        """Wait for the next report; None if the child has closed its end."""
        line = await self._reader.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self._transport.close()
