"""Run the user's application under `qtasks dev`: replace it when its code changes, restart it when it dies.

The new process starts first; then the old one is asked to end. Until then both listen on the same socket, so that no
connection is refused. The old process still answers requests on its open connections, each with ``Connection: close``.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import watchfiles

from qtasks.cli.loader import AppError, AppLocation
from qtasks.cli.logs import LogOptions
from qtasks.cli.serving.child_process import STOP_S, ChildProcess, StartedApp

MIN_LIFETIME_S: Final = 1.0
"""Seconds. An application that dies sooner after its start is not restarted, because it would die again and again."""

MAX_EARLY_DEATHS: Final = 10
"""So many early deaths in a row are allowed once there was work: a task that kills its process does so again at once
after each restart, until it is a dead letter."""


@dataclass
class ReloadingApplication:
    """One application on one listening socket, served by one process after another."""

    target: AppLocation
    listener: socket.socket
    origin: str
    environment: Mapping[str, str]
    started: Callable[[StartedApp], None]
    """Called when an application process has started to serve."""
    say: Callable[[str], None]
    """Called with a line of text for the terminal."""
    may_have_schedules: bool
    """True if the broker may have schedules of this version of the code or of an earlier one."""
    hosts: Sequence[str] = ()
    """Host names to which the application answers, in addition to those of this machine."""
    logs: LogOptions = LogOptions()  # noqa: RUF009 - it is frozen
    note: Callable[[dict[str, Any]], None] = lambda _: None
    """Called with each report of a child about a failure or a request."""
    _children: list[ChildProcess] = field(default_factory=list)
    """The child that serves is the last one; those before it are about to end."""
    _replacing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changes: AsyncIterator[set[watchfiles.main.FileChange]] | None = field(default=None, init=False)
    """The changes of the code, from just before it is read."""
    _next_change: asyncio.Future[set[watchfiles.main.FileChange]] | None = field(default=None, init=False)
    _start_s: float = field(default=0.0, init=False)
    """Start of the current child, in seconds of `time.monotonic`."""
    _has_worked: bool = field(default=False, init=False)
    """True if an attempt of a call has begun."""
    _early_deaths: int = field(default=0, init=False)
    """Children in a row that died soon after their start."""

    async def start(self) -> StartedApp:
        """Start the first child and return what it reports. Raises AppError."""
        # Before the child reads the code, so that no change is missed.
        self._changes = watchfiles.awatch(self.target.folder, watch_filter=watchfiles.PythonFilter())
        self._next_change = asyncio.ensure_future(anext(self._changes))
        await asyncio.sleep(0)
        self._children.append(await self._new_child())
        return self._children[-1].started_app

    def note_attempt(self) -> None:
        """Note that an attempt of a call begins."""
        self._has_worked = True

    async def supervise(self) -> int:
        """Replace the child when code changes or when it dies. Return the exit status if it cannot be kept alive."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch(group))
            try:
                return await self._keep_alive()
            finally:
                watching.cancel()

    async def stop(self, limit_s: float = STOP_S) -> None:
        """Ask all children to end, and kill those that have not after `limit_s` seconds. Idempotent."""
        await asyncio.gather(*(child.stop(limit_s) for child in self._children))

    async def _new_child(self) -> ChildProcess:
        child = await ChildProcess.start(
            self.target,
            self.listener,
            self.origin,
            self.environment,
            may_have_schedules=self.may_have_schedules,
            hosts=self.hosts,
            logs=self.logs,
            note=self.note,
        )
        self._start_s = time.monotonic()
        self.may_have_schedules |= child.started_app.schedules > 0
        self.started(child.started_app)
        return child

    async def _keep_alive(self) -> int:
        while True:
            child = self._children[-1]
            status = await child.wait()
            async with self._replacing:
                if child is not self._children[-1]:
                    continue  # another child has replaced it
                is_early = time.monotonic() - self._start_s < MIN_LIFETIME_S
                self._early_deaths = self._early_deaths + 1 if is_early else 0
                if self._early_deaths > (MAX_EARLY_DEATHS if self._has_worked else 0):
                    self.say(f"the application ended with status {status}")
                    return 1
                self.say(f"the application ended with status {status}; restarting it")
                try:
                    self._children.append(await self._new_child())
                except AppError as error:
                    self.say(f"{error.code} {error}")
                    return 1
            await self._end(child)

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        assert self._changes is not None, "`start` comes before `supervise`"
        assert self._next_change is not None, "`start` comes before `supervise`"
        reload: asyncio.Task[None] | None = None
        try:
            while True:
                await self._next_change
                self._next_change = asyncio.ensure_future(anext(self._changes))
                if reload is not None:
                    reload.cancel()  # the code has changed again, perhaps because that start hangs
                reload = group.create_task(self._reload(group))
        except (OSError, RuntimeError) as error:
            self.say(f"code changes are no longer noticed: {error}")

    async def _reload(self, group: asyncio.TaskGroup) -> None:
        async with self._replacing:
            try:
                new_child = await self._new_child()
            except AppError as error:
                error.details["meanwhile"] = "the last working version continues to run"
                self.say(f"{error.code} {error}")
                return
            old = self._children[-1]
            self._children.append(new_child)
        group.create_task(self._hand_over(old, new_child))

    async def _hand_over(self, old: ChildProcess, new_child: ChildProcess) -> None:
        await old.retire()
        self.say(f"reloaded {new_child.started_app.target}: {new_child.started_app}")
        if new_child.started_app.synced:
            self.say(f"  synced      {new_child.started_app.synced}")
        await self._end(old)

    async def _end(self, old: ChildProcess) -> None:
        await old.stop()
        self._children.remove(old)
