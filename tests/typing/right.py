"""Calls that are right, and the types they have. Both checkers read this file and must find nothing."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, assert_type
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from qtasks import (
    BackgroundTasks,
    GroupResult,
    Progress,
    QTasks,
    RetryPolicy,
    TaskContext,
    TaskEvent,
    TaskResult,
    TaskRouter,
    TaskSchedule,
    chain,
    chord,
    cron,
    every,
    group,
    injected,
    task,
)
from qtasks.errors import TaskCancelled, TaskFailed
from qtasks.llm import ChatMessage, Usage, anthropic, openai, user
from qtasks.tasks.flow.canvas import Chain
from qtasks.tasks.task import AsyncTask, SyncTask, Task
from qtasks.testing import Call, DeadCall, Environment
from qtasks.testing.llm import fake_llm

tasks = QTasks()


def get_db() -> str:
    return "db"


@tasks.task
def add(a: int, b: int = 2) -> int:
    return a + b


@tasks.task(retries=5, retry_delay="pow(2, retried) * 1000", timeout=timedelta(seconds=30), label=["a", "b"])
async def greet(name: str, *, ctx: TaskContext = injected) -> str:
    assert_type(ctx.attempt, int)
    return f"hello {name}"


@tasks.task(name="charge-card")
def charge(order_id: int, db: str = Depends(get_db), other: Annotated[str, Depends(get_db)] = "") -> None: ...


@task
async def module_level(*rows: int, **more: str) -> list[int]:
    return list(rows)


@task(retries=1)
def module_level_with_options() -> bytes:
    return b""


@tasks.task(serializer="pickle")
def pickled(data: set[bytes]) -> set[bytes]:
    return data


@tasks.task
def unannotated(a, b): ...  # type: ignore[no-untyped-def]


router = TaskRouter(prefix="mail.")
tasks.include_router(router)


@router.task(aliases=["old"], retries=RetryPolicy(max=1))
async def routed(to: str) -> int:
    return len(to)


@tasks.cron("0 9 * * MON-FRI", tz="Europe/Berlin", overlap="skip", retries=1, name="daily", aliases=["old"])
async def report(days: int = 1) -> list[str]:
    return [str(days)]


@tasks.every(timedelta(minutes=15), tz=ZoneInfo("Europe/Berlin"), schedule="often", args=[2])
@tasks.every("1h", overlap="wait")
@tasks.task(label="x", search=["days"])
def tidy(days: int = 1) -> int:
    return days


@router.cron("@daily", kwargs={"to": "ada"})
def mailed(to: str) -> None: ...


@cron("0 0 * * *")
def module_level_cron() -> int:
    return 1


@every("5m")
async def module_level_every() -> None: ...


@tasks.task(soft_time_limit="10s")
async def limited() -> None: ...


@add.on_failure
def told(event: TaskEvent) -> None:
    assert_type(event.context.attempt, int)


def sync_calls() -> None:
    assert_type(add(1), int)
    assert_type(add.delay(1, b=3), TaskResult[int])
    assert_type(add.delay(1).get(timeout=5), int)
    assert_type(routed.delay("a"), TaskResult[int])
    assert_type(greet.delay("Ada"), TaskResult[str])
    assert_type(greet.delay("Ada").get(), str)
    assert_type(charge.delay(1), TaskResult[None])
    assert_type(module_level.delay(1, 2, x="y").get(), list[int])
    assert_type(module_level_with_options.delay().get(), bytes)
    unannotated.delay(1, "b")
    assert_type(add.enqueue(1, b=2).return_value, int)
    assert_type(add.delay(1).finished_at, datetime | None)
    assert_type(pickled.delay({b""}).get(), set[bytes])
    QTasks(allow_pickle=True, secret_key="x")
    assert_type(tasks.results_router(show_errors=True, max_streams=5), APIRouter)


def options() -> None:
    changed = add.using(delay="10m", retries=0)
    assert_type(changed.delay(1), TaskResult[int])
    assert_type(changed.using(eta=datetime.now(UTC), deduplication_id="x", label="a").delay(1).get(), int)  # noqa: TID251
    assert_type(greet.using(delay=1.5, timeout=30).delay("Ada"), TaskResult[str])
    assert_type(add.using(queue="q", key="k", rate="5/1m", redact=True).map([1, 2]), list[TaskResult[int]])
    assert_type(add.starmap([(1, 2)]), list[TaskResult[int]])
    assert_type(add.apply_async((1,), {"b": 2}, countdown=5, expires=60, task_id="x"), TaskResult[int])
    assert_type(add.apply_async((1,), link=add.s(2), link_error=[pickled.si(set())]), TaskResult[int])
    assert_type(tasks.send_task("elsewhere", [1], {"b": 2}, queue="q", search="b"), TaskResult[Any])
    assert_type(tasks.result("x").get(), Any)
    assert_type(add.AsyncResult("x").get(timeout=1), int)
    assert_type(add.result("x").get(propagate=False), int | TaskFailed | TaskCancelled)
    assert_type(add.result("x").result, int | TaskFailed | TaskCancelled | None)
    assert_type(add.result("x").state, str)
    add.using(retries=RetryPolicy(max=3, on=OSError), expires="1h")
    assert_type(add.s(1).delay(), TaskResult[int])
    assert_type(chain(add.s(1) | add.s(2), add.si(1, 2)), Chain)
    assert_type(group(add.s(1) | add.s(2), group(add.s(1))).using(countdown=5).delay(), GroupResult)
    assert_type(chain(add.s(1), add.s(2)).using(delay="1m", expires="1h").delay(), TaskResult[Any])
    assert_type(chord(group(add.s(n) for n in range(3)), add.s()).delay(), TaskResult[Any])
    takes_any(add)
    takes_any(greet)


def schedules() -> None:
    assert_type(tidy(3), int)
    assert_type(tidy.delay(3), TaskResult[int])
    assert_type(mailed.delay("ada"), TaskResult[None])
    assert_type(module_level_cron.delay().get(), int)
    assert_type(tidy.schedules, tuple[TaskSchedule[int], ...])
    assert_type(tidy.schedules[0].next_runs(3), list[datetime])
    made = tidy.schedule("0 9 * * *", tz="UTC", args=[1], name="one", overlap="skip")
    assert_type(made, TaskSchedule[int])
    assert_type(made.trigger(), TaskResult[int])
    assert_type(tidy.using(retries=0).schedule(every="1h", kwargs={"days": 2}), TaskSchedule[int])
    assert_type(tasks.schedules.sync(prune=True).in_sync, bool)
    assert_type(tasks.schedules.get("daily"), TaskSchedule[Any])


async def async_calls() -> None:
    assert_type(await report(1), list[str])
    assert_type(await report.adelay(1), TaskResult[list[str]])
    assert_type(await module_level_every(), None)
    assert_type(await report.aschedule(every="1h"), TaskSchedule[list[str]])
    assert_type(await (await report.schedules[0].atrigger()), list[str])
    assert_type(await greet("Ada"), str)
    assert_type(await greet.adelay("Ada"), TaskResult[str])
    assert_type(await (await greet.adelay("Ada")).aget(), str)
    assert_type(await add.adelay(1), TaskResult[int])
    assert_type(await (await greet.adelay("Ada")), str)
    assert_type(await greet.aenqueue("Ada"), TaskResult[str])
    assert_type((await greet.adelay("Ada")).progress, Progress | None)
    assert_type(await greet.amap(["Ada"]), list[TaskResult[str]])
    assert_type(greet.result("call_1"), TaskResult[str])


def takes_any(work: Task[..., Any]) -> None:
    assert_type(work.name, str)


def after_the_response(background: BackgroundTasks) -> Response:
    background.add_task(add, 1, b=2)
    background.add_task(greet, "Ada")
    background.add_task(add.using(retries=1), 1)
    return Response(background=background)


def kinds(one: SyncTask[[int], str], two: AsyncTask[[int], str]) -> None:
    assert_type(one(1), str)
    assert_type(one.delay(1), TaskResult[str])
    assert_type(two.delay(1), TaskResult[str])


class Summary(BaseModel):
    title: str


@tasks.llm(provider=openai(), model="gpt-4o-mini", output=Summary, key="openai", parallelism=5, temperature=0.2)
def summarise(text: str, words: int = 100) -> list[ChatMessage]:
    return [user(f"Summarise in {words} words: {text}")]


@summarise.on_completion
async def store(
    summary: Summary,
    text: str,
    *,
    usage: Usage = injected,
    ctx: TaskContext = injected,
    db: Annotated[str, Depends(get_db)] = "",
) -> None:
    assert_type(usage.total_tokens, int)


@router.llm(model="any", provider=anthropic(), max_tokens=100)
def say(text: str) -> list[ChatMessage]:
    return [user(text)]


@say.on_completion(retries=5, timeout="10s")
def said(answer: str, text: str) -> int:
    return len(answer)


def language_models() -> None:
    takes_any(summarise)
    assert_type(summarise.delay("abc", words=5), TaskResult[Summary])
    assert_type(summarise.delay("abc").get().title, str)
    assert_type(summarise.using(model="gpt-4o", temperature=0, delay="1m").delay("abc"), TaskResult[Summary])
    assert_type(summarise.map(["a", "b"]), list[TaskResult[Summary]])
    assert_type(say.delay("abc").get(), str)
    assert_type(said("a", "b"), int)
    assert_type(chain(say.s("a"), summarise.s()), Chain)


async def language_models_in_async_code() -> None:
    assert_type(await (await summarise.adelay("abc")), Summary)


def in_a_test(qtasks: Environment) -> None:
    assert_type(qtasks.drain(), int)
    assert_type(qtasks.advance(hours=3, minutes=0.5), int)
    assert_type(qtasks.advance("3h"), int)
    assert_type(qtasks.advance(timedelta(days=1)), int)
    assert_type(qtasks.run_next(), Call | None)
    assert_type(qtasks.sent, list[Call])
    assert_type(qtasks.dlq, list[DeadCall])
    assert_type(qtasks.results, list[TaskResult[Any]])
    assert_type(qtasks.assert_enqueued(add.using(delay="1h"), 1), list[Call])
    qtasks.refute_enqueued("add", b=3)
    qtasks.fail_next(greet, times=2, status=503)
    qtasks.delay_next(add, minutes=5)
    qtasks.use_model(fake_llm("yes"))
    qtasks.answer("https://example.com", {"ok": True})
    with Environment(tasks, mode="inline", start=datetime.now(UTC)) as other:  # noqa: TID251
        assert_type(other, Environment)


async def in_an_async_test(qtasks: Environment) -> None:
    assert_type(await qtasks.adrain(), int)
    assert_type(await qtasks.aadvance(days=1), int)
    assert_type(await qtasks.arun_next(), Call | None)
