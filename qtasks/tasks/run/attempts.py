"""One attempt at a call: run it, decide what its end means, keep that, tell of it, answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from qtasks.errors import ConfigurationError, QTasksError, ResultError
from qtasks.randomness import Random
from qtasks.tasks.context import CURRENT, TaskContext
from qtasks.tasks.control import MAX_RETRY_AFTER_MS, Snooze
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import Values
from qtasks.tasks.encode.result_codec import dump
from qtasks.tasks.hooks import Hooks, TaskEvent
from qtasks.tasks.results.backend import Hold
from qtasks.tasks.run import decision
from qtasks.tasks.run.continuation import AGAIN_AFTER_MS, Following, Republish
from qtasks.tasks.run.decision import Kind, Verdict
from qtasks.tasks.run.dispatch_response import Outcome
from qtasks.tasks.run.lease import Guard
from qtasks.tasks.run.notify import notify
from qtasks.tasks.run.recorder import Recorder
from qtasks.tasks.run.report import report, text_of
from qtasks.tasks.run.runner import Invoke, Run, Runner
from qtasks.tasks.run.thread_pool import Workers
from qtasks.tasks.send import tracing
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.task import Task

log = logging.getLogger("qtasks.dispatch")


class Attempts:
    """Makes attempts. `secrets` are texts that must not appear in an error; `random` is for jitter."""

    def __init__(
        self,
        runner: Runner,
        workers: Workers,
        *,
        recorder: Recorder,
        guard: Guard | None,
        following: Following,
        republish: Republish | None,
        hooks: Hooks,
        secrets: Sequence[str],
        random: Random,
    ) -> None:
        self._runner = runner
        self._workers = workers
        self._recorder = recorder
        self._guard = guard
        self._following = following
        self._republish = republish
        self._hooks = hooks
        self._secrets = tuple(secret for secret in secrets if secret)
        self._random = random

    async def make(self, run: Run, invoke: Invoke | None) -> Outcome:
        """Run a task, and answer for how that ended. `invoke` runs those that want dependencies."""
        began_s = time.perf_counter()
        token = CURRENT.set(run.context)
        try:
            ended, error, value = await self._ended(run, invoke)
            spent_s = time.perf_counter() - began_s
            return await self.conclude(
                run.task, run.context, run.envelope, ended, error, run.values, value, spent_s=spent_s
            )
        finally:
            CURRENT.reset(token)

    async def _ended(self, run: Run, invoke: Invoke | None) -> tuple[Verdict, BaseException | None, Any]:
        """Run a task to its end: what that means, what it raised, what it returned."""
        try:
            with self._recorder.running(run.context), tracing.continued(run.context):
                value = await self._runner.in_time(run, invoke)
                onward = run.follow_up(value)
        except (Exception, BaseExceptionGroup, SystemExit, asyncio.CancelledError) as raised:
            if isinstance(raised, asyncio.CancelledError) and _being_cancelled():
                raise
            error = decision.alone(raised)
            if not isinstance(error, Snooze):
                return self._judged(run, error), error, None
            after_ms = min(error.delay_ms, MAX_RETRY_AFTER_MS)
            message = run.again(error.delay_ms)
            ended = await self.go_on(run.context, message, self._told(error), how="snoozed", after_ms=after_ms)
            return ended, error, None
        if onward is not None:
            return await self.go_on(run.context, onward, "its language model is asked", how="asked"), None, None
        try:
            return decision.done(dump(run.task, value, run.context.call_id)), None, value
        except ResultError as error:
            return decision.not_again(run.context, text_of(error), error.code), error, None

    def _judged(self, run: Run, error: BaseException) -> Verdict:
        envelope = run.envelope
        return decision.of_error(
            error,
            self._told(error),
            run.context,
            run.task.retry_policy,
            retry_delay=envelope.retry_delay,
            jitter=envelope.jitter,
            chance=self._random.fraction(),
        )

    async def go_on(
        self, context: TaskContext, message: Outgoing, note: str, *, how: str, after_ms: int = AGAIN_AFTER_MS
    ) -> Verdict:
        """Send the message that a call goes on as. Where that cannot be done, the broker is asked to come back.

        `how` is a word for it, and `note` more of them.
        """
        try:
            if self._republish is None:
                raise ConfigurationError("this dispatcher cannot publish, so a call cannot be put off")
            # The next delivery may come before this one is answered: it must not find the call still running, and what
            # is kept of it must be the last word.
            await self._keep(context, decision.put_off(note, how))
            await self._recorder.stay_unique(context, message.options.delay_ms or 0)
            await self._republish(message)
        except QTasksError as error:
            log.warning("%s %s could not go on: %s", context.task, context.call_id, error)
            return decision.later(context, f"{note} ({text_of(error)})", error.code, after_ms=after_ms)
        return decision.put_off(note, how)

    async def conclude(
        self,
        task: Task[..., Any],
        context: TaskContext,
        envelope: Envelope,
        ended: Verdict,
        error: BaseException | None = None,
        values: Values | None = None,
        value: Any = None,
        *,
        spent_s: float = 0.0,
    ) -> Outcome:
        """Keep, report and tell how an attempt ended, then give the answer."""
        if ended.kind is Kind.RETRY:
            await self._recorder.stay_unique(context, MAX_RETRY_AFTER_MS)
        elif ended.kind is not Kind.PUT_OFF and context.unique is not None:
            self._recorder.release(Hold(context.unique, context.call_id, 0))
        if ended.kind is not Kind.PUT_OFF:  # that was kept before
            await self._keep(context, ended)
        if envelope.flow and ended.kind in (Kind.FAILED, Kind.OVER):
            note = f"{context.task} {context.call_id} before it ended on attempt {context.attempt}: {ended.note}"
            await self._recorder.abandon(context, envelope, ended.status, note)
        report(context, ended, error, spent_s)
        event = TaskEvent(context=context, arguments=values or {}, error=error, reason=ended.note, value=value)
        await notify((task.hooks, self._hooks), ended.kind, event, self._workers)
        if envelope.flow and ended.value is not None:
            return await self._following.send(context, envelope, ended.value, ended.answer)
        return ended.answer

    async def _keep(self, context: TaskContext, ended: Verdict) -> None:
        self._recorder.put(context, ended.status, ended.value, ended.note)
        if self._guard is not None:
            self._guard.leave(context.call_id)
        await self._recorder.keep()

    def _told(self, error: BaseException) -> str:
        """An exception for the wire, with nothing in it that we know to be secret."""
        text = text_of(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _being_cancelled() -> bool:
    """Whether somebody cancels us, as opposed to a task that raised CancelledError itself."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
