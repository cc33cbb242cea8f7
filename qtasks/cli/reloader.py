"""The user's application below `qtasks dev`: started, replaced when its code changes, started again when it dies.

A replacement first starts, then the old process is asked to end. Until then both listen on the same socket, so there
is no moment without a listener; the old one answers what reaches it on connections that are open, and says on each
that it was the last answer there.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import watchfiles

from qtasks.cli.child_process import ChildProcess, StartedApp
from qtasks.cli.loader import AppError, AppLocation

MIN_LIFETIME_S: Final = 1.0
"""An application that dies sooner than this after its start is not started again: it would die for ever."""


@dataclass
class ReloadingApplication:
    """One application on one listening socket, whichever process serves it."""

    target: AppLocation
    listener: socket.socket
    origin: str
    environment: Mapping[str, str]
    started: Callable[[StartedApp], None]
    """Told whenever an application process begins to serve."""
    say: Callable[[str], None]
    """Told, in words, what became of the application."""
    may_have_schedules: bool
    """Whether the broker may have schedules of the version that serves, or of one before."""
    _children: list[ChildProcess] = field(default_factory=list)
    """The one that serves last; before it those that are about to end."""
    _replacing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self) -> StartedApp:
        """Start it. Raises AppError."""
        # Before the code is read: what changes from now on is noticed.
        self._changes = watchfiles.awatch(self.target.folder, watch_filter=watchfiles.PythonFilter())
        self._change = asyncio.ensure_future(anext(self._changes))
        await asyncio.sleep(0)
        self._children.append(await self._new_child())
        return self._children[-1].serving

    async def supervise(self) -> int:
        """Replace it when code changes and when it dies; return its exit status when that is hopeless."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch(group))
            try:
                return await self._keep_alive()
            finally:
                watching.cancel()

    async def stop(self) -> None:
        """End it politely."""
        await asyncio.gather(*(child.stop() for child in self._children))

    async def _new_child(self) -> ChildProcess:
        child = await ChildProcess.start(
            self.target,
            self.listener,
            self.origin,
            self.environment,
            may_have_schedules=self.may_have_schedules,
        )
        self._began_s = time.monotonic()
        self.may_have_schedules |= child.serving.schedules > 0
        self.started(child.serving)
        return child

    async def _keep_alive(self) -> int:
        while True:
            child = self._children[-1]
            status = await child.wait()
            async with self._replacing:
                if child is not self._children[-1]:
                    continue  # it was replaced
                if time.monotonic() - self._began_s < MIN_LIFETIME_S:
                    self.say(f"the application ended with status {status}")
                    return 1
                self.say(f"the application ended with status {status}; starting it again")
                try:
                    self._children.append(await self._new_child())
                except AppError as error:
                    self.say(f"{error.code} {error}")
                    return 1
            await self._end(child)

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        reload: asyncio.Task[None] | None = None
        try:
            while True:
                await self._change
                self._change = asyncio.ensure_future(anext(self._changes))
                if reload is not None:
                    reload.cancel()  # the code has changed again, perhaps because that start hangs
                reload = group.create_task(self._reload(group))
        except (OSError, RuntimeError) as error:
            self.say(f"code changes are not noticed any more: {error}")

    async def _reload(self, group: asyncio.TaskGroup) -> None:
        async with self._replacing:
            try:
                fresh = await self._new_child()
            except AppError as error:
                self.say(f"{error.code} {error}\n  meanwhile   the last version that worked goes on")
                return
            old = self._children[-1]
            self._children.append(fresh)
        group.create_task(self._hand_over(old, fresh))

    async def _hand_over(self, old: ChildProcess, fresh: ChildProcess) -> None:
        await old.retire()
        self.say(f"reloaded {fresh.serving.target}: {fresh.serving}")
        if fresh.serving.synced:
            self.say(f"  synced      {fresh.serving.synced}")
        await self._end(old)

    async def _end(self, old: ChildProcess) -> None:
        await old.stop()
        self._children.remove(old)
