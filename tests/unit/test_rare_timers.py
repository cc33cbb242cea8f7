"""Timers that are usually stopped are due when they should be, and cost the loop nothing until then."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.rare_timers import LOOK_EVERY_S, RareTimer

STEP_S = 0.5


class SteppedLoop(asyncio.SelectorEventLoop):
    """A loop whose time moves only when the test says so."""

    now_s = 100.0

    def time(self) -> float:
        return self.now_s

    async def advance(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            for _ in range(3):  # a look, the timer that it arms
                await asyncio.sleep(0)

    def timers(self) -> int:
        """How many timers the loop itself has."""
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]


class NotedTimer(RareTimer):
    def __init__(self, loop: SteppedLoop, delay_s: float) -> None:
        self.loop = loop
        self.due_at_s: list[float] = []
        self.start(delay_s)

    def due(self) -> None:
        self.due_at_s.append(self.loop.time() - 100)


def run(coroutine: Any) -> Any:
    loop = SteppedLoop()

    async def with_loop() -> Coroutine[Any, Any, Any]:
        return await coroutine(loop)  # type: ignore[no-any-return]

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(with_loop())


@pytest.mark.parametrize("delay_s", [0.5, LOOK_EVERY_S, LOOK_EVERY_S + 0.5, 2 * LOOK_EVERY_S, 899.5])
def test_a_timer_is_due_once_and_at_its_time(delay_s: float) -> None:
    async def wait(loop: SteppedLoop) -> list[float]:
        timer = NotedTimer(loop, delay_s)
        await loop.advance(delay_s + 10)
        return timer.due_at_s

    assert run(wait) == [delay_s]


@pytest.mark.parametrize("delay_s", [0.0, -1.0])
def test_a_timer_without_time_left_is_due_in_the_next_turn_of_the_loop(delay_s: float) -> None:
    async def wait(loop: SteppedLoop) -> tuple[list[float], list[float]]:
        timer = NotedTimer(loop, delay_s)
        before = [*timer.due_at_s]
        await asyncio.sleep(0)
        return before, timer.due_at_s

    assert run(wait) == ([], [0.0])


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=8))
def test_of_many_timers_those_that_are_not_stopped_in_time_are_due(plans: list[tuple[int, int, int]]) -> None:
    """Each plan is the delay, when the timer is stopped, and when it is started, in steps."""

    async def wait(loop: SteppedLoop) -> dict[int, NotedTimer]:
        timers: dict[int, NotedTimer] = {}
        for step in range(80):
            for index, (delay, stopped, started) in enumerate(plans):
                if step == started:
                    timers[index] = NotedTimer(loop, delay * STEP_S)
                if step == started + stopped:
                    timers[index].stop()
            await loop.advance(STEP_S)
        assert loop.timers() == 0  # nothing wakes an idle loop
        return timers

    for index, timer in run(wait).items():
        delay, stopped, started = plans[index]
        assert timer.due_at_s == ([] if stopped < delay else [(started + delay) * STEP_S])


def test_timers_that_are_not_due_soon_are_one_timer_of_the_loop() -> None:
    async def start(loop: SteppedLoop) -> tuple[int, int]:
        timers = [NotedTimer(loop, 900) for _ in range(100)]
        used = loop.timers()
        for timer in timers:
            timer.stop()
        await loop.advance(LOOK_EVERY_S)
        return used, loop.timers()

    assert run(start) == (1, 0)


def test_a_second_loop_in_the_same_thread_has_timers_of_its_own() -> None:
    test_a_timer_is_due_once_and_at_its_time(899.5)
    test_a_timer_is_due_once_and_at_its_time(899.5)
