"""From a delivery to its answer: verify, decode, check, run. Knows no HTTP framework and no sockets.

The order is the security: nothing is parsed before the signature is good, nothing runs before the arguments are.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from qtasks.errors import ArgumentsError, ConfigurationError, PayloadError, QTasksError, ResultError, SignatureError
from qtasks.protocol import signing, wire
from qtasks.protocol.messages import DEFAULT_RETRIES, DEFAULT_TIMEOUT_MS, MAX_BODY, SigningKeys
from qtasks.tasks import flow, logs, outcome, payload, tracing, verdict
from qtasks.tasks.arguments import Values
from qtasks.tasks.context import Stop, TaskContext
from qtasks.tasks.guard import Guard
from qtasks.tasks.hooks import Hooks, TaskEvent, tell
from qtasks.tasks.middleware import Middleware, chain
from qtasks.tasks.outcome import Outcome
from qtasks.tasks.reporting import facts, report, text_of
from qtasks.tasks.results.base import Hold, Record, ResultBackend, ResultStatus
from qtasks.tasks.results.keeper import Keeper
from qtasks.tasks.sending import Outgoing
from qtasks.tasks.signals import MAX_RETRY_AFTER_MS, AttemptTimeout, Snooze
from qtasks.tasks.task import Task
from qtasks.tasks.verdict import Kind, Verdict
from qtasks.tasks.workers import Workers

log = logging.getLogger("qtasks.dispatch")

UNKNOWN_TASK, BAD_RESULT, DRAINING = "QT401", "QT406", "QT408"

MARGIN_S = 1.0
"""How long before the broker gives an attempt up it is stopped, so that the broker hears why; less for short ones."""

DRAIN_AFTER_MS = 5_000
"""When to come back to a process that is going away."""

UNKNOWN_AFTER_MS = 10_000
"""When to come back, at first, about a task that a newer deployment may know; four times as long each time."""

UNKNOWN_AFTER_MOST_MS = 60 * 60 * 1000

NEWS_AFTER_S = 0.05
"""How long a task runs before that is written down, where writing is not free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What arrived for one task. Only `task` and `body` are covered by the signature."""

    task: str
    body: bytes = field(repr=False)
    signature: str = field(repr=False)
    message_id: str
    retried: int
    schedule_id: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A verified call with checked arguments, ready to run."""

    task: Task[..., Any]
    values: Values = field(repr=False)
    context: TaskContext
    envelope: payload.Envelope = field(default=payload.Envelope(None), repr=False)


Invoke = Callable[[Run], Awaitable[Any]]
"""Runs a task that wants dependencies; whoever has a framework supplies it."""

Republish = Callable[[Outgoing], Awaitable[object]]
"""Sends a call that is put off to the broker. Raises QTasksError."""


class Dispatcher:
    """Answers the deliveries for a set of tasks. `results` None means that nobody asks for any.

    `secrets` are texts that must not appear in an error on the wire; `now_s` is Unix time, `chance` a number from 0 to
    1 for jitter.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        *,
        keys: SigningKeys,
        base_url: str,
        results: ResultBackend | None,
        threads: int,
        secrets: Sequence[str] = (),
        now_s: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        republish: Republish | None = None,
        middleware: Middleware | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self._tasks = tasks
        self._keys = keys
        self._base_url = base_url
        self._results = results
        self._keeper = Keeper(results) if results is not None else None
        self._guard = Guard(self._keeper, now_s) if self._keeper is not None else None
        # Where writing costs, a task that ends at once is not worth a record that it has begun.
        self._news_after_s = NEWS_AFTER_S if results is not None and results.blocking else None
        self._secrets = tuple(secret for secret in secrets if secret)
        self._now_s = now_s
        self._chance = chance
        self._republish = republish
        self._middleware = middleware or Middleware()
        self._hooks = hooks or Hooks()
        self._stops: set[Stop] = set()
        self._workers = Workers(threads)
        # An embedded home may change loops when an application starts, so two of them may count at once.
        self._count_lock = threading.Lock()
        self._running = 0
        self._drained: Future[None] | None = None

    async def answer(self, delivery: Delivery, invoke: Invoke | None = None) -> Outcome:
        """Take one delivery to its end. `invoke` runs tasks that want dependencies."""
        try:
            token = self._verify(delivery).jti
        except SignatureError as error:
            log.warning("%s %s", error.code, error, extra={"action": "refused", "task": delivery.task})
            return outcome.refusal(401, "invalid signature")
        if self._drained is not None:
            return outcome.later("this process is going away", DRAINING, after_ms=DRAIN_AFTER_MS)
        task = self._tasks.get(delivery.task)
        if task is None:
            return self._unknown(delivery)
        self._count(1)
        try:
            return await self._deliver(task, delivery, token, invoke)
        finally:
            self._count(-1)

    async def run(self, run: Run, dependencies: Mapping[str, Any]) -> Any:
        """Call the function: ``async def`` here on the loop, ``def`` in a thread, context variables carried along."""
        task = run.task
        if task.is_async:
            value = task.plan.call(task.function, run.values, run.context, dependencies)
        else:
            value = await self._workers.run(
                lambda: task.plan.call(task.function, run.values, run.context, dependencies)
            )
        # A decorator may hide an async function in a plain one.
        return await value if isinstance(value, Awaitable) else value

    async def drain(self, timeout_s: float) -> bool:
        """Take no more deliveries and wait for those under way. Returns whether all of them ended in time."""
        self._drained = Future()
        self._count(0)
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._drained), timeout_s)
        except TimeoutError:
            for stop in list(self._stops):
                stop.ask()
            log.warning("%d tasks still run after %s s", self._running, timeout_s, extra={"action": "drain"})
            return False
        return True

    def close(self) -> None:
        """Keep the last results and let the threads go; tasks still running are not waited for. Idempotent."""
        self._workers.close()
        if self._keeper is not None:
            self._keeper.close()

    def _count(self, step: int) -> None:
        with self._count_lock:
            self._running += step
            if self._running == 0 and self._drained is not None and not self._drained.done():
                self._drained.set_result(None)

    def _verify(self, delivery: Delivery) -> signing.Claims:
        return signing.verify(
            delivery.signature,
            body=delivery.body,
            url=f"{self._base_url}/{delivery.task}",
            keys=self._keys,
            now_s=self._now_s(),
        )

    def _unknown(self, delivery: Delivery) -> Outcome:
        known = sorted(self._tasks)
        near = difflib.get_close_matches(delivery.task, known, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        text = f"UnknownTask: there is no task {delivery.task[:128]!r} here{guess}; known tasks: {', '.join(known)}"
        log.error("%s %s", UNKNOWN_TASK, text, extra={"action": "unknown", "message_id": delivery.message_id})
        wait_ms = min(UNKNOWN_AFTER_MS * 4 ** min(delivery.retried, 10), UNKNOWN_AFTER_MOST_MS)
        return outcome.later(text, UNKNOWN_TASK, after_ms=wait_ms)

    async def _deliver(self, task: Task[..., Any], delivery: Delivery, token: str, invoke: Invoke | None) -> Outcome:
        try:
            envelope = payload.decode(delivery.body)
        except payload.UnknownVersionError as error:
            return self._reported(outcome.later(text_of(error), error.code, after_ms=UNKNOWN_AFTER_MS), delivery)
        except PayloadError as error:
            return self._reported(outcome.never(text_of(error), error.code), delivery)
        now_ms = int(self._now_s() * 1000)
        context = _context(task.name, delivery, envelope, now_ms)
        if self._guard is None:
            return await self._admitted(task, context, envelope, now_ms, invoke)
        if (refused := await self._guard.admit(context, token)) is not None:
            if refused.value is None or not envelope.flow:
                return refused.answer
            return await self._continued(context, envelope, refused.value, refused.answer)
        renewing = asyncio.ensure_future(self._guard.renew(context.call_id))
        try:
            return await self._admitted(task, context, envelope, now_ms, invoke)
        finally:
            renewing.cancel()
            if self._guard.leave(context.call_id) and self._keeper is not None:
                self._keeper.ask()

    async def _admitted(
        self,
        task: Task[..., Any],
        context: TaskContext,
        envelope: payload.Envelope,
        now_ms: int,
        invoke: Invoke | None,
    ) -> Outcome:
        if envelope.expires_ms is not None and now_ms > envelope.expires_ms:
            return await self._conclude(task, context, envelope, verdict.expired(envelope.expires_ms, now_ms))
        try:
            values = task.plan.check(task.plan.bind(envelope.args, envelope.kwargs), from_wire=True)
        except ArgumentsError as error:
            return await self._conclude(
                task, context, envelope, verdict.not_again(context, text_of(error), error.code), error
            )
        except QTasksError as error:  # the task's own definition
            return await self._conclude(
                task, context, envelope, verdict.failure(context, text_of(error), error.code), error
            )
        return await self._attempt(Run(task, values, context, envelope), invoke)

    async def _attempt(self, run: Run, invoke: Invoke | None) -> Outcome:
        began_s = time.perf_counter()
        known = logs.current.set(run.context)
        try:
            ended, error, value = await self._ended(run, invoke)
            spent_s = time.perf_counter() - began_s
            return await self._conclude(
                run.task, run.context, run.envelope, ended, error, run.values, value, spent_s=spent_s
            )
        finally:
            logs.current.reset(known)

    async def _ended(self, run: Run, invoke: Invoke | None) -> tuple[Verdict, BaseException | None, Any]:
        """Run a task to its end: what that means, what it raised, what it returned."""
        self._stops.add(run.context.stop)
        try:
            with self._reported_as_running(run.context), tracing.continued(run.context):
                value = await self._in_time(run, invoke)
        except (Exception, BaseExceptionGroup, SystemExit, asyncio.CancelledError) as raised:
            if isinstance(raised, asyncio.CancelledError) and _being_cancelled():
                raise
            error = verdict.alone(raised)
            ended = await self._put_off(run, error) if isinstance(error, Snooze) else self._judged(run, error)
            return ended, error, None
        finally:
            self._stops.discard(run.context.stop)
        try:
            return verdict.done(encode_result(run.task, value)), None, value
        except ResultError as error:
            return verdict.not_again(run.context, text_of(error), error.code), error, None

    async def _in_time(self, run: Run, invoke: Invoke | None) -> Any:
        """Run a task; what can be stopped is stopped a moment before the broker gives the attempt up."""
        wants = run.task.plan.dependencies and invoke is not None
        innermost = invoke if wants and invoke is not None else self._plainly
        call = chain(self._middleware.running, innermost)(run)
        if not run.task.is_async:
            return await call
        limit_s = run.context.time_left_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await call
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise AttemptTimeout(
                f"{run.task.name} was stopped after {limit_s:.3g} s, its time for one attempt"
            ) from error

    async def _plainly(self, run: Run) -> Any:
        return await self.run(run, {})

    def _judged(self, run: Run, error: BaseException) -> Verdict:
        envelope = run.envelope
        return verdict.of_error(
            error,
            self._told(error),
            run.context,
            run.task.retry_policy,
            retry_delay=envelope.retry_delay,
            jitter=envelope.jitter,
            chance=self._chance(),
        )

    async def _put_off(self, run: Run, wish: Snooze) -> Verdict:
        """Publish the call again, under its own id. Where that cannot be done, the broker is asked to come back."""
        note = self._told(wish)
        message = again(run, wish.delay_ms)
        try:
            if self._republish is None:
                raise ConfigurationError("this dispatcher cannot publish, so a call cannot be put off")
            # The next delivery may come before this one is answered: it must not find the call still running.
            if self._guard is not None and self._guard.leave(run.context.call_id) and self._keeper is not None:
                await self._keeper.keep()
            await self._republish(message)
        except QTasksError as error:
            log.warning("%s %s could not be put off: %s", run.task.name, run.context.call_id, error)
            after_ms = min(wish.delay_ms, MAX_RETRY_AFTER_MS)
            return verdict.later(run.context, f"{note} ({text_of(error)})", error.code, after_ms=after_ms)
        return verdict.put_off(note)

    async def _conclude(
        self,
        task: Task[..., Any],
        context: TaskContext,
        envelope: payload.Envelope,
        ended: Verdict,
        error: BaseException | None = None,
        values: Values | None = None,
        value: Any = None,
        *,
        spent_s: float = 0.0,
    ) -> Outcome:
        """Keep, report and tell how an attempt ended, then give the answer."""
        if ended.kind not in (Kind.RETRY, Kind.PUT_OFF) and self._keeper is not None and context.unique is not None:
            self._keeper.release(Hold(context.unique, context.call_id, 0))
        await self._keep(context, ended.status, value=ended.value, error=ended.note or None)
        if envelope.flow and ended.kind in (Kind.FAILED, Kind.OVER):
            note = f"{context.task} {context.call_id} before it ended on attempt {context.attempt}: {ended.note}"
            await self._abandon(context, envelope, ended.status, note)
        report(context, ended, error, spent_s)
        event = TaskEvent(context=context, arguments=values or {}, error=error, reason=ended.note, value=value)
        await tell((task.hooks, self._hooks), ended, event, self._workers.run)
        if envelope.flow and ended.value is not None:
            return await self._continued(context, envelope, ended.value, ended.answer)
        return ended.answer

    async def _continued(
        self, context: TaskContext, envelope: payload.Envelope, value: str, answer: Outcome
    ) -> Outcome:
        """Send what follows a call before the broker hears of its success; where that fails, have it come back."""
        try:
            if "of" not in envelope.flow:
                result = json.loads(value)
            elif (results := await self._gathered(envelope.flow)) is not None:
                result = results
            else:
                return answer
            messages = flow.followers(envelope, context.call_id, result)
        except (KeyError, TypeError, ValueError, QTasksError) as error:
            log.exception("%s cannot be continued", context.task, extra=facts(context, "flow_broken"))
            note = f"{context.task} {context.call_id} has succeeded, but nothing can follow: {text_of(error)}"
            await self._abandon(context, envelope, ResultStatus.FAILED, note)
            return answer
        try:
            if self._republish is None:
                raise ConfigurationError("this dispatcher cannot publish, so nothing can follow a call")
            for message in messages:
                await self._republish(message)
        except QTasksError as error:
            log.warning("%s could not be continued yet: %s", context.task, error, extra=facts(context, "flow_waits"))
            return outcome.later(text_of(error), error.code, after_ms=DRAIN_AFTER_MS)
        return answer

    async def _gathered(self, group: Mapping[str, Any]) -> list[Any] | None:
        """The results of a group, in order; None while one is missing. Raises ResultError."""
        results = self._results
        if results is None:
            raise ConfigurationError("a group that something follows needs a place for results")
        values: list[Any] = []
        for call_id in flow.members_of(group):
            read = results.read
            record = await asyncio.to_thread(read, call_id) if results.blocking else read(call_id)
            if record is None or record.status is not ResultStatus.SUCCEEDED:
                return None
            values.append(json.loads(record.value or "null"))
        return values

    async def _abandon(self, context: TaskContext, envelope: payload.Envelope, status: ResultStatus, note: str) -> None:
        """Have it known of everything that should have followed that it will not."""
        if self._keeper is None:
            return
        for task, call_id in flow.abandoned(envelope, context.call_id):
            record = self._record(context, status, error=note)
            self._keeper.put(replace(record, call_id=call_id, task=task, message_id=call_id))
        await self._keeper.keep()

    def _reported(self, answer: Outcome, delivery: Delivery) -> Outcome:
        known = {"action": "unreadable", "task": delivery.task, "message_id": delivery.message_id}
        log.error("%s cannot be read: %s", delivery.message_id, answer.body.decode(), extra=known)
        return answer

    def _told(self, error: BaseException) -> str:
        """An exception for the wire, with nothing in it that we know to be secret."""
        text = text_of(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @contextmanager
    def _reported_as_running(self, context: TaskContext) -> Iterator[None]:
        """Have it known that the task runs, at once or after a moment, and how far it has come."""
        if (keeper := self._keeper) is None:
            yield
            return

        def tell(progress: str | None = None) -> None:
            keeper.put(self._record(context, ResultStatus.RUNNING, progress=progress or context.reporter.latest))
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

    async def _keep(
        self, context: TaskContext, status: ResultStatus, *, value: str | None = None, error: str | None = None
    ) -> None:
        """Have the state of a call kept before anything else is said."""
        if self._keeper is not None:
            self._keeper.put(self._record(context, status, value, error))
            if self._guard is not None:
                self._guard.leave(context.call_id)
            await self._keeper.keep()

    def _record(
        self,
        context: TaskContext,
        status: ResultStatus,
        value: str | None = None,
        error: str | None = None,
        progress: str | None = None,
    ) -> Record:
        return Record(
            call_id=context.call_id,
            message_id=context.message_id,
            task=context.task,
            status=status,
            attempt=context.attempt,
            updated_ms=int(self._now_s() * 1000),
            value=value,
            error=error,
            progress=progress,
        )


def encode_result(task: Task[..., Any], value: Any) -> bytes:
    """A result as JSON, by the task's return annotation. Raises ResultError (QT406) saying what does not fit."""
    adapter = task.plan.result
    shown = f"{type(value).__name__} returned by {task.name}"
    try:
        checked = adapter.validate_python(value)
        plain = adapter.dump_python(checked, mode="json", round_trip=True, by_alias=False)
        body = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValidationError as error:
        raise ResultError(
            f"the {shown} does not fit {task.plan.result_name}: {error.errors(include_url=False)[0]['msg']}",
            code=BAD_RESULT,
        ) from None
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise ResultError(f"the {shown} cannot be written as JSON: {error}", code=BAD_RESULT) from None
    if len(body) > MAX_BODY:
        raise ResultError(
            f"the {shown} makes {len(body):,} bytes of JSON; {MAX_BODY:,} are allowed",
            hint="fix         store the data and return its key",
            code=BAD_RESULT,
        )
    return body


def again(run: Run, delay_ms: int) -> Outgoing:
    """The call of a run, to be published once more; not through its queue, which knows no delay."""
    envelope, call_id = run.envelope, run.context.call_id
    body = payload.encode(replace(envelope, call_id=call_id, snoozed=envelope.snoozed + 1))
    options = wire.read(envelope.options.items()) if envelope.options else run.task.delivery.publish
    # A delivery that is made twice must not put the call off twice.
    once = hashlib.sha256(f"{call_id} snoozed {envelope.snoozed}".encode()).hexdigest()
    options = replace(
        options,
        method="POST",
        content_type="application/json",
        retries=envelope.retries,
        delay_ms=delay_ms,
        not_before_s=None,
        deduplication_id=once,
    )
    return Outgoing(task=run.task.name, call_id=call_id, body=body, options=options)


def _context(task: str, delivery: Delivery, envelope: payload.Envelope, now_ms: int) -> TaskContext:
    timeout_s = (envelope.timeout_ms or DEFAULT_TIMEOUT_MS) / 1000
    limit_s = timeout_s - min(MARGIN_S, timeout_s / 10)
    return TaskContext(
        task=task,
        call_id=envelope.call_id or payload.call_id_of_message(delivery.message_id),
        message_id=delivery.message_id,
        attempt=delivery.retried + 1,
        retries=DEFAULT_RETRIES if envelope.retries is None else envelope.retries,
        schedule_id=delivery.schedule_id,
        snoozed=envelope.snoozed,
        unique=envelope.unique,
        carried=MappingProxyType(dict(envelope.carried)),
        deadline=datetime.fromtimestamp(now_ms / 1000 + limit_s, UTC),
        stop=Stop(time.monotonic() + limit_s),
    )


def _being_cancelled() -> bool:
    """Whether somebody cancels us, as opposed to a task that raised CancelledError itself."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
