"""The machine's clock is set while a test of an application runs: the test broker keeps its delays, too."""

from __future__ import annotations

import pytest

from qtasks import QTasks
from qtasks.testing import Environment
from qtasks.testing.brokers.virtual_time import VirtualTimeBroker

DAY_MS = 24 * 60 * 60 * 1000


@pytest.mark.parametrize("span_ms", [DAY_MS, -DAY_MS])
def test_a_delayed_call_runs_after_its_delay(span_ms: int) -> None:
    tasks = QTasks()
    ran: list[int] = []

    @tasks.task
    def note(number: int) -> None:
        ran.append(number)

    with Environment(tasks) as environment:
        broker = environment._open_broker
        assert isinstance(broker, VirtualTimeBroker)
        note.using(delay="1h").delay(1)
        broker.clock.jump(span_ms)
        note.using(delay="30m").delay(2)
        environment.advance("29m")
        assert ran == []
        environment.advance("1m")
        assert ran == [2]
        environment.advance("30m")
        assert ran == [2, 1]
