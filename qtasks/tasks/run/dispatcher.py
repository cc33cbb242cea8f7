"""From a delivery to its answer: verify, decode, check, run. Knows no HTTP framework and no sockets.

The order is the security: nothing is parsed before the signature is good, nothing runs before the arguments are.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from qtasks.clock import Clock, SystemClock
from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError, QTasksError, SignatureError, did_you_mean
from qtasks.protocol import signing
from qtasks.protocol.messages import DEFAULT_RETRIES, DEFAULT_TIMEOUT_MS, SigningKeys
from qtasks.randomness import Random, SystemRandom
from qtasks.tasks.context import Stop, TaskContext
from qtasks.tasks.encode import argument_codec
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.hooks import Hooks
from qtasks.tasks.progress import Reporter
from qtasks.tasks.results.backend import ResultBackend
from qtasks.tasks.run import decision, dispatch_response
from qtasks.tasks.run.attempts import Attempts
from qtasks.tasks.run.continuation import Following, Republish
from qtasks.tasks.run.dispatch_response import Outcome
from qtasks.tasks.run.lease import BRIEF_MS, LEASE_MS, Guard
from qtasks.tasks.run.recorder import Recorder
from qtasks.tasks.run.report import text_of
from qtasks.tasks.run.run_middleware import RunMiddleware
from qtasks.tasks.run.runner import Invoke, Run, Runner
from qtasks.tasks.run.thread_pool import Workers
from qtasks.tasks.task import Task

if TYPE_CHECKING:
    from qtasks.tasks.llm.callback import Callback
    from qtasks.tasks.llm.callback_handler import LlmCallbackHandler
    from qtasks.tasks.llm.llm_task import LlmTask

log = logging.getLogger("qtasks.dispatch")


MARGIN_S = 1.0
"""How long before the broker gives an attempt up it is stopped, so that the broker hears why; less for short ones."""

DRAIN_AFTER_MS = 5_000
"""When to come back to a process that is going away."""

UNKNOWN_AFTER_MS = 10_000
"""When to come back, at first, about a task that a newer deployment may know; four times as long each time."""

UNKNOWN_AFTER_MOST_MS = 60 * 60 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What arrived for one task. Only `task`, `query` and `body` are covered by the signature."""

    task: str
    body: bytes = field(repr=False)
    signature: str = field(repr=False)
    message_id: str
    retried: int
    schedule_id: str | None = None
    query: str = ""
    """Of the URL, as it came; a callback has one."""
    call: str = field(default="", repr=False)
    """The header with which a callback brings its call."""


class Dispatcher:
    """Answers the deliveries for a set of tasks. `results` None means that nobody asks for any.

    `secrets` are texts that must not appear in an error on the wire; `random` is for jitter.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        *,
        keys: SigningKeys,
        base_url: str,
        results: ResultBackend | None,
        threads: int,
        workers: Workers | None = None,
        secrets: Sequence[str] = (),
        clock: Clock | None = None,
        random: Random | None = None,
        republish: Republish | None = None,
        middleware: Sequence[RunMiddleware] = (),
        hooks: Hooks | None = None,
    ) -> None:
        self._tasks = tasks
        self._keys = keys
        self._base_url = base_url
        self._results = results
        self._clock = clock = clock or SystemClock()
        self._workers = workers or Workers(threads)
        self._runner = Runner(self._workers, middleware)
        self._recorder = Recorder(results, clock)
        keeper = self._recorder.keeper
        self._guard = Guard(keeper, clock) if keeper is not None else None
        self._following = Following(tasks, results, self._recorder, republish)
        self._attempts = Attempts(
            self._runner,
            self._workers,
            recorder=self._recorder,
            guard=self._guard,
            following=self._following,
            republish=republish,
            hooks=hooks or Hooks(),
            secrets=secrets,
            random=random or SystemRandom(),
        )
        # An embedded home may change loops when an application starts, so two of them may count at once.
        self._count_lock = threading.Lock()
        self._running = 0
        self._drained: Future[None] | None = None

    async def answer(self, delivery: Delivery, invoke: Invoke | None = None) -> Outcome:
        """Take one delivery to its end. `invoke` runs tasks that want dependencies."""
        try:
            token = self._verify(delivery).jti
        except SignatureError as error:
            return self._distrusted(delivery, error)
        if self._drained is not None:
            return dispatch_response.later(
                "this process is going away", ErrorCode.DISPATCHER_DRAINING, after_ms=DRAIN_AFTER_MS
            )
        task = self._tasks.get(delivery.task)
        if task is None:
            return self._unknown(delivery)
        self._count(1)
        try:
            return await self._deliver(task, delivery, token, invoke)
        finally:
            self._count(-1)

    async def run(self, run: Run, dependencies: Mapping[str, Any]) -> Any:
        """Call the function of a run, whose dependencies are resolved: ``async def`` here, ``def`` in a thread."""
        return await self._runner.call(run, dependencies)

    async def drain(self, timeout_s: float) -> bool:
        """Take no more deliveries and wait for those under way. Returns whether all of them ended in time."""
        self._drained = Future()
        self._count(0)
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._drained), timeout_s)
        except TimeoutError:
            self._runner.ask_to_stop()
            log.warning("%d tasks still run after %s s", self._running, timeout_s, extra={"action": "drain"})
            return False
        return True

    def close(self) -> None:
        """Keep the last results and let the threads go; tasks still running are not waited for. Idempotent."""
        self._workers.close()
        self._recorder.close()

    def _count(self, step: int) -> None:
        with self._count_lock:
            self._running += step
            if self._running == 0 and self._drained is not None and not self._drained.done():
                self._drained.set_result(None)

    def _verify(self, delivery: Delivery) -> signing.Claims:
        return signing.verify(
            delivery.signature,
            body=delivery.body,
            url=f"{self._base_url}/{delivery.task}" + (f"?{delivery.query}" if delivery.query else ""),
            keys=self._keys,
            now_s=self._clock.now_ms() / 1000,
        )

    def _unknown(self, delivery: Delivery) -> Outcome:
        known = sorted(self._tasks)
        guess = did_you_mean(delivery.task, known)
        text = f"UnknownTask: there is no task {delivery.task[:128]!r} here{guess}; known tasks: {', '.join(known)}"
        log.error("%s %s", ErrorCode.TASK_UNKNOWN, text, extra={"action": "unknown", "message_id": delivery.message_id})
        wait_ms = min(UNKNOWN_AFTER_MS * 4 ** min(delivery.retried, 10), UNKNOWN_AFTER_MOST_MS)
        return dispatch_response.later(text, ErrorCode.TASK_UNKNOWN, after_ms=wait_ms)

    async def _deliver(self, task: Task[..., Any], delivery: Delivery, token: str, invoke: Invoke | None) -> Outcome:
        read = await self._read(task, delivery)
        if isinstance(read, Outcome):
            return read
        envelope, callback = read
        context = _context(task.name, delivery, envelope, self._clock)
        if callback is not None:
            if callback.is_last_of_many:
                return dispatch_response.known()
            context = callback.seen_from(context)
        if self._guard is None:
            if envelope.alone is not None:
                return await self._attempts.conclude(task, context, envelope, decision.unguarded(context))
            return await self._admitted(task, context, envelope, callback, invoke)
        lease_ms = BRIEF_MS if callback is not None and callback.is_news else LEASE_MS
        refused = await self._guard.admit(context, token, alone=envelope.alone, lease_ms=lease_ms)
        if refused is not None:
            if refused.ended is not None:
                return await self._attempts.conclude(task, context, envelope, refused.ended)
            if refused.value is None or not envelope.flow:
                return refused.answer if callback is None else callback.heard(refused.answer)
            return await self._following.send(context, envelope, refused.value, refused.answer)
        renewing = asyncio.ensure_future(self._guard.renew(context.call_id))
        try:
            return await self._admitted(task, context, envelope, callback, invoke)
        finally:
            renewing.cancel()
            if self._guard.leave(context.call_id):
                self._recorder.ask()

    async def _admitted(
        self,
        task: Task[..., Any],
        context: TaskContext,
        envelope: envelopes.Envelope,
        callback: Callback | None,
        invoke: Invoke | None,
    ) -> Outcome:
        now_ms = self._clock.now_ms()
        runs = callback is None or callback.content.is_answer
        if envelope.expires_ms is not None and now_ms > envelope.expires_ms and runs:
            return await self._attempts.conclude(task, context, envelope, decision.expired(envelope.expires_ms, now_ms))
        if callback is not None:
            return await self._callbacks.take(cast("LlmTask[..., Any]", task), callback, context, invoke)
        try:
            values = argument_codec.unpacked(task, envelope)
        except QTasksError as error:
            ended = decision.of_call(context, error, text_of(error))
            return await self._attempts.conclude(task, context, envelope, ended, error)
        return await self._attempts.make(Run(task, values, context, envelope), invoke)

    async def _read(
        self, task: Task[..., Any], delivery: Delivery
    ) -> tuple[envelopes.Envelope, Callback | None] | Outcome:
        """The call in a verified delivery, and the callback that brings it if one does; or what to answer instead."""
        try:
            if not delivery.query:
                return envelopes.decode(delivery.body), None
            if not task.asks:
                raise PayloadError(f"{task.name} asks no language model, so its URL has no query")
            model = cast("LlmTask[..., Any]", task)
            callback = await self._callbacks.read(model, delivery.query, delivery.call, delivery.body)
        except envelopes.TamperedError as error:
            return self._distrusted(delivery, error)
        except envelopes.UnknownVersionError as error:
            return self._reported(
                dispatch_response.later(text_of(error), error.code, after_ms=UNKNOWN_AFTER_MS), delivery
            )
        except PayloadError as error:
            return self._reported(dispatch_response.never(text_of(error), error.code), delivery)
        return callback.envelope, callback

    @functools.cached_property
    def _callbacks(self) -> LlmCallbackHandler:
        # Imported here: few applications ask language models.
        from qtasks.tasks.llm.callback_handler import LlmCallbackHandler

        return LlmCallbackHandler(self._attempts, self._results)

    def _distrusted(self, delivery: Delivery, error: QTasksError) -> Outcome:
        log.warning("%s %s", error.code, error, extra={"action": "refused", "task": delivery.task})
        return dispatch_response.refusal(401, "invalid signature")

    def _reported(self, answer: Outcome, delivery: Delivery) -> Outcome:
        known = {"action": "unreadable", "task": delivery.task, "message_id": delivery.message_id}
        log.error("%s cannot be read: %s", delivery.message_id, answer.body.decode(), extra=known)
        return answer


def _context(task: str, delivery: Delivery, envelope: envelopes.Envelope, clock: Clock) -> TaskContext:
    timeout_s = (envelope.timeout_ms or DEFAULT_TIMEOUT_MS) / 1000
    limit_s = timeout_s - min(MARGIN_S, timeout_s / 10)
    return TaskContext(
        task=task,
        call_id=envelope.call_id or envelopes.call_id_of_message(delivery.message_id),
        message_id=delivery.message_id,
        attempt=delivery.retried + 1,
        retries=DEFAULT_RETRIES if envelope.retries is None else envelope.retries,
        schedule_id=envelope.schedule or delivery.schedule_id,
        snoozed=envelope.snoozed,
        unique=envelope.unique,
        carried=MappingProxyType(dict(envelope.carried)),
        deadline=datetime.fromtimestamp(clock.now_ms() / 1000 + limit_s, UTC),
        stop=Stop(clock.monotonic() + limit_s, clock.monotonic),
        reporter=Reporter(monotonic=clock.monotonic),
    )
