"""The schedule loop: publishes the messages of a schedule once per tick, without polling."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Container, Iterator
from datetime import UTC, datetime
from typing import Final

from qtasks.broker import ids
from qtasks.broker.core.message_builder import publications, publish_of_schedule
from qtasks.broker.core.values import Firing, Publication
from qtasks.broker.events import EventWatchers
from qtasks.broker.store.interface import SHORT_WRITE, Store
from qtasks.broker.store.verbs import schedules, url_groups
from qtasks.broker.store.verbs.schedules import NextRun
from qtasks.clock import Clock
from qtasks.errors import StoreError
from qtasks.protocol import cron, wire
from qtasks.protocol.messages import Schedule
from qtasks.randomness import Random

log = logging.getLogger("qtasks.broker")

CATCH_UP_MS: Final = 24 * 60 * 60 * 1000
"""After a downtime, the latest missed tick runs if it is at most this old."""
_BATCH: Final = 50
"""Schedules that are read at once."""
_MISSED_SHOWN: Final = 10
"""Missed ticks that the error text lists."""
_MISSED_KEPT: Final = 100
"""Missed ticks that are logged: a schedule that runs every minute misses half a million in a year."""
_STORE_PAUSE_MS: Final = 1_000
"""Time to wait after an error of the store."""
_UNREADABLE_PAUSE_MS: Final = 60 * 60 * 1000
"""Time to wait before the next try of a schedule whose expression is not readable any more (a removed time zone)."""


class Scheduler:
    """Fires schedules. It calls `wake_deliverer` when there are new messages to deliver."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        random: Random,
        *,
        watchers: EventWatchers,
        wake_deliverer: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._random = random
        self._watchers = watchers
        self._wake_deliverer = wake_deliverer
        self._wake = asyncio.Event()
        self._is_stale = True
        """The next runs were computed by another process, or before the wall clock was set."""
        self._stuck: frozenset[tuple[str, int | None]] = frozenset()
        """Id and next run of due schedules that could not be changed: their rows may be damaged."""
        self._is_stuck_logged = False

    def look_again(self) -> None:
        """Compute the next runs again, because the wall clock was set."""
        self._is_stale = True
        self.wake()

    def wake(self) -> None:
        """Look for due schedules again, because one was created or changed."""
        self._wake.set()

    async def run(self) -> None:
        """Fire due schedules, then wait for the next tick or for `wake`, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.run_once()
                next_ms = await self._store.read(schedules.next_tick, offset_ms=self._offset_ms())
                if self._stuck:  # they stay due
                    next_ms = self._clock.now_ms() + _STORE_PAUSE_MS
            except Exception as error:
                # Every error: if this loop ended, no schedule would run again, without notice.
                log.error("cannot fire schedules: %s", error, exc_info=not isinstance(error, StoreError))
                next_ms = self._clock.now_ms() + _STORE_PAUSE_MS
            await self._clock.wait(self._wake.wait(), next_ms)

    async def run_once(self) -> int:
        """Fire every schedule that is due now; return how many were fired."""
        if self._is_stale:
            self._is_stale = False
            try:
                await self._compute_again()
            except BaseException:
                self._is_stale = True
                raise
        fired, stuck = 0, frozenset[tuple[str, int | None]]()
        while due := await self._store.read(
            schedules.due_schedules, now_ms=self._clock.now_ms(), offset_ms=self._offset_ms(), limit=_BATCH
        ):
            changed = [await self._fire(schedule) for schedule in due]
            fired += sum(changed)
            if not any(changed):
                stuck = frozenset((schedule.id, schedule.next_ms) for schedule in due)
                break
        self._note_stuck(stuck)
        return fired

    def _note_stuck(self, stuck: frozenset[tuple[str, int | None]]) -> None:
        """Remember due schedules that could not be changed; log those that a user has not changed meanwhile, once."""
        if stuck and stuck == self._stuck and not self._is_stuck_logged:
            names = ", ".join(sorted(schedule_id for schedule_id, _ in stuck)[:_MISSED_SHOWN])
            log.error("schedules cannot run, their rows are damaged: %s (look at `qtasks broker check`)", names)
            self._is_stuck_logged = True
        elif stuck != self._stuck:
            self._is_stuck_logged = False
        self._stuck = stuck

    def _offset_ms(self) -> int:
        """The clock's offset, or a little less: a run of midnight must not see the day before."""
        return min(self._clock.offset_ms(), self._clock.wall_ms() - self._clock.now_ms())

    async def _compute_again(self) -> None:
        """Let no schedule wait longer than its expression says at the present wall time.

        A run that is due already stays due: it was missed, or it is late.
        """
        after: tuple[int, str] | None = None
        while page := await self._store.read(schedules.cron_schedules, after=after, limit=_BATCH):
            wall_ms = self._clock.now_ms() + self._offset_ms()
            earlier: list[tuple[NextRun, int]] = []
            for run in page:
                with contextlib.suppress(ValueError):  # not readable any more: it is tried again at its time
                    next_ms = cron.parse(run.cron).next_ms(wall_ms)
                    if next_ms is not None and (run.next_ms is None or next_ms < run.next_ms):
                        earlier.append((run, next_ms))
            if earlier:
                await self._store.write(schedules.bring_forward, earlier)
            after = page[-1].account, page[-1].id

    async def _fire(self, schedule: Schedule) -> bool:
        """Fire a due schedule; False if its row could not be changed."""
        now_ms, offset_ms = self._clock.now_ms(), self._offset_ms()
        try:
            firing = plan(schedule, now_ms, offset_ms)
            if firing.missed:
                ran = await self._store.read(schedules.fired_ticks, schedule, from_ms=firing.missed[0])
                firing = plan(schedule, now_ms, offset_ms, ran=ran)
        except ValueError as error:  # another release of this package or of the time zone database accepted it
            log.error("schedule %s cannot run: %s", schedule.id, error)
            firing = Firing(
                schedule=schedule,
                tick_ms=None,
                next_ms=schedule_ms(schedule, now_ms, offset_ms) + _UNREADABLE_PAUSE_MS,
                error=f"it cannot run: {error}",
            )
        if firing.tick_ms is not None:
            firing = await self._with_messages(firing, now_ms)
        is_long = len(firing.publications) > SHORT_WRITE
        write = self._store.write_long if is_long else self._store.write
        if not await write(schedules.fire, firing, now_ms=now_ms):
            return False
        if firing.publications:
            self._wake_deliverer()
            self._watchers.notify_created([publication.message for publication in firing.publications], now_ms=now_ms)
        return True

    async def _with_messages(self, firing: Firing, now_ms: int) -> Firing:
        """The firing with its publications, or with an error if they cannot be published."""
        schedule = firing.schedule
        created: list[Publication] = []
        error = firing.error
        try:
            group = await self._store.read(url_groups.group, schedule.account, schedule.destination)
            order = publish_of_schedule(schedule, group)
            for publication in publications(order, new_id=lambda: ids.message_id(self._random, now_ms), now_ms=now_ms):
                created.append(publication)
                if len(created) % SHORT_WRITE == 0:
                    await asyncio.sleep(0)  # others have a turn
        except wire.WireError as reason:
            error = str(reason)
            log.warning("schedule %s did not run: %s", schedule.id, error)
        return Firing(
            schedule=schedule,
            tick_ms=firing.tick_ms,
            missed=firing.missed,
            next_ms=firing.next_ms,
            publications=tuple(created),
            error=error,
        )


def schedule_ms(schedule: Schedule, now_ms: int, offset_ms: int) -> int:
    """The present time of a schedule: the broker's time for ``@every``, else wall time."""
    return now_ms if cron.is_interval(schedule.cron) else now_ms + offset_ms


def plan(schedule: Schedule, now_ms: int, offset_ms: int = 0, *, ran: Container[int] = ()) -> Firing:
    """Which tick of a due schedule fires, and which were missed. Pure.

    The wall time is `now_ms` plus `offset_ms`. Of several ticks that have passed, the latest fires if it is not older
    than a day; the others are only listed. Those in `ran` were not missed: a clock that was set back shows them again.
    """
    assert schedule.next_ms is not None, "only a schedule with a next run is due"
    expression, is_interval = cron.parse(schedule.cron), cron.is_interval(schedule.cron)
    now_ms = schedule_ms(schedule, now_ms, offset_ms)
    passed = list(_passed(expression, schedule.next_ms, now_ms))
    *missed, latest = passed
    fires = now_ms - latest <= CATCH_UP_MS
    missed = [tick_ms for tick_ms in (missed if fires else passed) if tick_ms not in ran]
    return Firing(
        schedule=schedule,
        tick_ms=latest if fires else None,
        missed=tuple(missed[-_MISSED_KEPT:]),
        next_ms=expression.next_ms(latest if is_interval else max(now_ms, latest)),
        error=_describe([tick_ms + (offset_ms if is_interval else 0) for tick_ms in missed]),
    )


def _passed(expression: cron.Cron, first_ms: int, now_ms: int) -> Iterator[int]:
    """Ticks from `first_ms` until now. After a long downtime: the first, and those of the last day or the last one."""
    yield first_ms
    after_ms = first_ms
    if now_ms - first_ms > CATCH_UP_MS:
        after_ms = now_ms - CATCH_UP_MS - 1
        if cron.is_interval(expression.text) and (second_ms := expression.next_ms(first_ms)) is not None:
            after_ms -= (after_ms - first_ms) % (second_ms - first_ms)
            if after_ms > first_ms:
                yield after_ms  # a tick, from which the rhythm goes on
    for _ in itertools.count():
        tick_ms = expression.next_ms(after_ms)
        if tick_ms is None or tick_ms > now_ms:
            return
        yield tick_ms
        after_ms = tick_ms


def _describe(missed: list[int]) -> str | None:
    if not missed:
        return None
    shown = ", ".join(_moment(tick_ms) for tick_ms in missed[-_MISSED_SHOWN:])
    earlier = "" if len(missed) <= _MISSED_SHOWN else ", and earlier ones"
    return f"runs were missed while the broker did not run, or because its clock was set: {shown}{earlier}"


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
