"""The life of an attempt: admit, decode, run, decide, record, report, notify, continue the flow, respond."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from qtasks.clock import Clock
from qtasks.errors import QTasksError, ResultError
from qtasks.protocol.headers import ENDED_HEADER
from qtasks.protocol.signing import Claims
from qtasks.randomness import Random
from qtasks.rare_timers import RareTimer
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.context import CURRENT, RunLink, StopReason
from qtasks.tasks.control import BY_CALLER, MAX_RETRY_AFTER_MS, REQUESTS, AttemptTimeout, Cancel, Snooze
from qtasks.tasks.flow.step_arguments import named_source
from qtasks.tasks.hooks import Hooks
from qtasks.tasks.results.backend import Lock, ResultStatus
from qtasks.tasks.results.writer import ResultWriter
from qtasks.tasks.run.attempt import Attempt
from qtasks.tasks.run.decision import (
    Decision,
    DecisionKind,
    DispatchResponse,
    error_text,
    is_interpreter_shutdown,
    unwrapped,
)
from qtasks.tasks.run.flows.continuation import RETRY_AFTER_MS, Continuation
from qtasks.tasks.run.flows.failure_calls import send_failure_calls
from qtasks.tasks.run.lease import RunLeases
from qtasks.tasks.run.notify import notify
from qtasks.tasks.run.outside import comes_from_outside, running_task
from qtasks.tasks.run.report import report, report_overrun
from qtasks.tasks.run.run import Run
from qtasks.tasks.run.runner import Runner
from qtasks.tasks.send import tracing
from qtasks.tasks.send.outgoing import AFTER_FAILURE, Outgoing
from qtasks.user_frames import places_of

log = logging.getLogger("qtasks.dispatch")

ANNOUNCE_AFTER_S = 0.05
"""A task that still runs after this time is recorded as running, where the backend writes to a disk or a network."""


class Announcement(RareTimer):
    """Records that a call runs, at once or after a moment, and its progress, until the announcement ends."""

    __slots__ = ("_attempt", "_clock", "_writer")

    def __init__(self, attempt: Attempt, writer: ResultWriter, clock: Clock) -> None:
        self._attempt = attempt
        self._writer = writer
        self._clock = clock
        attempt.context.link.publish = self.due
        if writer.is_blocking:  # writing costs something: a task that ends at once is not announced
            self.start(ANNOUNCE_AFTER_S)
        else:
            self.due()

    def due(self) -> None:
        """Record it."""
        self._writer.record(self._attempt.records(ResultStatus.RUNNING, self._clock.now_ms()))
        self._writer.flush_soon()

    def end(self) -> None:
        """Record no more: the function has ended."""
        self._attempt.context.link.publish = None
        if self._writer.is_blocking:
            self.stop()


class AttemptExecutor:
    """Takes attempts from admission to their response.

    `secrets` are texts that must not appear in an error; `random` is for jitter.
    """

    def __init__(
        self,
        runner: Runner,
        writer: ResultWriter,
        continuation: Continuation,
        *,
        hooks: Hooks,
        secrets: Sequence[str],
        clock: Clock,
        random: Random,
    ) -> None:
        self.runner = runner
        self._writer = writer
        self.results = writer.backend
        """Where the results are; None without a result backend."""
        self._continuation = continuation
        self._leases = RunLeases(writer, clock)
        self._hooks = hooks
        self._secrets = tuple(secret for secret in secrets if secret)
        self._clock = clock
        self._random = random
        self._links: dict[RunLink, str] = {}
        """Of the deliveries that are not answered yet, with the ids of their calls."""

    async def execute(self, attempt: Attempt, claims: Claims) -> DispatchResponse:
        """Take an attempt from admission to its response. `claims` are those of its signature."""
        current = CURRENT.set(attempt.context)
        attempt.running = running_task()
        self._links[attempt.context.link] = attempt.context.call_id
        try:
            decision = await self._leases.admit(attempt, claims)
            if decision is not None:
                return await self._conclude(attempt, decision)
            response, renewal = None, self._leases.renewal(attempt)
            try:
                response = await self._conclude(attempt, await self._decide(attempt))
            finally:
                if renewal is not None:
                    renewal.end_after_run()
                self._leases.answered(claims, response)
            return response
        finally:
            del self._links[attempt.context.link]
            CURRENT.reset(current)

    def stop_runs(self) -> None:
        """Hand back every run: the process ends. May be called from any thread."""
        for link in list(self._links):
            link.stop(StopReason.DRAIN)

    def cancel_run(self, call_id: str) -> bool:
        """Cancel the run of a call; False if it does not run here. May be called from any thread."""
        links = [link for link, running in list(self._links.items()) if running == call_id]
        for link in links:
            link.stop(StopReason.CANCEL)
        return bool(links)

    def is_deadlocked(self) -> bool:
        """True if all threads wait for results of calls that wait for a thread here. May be called from any thread."""
        links = list(self._links.items())
        queued = {call_id for link, call_id in links if link.thread.is_waiting}
        running = [link for link, _ in links if link.thread.is_running]
        is_full = len(running) == self.runner.threads.size
        return is_full and all(link.waits and all(calls <= queued for calls in link.waits) for link in running)

    async def _decide(self, attempt: Attempt) -> Decision:
        """Decode the arguments, run the function, and decide what its end means.

        Every exception on the way is a failure of the attempt, like one of the function.
        """
        try:
            return await self._decode_and_run(attempt)
        except BaseException as raised:
            if comes_from_outside(raised, attempt.running):
                raise
            return self._failed(attempt, attempt.task, unwrapped(raised))

    async def _decode_and_run(self, attempt: Attempt) -> Decision:
        now_ms, attempt.began_s = self._clock.now_ms(), self._clock.monotonic()
        expires_ms = attempt.envelope.expires_ms
        if expires_ms is not None and now_ms > expires_ms and attempt.can_expire:
            return Decision.expired(expires_ms, now_ms)
        if attempt.decide is not None:
            return await attempt.decide(attempt, self)
        try:
            values = attempt.task.codec.decode(attempt.envelope)
        except QTasksError as error:
            return attempt.unfit(named_source(attempt.envelope, error))
        return await self.run(attempt, Run(attempt.task, values, attempt.context, attempt.envelope))

    async def run(self, attempt: Attempt, run: Run) -> Decision:
        """Run the function of a call and decide what its end means."""
        attempt.arguments = run.values
        try:
            value = await self._value(attempt, run)
            if run.context.link.is_cancelled and run.context.link.is_stop_seen:
                raise Cancel(BY_CALLER)
            follow_up = run.task.follow_up(run.envelope, run.context.call_id, value)
        except BaseException as raised:
            if comes_from_outside(raised, attempt.running, in_thread=not run.task.is_async):
                if isinstance(raised, asyncio.CancelledError):
                    run.context.link.stop(StopReason.DRAIN)
                    await self._conclude(attempt, Decision.interrupted())
                raise
            return await self._raised(attempt, run, unwrapped(raised))
        if follow_up is not None:
            return await self.republish(attempt, follow_up, "its language model is asked", action="asked")
        try:
            decision = Decision.succeeded(run.encoded(value))
        except ResultError as error:
            attempt.error = error
            return Decision.never(run.context, error_text(error), error.code)
        attempt.value = value
        return decision

    async def _value(self, attempt: Attempt, run: Run) -> Any:
        """What the function returns, as a part of its trace; its run is announced."""
        assert attempt.running is not None
        announcement = Announcement(attempt, self._writer, self._clock) if self._writer.is_enabled else None
        try:
            with tracing.continued(run.context):
                return await self.runner.in_time(run, attempt.invoke, attempt.running)
        finally:
            if announcement is not None:
                announcement.end()

    async def republish(
        self, attempt: Attempt, message: Outgoing, note: str, *, action: str, after_ms: int = RETRY_AFTER_MS
    ) -> Decision:
        """Send the message that a call continues as; if it cannot be sent, the broker retries after `after_ms`.

        `action` is the word for it, and `note` the reason.
        """
        if await self._leases.is_cancelled(attempt.context):
            return Decision.cancelled(BY_CALLER)
        decision = Decision.republished(note, action)
        try:
            self._continuation.check_can_publish("a call cannot be sent again")
            # The next delivery may arrive before this one is answered. It must not find the call still running, and
            # this record must be the last one of this delivery.
            await self._record(attempt, decision, self._clock.now_ms())
            await self._leases.keep_unique(attempt, message.options.delay_ms or 0)
            await self._continuation.publish(message)
        except QTasksError as error:
            log.warning("%s %s could not continue: %s", attempt.context.task, attempt.context.call_id, error)
            return Decision.later(attempt.context, f"{note} ({error_text(error)})", error.code, after_ms=after_ms)
        return decision

    async def _raised(self, attempt: Attempt, run: Run, error: BaseException) -> Decision:
        is_drained = run.context.link.stop_reason is StopReason.DRAIN and not isinstance(error, REQUESTS)
        if is_drained or is_interpreter_shutdown(error):
            return Decision.interrupted()
        if not isinstance(error, Cancel) and await self._leases.is_cancelled(attempt.context):
            return Decision.cancelled(BY_CALLER)
        if isinstance(error, Snooze):
            attempt.error, note = error, self._without_secrets(error_text(error))
            after_ms = min(error.delay_ms, MAX_RETRY_AFTER_MS)
            return await self.republish(attempt, run.again(error.delay_ms), note, action="snoozed", after_ms=after_ms)
        return self._failed(attempt, run.task, error)

    def _failed(self, attempt: Attempt, task: BaseTask[..., Any], error: BaseException) -> Decision:
        """What an exception of `task` means, which the attempt runs."""
        attempt.error = error
        decision = Decision.of_exception(
            error,
            self._without_secrets(error_text(error)),
            attempt.context,
            task.retry_policy,
            retry_delay=attempt.envelope.retry_delay,
            jitter=attempt.envelope.jitter,
            fraction=self._random.fraction(),
        )
        return decision if isinstance(error, AttemptTimeout) else decision.raised_at(places_of(error))

    async def _conclude(self, attempt: Attempt, decision: Decision) -> DispatchResponse:
        """Record, report, notify, continue the flow, and respond."""
        if decision.kind is DecisionKind.FAILED:
            return await self._fail(attempt, decision)
        if decision.kind is DecisionKind.DUPLICATE:
            if decision.status is ResultStatus.FAILED:
                return await self._failed_before(attempt, decision)
        elif decision.kind is DecisionKind.SUCCEEDED and (attempt.task.hooks.success or self._hooks.success):
            with self._writer.while_hooks_run(attempt.context.call_id):  # a caller that waits here finds the hooks done
                await self._end(attempt, decision)
        else:
            await self._end(attempt, decision)
        if attempt.envelope.flow and decision.result is not None:
            return await self._continuation.send_next(attempt, decision.result, decision.response)
        return decision.response

    async def _end(self, attempt: Attempt, decision: Decision) -> None:
        """Record the end of an attempt, unless the call has failed; then report it and call the hooks."""
        ended_s = self._clock.monotonic()
        if (
            self._writer.is_enabled and decision.kind is not DecisionKind.REPUBLISHED
        ):  # recorded before its message was sent
            await self._record(attempt, decision, self._clock.now_ms())
        if self._is_in_flow(attempt):
            await self._continuation.abandon(attempt, decision)
        self._report(attempt, decision, ended_s - attempt.began_s)
        if attempt.task.hooks or self._hooks:
            await notify(self._hooks_of(attempt), attempt, decision, self.runner.threads)

    async def _fail(self, attempt: Attempt, decision: Decision) -> DispatchResponse:
        """End a call as failed. Its hooks are called before the failure can be read: a waiting caller finds them done.

        Until then the record says that it is running, with its error. If the process dies meanwhile, the next delivery
        of the message, or the report of its end, goes on from there.
        """
        spent_s = self._clock.monotonic() - attempt.began_s
        if AFTER_FAILURE in attempt.envelope.flow and not await self._has_sent_failure_calls(attempt, decision):
            return decision.response.unless_acknowledged(after_ms=RETRY_AFTER_MS)
        if any(hooks.failure for hooks in self._hooks_of(attempt)):
            self._writer.record(attempt.records(ResultStatus.RUNNING, self._clock.now_ms(), error=decision.note))
            await self._writer.flush()
        self._report(attempt, decision, spent_s)
        await notify(self._hooks_of(attempt), attempt, decision, self.runner.threads)
        await self._record(attempt, decision, self._clock.now_ms())
        if self._is_in_flow(attempt):
            await self._continuation.abandon(attempt, decision)
        return decision.response.with_header(ENDED_HEADER, "true")

    async def _failed_before(self, attempt: Attempt, decision: Decision) -> DispatchResponse:
        """Respond for a call whose failure is recorded; do what a process that died after that has left."""
        failure = decision._replace(kind=DecisionKind.FAILED)
        if decision.owes_hooks:
            if AFTER_FAILURE in attempt.envelope.flow and not await self._has_sent_failure_calls(attempt, decision):
                return decision.response.unless_acknowledged(after_ms=RETRY_AFTER_MS)
            with contextlib.suppress(QTasksError):  # a report of an end has no arguments
                attempt.arguments = attempt.task.codec.decode(attempt.envelope)
            await notify(self._hooks_of(attempt), attempt, failure, self.runner.threads)
            await self._record(attempt, failure, self._clock.now_ms())
        if self._is_in_flow(attempt):
            await self._continuation.abandon(attempt, failure)
        return decision.response.with_header(ENDED_HEADER, "true")

    async def _has_sent_failure_calls(self, attempt: Attempt, decision: Decision) -> bool:
        return await send_failure_calls(attempt, decision.note, self._continuation)

    def _hooks_of(self, attempt: Attempt) -> Sequence[Hooks]:
        return attempt.task.hooks, self._hooks

    def _is_in_flow(self, attempt: Attempt) -> bool:
        return bool(attempt.envelope.flow) or attempt.flow_id is not None

    def _report(self, attempt: Attempt, decision: Decision, spent_s: float) -> None:
        report(attempt, decision, spent_s)
        if attempt.overrun is not None:
            attempt.overrun.add_done_callback(partial(report_overrun, attempt))

    async def _record(self, attempt: Attempt, decision: Decision, now_ms: int) -> None:
        """Record the state of the call and end its lease, in one write; nothing without a result backend."""
        if not self._writer.is_enabled:
            return
        if attempt.envelope.unique is not None:
            await self._keep_or_free_unique(attempt, decision, attempt.envelope.unique)
        # The lease of an overrun lasts until its thread ends.
        locks = self._leases.released(attempt.context.call_id) if attempt.overrun is None else ()
        self._writer.record(attempt.records(decision.status, now_ms, decision.result, decision.note or None))
        self._writer.unlock(locks)
        await self._writer.flush()

    async def _keep_or_free_unique(self, attempt: Attempt, decision: Decision, unique_key: str) -> None:
        if decision.kind in (DecisionKind.RETRY, DecisionKind.INTERRUPTED):
            await self._leases.keep_unique(attempt, MAX_RETRY_AFTER_MS)
        elif decision.kind is not DecisionKind.REPUBLISHED:
            self._writer.unlock([Lock(unique_key, attempt.context.call_id, 0)])

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def close(self) -> None:
        """Write the last results and release the threads, without waiting for tasks that still run. Idempotent."""
        self.runner.close()
        self._writer.close()
