"""Once, as far as that can be had: which delivery of a call may run, and what the others are told.

The result backend knows three things of a call: nobody runs it, somebody does (a hold, renewed while the run lasts and
void when its process has died: at once on the same machine, else after some seconds), or it is done. A delivery that
meets a running one is told to come back when that hold would end; the last permitted attempt waits for the run instead,
for its own failure would make a dead letter of a success. A delivery of a call that is done gets the stored outcome,
and nothing runs. The same signed request a second time (its `jti`) never runs, whatever became of the first.

A run of a schedule that skips what overlaps has a second hold, the schedule's; one that finds it taken does not run.

Where the backend cannot be asked the task runs: losing a call would be worse than running it twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from qtasks.clock import Clock
from qtasks.error_codes import ErrorCode
from qtasks.tasks.context import TaskContext
from qtasks.tasks.encode.pickling import shown
from qtasks.tasks.results.backend import Hold, Record, ResultStatus, pauses
from qtasks.tasks.results.writer import Keeper, Standing
from qtasks.tasks.run import decision, dispatch_response
from qtasks.tasks.run.decision import Verdict
from qtasks.tasks.run.dispatch_response import Outcome
from qtasks.tasks.run.process_id import is_gone, new_holder

log = logging.getLogger("qtasks.guard")

LEASE_MS = 15_000
"""How long a run that says nothing more is believed to go on, where nobody can see whether its process lives."""

BRIEF_MS = 1_000
"""As `LEASE_MS`, for what takes no time: whoever meets it waits instead of being told to come back."""

RENEW_S = 4.0
DUPLICATE = ("Qtasks-Duplicate", "true")

TOKEN_LIFE_MS = 20 * 60 * 1000
"""No signature is good for longer than this, tolerance included (its life is 15 minutes at most)."""


class Move(Enum):
    """What a delivery does next."""

    RUN = auto()
    WAIT = auto()
    """Ask again in a moment."""
    ANSWER = auto()
    SKIP = auto()
    """End unrun: another run of the schedule is under way."""


def judge(
    standing: Standing, context: TaskContext, owner: str, *, now_ms: int, seconds_left: float
) -> tuple[Move, Outcome | None]:
    """Decide from what stands after the attempt to get the holds, of which the call's is the first."""
    taken = {hold.key.partition(":")[0] for hold in standing.holds if hold.owner != owner}
    if (stored := _stored(standing.record, context)) is not None:
        return Move.ANSWER, stored
    run = standing.holds[0]
    if "jti" in taken:
        return Move.ANSWER, _later("this very request was taken before", run, now_ms)
    if "run" not in taken:
        return (Move.SKIP if "schedule" in taken else Move.RUN), None
    if (context.is_last_attempt or run.until_ms - now_ms <= BRIEF_MS) and seconds_left > 0:
        return Move.WAIT, None
    return Move.ANSWER, _later("this call is running elsewhere", run, now_ms)


def _stored(record: Record | None, context: TaskContext) -> Outcome | None:
    """The answer of a call that is done."""
    if record is None:
        return None
    if record.status is ResultStatus.SUCCEEDED:
        answer = dispatch_response.result(shown(record.value or "null"))
    elif record.status is ResultStatus.CANCELLED:
        answer = dispatch_response.ended("cancelled", record.error or "", ErrorCode.CALL_CANCELLED)
    elif record.status is ResultStatus.FAILED and _is_again(record, context):
        answer = dispatch_response.failure(record.error or "", ErrorCode.TASK_FAILED)
    else:
        return None
    return replace(answer, headers=(*answer.headers, DUPLICATE))


def _is_again(record: Record, context: TaskContext) -> bool:
    """Whether a failed call comes once more by itself. A dead letter that somebody sends again is another message."""
    return record.message_id == context.message_id and context.attempt <= record.attempt


def _later(text: str, run: Hold, now_ms: int) -> Outcome:
    after_ms = min(LEASE_MS, max(1000, math.ceil((run.until_ms - now_ms) / 1000) * 1000))
    return dispatch_response.later(text, ErrorCode.CALL_RUNNING_ELSEWHERE, after_ms=after_ms)


@dataclass(frozen=True, slots=True)
class Refused:
    """A delivery that may not run: what to answer, and the result as it is kept if the call has one."""

    answer: Outcome
    value: str | None = None
    ended: Verdict | None = None
    """How the call ends without having run, to be kept and told; None where it is another delivery's to end it."""


class Guard:
    """Lets deliveries pass, one at a time for each call."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._held: dict[str, tuple[Hold, ...]] = {}

    async def admit(
        self, context: TaskContext, token: str, *, alone: str | None = None, lease_ms: int = LEASE_MS
    ) -> Refused | None:
        """What to answer a delivery that may not run; None for one that may, which `leave` ends.

        `token` is the `jti` of its signature, or empty; `alone` the schedule of which no other run may be under way.
        """
        owner = new_holder()
        tokens = [Hold(f"jti:{token}", owner, self._clock.now_ms() + TOKEN_LIFE_MS)] if token else []
        keys = [f"run:{context.call_id}", *([f"schedule:{alone}"] if alone is not None else [])]
        for pause_s in pauses():
            now_ms = self._clock.now_ms()
            wanted = tuple(Hold(key, owner, now_ms + lease_ms) for key in keys)
            standing = await self._keeper.stand([*wanted, *tokens], context.call_id, now_ms=now_ms)
            if standing is None:
                return None
            held = standing.holds[: len(wanted)]
            if gone := [hold for hold in held if hold.owner != owner and is_gone(hold.owner)]:
                # Its process has died: there is nothing to wait for. Only that very hold is let go.
                await self._let_go(gone)
                continue
            move, answer = judge(standing, context, owner, now_ms=now_ms, seconds_left=context.time_left_s)
            if move is Move.RUN:
                self._held[context.call_id] = wanted
                return None
            if move is Move.WAIT:
                await asyncio.sleep(pause_s)
                continue
            # Or the next delivery would find the call held.
            await self._let_go([hold for hold in held if hold.owner == owner])
            if answer is None:
                ended = decision.skipped("another run of its schedule is under way")
                return Refused(ended.answer, ended=ended)
            return self._refused(context, answer, standing.record)
        raise AssertionError("pauses do not end")

    async def renew(self, call_id: str) -> None:
        """Keep the holds of a run alive; goes on until it is cancelled."""
        while (held := self._held.get(call_id)) is not None:
            await asyncio.sleep(RENEW_S)
            now_ms = self._clock.now_ms()
            longer = [replace(hold, until_ms=now_ms + LEASE_MS) for hold in held]
            await self._keeper.stand(longer, None, now_ms=now_ms)

    def leave(self, call_id: str) -> bool:
        """Let go of a call with whatever is kept next; returns whether it was held."""
        held = self._held.pop(call_id, ())
        for hold in held:
            self._keeper.release(hold)
        return bool(held)

    def _refused(self, context: TaskContext, answer: Outcome, record: Record | None) -> Refused:
        log.info(
            "%s of message %s was not run again: %d",
            context.task,
            context.message_id,
            answer.status,
            extra={"action": "duplicate", "task": context.task, "call_id": context.call_id},
        )
        done = record is not None and record.status is ResultStatus.SUCCEEDED
        return Refused(answer, record.value if record is not None and done else None)

    async def _let_go(self, holds: Sequence[Hold]) -> None:
        for hold in holds:
            self._keeper.release(hold)
        if holds:
            await self._keeper.keep()
