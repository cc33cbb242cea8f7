"""The context of a run: its time limit, and the request to stop."""

from __future__ import annotations

import math

from qtasks import TaskContext
from qtasks.tasks.context import RunLink, StopReason
from qtasks.testing.fakes.virtual_clock import VirtualClock


def context_with(link: RunLink) -> TaskContext:
    return TaskContext(task="t", call_id="c", message_id="m", attempt=1, retries=0, link=link)


def test_the_time_limit_is_on_the_clock_of_the_application() -> None:
    clock = VirtualClock(1_000_000)
    context = context_with(RunLink(clock.monotonic() + 10, clock.monotonic))
    assert (context.time_left_s, context.should_stop) == (10, False)
    clock.advance(9_999)
    assert not context.should_stop
    clock.advance(2)
    assert context.time_left_s < 0
    assert context.should_stop


def test_a_run_without_a_limit_stops_when_it_is_asked_to() -> None:
    link = RunLink()
    context = context_with(link)
    assert (context.time_left_s, context.should_stop) == (math.inf, False)
    link.stop(StopReason.DRAIN)
    assert context.should_stop


def test_a_run_is_asked_to_end_for_a_drain_or_because_its_call_was_cancelled() -> None:
    link = RunLink()
    context = context_with(link)
    assert (context.should_stop, context.is_cancelled) == (False, False)
    link.stop(StopReason.DRAIN)
    assert (context.should_stop, context.is_cancelled) == (True, False)
    link.stop(StopReason.CANCEL)
    link.stop(StopReason.DRAIN)
    assert (context.should_stop, context.is_cancelled) == (True, True)
