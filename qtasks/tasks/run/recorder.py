"""What is kept of a call, while it runs and after: its latest state, for whoever holds a `TaskResult`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from qtasks.clock import Clock
from qtasks.tasks.context import TaskContext
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.flow import canvas
from qtasks.tasks.results.backend import Hold, Record, ResultBackend, ResultStatus
from qtasks.tasks.results.unique import Unique
from qtasks.tasks.results.writer import Keeper

NEWS_AFTER_S = 0.05
"""How long a task runs before that is written down, where writing is not free."""


class Recorder:
    """Writes the state of calls to `results`; None means that nobody asks for any."""

    def __init__(self, results: ResultBackend | None, clock: Clock) -> None:
        self.keeper = Keeper(results) if results is not None else None
        # Where writing costs, a task that ends at once is not worth a record that it has begun.
        self._news_after_s = NEWS_AFTER_S if results is not None and results.blocking else None
        self._clock = clock

    def put(self, context: TaskContext, status: ResultStatus, value: str | None = None, error: str = "") -> None:
        """Hand in the state of a call, to be kept with the next `keep`."""
        self._put(context, self._record(context, status, value, error or None))
        if self.keeper is not None and status.is_final and context.kept is not None:
            self.keeper.put(context.kept.record(context.task, self._clock.now_ms(), status))

    def release(self, hold: Hold) -> None:
        """Let go of a hold with the next `keep`."""
        if self.keeper is not None:
            self.keeper.release(hold)

    async def stay_unique(self, context: TaskContext, delay_ms: int) -> None:
        """Have a unique call be the only one until it has come again, `delay_ms` from now at the latest, and ended."""
        if self.keeper is not None and context.unique is not None:
            now_ms = self._clock.now_ms()
            hold = Unique(context.unique).hold(context.call_id, now_ms, delay_ms)
            await self.keeper.stand([hold], None, now_ms=now_ms)

    async def keep(self) -> None:
        """Return when all that was handed in is kept."""
        if self.keeper is not None:
            await self.keeper.keep()

    def ask(self) -> None:
        """Have what was handed in kept soon."""
        if self.keeper is not None:
            self.keeper.ask()

    async def abandon(self, context: TaskContext, envelope: Envelope, status: ResultStatus, note: str) -> None:
        """Have it known of everything that should have followed a call that it will not."""
        if self.keeper is None:
            return
        for task, call_id in canvas.abandoned(envelope, context.call_id):
            record = self._record(context, status, error=note)
            self.keeper.put(replace(record, call_id=call_id, task=task, message_id=call_id, progress=None))
        await self.keeper.keep()

    @contextmanager
    def running(self, context: TaskContext) -> Iterator[None]:
        """Have it known that the task runs, at once or after a moment, and how far it has come."""
        if (keeper := self.keeper) is None:
            yield
            return

        def tell() -> None:
            self._put(context, self._record(context, ResultStatus.RUNNING))
            if self._news_after_s is not None:
                keeper.ask()

        context.reporter.tell = tell
        try:
            if self._news_after_s is None:
                tell()
                yield
                return
            news = asyncio.get_running_loop().call_later(self._news_after_s, tell)
            try:
                yield
            finally:
                news.cancel()
        finally:
            context.reporter.tell = None

    def close(self) -> None:
        """Keep what is left. Idempotent; a later use begins again."""
        if self.keeper is not None:
            self.keeper.close()

    def _put(self, context: TaskContext, record: Record) -> None:
        if self.keeper is None:
            return
        self.keeper.put(record)
        if context.source is not None and context.source != record.message_id:
            # Who made the same call before knows it by the message that it was sent as.
            self.keeper.put(replace(record, call_id=context.source, message_id=context.source))

    def _record(
        self,
        context: TaskContext,
        status: ResultStatus,
        value: str | None = None,
        error: str | None = None,
    ) -> Record:
        return Record(
            call_id=context.call_id,
            message_id=context.message_id,
            task=context.task,
            status=status,
            attempt=context.attempt,
            updated_ms=self._clock.now_ms(),
            value=value,
            error=error,
            progress=context.reporter.latest,
        )
