"""Once, as far as that can be had: which delivery of a call may run, and what the others are told.

The result backend knows three things of a call: nobody runs it, somebody does (a hold, renewed while the run lasts and
void when its process has died: at once on the same machine, else after some seconds), or it is done. A delivery that
meets a running one is told to come back when that hold would end; the last permitted attempt waits for the run instead,
for its own failure would make a dead letter of a success. A delivery of a call that is done gets the stored outcome,
and nothing runs. The same signed request a second time (its `jti`) never runs, whatever became of the first.

Where the backend cannot be asked the task runs: losing a call would be worse than running it twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from qtasks.tasks import outcome
from qtasks.tasks.context import TaskContext
from qtasks.tasks.holders import is_gone, new_holder
from qtasks.tasks.outcome import Outcome
from qtasks.tasks.results.base import Hold, Record, ResultStatus, pauses
from qtasks.tasks.results.keeper import Keeper, Standing

log = logging.getLogger("qtasks.guard")

LEASE_MS = 15_000
"""How long a run that says nothing more is believed to go on, where nobody can see whether its process lives."""

BRIEF_MS = 1_000
"""As `LEASE_MS`, for what takes no time: whoever meets it waits instead of being told to come back."""

RENEW_S = 4.0
RUNNING_ELSEWHERE = "QT415"
DUPLICATE = ("Qtasks-Duplicate", "true")

TOKEN_LIFE_MS = 20 * 60 * 1000
"""No signature is good for longer than this, tolerance included (its life is 15 minutes at most)."""


class Move(Enum):
    """What a delivery does next."""

    RUN = auto()
    WAIT = auto()
    """Ask again in a moment."""
    ANSWER = auto()


def judge(
    standing: Standing, context: TaskContext, owner: str, *, now_ms: int, seconds_left: float
) -> tuple[Move, Outcome | None]:
    """Decide from what stands after the attempt to get the holds; the first is the call's, the second the token's."""
    run, *tokens = standing.holds
    if (stored := _stored(standing.record, context)) is not None:
        return Move.ANSWER, stored
    if any(token.owner != owner for token in tokens):
        return Move.ANSWER, _later("this very request was taken before", run, now_ms)
    if run.owner == owner:
        return Move.RUN, None
    if (context.is_last_attempt or run.until_ms - now_ms <= BRIEF_MS) and seconds_left > 0:
        return Move.WAIT, None
    return Move.ANSWER, _later("this call is running elsewhere", run, now_ms)


def _stored(record: Record | None, context: TaskContext) -> Outcome | None:
    """The answer of a call that is done."""
    if record is None:
        return None
    if record.status is ResultStatus.SUCCEEDED:
        answer = outcome.result((record.value or "null").encode())
    elif record.status is ResultStatus.CANCELLED:
        answer = outcome.ended("cancelled", record.error or "", "QT411")
    elif record.status is ResultStatus.FAILED and _is_again(record, context):
        answer = outcome.failure(record.error or "", "QT405")
    else:
        return None
    return replace(answer, headers=(*answer.headers, DUPLICATE))


def _is_again(record: Record, context: TaskContext) -> bool:
    """Whether a failed call comes once more by itself. A dead letter that somebody sends again is another message."""
    return record.message_id == context.message_id and context.attempt <= record.attempt


def _later(text: str, run: Hold, now_ms: int) -> Outcome:
    after_ms = min(LEASE_MS, max(1000, math.ceil((run.until_ms - now_ms) / 1000) * 1000))
    return outcome.later(text, RUNNING_ELSEWHERE, after_ms=after_ms)


@dataclass(frozen=True, slots=True)
class Refused:
    """A delivery that may not run: what to answer, and the result as JSON if the call has one."""

    answer: Outcome
    value: str | None


class Guard:
    """Lets deliveries pass, one at a time for each call. `now_s` is Unix time."""

    def __init__(self, keeper: Keeper, now_s: Callable[[], float]) -> None:
        self._keeper = keeper
        self._now_s = now_s
        self._held: dict[str, Hold] = {}

    async def admit(self, context: TaskContext, token: str, *, lease_ms: int = LEASE_MS) -> Refused | None:
        """What to answer a delivery that may not run; None for one that may, which `leave` ends.

        `token` is the `jti` of its signature, or empty.
        """
        owner = new_holder()
        tokens = [Hold(f"jti:{token}", owner, self._now_ms() + TOKEN_LIFE_MS)] if token else []
        for pause_s in pauses():
            now_ms = self._now_ms()
            run = Hold(f"run:{context.call_id}", owner, now_ms + lease_ms)
            standing = await self._keeper.stand([run, *tokens], context.call_id, now_ms=now_ms)
            if standing is None:
                return None
            if standing.holds[0].owner != owner and is_gone(standing.holds[0].owner):
                # Its process has died: there is nothing to wait for. Only that very hold is let go.
                self._keeper.release(standing.holds[0])
                await self._keeper.keep()
                continue
            move, answer = judge(standing, context, owner, now_ms=now_ms, seconds_left=context.time_left_s)
            if move is Move.RUN:
                self._held[context.call_id] = run
                return None
            if move is Move.ANSWER and answer is not None:
                if standing.holds[0].owner == owner:
                    self._keeper.release(run)
                    await self._keeper.keep()  # or the next delivery would find the call held
                log.info(
                    "%s of message %s was not run again: %d",
                    context.task,
                    context.message_id,
                    answer.status,
                    extra={"action": "duplicate", "task": context.task, "call_id": context.call_id},
                )
                record = standing.record
                done = record is not None and record.status is ResultStatus.SUCCEEDED
                return Refused(answer, record.value if record is not None and done else None)
            await asyncio.sleep(pause_s)
        raise AssertionError("pauses do not end")

    async def renew(self, call_id: str) -> None:
        """Keep the hold of a run alive; goes on until it is cancelled."""
        while (held := self._held.get(call_id)) is not None:
            await asyncio.sleep(RENEW_S)
            now_ms = self._now_ms()
            await self._keeper.stand([replace(held, until_ms=now_ms + LEASE_MS)], None, now_ms=now_ms)

    def leave(self, call_id: str) -> bool:
        """Let go of a call with whatever is kept next; returns whether it was held."""
        held = self._held.pop(call_id, None)
        if held is not None:
            self._keeper.release(held)
        return held is not None

    def _now_ms(self) -> int:
        return int(self._now_s() * 1000)
