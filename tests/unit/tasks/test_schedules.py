"""Schedules as code: declared beside the task, kept by the service, never taken from another owner."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import pytest
from fastapi import Depends

import qtasks
from qtasks import QTasks, RetryPolicy, Snooze, TaskContext, TaskRouter, injected
from qtasks.errors import ApiError, ArgumentsError, ConfigurationError, DefinitionError, ResultsDisabled
from qtasks.llm import ChatMessage
from qtasks.protocol import development
from qtasks.tasks.schedules.declaration import DesiredSchedule, identity, label_prefix
from qtasks.tasks.settings import HOSTED_URL
from tests.support.simulated_broker import BASE_URL, SimulatedBroker
from tests.support.tasks import application

if TYPE_CHECKING:
    from decimal import Decimal

STAGING = "https://staging.example.com/qtasks"


@pytest.fixture
def broker() -> Iterator[SimulatedBroker]:
    made = SimulatedBroker()
    yield made
    made.stop()


@pytest.fixture
def tasks(broker: SimulatedBroker) -> Iterator[QTasks]:
    with broker.application() as made:
        yield made


def named(tasks: QTasks) -> list[str]:
    return [schedule.name for schedule in tasks.schedules]


# --- declaring


def test_a_scheduled_function_is_a_task_and_still_a_function(tasks: QTasks) -> None:
    @tasks.cron("0 9 * * MON-FRI", tz="Europe/Berlin", retries=1, name="daily", aliases=["old"])
    async def report(days: int = 1) -> int:
        return days

    assert tasks.tasks == {"daily": report}
    assert report.is_async
    assert report.delivery_options.retries == 1
    assert [(one.name, one.cron) for one in report.schedules] == [("daily", "CRON_TZ=Europe/Berlin 0 9 * * MON-FRI")]


def test_decorators_stack_to_several_schedules_of_one_task(tasks: QTasks) -> None:
    @tasks.every("1h", schedule="hourly", args=[2])
    @tasks.cron("0 9 * * *")
    @tasks.task(retries=0)
    def report(days: int = 1) -> int:
        return days

    assert report(3) == 3
    assert named(tasks) == ["report", "report:hourly"]
    assert len(tasks.schedules) == 2


def test_a_router_has_schedules_too_wherever_it_is_included(tasks: QTasks) -> None:
    router = TaskRouter(prefix="mail.")

    @router.cron("0 9 * * *")
    def digest() -> None: ...

    tasks.include_router(router)

    @router.every("1h")
    def flush() -> None: ...

    assert named(tasks) == ["mail.digest", "mail.flush"]


def test_the_default_application_has_the_same_decorators() -> None:
    assert qtasks.cron == qtasks.default_app.cron
    assert qtasks.every == qtasks.default_app.every


def test_a_variant_of_a_task_may_be_scheduled_with_its_own_options(tasks: QTasks, broker: SimulatedBroker) -> None:
    @tasks.task(retries=5)
    def report() -> None: ...

    tasks.cron("0 9 * * *")(report)
    tasks.cron("0 12 * * *", schedule="noon")(report.using(retries=1, delay="10m"))
    tasks.schedules.sync()
    assert [(one["retries"], one.get("delay")) for one in broker.schedules.values()] == [(5, None), (1, 600)]


def needs(tasks: QTasks) -> Callable[..., Any]:
    def report(days: int, *, ctx: TaskContext = injected, db: str = Depends(str)) -> int:
        return days

    return report


Declare = Callable[[QTasks], object]


def twice(tasks: QTasks) -> object:
    return tasks.cron("0 9 * * *")(tasks.cron("0 8 * * *")(lambda_free))


def lambda_free() -> None: ...


def asking() -> list[ChatMessage]:
    return []


WRONG: dict[str, tuple[Declare, str, str]] = {
    "expression": (lambda tasks: tasks.cron("0 25 * * *"), "QT104", "hour"),
    "zone": (lambda tasks: tasks.cron("0 9 * * *", tz="Mars/Olympus"), "QT106", "unknown time zone"),
    "interval": (lambda tasks: tasks.every("7m"), "QT104", "6m and 10m"),
    "missing argument": (lambda tasks: tasks.cron("0 9 * * *")(needs(tasks)), "QT151", "argument 'days' is missing"),
    "wrong argument": (
        lambda tasks: tasks.cron("0 9 * * *", kwargs={"days": "x"})(needs(tasks)),
        "QT153",
        "argument 'days' expects int",
    ),
    "arguments as text": (lambda tasks: tasks.cron("0 9 * * *", args="ab")(lambda_free), "QT156", "a list"),
    "overlap": (lambda tasks: tasks.cron("0 9 * * *", overlap="queue")(lambda_free), "QT156", "'wait', 'skip'"),  # type: ignore[arg-type]
    "name": (
        lambda tasks: tasks.cron("0 9 * * *", schedule="a b")(lambda_free),
        "QT156",
        "not a valid name for a schedule",
    ),
    "long id": (
        lambda tasks: tasks.cron("0 9 * * *", schedule="s" * 64, name="t" * 64)(lambda_free),
        "QT156",
        "128 are allowed",
    ),
    "two of a name": (twice, "QT101", "there are two schedules 'lambda_free'"),
    "unknown option": (
        lambda tasks: tasks.cron("0 9 * * *", retires=3)(lambda_free),  # type: ignore[call-arg]
        "QT156",
        "did you mean 'retries'?",
    ),
    "options above a task": (
        lambda tasks: tasks.cron("0 9 * * *", retries=3)(tasks.task(lambda_free)),
        "QT156",
        "in the lowest decorator",
    ),
    "unique": (lambda tasks: tasks.cron("0 9 * * *", unique=True)(lambda_free), "QT156", 'overlap="skip"'),
    "wait with a key": (
        lambda tasks: tasks.cron("0 9 * * *", overlap="wait", key="k", rate=1)(lambda_free),
        "QT156",
        "the key 'k' run one at a time",
    ),
    "wait with a queue": (
        lambda tasks: tasks.cron("0 9 * * *", overlap="wait", queue="q")(lambda_free),
        "QT156",
        "a queue already decides",
    ),
    "expires": (
        lambda tasks: tasks.cron("0 9 * * *")(tasks.task(lambda_free).using(expires="1h")),
        "QT156",
        "`expires` starts with the call",
    ),
    "eta": (
        lambda tasks: tasks.cron("0 9 * * *")(tasks.task(lambda_free).using(eta=datetime(2030, 1, 1, tzinfo=UTC))),
        "QT156",
        "a schedule makes many",
    ),
    "a model and skip": (
        lambda tasks: tasks.cron("0 9 * * *", overlap="skip")(tasks.llm(model="m")(asking)),
        "QT156",
        "while a language model works",
    ),
    "another's task": (
        lambda tasks: tasks.cron("0 9 * * *")(application().task(lambda_free)),
        "QT101",
        "another application",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_fails_where_it_is_declared(tasks: QTasks, case: str) -> None:
    declare, code, text = WRONG[case]
    with pytest.raises(DefinitionError) as refusal:
        declare(tasks)
    assert refusal.value.code == code
    assert text in str(refusal.value)


def test_arguments_that_cannot_be_looked_at_yet_are_looked_at_when_the_application_starts(tasks: QTasks) -> None:
    @tasks.cron("0 9 * * *", args=["many"])
    def later(amount: Annotated[Decimal, "not there at run time"]) -> None: ...

    with pytest.raises(DefinitionError, match="which its module does not have"):
        tasks.schedules.sync()


def test_an_annotation_that_comes_later_is_no_reason_to_refuse(tasks: QTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(count: int) -> None: ...

    report.__annotations__["count"] = "Later"
    tasks.cron("0 9 * * *", args=["many"])(report)
    monkeypatch.setitem(globals(), "Later", int)
    with pytest.raises(DefinitionError, match="schedule report: report: argument 'count' expects int"):
        tasks.schedules.check()


# --- identity


@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [("report", "", "report-b0d657d35160"), ("mail.digest", "week-end", "mail.digest.week-end-ab528c71854d")],
)
def test_ids_are_for_ever(task: str, name: str, expected: str) -> None:
    assert identity(BASE_URL, task, name) == expected


def test_ids_are_of_place_task_and_name() -> None:
    ids = [
        identity(BASE_URL, "report", ""),
        identity(STAGING, "report", ""),
        identity(BASE_URL, "report", "a.b"),
        identity(BASE_URL, "report.a", "b"),
        identity(BASE_URL, "report.a.b", ""),
    ]
    assert len(set(ids)) == len(ids)


def test_a_change_of_anything_else_leaves_the_id(broker: SimulatedBroker) -> None:
    def version(expression: str, **options: Any) -> str:
        with broker.application() as tasks:

            @tasks.cron(expression, **options)
            def report(days: int = 1) -> int:
                return days

            tasks.schedules.sync()
            return report.schedules[0].id

    first = version("0 9 * * *")
    assert version("0 10 * * *", tz="Europe/Berlin", args=[2], retries=9, overlap="wait") == first
    assert list(broker.schedules) == [first]


# --- syncing


def test_ends_of_runs_are_reported_and_a_schedule_without_that_is_not_changed_for_it(
    tasks: QTasks, broker: SimulatedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    @tasks.cron("0 9 * * *", retries=0)
    def report() -> None: ...

    @tasks.cron("0 9 * * *", failure_callback="https://example.com/failed")
    def other() -> None: ...

    with monkeypatch.context() as before:
        before.setattr(DesiredSchedule, "sent", lambda desired, _: desired.options)
        tasks.schedules.sync()
    assert tasks.schedules.diff().in_sync
    for schedule in broker.schedules:
        broker.call(broker.service.call("DELETE", f"/v2/schedules/{schedule}"))
    tasks.schedules.sync()
    assert tasks.schedules.diff().in_sync
    found = {schedule["destination"]: schedule["failureCallback"] for schedule in broker.schedules.values()}
    assert found == {
        f"{BASE_URL}/report": f"{BASE_URL}/_end?task=report",
        f"{BASE_URL}/other": "https://example.com/failed",
    }


def test_a_sync_makes_what_is_declared_run(tasks: QTasks, broker: SimulatedBroker) -> None:
    runs: list[tuple[str, int, str | None, int]] = []

    @tasks.cron("30 9 * * *", tz="Europe/Berlin", kwargs={"days": 7}, retries=2)
    def report(days: int, ctx: TaskContext = injected) -> None:
        runs.append((broker.now.strftime("%d %H:%M"), days, ctx.schedule_id, ctx.retries))

    assert str(tasks.schedules.sync()) == "added report"
    broker.advance(days=2)
    assert runs == [("01 07:30", 7, report.schedules[0].id, 2), ("02 07:30", 7, report.schedules[0].id, 2)]


def test_every_run_is_a_call_of_its_own_and_keeps_it_through_its_retries(
    tasks: QTasks, broker: SimulatedBroker
) -> None:
    calls: list[tuple[str, int]] = []

    @tasks.every("1h", retry_delay="30s")
    def flaky(ctx: TaskContext = injected) -> int:
        calls.append((ctx.call_id, ctx.attempt))
        if ctx.attempt == 1:
            raise OSError("not yet")
        return ctx.attempt

    tasks.schedules.sync()
    broker.advance(hours=2, minutes=1)
    (first, one), (first_again, two), (second, _), (second_again, _) = calls
    assert (first, one, two) == (first_again, 1, 2)
    assert second == second_again != first
    assert flaky.result(first).get(timeout=5) == 2


OPTIONS: dict[str, Mapping[str, Any]] = {
    "nothing": {},
    "retries": {"retries": 0},
    "policy": {"retries": RetryPolicy(max=4, initial="3s", jitter=0.5)},
    "retry_delay": {"retry_delay": "1000 * retried"},
    "timeout": {"timeout": "90s"},
    "labels": {"label": ["a", "b"]},
    "queue": {"queue": "line"},
    "key": {"key": "k", "rate": "5/1m", "parallelism": 2},
    "wait": {"overlap": "wait"},
    "skip": {"overlap": "skip"},
    "callbacks": {"callback": "https://example.com/done", "failure_callback": "https://example.com/failed"},
    "redacted": {"redact": True},
    "zone": {"tz": "Europe/Berlin"},
    "arguments": {"args": ["Zoë ☃", [1, None]], "kwargs": {"more": {"x": 1.5}}},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_what_was_synced_is_in_sync_and_not_written_again(tasks: QTasks, broker: SimulatedBroker, case: str) -> None:
    @tasks.cron("0 9 * * *", **OPTIONS[case])
    def work(name: str = "", rows: list[Any] = [], more: dict[str, Any] = {}) -> None: ...  # noqa: B006

    tasks.schedules.sync()
    broker.requests.clear()
    plan = tasks.schedules.sync(prune=True)
    assert plan.in_sync
    assert [step.title for step in plan.unchanged] == ["work"]
    assert broker.written() == []


@pytest.mark.parametrize("case", [case for case in OPTIONS if case != "nothing"])
def test_every_option_that_changes_is_seen(broker: SimulatedBroker, case: str) -> None:
    def declared(options: Mapping[str, Any]) -> QTasks:
        tasks = broker.application()

        @tasks.cron("0 9 * * *", **options)
        def work(name: str = "", rows: list[Any] = [], more: dict[str, Any] = {}) -> None: ...  # noqa: B006

        return tasks

    declared({}).schedules.sync()
    now = declared(OPTIONS[case])
    (step,) = now.schedules.diff().changed
    assert step.title == "work"
    assert step.reasons
    now.schedules.sync()
    assert now.schedules.diff().in_sync
    assert not declared({}).schedules.diff().in_sync


@pytest.mark.parametrize(
    ("header", "value", "reason"),
    [
        ("Upstash-Cron", "5 9 * * *", "cron 5 9 * * * -> 0 9 * * *"),
        ("Upstash-Retries", "9", "retries 9 -> 3"),
        ("Upstash-Queue-Name", "q", "queue q -> -"),
        ("Upstash-Retry-Delay", "1000", "retry delay 1000 -> -"),
        ("Upstash-Callback", "https://example.com/", "callback https://example.com/ -> -"),
        ("Upstash-Label", "extra", "options"),
    ],
)
def test_what_somebody_changed_at_the_service_by_hand_is_named_and_mended(
    tasks: QTasks, broker: SimulatedBroker, header: str, value: str, reason: str
) -> None:
    @tasks.cron("0 9 * * *")
    def work() -> None: ...

    tasks.schedules.sync()
    (stands,) = broker.schedules.values()
    labels = ",".join([*stands["labels"], *([value] if header == "Upstash-Label" else [])])
    headers = {
        "Upstash-Cron": "0 9 * * *",
        "Upstash-Schedule-Id": stands["scheduleId"],
        "Content-Type": "application/json",
        header: value,
        "Upstash-Label": labels,
    }
    broker.call(broker.service.post(f"/v2/schedules/{stands['destination']}", headers, stands["body"]))
    (step,) = tasks.schedules.diff().changed
    assert step.reasons == (reason,)
    tasks.schedules.sync()
    assert tasks.schedules.diff().in_sync


def test_other_arguments_are_a_reason_of_their_own(broker: SimulatedBroker) -> None:
    for args, reasons in (([1], []), ([2], [("arguments",)])):
        with broker.application() as tasks:

            @tasks.cron("0 9 * * *", args=args)
            def work(n: int) -> None: ...

            assert [step.reasons for step in tasks.schedules.sync().changed] == reasons


def test_only_pruning_removes_what_is_declared_no_more(broker: SimulatedBroker) -> None:
    with broker.application() as before:
        before.cron("0 9 * * *", name="stays")(lambda_free)
        before.cron("0 9 * * *", name="goes")(lambda_free)
        before.schedules.sync()
    with broker.application() as after:
        after.cron("0 9 * * *", name="stays")(lambda_free)
        assert str(after.schedules.sync()) == "left over goes"
        assert len(broker.schedules) == 2
        assert str(after.schedules.sync(prune=True)) == "removed goes"
        assert [one["destination"] for one in broker.schedules.values()] == [f"{BASE_URL}/stays"]
        assert str(after.schedules.sync(prune=True)) == "nothing to do"


@pytest.mark.parametrize("forgets", [False, True])
def test_a_paused_schedule_stays_paused_whatever_changes(broker: SimulatedBroker, forgets: bool) -> None:
    runs: list[str] = []
    for expression in ("0 * * * *", "30 * * * *"):
        broker.forgets_pauses = forgets
        with broker.application() as tasks:

            @tasks.cron(expression)
            def work() -> None:
                runs.append("ran")

            tasks.schedules.sync()
            if not broker.schedules[work.schedules[0].id]["isPaused"]:
                assert expression == "0 * * * *", "the change has woken it"
                work.schedules[0].pause()
            broker.advance(hours=3)
    assert [(one["cron"], one["isPaused"]) for one in broker.schedules.values()] == [("30 * * * *", True)]
    assert runs == []
    with broker.application() as tasks:
        tasks.schedules.get("work").resume()
        assert [one["isPaused"] for one in broker.schedules.values()] == [False]


# --- whose it is


def test_two_environments_of_one_account_never_touch_each_other(broker: SimulatedBroker) -> None:
    with broker.application(BASE_URL) as production, broker.application(STAGING) as staging:
        for tasks in (production, staging):
            tasks.cron("0 9 * * *", name="report")(lambda_free)
            tasks.schedules.sync(prune=True)
        assert {one["destination"] for one in broker.schedules.values()} == {
            f"{BASE_URL}/report",
            f"{STAGING}/report",
        }
    with broker.application(STAGING) as emptied:
        plan = emptied.schedules.sync(prune=True)
    assert [step.title for step in plan.removed] == ["report"]
    assert [one.destination for one in plan.elsewhere] == [f"{BASE_URL}/report"]
    assert [one["destination"] for one in broker.schedules.values()] == [f"{BASE_URL}/report"]


def test_an_address_that_another_one_begins_with_is_another_environment(broker: SimulatedBroker) -> None:
    with broker.application(BASE_URL) as short, broker.application(f"{BASE_URL}/v2") as long:
        long.cron("0 9 * * *", name="report")(lambda_free)
        long.schedules.sync()
        assert short.schedules.sync(prune=True).removed == ()
        assert len(broker.schedules) == 1


def test_a_schedule_of_another_environment_is_refused_by_its_id_and_both_are_named(broker: SimulatedBroker) -> None:
    with broker.application(BASE_URL) as production, broker.application(STAGING) as staging:
        production.cron("0 9 * * *", name="report")(lambda_free)
        production.schedules.sync()
        (theirs,) = broker.schedules
        with pytest.raises(ConfigurationError) as refusal:
            staging.schedules.get(theirs)
    assert refusal.value.code == "QT310"
    assert STAGING in str(refusal.value)
    assert f"{BASE_URL}/report" in str(refusal.value)


@pytest.mark.parametrize(
    ("destination", "labels", "words"),
    [
        (f"{BASE_URL}/report", "", "was not made by qtasks"),
        (f"{STAGING}/report", "qtasks-schedule,qtasks.00000000.1", "belongs to another environment"),
        (f"{BASE_URL}/report", "qtasks-schedule,qtasks.00000000.1", "belongs to another environment"),
        (f"{BASE_URL}/report", f"{label_prefix(BASE_URL)}1", "was not made by qtasks"),
    ],
)
def test_whatever_stands_in_our_place_and_is_not_ours_is_left_alone(
    tasks: QTasks, broker: SimulatedBroker, destination: str, labels: str, words: str
) -> None:
    @tasks.cron("0 9 * * *")
    def report() -> None: ...

    schedule_id = report.schedules[0].id
    headers = {"Upstash-Cron": "1 1 1 1 1", "Upstash-Schedule-Id": schedule_id}
    headers |= {"Upstash-Label": labels} if labels else {}
    broker.call(broker.service.post(f"/v2/schedules/{destination}", headers))
    before = broker.schedules
    for attempt in (
        lambda: tasks.schedules.sync(prune=True),
        tasks.schedules.diff,
        report.schedules[0].pause,
        report.schedules[0].delete,
    ):
        with pytest.raises(ConfigurationError, match=words) as refusal:
            attempt()
        assert BASE_URL in str(refusal.value)
        assert destination in str(refusal.value)
    assert broker.schedules == before


def test_a_copy_that_somebody_made_of_a_schedule_under_an_id_of_their_own_is_theirs(
    tasks: QTasks, broker: SimulatedBroker
) -> None:
    tasks.cron("0 9 * * *", name="report")(lambda_free)
    tasks.schedules.sync()
    (ours,) = broker.schedules.values()
    headers = {
        "Upstash-Cron": "1 1 1 1 1",
        "Upstash-Schedule-Id": f"copy-of-{ours['scheduleId']}",
        "Upstash-Label": ",".join(ours["labels"]),
    }
    broker.call(broker.service.post(f"/v2/schedules/{ours['destination']}", headers, ours["body"]))
    plan = tasks.schedules.sync(prune=True)
    assert plan.in_sync
    assert len(plan.elsewhere) == 1
    assert len(broker.schedules) == 2


def test_schedules_that_nobody_declared_are_nobodys_leftovers(tasks: QTasks, broker: SimulatedBroker) -> None:
    headers = {"Upstash-Cron": "1 1 1 1 1"}
    broker.call(broker.service.post(f"/v2/schedules/{BASE_URL}/report", headers))
    assert tasks.schedules.sync(prune=True).in_sync
    assert len(broker.schedules) == 1


# --- a laptop with the keys of production

PRODUCTION: dict[str, Any] = {"url": "https://qtasks.example.com", "token": "the-token-of-production"}
LAPTOP = "http://127.0.0.1:8000/qtasks"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({**PRODUCTION, "base_url": LAPTOP}, "the tasks have a loopback address"),
        ({**PRODUCTION, "base_url": "http://app.localhost/qtasks"}, "the tasks have a loopback address"),
        ({**PRODUCTION, "base_url": BASE_URL, "allow_dev_keys": True}, "this program runs for development"),
        (
            {"url": HOSTED_URL, "token": "the-token-of-production", "base_url": BASE_URL, "allow_dev_keys": True},
            "runs for development",
        ),
        (
            {
                "url": "http://127.0.0.1:8080",
                "token": "the-token-of-production",
                "base_url": LAPTOP,
                "allow_dev_keys": True,
            },
            "for development",
        ),
    ],
)
def test_a_laptop_with_the_keys_of_production_writes_no_schedules(settings: dict[str, Any], why: str) -> None:
    tasks = application(**settings)

    @tasks.cron("0 9 * * *")
    def report() -> None: ...

    for attempt in (tasks.schedules.sync, lambda: report.schedule("0 9 * * *", name="x")):
        with pytest.raises(ConfigurationError, match=why) as refusal:
            attempt()
        assert refusal.value.code == "QT311"
        assert settings["url"] in str(refusal.value)
        assert settings["base_url"] in str(refusal.value)
        assert settings["token"] not in str(refusal.value)


def test_the_hosted_service_is_not_told_of_an_address_that_it_cannot_reach() -> None:
    tasks = application(url=HOSTED_URL, base_url=LAPTOP)
    with pytest.raises(ConfigurationError, match="the hosted service cannot reach"):
        tasks.schedules.sync()


@pytest.mark.parametrize(
    ("settings", "production"),
    [
        ({"token": development.USERS[2].token}, False),
        ({"token": "anything else"}, True),
        ({"url": "http://127.0.0.1:8080", "token": "anything else"}, True),
    ],
)
def test_everything_but_the_public_credentials_is_production(settings: dict[str, Any], production: bool) -> None:
    assert application(**settings).settings.is_production is production


# --- handles


def test_the_next_runs_are_told_in_the_zone_of_the_schedule(tasks: QTasks) -> None:
    @tasks.cron("30 2 * * *", tz="Europe/Berlin")
    def report() -> None: ...

    (schedule,) = report.schedules
    berlin = ZoneInfo("Europe/Berlin")
    assert schedule.next_runs(1) == [datetime(2030, 5, 1, 2, 30, tzinfo=berlin)]
    # On 31 March 2030 there is no half past two: it runs when there is a time again.
    nights = schedule.next_runs(3, after=datetime(2030, 3, 30, 12, tzinfo=UTC))
    assert [night.isoformat() for night in nights] == [
        "2030-03-31T03:00:00+02:00",
        "2030-04-01T02:30:00+02:00",
        "2030-04-02T02:30:00+02:00",
    ]


def test_next_runs_need_no_service_and_no_settings() -> None:
    tasks = QTasks()

    @tasks.every("1h")
    def report() -> None: ...

    assert len(report.schedules[0].next_runs()) == 5


def test_a_triggered_run_is_a_call_of_its_own(tasks: QTasks, broker: SimulatedBroker) -> None:
    @tasks.cron("0 9 * * *", args=[7], label="sums")
    def report(days: int, ctx: TaskContext = injected) -> tuple[int, str | None]:
        return days, ctx.schedule_id

    (schedule,) = report.schedules
    first, second = schedule.trigger(), schedule.trigger()
    assert first.id != second.id
    broker.run()
    assert first.get(timeout=5) == (7, schedule.id)
    assert broker.schedules == {}
    shown = broker.call(broker.service.get(f"/v2/messages/{first.message_id}"))
    assert shown["labels"] == ["qtasks-schedule", "sums"]


def test_what_the_service_does_not_have_says_what_to_do(tasks: QTasks) -> None:
    @tasks.cron("0 9 * * *")
    def report() -> None: ...

    with pytest.raises(ApiError, match="qtasks schedules sync") as missing:
        report.schedules[0].pause()
    assert missing.value.status == 404


async def in_async(tasks: QTasks, report: Any) -> None:
    handle = await report.aschedule(every="1h", name="mine")
    await handle.apause()
    assert (await handle.ainfo()).paused
    await handle.aresume()
    assert not (await handle.ainfo()).paused
    assert (await handle.atrigger()).task == "report"
    await handle.adelete()


@pytest.mark.anyio
async def test_handles_have_twins_that_do_not_block(tasks: QTasks) -> None:
    @tasks.task
    def report() -> None: ...

    await in_async(tasks, report)
    assert tasks.schedules.diff().dynamic == ()


# --- dynamic schedules


def test_a_program_may_schedule_what_no_code_declares(tasks: QTasks, broker: SimulatedBroker) -> None:
    seen: list[int] = []

    @tasks.task
    def digest(user: int, every: str = "week") -> None:
        seen.append(user)

    first = digest.schedule("0 * * * *", args=[1])
    digest.schedule(every="1h", kwargs={"user": 2}, tz="Europe/Berlin")
    broker.advance(hours=1)
    assert sorted(seen) == [1, 2]
    first.delete()
    broker.advance(hours=1)
    assert sorted(seen) == [1, 2, 2]


def test_the_same_schedule_again_replaces_itself_or_is_left_as_it_is(tasks: QTasks, broker: SimulatedBroker) -> None:
    @tasks.task
    def digest(user: int) -> None: ...

    assert digest.schedule("0 9 * * *", args=[1]).id == digest.schedule("0 9 * * *", kwargs={"user": 1}).id
    broker.requests.clear()
    digest.schedule("0 9 * * *", kwargs={"user": 1})
    assert broker.written() == []
    named = digest.schedule("0 9 * * *", args=[1], name="ada")
    named.pause()
    assert digest.schedule("0 10 * * *", args=[2], name="ada").id == named.id
    assert sorted((one["cron"], one["isPaused"]) for one in broker.schedules.values()) == [
        ("0 10 * * *", True),
        ("0 9 * * *", False),
    ]


def test_syncing_leaves_dynamic_schedules_alone(tasks: QTasks, broker: SimulatedBroker) -> None:
    @tasks.task
    def digest(user: int = 0) -> None: ...

    digest.schedule("0 9 * * *", name="ada")
    plan = tasks.schedules.sync(prune=True)
    assert plan.in_sync
    assert [step.title for step in plan.dynamic] == ["digest:ada"]
    assert len(broker.schedules) == 1


def test_a_dynamic_schedule_takes_no_declared_ones_place(tasks: QTasks) -> None:
    @tasks.cron("0 9 * * *")
    def digest() -> None: ...

    with pytest.raises(DefinitionError, match="the code declares a schedule with this name"):
        digest.schedule("0 10 * * *")


def test_another_process_finds_a_dynamic_schedule_by_its_name_or_its_id(broker: SimulatedBroker) -> None:
    def code() -> tuple[QTasks, Any]:
        tasks = broker.application()

        @tasks.task(retries=1)
        def digest(user: int, ctx: TaskContext = injected) -> tuple[int, int]:
            return user, ctx.retries

        return tasks, digest

    _, digest = code()
    made = digest.using(timeout="5m", label="x").schedule("0 9 * * *", tz="Europe/Berlin", args=[7], name="ada")
    elsewhere, _ = code()
    for name in ("digest:ada", made.id):
        handle = elsewhere.schedules.get(name)
        assert (handle.name, handle.id, handle.cron) == ("digest:ada", made.id, made.cron)
        assert handle.next_runs(2) == made.next_runs(2)
    result = handle.trigger()
    broker.run()
    assert result.get(timeout=5) == (7, 1)
    with pytest.raises(ConfigurationError, match="did you mean 'digest:ada'") as unknown:
        elsewhere.schedules.get("digest:adam")
    assert unknown.value.details == {"known": "digest:ada"}


def test_what_the_service_hides_cannot_be_sent_again_from_there(broker: SimulatedBroker) -> None:
    with broker.application() as tasks:

        @tasks.task(redact=True)
        def digest(user: int) -> int:
            return user

        made = digest.schedule("0 9 * * *", args=[7], name="ada")
        result = made.trigger()
        broker.run()
        assert result.get(timeout=5) == 7
        with pytest.raises(ConfigurationError, match="does not show the arguments"):
            tasks.schedules.get("digest:ada").trigger()


def test_a_leftover_without_code_can_be_taken_away_but_not_triggered(broker: SimulatedBroker) -> None:
    with broker.application() as before:
        before.cron("0 9 * * *", name="gone")(lambda_free)
        before.schedules.sync()
    with broker.application() as after:
        left = after.schedules.get("gone")
        with pytest.raises(ConfigurationError, match="is not in this program") as caught:
            left.trigger()
        assert "qtasks schedules trigger gone main:app" in str(caught.value)
        left.delete()
    assert broker.schedules == {}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({}, DefinitionError, "expected either a cron expression or an interval"),
        ({"cron": "0 9 * * *", "every": "1h"}, DefinitionError, "expected either a cron expression or an interval"),
        ({"cron": "0 25 * * *"}, DefinitionError, "hour"),
        ({"every": "7m"}, DefinitionError, "6m and 10m"),
        ({"every": "1h", "overlapp": "skip"}, DefinitionError, "did you mean 'overlap'?"),
        ({"every": "1h", "args": ["x"]}, ArgumentsError, "'user' expects int"),
        ({"every": "1h", "name": "x"}, ArgumentsError, "'user' is missing"),
    ],
)
def test_a_dynamic_schedule_that_cannot_work_is_refused_by_the_call(
    tasks: QTasks, broker: SimulatedBroker, given: dict[str, Any], error: type[Exception], text: str
) -> None:
    @tasks.task
    def digest(user: int) -> None: ...

    with pytest.raises(error, match=text.replace("?", r"\?")):
        digest.schedule(**given)
    assert broker.schedules == {}


# --- overlap


def test_runs_that_wait_share_a_key_of_their_schedule_that_lets_one_run_at_a_time(
    tasks: QTasks, broker: SimulatedBroker
) -> None:
    @tasks.every("1h", overlap="wait")
    def work(ctx: TaskContext = injected) -> None:
        if ctx.snoozed == 0:
            raise Snooze("1m")

    tasks.schedules.sync()
    (stands,) = broker.schedules.values()
    assert (stands["flowControlKey"], stands["parallelism"]) == (stands["scheduleId"], 1)
    # A snoozed run is published again by the dispatcher, and waits as the others do.
    broker.advance(hours=1)
    (again,) = [one for one in broker.requests if one.url.endswith(f"/v2/publish/{BASE_URL}/work")]
    assert dict(again.headers)["Upstash-Flow-Control-Key"] == stands["scheduleId"]
    broker.advance(minutes=5)


def test_a_schedule_that_skips_needs_a_place_for_results_and_says_so_at_once(broker: SimulatedBroker) -> None:
    tasks = application(results=None)

    @tasks.every("1h", overlap="skip")
    def work() -> None: ...

    for attempt in (tasks.schedules.check, tasks.schedules.diff, tasks.schedules.sync):
        with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
            attempt()
    with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
        work.schedule("0 9 * * *", name="x", overlap="skip")


def test_the_body_of_a_schedule_says_what_the_dispatcher_has_to_know(tasks: QTasks, broker: SimulatedBroker) -> None:
    @tasks.every("1h", overlap="skip", args=[1], timeout="1m")
    def work(n: int) -> None: ...

    tasks.schedules.sync()
    (stands,) = broker.schedules.values()
    assert json.loads(stands["body"]) == {
        "v": 1,
        "args": [1],
        "kwargs": {},
        "retries": 3,
        "timeout_ms": 60_000,
        "schedule": stands["scheduleId"],
        "overlap": "skip",
    }
    assert timedelta(seconds=stands["timeout"]) == timedelta(minutes=1)
