"""Declared schedules are active: their runs come when the clock passes their times."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from qtasks import QTasks, TaskContext, injected
from qtasks.testing import Environment


@pytest.fixture
def times() -> list[datetime]:
    return []


@pytest.fixture
def tasks(times: list[datetime]) -> QTasks:
    tasks = QTasks()
    clock: list[Environment] = []
    tasks.clock = clock  # type: ignore[attr-defined]  # filled below, for the tasks to look at

    @tasks.cron("30 2 * * *", tz="Europe/Berlin")
    def nightly(ctx: TaskContext = injected) -> str | None:
        times.append(clock[0].now)
        return ctx.schedule_id

    @tasks.every("15m", kwargs={"n": 7})
    async def often(n: int) -> int:
        times.append(clock[0].now)
        return n

    return tasks


@pytest.fixture
def started(tasks: QTasks, qtasks: Environment) -> Environment:
    tasks.clock.append(qtasks)  # type: ignore[attr-defined]
    return qtasks


@pytest.mark.qtasks(start="2030-01-01T00:00:00Z")
def test_schedules_run_as_time_passes(started: Environment, times: list[datetime]) -> None:
    assert started.drain() == 0
    assert started.advance(hours=1) == 4
    assert times == [datetime(2030, 1, 1, 0, minute, tzinfo=UTC) for minute in (15, 30, 45)] + [
        datetime(2030, 1, 1, 1, 0, tzinfo=UTC)
    ]
    runs = started.assert_enqueued("often", n=7)
    assert all(call.schedule_id is not None for call in runs)
    assert [call.result.get() for call in runs] == [7, 7, 7, 7]


@pytest.mark.qtasks(start="2030-03-31T00:00:00+01:00")
def test_the_night_without_half_past_two_comes_when_the_test_says(started: Environment) -> None:
    started.advance(days=1)
    assert [call.sent for call in started.assert_enqueued("nightly")] == [datetime(2030, 3, 31, 1, 0, tzinfo=UTC)]


@pytest.mark.qtasks(start="2030-01-01T00:00:00Z")
def test_a_schedule_is_triggered_and_paused_like_any_other(started: Environment, tasks: QTasks) -> None:
    schedule = tasks.schedules.get("often")
    schedule.pause()
    assert started.advance(minutes=30) == 0
    result = schedule.trigger()
    started.drain()
    assert result.get() == 7
    schedule.resume()
    assert started.advance(minutes=15) == 1


@pytest.mark.qtasks("capture", start="2030-01-01T00:00:00Z")
def test_only_the_manual_mode_has_them(tasks: QTasks, qtasks: Environment) -> None:
    assert tasks.schedules.diff().added
    with Environment(tasks, start="2030-01-01T00:00:00Z") as manual:
        assert tasks.schedules.diff().in_sync
        assert manual.pending == []


@pytest.mark.qtasks("inline", start="2030-01-01T00:00:00Z")
def test_inline_none_runs_while_a_wait_is_skipped(tasks: QTasks, started: Environment) -> None:
    tasks.tasks["often"].using(delay="1d").apply_async(kwargs={"n": 1})
    assert [call.arguments for call in started.sent] == [{"n": 1}]


@pytest.mark.qtasks(start="2030-01-01T00:00:00Z")
def test_an_application_that_starts_inside_changes_nothing(started: Environment, tasks: QTasks) -> None:
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    with TestClient(app):
        assert started.advance(minutes=15) == 1
