"""From a delivery to its response: verify, decode, execute. Knows no HTTP framework and no sockets.

For security, nothing is parsed before the signature is verified, and nothing runs before the arguments are checked.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

from qtasks.clock import Clock
from qtasks.counted_log import CountedLog
from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError, QTasksError, SignatureError, did_you_mean
from qtasks.protocol import bundles, development, dispatcher_questions, signing
from qtasks.protocol.messages import SigningKeys
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.results.backend import ResultBackend
from qtasks.tasks.run.attempt import Attempt, Delivery, context_of
from qtasks.tasks.run.decision import NEWER_AFTER_MS, DispatchResponse, error_text, newer_after_ms
from qtasks.tasks.run.end_handler import EndHandler
from qtasks.tasks.run.executor import AttemptExecutor
from qtasks.tasks.run.run import Invoke, Run
from qtasks.tasks.run.slots import RunSlots
from qtasks.tasks.send.end_callback import END_TASK

log = logging.getLogger("qtasks.dispatch")

HAND_BACK_S = 1.5
"""How long the responses of runs that are handed back may take: each writes to the result backend."""
_CHECK: Final = "refused an empty request without a signature, as `qtasks doctor` sends one to see that it is refused"


class CallbackHandler(Protocol):
    """Reads deliveries that are callbacks: reports of the broker about a request it made for a task."""

    async def read(self, task: BaseTask[..., Any], delivery: Delivery, invoke: Invoke | None) -> Attempt:
        """The attempt that a verified callback starts. Raises PayloadError, TamperedError."""
        ...


class Dispatcher:
    """Answers the deliveries for `tasks`, whose URLs begin with `base_url`.

    `callback_handler` is called for the first callback; None: no task here has callbacks. `end_handler` reads reports
    of ends; None: they are refused, as an unknown task is.
    """

    def __init__(
        self,
        tasks: Mapping[str, BaseTask[..., Any]],
        executor: AttemptExecutor,
        *,
        keys: SigningKeys,
        base_url: str,
        clock: Clock,
        callback_handler: Callable[[], CallbackHandler] | None = None,
        end_handler: EndHandler | None = None,
    ) -> None:
        self.tasks = tasks
        """The tasks by name, aliases included."""
        self._executor = executor
        self._keys = keys
        self.has_public_keys = development.is_public(keys.current) or development.is_public(keys.next)
        """True if anyone can sign deliveries: the keys are those of a development server."""
        self.base_url = base_url
        """What the URLs of all deliveries begin with."""
        self._clock = clock
        self._callback_handler = callback_handler
        self._end_handler = end_handler
        self._log = CountedLog(log, clock.monotonic)
        self._slots = RunSlots(executor.runner.threads)

    async def answer(self, delivery: Delivery, invoke: Invoke | None = None) -> DispatchResponse:
        """Handle one delivery and return the response. `invoke` runs tasks that have dependencies."""
        try:
            claims = self._verify(delivery)
        except SignatureError as error:
            return self._untrusted(delivery, error)
        if (response := self._without_run(delivery)) is not None:
            return response
        needs_thread = self._needs_thread(delivery)
        self._slots.take(needs_thread=needs_thread)
        try:
            return await self._deliver(delivery, claims, invoke)
        finally:
            self._slots.give_back(needs_thread=needs_thread)

    @property
    def results(self) -> ResultBackend | None:
        """Where the results of the tasks are; None without a result backend."""
        return self._executor.results

    @property
    def running(self) -> int:
        """How many deliveries run."""
        return self._slots.running

    @property
    def free_slots(self) -> int:
        """How many deliveries may begin now; 0 while it drains."""
        return self._slots.free()

    def open_bundle(self, signature: str, body: bytes) -> signing.Claims | DispatchResponse:
        """The claims of a bundle whose body is verified; or the response to a bundle of which nothing runs.

        Each of its deliveries gets claims of its own, see `item_claims`.
        """
        claims = self.verified(bundles.NAME, signature, body)
        if isinstance(claims, DispatchResponse) or self._slots.all_ended is None:
            return claims
        return DispatchResponse.draining()

    def verified(self, name: str, signature: str, body: bytes) -> signing.Claims | DispatchResponse:
        """The claims of a request to a `name` of the framework; or the response to one that is not signed."""
        request = Delivery(task=name, body=body, signature=signature, message_id="", retried=0)
        try:
            return self._verify(request)
        except SignatureError as error:
            return self._untrusted(request, error)

    def begin_item(self, delivery: Delivery) -> DispatchResponse | None:
        """Take a slot for a delivery of a verified bundle: `answer_item` may run it, and `end_item` must follow.

        Or the response to a delivery that runs nothing: also one that finds no free slot, which costs no attempt.
        """
        if (response := self._without_run(delivery)) is not None:
            return response
        has_slot = self._slots.take_free(needs_thread=self._needs_thread(delivery))
        return None if has_slot else DispatchResponse.busy()

    def answer_item(
        self, delivery: Delivery, claims: signing.Claims, invoke: Invoke | None
    ) -> Coroutine[Any, Any, DispatchResponse]:
        """As `answer`, for a delivery of a bundle that has a slot. `claims` are its own."""
        return self._deliver(delivery, claims, invoke)

    def end_item(self, delivery: Delivery) -> None:
        """Give the slot of a delivery back."""
        self._slots.give_back(needs_thread=self._needs_thread(delivery))

    async def run(self, run: Run, dependencies: Mapping[str, Any]) -> Any:
        """Call the function of a run, whose dependencies are resolved: ``async def`` here, ``def`` in a thread."""
        return await self._executor.runner.call(run, dependencies)

    async def drain(self, timeout_s: float) -> bool:
        """Take no more deliveries and wait for those that run; hand back those that have not ended in time.

        Returns True if all of them ended in time.
        """
        if await self._ended(timeout_s):
            return True
        log.warning("%d tasks still run after %s s", self._slots.running, timeout_s, extra={"action": "drain"})
        await self.hand_back()
        return False

    async def hand_back(self) -> None:
        """Take no more deliveries, and answer those that run now: the broker makes the same attempts again.

        An ``async def`` is cancelled. A ``def`` may check `TaskContext.should_stop`; nothing waits for its thread.
        Returns when all are answered, at the latest after `HAND_BACK_S`.
        """
        self._slots.close()
        self._executor.stop_runs()
        await self._ended(HAND_BACK_S)

    def cancel_run(self, call_id: str) -> bool:
        """Cancel the run of a call; False if it does not run here. May be called from any thread."""
        return self._executor.cancel_run(call_id)

    def is_deadlocked(self) -> bool:
        """See `AttemptExecutor.is_deadlocked`."""
        return self._executor.is_deadlocked()

    def close(self) -> None:
        """Write the last results and release the threads, without waiting for tasks that still run. Idempotent."""
        self._executor.close()

    async def _ended(self, timeout_s: float) -> bool:
        """Take no more deliveries and wait for those that run; True if the last one ended in time."""
        ended = asyncio.wrap_future(self._slots.close())
        await asyncio.wait([ended], timeout=timeout_s)
        return ended.done()

    def _without_run(self, delivery: Delivery) -> DispatchResponse | None:
        """The response to a verified delivery that runs nothing; None for one that runs a task."""
        if delivery.task == dispatcher_questions.NAMES:
            return DispatchResponse.of_result(json.dumps(sorted(self.tasks)).encode())
        if self._slots.all_ended is not None:
            return DispatchResponse.draining()
        is_end = delivery.task == END_TASK and self._end_handler is not None
        return None if is_end or delivery.task in self.tasks else self._unknown(delivery)

    def _needs_thread(self, delivery: Delivery) -> bool:
        task = self.tasks.get(delivery.task)
        return task is not None and not task.is_async

    def _verify(self, delivery: Delivery) -> signing.Claims:
        return signing.verify(
            delivery.signature,
            body=delivery.body,
            url=f"{self.base_url}/{delivery.task}" + (f"?{delivery.query}" if delivery.query else ""),
            keys=self._keys,
            now_s=self._clock.now_ms() / 1000,
        )

    async def _deliver(self, delivery: Delivery, claims: signing.Claims, invoke: Invoke | None) -> DispatchResponse:
        try:
            attempt = await self._decode(delivery, invoke)
        except PayloadError as error:
            return self._unreadable(delivery, error)
        if attempt.is_superseded:
            return DispatchResponse.acknowledgement()
        return await self._executor.execute(attempt, claims)

    async def _decode(self, delivery: Delivery, invoke: Invoke | None) -> Attempt:
        """The attempt that a verified delivery starts. Raises PayloadError, TamperedError, UnknownVersionError."""
        if delivery.task == END_TASK and self._end_handler is not None:
            return self._end_handler.read(delivery)
        task = self.tasks[delivery.task]
        if delivery.query:
            if self._callback_handler is None:
                raise PayloadError(f"{task.name} has no callbacks, so its URL has no query")
            return await self._callback_handler().read(task, delivery, invoke)
        envelope = envelopes.decode(delivery.body)
        context = context_of(task.name, delivery, envelope, self._clock)
        return Attempt(task=task, context=context, envelope=envelope, invoke=invoke)

    def _unknown(self, delivery: Delivery) -> DispatchResponse:
        names = sorted(self.tasks)
        guess = did_you_mean(delivery.task, names)
        text = f"UnknownTask: there is no task {delivery.task[:128]!r} here{guess}; known tasks: {', '.join(names)}"
        log.error("%s %s", ErrorCode.TASK_UNKNOWN, text, extra={"action": "unknown", "message_id": delivery.message_id})
        return DispatchResponse.later(text, ErrorCode.TASK_UNKNOWN, after_ms=newer_after_ms(delivery.retried))

    def _untrusted(self, delivery: Delivery, error: QTasksError) -> DispatchResponse:
        fields = {"action": "refused", "task": delivery.task}
        if delivery.task == dispatcher_questions.NAMES and not delivery.signature and not delivery.body:
            # Refused like every other one. No broker asks without a signature, and no task is meant.
            self._log.write(logging.INFO, "requests of that kind", _CHECK, extra=fields)
            return DispatchResponse.refusal(401, "invalid signature")
        self._log.warning(f"requests refused with {error.code}", "%s %s", error.code, error, extra=fields)
        return DispatchResponse.refusal(401, "invalid signature")

    def _unreadable(self, delivery: Delivery, error: PayloadError) -> DispatchResponse:
        if isinstance(error, envelopes.TamperedError):
            return self._untrusted(delivery, error)
        response = DispatchResponse.never(error_text(error), error.code)
        if isinstance(error, envelopes.UnknownVersionError):  # a newer dispatcher may read it
            response = DispatchResponse.later(error_text(error), error.code, after_ms=NEWER_AFTER_MS)
        fields = {"action": "unreadable", "task": delivery.task, "message_id": delivery.message_id}
        log.error("%s cannot be read: %s", delivery.message_id, response.body.decode(), extra=fields)
        return response


def item_claims(claims: signing.Claims, place: int) -> signing.Claims:
    """The claims of the delivery at this place in a bundle: a bundle that arrives again repeats each of them."""
    url, issued_s, expires_s, jti, body_hash, key = claims
    return signing.Claims(url, issued_s, expires_s, f"{jti}.{place}", body_hash, key)
