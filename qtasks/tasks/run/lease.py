"""Idempotency (best effort): at most one delivery of a call runs at a time; duplicates get the recorded response.

A call is in one of three states in the result backend: not running; running (a lock, renewed while the run lasts; it
becomes void when its process has died: at once on the same machine, elsewhere after some seconds); or ended. A delivery
of a running call is answered 503, with the time until the lock would end in `Retry-After`. The last permitted attempt
waits for that run instead, because its own failure would make a dead letter of a success. A delivery of a call that has
ended gets the recorded result, and nothing runs. A signed request that arrives a second time (its `jti`) never runs,
however the first one ended.

A call that was cancelled does not run; a run learns of its cancel when it renews its lock (see `cancellation`).

A run of a schedule that skips overlapping runs locks its schedule, too; it is skipped if the schedule is locked.

If the backend cannot be reached the task runs: losing a call would be worse than running it twice. Then, and without a
backend, only the memory of this process catches what arrives twice (see `received`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Sequence
from enum import Enum, auto

from qtasks.clock import Clock
from qtasks.counted_log import CountedLog
from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError
from qtasks.protocol.signing import Claims
from qtasks.rare_timers import RareTimer
from qtasks.tasks.context import StopReason, TaskContext
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.encoding import shown
from qtasks.tasks.results.backend import Lock, ResultRecord, ResultStatus, pauses
from qtasks.tasks.results.unique import Unique
from qtasks.tasks.results.writer import LockState, ResultWriter
from qtasks.tasks.run.attempt import Attempt
from qtasks.tasks.run.decision import DUPLICATE_HEADER, Decision, DispatchResponse
from qtasks.tasks.run.process_id import is_gone, new_owner
from qtasks.tasks.run.received import ReceivedRequest, ReceivedRequests

log = logging.getLogger("qtasks.lease")

LEASE_MS = 15_000
"""How long a lock is valid without being renewed, if its process cannot be seen from here."""

BRIEF_LEASE_MS = 1_000
"""As `LEASE_MS`, for attempts that take no time: duplicates wait instead of coming back later."""

RENEW_S = 4.0
"""Time between two renewals of a lock."""

TOKEN_LIFE_MS = 20 * 60 * 1000
"""No signature is valid for longer than this, tolerance included (it is valid for 15 minutes at most)."""


def run_key(call_id: str) -> str:
    """The key of the lock that the run of a call has."""
    return f"run:{call_id}"


class DeliveryStep(Enum):
    """What a delivery does next."""

    RUN = auto()
    WAIT = auto()
    """Try again in a moment."""
    RESPOND = auto()
    SKIP = auto()
    """End without running: another run of the schedule is running."""
    CANCEL = auto()
    """End without running: the call was cancelled."""


def next_step(
    state: LockState, context: TaskContext, owner: str, now_ms: int
) -> tuple[DeliveryStep, DispatchResponse | None]:
    """Decide from the state after the attempt to lock; the first of its locks is that of the call."""
    taken = {lock.key.partition(":")[0] for lock in state.locks if lock.owner != owner}
    if not taken and state.record is None:  # the first delivery of its call
        return DeliveryStep.RUN, None
    status = None if state.record is None else state.record.status
    if status is ResultStatus.CANCELLED or (status is ResultStatus.CANCELLING and "run" not in taken):
        return DeliveryStep.CANCEL, None
    is_over = "run" not in taken or (status is not None and status.is_final)
    if is_over and (response := _recorded_response(state.record, context)) is not None:
        return DeliveryStep.RESPOND, response
    run_lock = state.locks[0]
    after_ms = min(LEASE_MS, max(1000, math.ceil((run_lock.until_ms - now_ms) / 1000) * 1000))
    if "jti" in taken and "run" not in taken:
        return DeliveryStep.RESPOND, DispatchResponse.repeated(after_ms=after_ms)
    if "run" not in taken:
        return (DeliveryStep.SKIP if "schedule" in taken else DeliveryStep.RUN), None
    if (context.is_last_attempt or run_lock.until_ms - now_ms <= BRIEF_LEASE_MS) and context.time_left_s > 0:
        return DeliveryStep.WAIT, None
    return DeliveryStep.RESPOND, DispatchResponse.running_elsewhere(after_ms=after_ms)


def _recorded_response(record: ResultRecord | None, context: TaskContext) -> DispatchResponse | None:
    """The response for a call that has ended."""
    if record is None:
        return None
    if record.status is ResultStatus.SUCCEEDED:
        response = DispatchResponse.of_result(shown(record.value or "null"))
    elif (record.status is ResultStatus.FAILED or record.owes_hooks) and _is_redelivery(record, context):
        response = DispatchResponse.failure(record.error or "", ErrorCode.TASK_FAILED)
    else:
        return None
    return response.with_header(*DUPLICATE_HEADER)


def _is_of_another_task(record: ResultRecord | None, attempt: Attempt) -> bool:
    """True if the caller has given this call the id of a call of another task. Ids that we make are never alike."""
    is_chosen = envelopes.MADE_ID.fullmatch(attempt.context.call_id) is None
    return is_chosen and record is not None and record.task not in ("", *attempt.task.names)


def _call_of_another_task(record: ResultRecord | None, context: TaskContext) -> DispatchResponse:
    """The response to a call that does not run, because its result would take the place of another one."""
    other = "" if record is None else f" of {record.task}"
    text = f"ResultError: {context.call_id} is already the id of a call{other}; {context.task} was not run"
    log.error("%s", text, extra={"action": "refused", "task": context.task, "call_id": context.call_id})
    return DispatchResponse.never(text, ErrorCode.CALL_OF_ANOTHER_TASK)


def _is_redelivery(record: ResultRecord, context: TaskContext) -> bool:
    """True if the broker delivers a failed call once more by itself. A dead letter sent again is another message."""
    return record.message_id == context.message_id and context.attempt <= record.attempt


class Renewal(RareTimer):
    """Renews the lease of one run, the first time after `RENEW_S`: until then it costs next to nothing.

    The run's last record ends the lease, or else the end of the renewal.
    """

    __slots__ = ("_attempt", "_leases", "_task")

    def __init__(self, leases: RunLeases, attempt: Attempt) -> None:
        self._leases = leases
        self._attempt = attempt
        self._task: asyncio.Task[None] | None = None
        self.start(RENEW_S)

    def due(self) -> None:
        """Begin to renew."""
        self._task = asyncio.ensure_future(self._leases.renew_often(self._attempt.context))

    def end_after_run(self) -> None:
        """The attempt has ended. A function whose thread runs on keeps its lease: no second run begins beside it."""
        if (overrun := self._attempt.overrun) is None:
            self._end()
        else:
            overrun.add_done_callback(self._end)

    def _end(self, _: object = None) -> None:
        self.stop()
        if self._task is not None:
            self._task.cancel()
        self._leases.end(self._attempt.context.call_id)


class RunLeases:
    """Admits deliveries, one at a time for each call, and keeps their locks while they run."""

    def __init__(self, writer: ResultWriter, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock
        self._locks_by_call: dict[str, Sequence[Lock]] = {}
        self._received = ReceivedRequests(clock)
        self._log = CountedLog(log, clock.monotonic)

    async def admit(self, attempt: Attempt, claims: Claims) -> Decision | None:
        """The decision about a delivery that must not run; None for one that may, which must be `answered`.

        `claims` are those of its signature.
        """
        if self._writer.is_enabled:
            return await self._admit_by_locks(attempt, claims)
        if attempt.envelope.exclusive_schedule is not None:
            return Decision.without_overlap_check(attempt.context)
        return None if (earlier := self._received.begin(claims)) is None else await self._repeated(attempt, earlier)

    async def _admit_by_locks(self, attempt: Attempt, claims: Claims) -> Decision | None:
        """As `admit`, by locks in the result backend; while it cannot be reached, by the memory of this process."""
        context, token = attempt.context, claims.jti
        schedule = attempt.envelope.exclusive_schedule
        owner = new_owner()
        keys = [run_key(context.call_id)] if schedule is None else [run_key(context.call_id), f"schedule:{schedule}"]
        lease_ms = BRIEF_LEASE_MS if attempt.is_brief else LEASE_MS
        waits: Iterator[float] | None = None
        while True:
            now_ms = self._clock.now_ms()
            locks = [Lock(key, owner, now_ms + lease_ms) for key in keys]
            asked_for = [*locks, Lock(f"jti:{token}", owner, now_ms + TOKEN_LIFE_MS)] if token else locks
            state = await self._writer.lock(asked_for, context.call_id, now_ms=now_ms)
            if state is None:
                earlier = self._received.begin(claims)
                return None if earlier is None else await self._repeated(attempt, earlier)
            if _is_of_another_task(state.record, attempt):
                await self._unlock([lock for lock in state.locks if lock.owner == owner and lock.key in keys])
                return self._duplicate(attempt, _call_of_another_task(state.record, context), None)
            current = state.locks[: len(locks)]
            if dead := [lock for lock in current if lock.owner != owner and is_gone(lock.owner)]:
                # Its process has died: there is nothing to wait for. Only the lock of that owner is ended.
                await self._unlock(dead)
                continue
            step, response = next_step(state, context, owner, now_ms)
            if step is DeliveryStep.RUN:
                self._locks_by_call[context.call_id] = locks
                self._received.begin(claims)
                return None
            if step is DeliveryStep.WAIT and context.link.stop_reason is not None:
                step, response = DeliveryStep.RESPOND, DispatchResponse.draining()
            if step is DeliveryStep.WAIT:
                waits = waits or pauses()
                await asyncio.sleep(next(waits))
                continue
            # Otherwise the next delivery would find the call locked.
            await self._unlock([lock for lock in current if lock.owner == owner])
            if step is DeliveryStep.CANCEL:
                return Decision.cancelled("" if state.record is None else state.record.error or "")
            if response is None:
                return Decision.skipped("another run of its schedule is running")
            return self._duplicate(attempt, response, state.record)

    async def _repeated(self, attempt: Attempt, earlier: ReceivedRequest) -> Decision:
        """The decision about a request that this process has received before."""
        if not earlier.is_running:
            return self._duplicate(attempt, earlier.response(), None)
        response = await self._received.response_of(earlier, attempt.context.time_left_s)
        return Decision.duplicate(response or DispatchResponse.running_elsewhere(after_ms=LEASE_MS))

    def answered(self, claims: Claims, response: DispatchResponse | None) -> None:
        """Note the response to a delivery that was admitted; None if its end is not known."""
        self._received.end(claims, response)

    def renewal(self, attempt: Attempt) -> Renewal | None:
        """Renew the lease of a run from now on, and stop the run if its call is cancelled. None: it has no lease."""
        if attempt.context.call_id not in self._locks_by_call:  # no backend, or it could not be reached
            return None
        return Renewal(self, attempt)

    def end(self, call_id: str) -> None:
        """End the lease of a run, if it still has one."""
        if locks := self.released(call_id):
            self._writer.unlock(locks)
            self._writer.flush_soon()

    def released(self, call_id: str) -> Sequence[Lock]:
        """Stop renewing the lease of a run; returns its locks, which the caller ends."""
        return self._locks_by_call.pop(call_id, ())

    async def keep_unique(self, attempt: Attempt, delay_ms: int) -> None:
        """Keep the unique key of a call locked until the call, due in `delay_ms` at most, has ended."""
        if attempt.envelope.unique is not None:
            now_ms = self._clock.now_ms()
            lock = Unique(attempt.envelope.unique).lock(attempt.context.call_id, now_ms, delay_ms)
            await self._writer.lock([lock], None, now_ms=now_ms)

    async def is_cancelled(self, context: TaskContext) -> bool:
        """True if the call of a run was cancelled, perhaps since the last renewal: it must not run again."""
        if not context.link.is_cancelled and context.call_id in self._locks_by_call:
            try:
                self._stop_if_cancelled(context, await self._writer.read(context.call_id))
            except ResultError:
                log.exception("it is not known whether a call was cancelled", extra={"action": "read_failed"})
        return context.link.is_cancelled

    async def renew_often(self, context: TaskContext) -> None:
        """Renew the locks of a run now and from time to time, until they are released."""
        while context.call_id in self._locks_by_call:
            await self._renew(context)
            await asyncio.sleep(RENEW_S)

    async def _renew(self, context: TaskContext) -> None:
        """Renew the locks of a run, if it still has them, and stop it if its call was cancelled."""
        if (locks := self._locks_by_call.get(context.call_id)) is None:
            return
        now_ms = self._clock.now_ms()
        longer = [lock._replace(until_ms=now_ms + LEASE_MS) for lock in locks]
        if (state := await self._writer.lock(longer, context.call_id, now_ms=now_ms)) is not None:
            self._stop_if_cancelled(context, state.record)

    def _stop_if_cancelled(self, context: TaskContext, record: ResultRecord | None) -> None:
        if record is not None and record.status in (ResultStatus.CANCELLING, ResultStatus.CANCELLED):
            context.link.stop(StopReason.CANCEL)

    def _duplicate(self, attempt: Attempt, response: DispatchResponse, record: ResultRecord | None) -> Decision:
        context = attempt.context
        self._log.write(
            logging.INFO,
            "deliveries that were not run again",
            "%s of message %s was not run again: %d",
            context.task,
            context.message_id,
            response.status,
            extra={"action": "duplicate", "task": context.task, "call_id": context.call_id},
        )
        is_recorded = DUPLICATE_HEADER in response.headers
        response = response if attempt.refused is None else attempt.refused(response)
        if record is None or not is_recorded:
            return Decision.duplicate(response)
        return Decision.duplicate(
            response,
            status=ResultStatus.FAILED if record.owes_hooks else record.status,
            result=record.value if record.status is ResultStatus.SUCCEEDED else None,
            note=record.error or "",
            owes_hooks=record.owes_hooks,
        )

    async def _unlock(self, locks: Sequence[Lock]) -> None:
        if locks:
            self._writer.unlock(locks)
            await self._writer.flush()
