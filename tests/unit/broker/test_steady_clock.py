"""The broker's own time: it never jumps and never goes back, and after a start it goes on where it stood."""

from __future__ import annotations

import asyncio
import itertools
import timeit

import pytest

from qtasks.broker.core.retention_age import Leap, cutoff_ms
from qtasks.broker.core.values import DAY_MS
from qtasks.broker.steady_clock import TOLERANCE_MS, ClockMark, SteadyClock, resumed_ms
from qtasks.clock import SystemClock
from tests.support.broker import START_MS, VirtualClock

HOUR_MS = 60 * 60 * 1000
DECADE_MS = 3650 * DAY_MS


@pytest.fixture
def machine() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def clock(machine: VirtualClock) -> SteadyClock:
    return SteadyClock(machine)


def test_it_shows_the_wall_time_of_a_machine_whose_clock_is_right(machine: VirtualClock, clock: SteadyClock) -> None:
    machine.advance(90_000)
    assert (clock.now_ms(), clock.offset_ms(), clock.jumps) == (START_MS + 90_000, 0, 0)


@pytest.mark.parametrize("span_ms", [DAY_MS, -HOUR_MS, DECADE_MS, -DECADE_MS, TOLERANCE_MS + 1, -TOLERANCE_MS - 1])
def test_a_jump_of_the_wall_clock_changes_the_offset_and_not_the_time(
    machine: VirtualClock, clock: SteadyClock, span_ms: int
) -> None:
    machine.jump(span_ms)
    machine.advance(7)
    assert (clock.now_ms(), clock.offset_ms(), clock.jumps) == (START_MS + 7, span_ms, 1)
    machine.jump(-span_ms)
    assert (clock.now_ms(), clock.offset_ms(), clock.jumps) == (START_MS + 7, 0, 2)


@pytest.mark.parametrize("span_ms", [TOLERANCE_MS, -TOLERANCE_MS, 1, -1])
def test_a_small_difference_is_followed_slowly_and_never_backwards(
    machine: VirtualClock, clock: SteadyClock, span_ms: int
) -> None:
    machine.jump(span_ms)
    shown = [clock.now_ms()]
    for _ in range(250):
        machine.advance(1_000)
        assert clock.offset_ms() == 0
        shown += [clock.now_ms(), clock.now_ms()]
        machine.advance(5)
        shown.append(clock.now_ms())
    steps = [later - earlier for earlier, later in itertools.pairwise(shown)]
    assert min(steps) >= 0
    assert max(steps) <= 1_000 + 10, "one part in a hundred"
    assert clock.now_ms() == machine.now_ms()


def test_many_looks_in_a_second_do_not_follow_faster(machine: VirtualClock, clock: SteadyClock) -> None:
    machine.jump(TOLERANCE_MS)
    for _ in range(1_000):
        machine.advance(1)
        clock.offset_ms()
    assert clock.now_ms() == START_MS + 1_000 + 10


def test_a_wait_lasts_its_span_although_the_clock_is_set_back_meanwhile() -> None:
    async def waits() -> None:
        machine = VirtualClock()
        clock = SteadyClock(machine)
        machine.jump(DAY_MS)
        wait = asyncio.create_task(clock.wait(asyncio.Event().wait(), clock.now_ms() + 10_000))
        await asyncio.sleep(0)
        machine.jump(-DAY_MS - HOUR_MS)
        machine.advance(9_999)
        done, _ = await asyncio.wait({wait}, timeout=0.01)
        assert not done
        machine.advance(1)
        await asyncio.wait_for(wait, 10)

    asyncio.run(waits())


NOW = START_MS


@pytest.mark.parametrize(
    ("mark", "wall_ms", "expected_ms"),
    [
        # The clock was right before the stop, and is now.
        (ClockMark(NOW), NOW + 5_000, NOW + 5_000),
        (ClockMark(NOW), NOW - 5, NOW),
        # Right before, an hour back now: the time of the stop counts as nothing.
        (ClockMark(NOW), NOW - HOUR_MS, NOW),
        # Right before, a day ahead now: nobody can tell it from a day without a broker.
        (ClockMark(NOW), NOW + DAY_MS, NOW + DAY_MS),
        # A day ahead before the stop: still ahead, or right again.
        (ClockMark(NOW, DAY_MS), NOW + DAY_MS + 5_000, NOW + 5_000),
        (ClockMark(NOW, DAY_MS), NOW + DAY_MS - 5, NOW),
        (ClockMark(NOW, DAY_MS), NOW + 5_000, NOW + 5_000),
        # An hour back before the stop: still back, or right again.
        (ClockMark(NOW, -HOUR_MS), NOW - HOUR_MS + 5_000, NOW + 5_000),
        (ClockMark(NOW, -HOUR_MS), NOW + 5_000, NOW + 5_000),
        # Ten years ahead before the stop, and ten years back now.
        (ClockMark(NOW, DECADE_MS), NOW - DECADE_MS, NOW),
    ],
)
def test_after_a_start_the_time_goes_on_where_it_stood(mark: ClockMark, wall_ms: int, expected_ms: int) -> None:
    assert resumed_ms(mark, wall_ms) == expected_ms
    clock = SteadyClock(VirtualClock(wall_ms), mark)
    assert clock.now_ms() == expected_ms
    assert abs(clock.now_ms() + clock.offset_ms() - wall_ms) <= TOLERANCE_MS
    assert clock.jumps == 0


def test_nothing_that_was_kept_for_a_week_is_too_old_after_a_leap_of_ten_years() -> None:
    leap = Leap(NOW, NOW + DECADE_MS)
    now_ms = leap.to_ms + HOUR_MS
    assert cutoff_ms(now_ms, 7 * DAY_MS, []) == now_ms - 7 * DAY_MS
    assert cutoff_ms(now_ms, 7 * DAY_MS, [leap]) == NOW - (6 * DAY_MS - HOUR_MS)
    assert cutoff_ms(now_ms, DAY_MS, [leap]) == NOW
    assert cutoff_ms(now_ms, HOUR_MS, [leap]) == leap.to_ms
    assert cutoff_ms(now_ms, 30_000, [leap]) == now_ms - 30_000
    earlier = Leap(NOW - DECADE_MS, NOW - HOUR_MS)
    assert cutoff_ms(now_ms, 7 * DAY_MS, [leap, earlier]) == earlier.from_ms - (5 * DAY_MS - 2 * HOUR_MS)


def test_reading_it_costs_a_fraction_of_a_microsecond() -> None:
    clock = SteadyClock(SystemClock())
    reads = 20_000
    cost_ns = min(timeit.repeat(clock.now_ms, number=reads, repeat=5)) / reads * 1e9
    assert cost_ns < 2_000, "under 300 ns on an idle machine"


def test_the_machines_clock_counts_on_while_it_is_read() -> None:
    clock = SteadyClock(SystemClock())
    before = clock.now_ms()
    assert abs(before + clock.offset_ms() - SystemClock().now_ms()) <= TOLERANCE_MS
    assert clock.elapsed_ms() <= clock.elapsed_ms()
    assert before <= clock.now_ms()
