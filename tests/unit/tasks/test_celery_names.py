"""What a Celery code base uses: names that work, and names whose error says what to write instead."""

from __future__ import annotations

import operator
import pickle
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from qtasks import Cancel, Embedded, QTasks, TaskRouter
from qtasks.errors import ArgumentsError, CeleryNameError, DefinitionError, ResultError, TaskCancelled, TaskFailed
from qtasks.tasks.celery import celery_names
from tests.unit.tasks.manual_broker import ManualBroker, json_of

pytestmark = pytest.mark.anyio
PATIENCE_S = 20.0

# --- results


async def test_a_result_has_celery_s_questions_and_celery_s_words(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=1)
    def halve(n: int) -> int:
        if n % 2:
            raise ValueError("odd")
        return n // 2

    even, odd = halve.delay(4), halve.delay(3)
    first, second = broker.messages
    assert (even.state, even.ready(), even.successful(), even.failed(), even.result) == (
        "PENDING", False, False, False, None,
    )  # fmt: skip
    await broker.deliver(first)
    assert (even.state, even.ready(), even.successful(), even.failed(), even.result) == (
        "SUCCESS", True, True, False, 2,
    )  # fmt: skip
    await broker.deliver(second)
    assert (odd.state, odd.ready(), odd.result) == ("RETRY", False, None)
    await broker.deliver(second, retried=1)
    assert (odd.state, odd.ready(), odd.successful(), odd.failed()) == ("FAILURE", True, False, True)
    assert isinstance(odd.result, TaskFailed)
    assert odd.result.error == "ValueError: odd"


async def test_a_status_is_not_compared_with_a_state_of_celery_in_silence(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    status = work.delay().status
    assert (status == "queued", status == "pending", status in ("queued", "x"), hash(status)) == (
        True, False, True, hash("queued"),
    )  # fmt: skip
    states: list[str] = ["SUCCESS"]
    for compare in (operator.eq, operator.ne, lambda one, other: one in (other, "queued")):
        with pytest.raises(CeleryNameError, match=r"result\.state == 'SUCCESS'"):
            compare(status, states[0])


async def test_a_cancelled_call_is_revoked_and_has_not_failed(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None:
        raise Cancel("no need")

    result = work.delay()
    await broker.deliver()
    assert (result.state, result.ready(), result.successful(), result.failed()) == ("REVOKED", True, False, False)
    assert isinstance(result.result, TaskCancelled)


async def test_get_can_return_the_error_in_place_of_raising_it(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=0)
    def work() -> None:
        raise ValueError("no")

    result = work.delay()
    await broker.deliver()
    returned = result.get(timeout=0, propagate=False)
    assert isinstance(returned, TaskFailed)
    with pytest.raises(TaskFailed):
        result.get(timeout=0, propagate=True)
    with pytest.raises(CeleryNameError, match="'interval'"):
        result.get(timeout=0, interval=0.1)  # type: ignore[call-overload]


async def test_names_that_do_not_exist_here_exist_for_no_one_and_say_what_to_write(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    tables = ((work.delay(), celery_names.RESULT), (work, celery_names.TASK), (broker.tasks, celery_names.APPLICATION))
    for owner, names in tables:
        for name, fix in names.items():
            assert not hasattr(owner, name)
            with pytest.raises(CeleryNameError) as caught:
                getattr(owner, name)
            assert (caught.value.fix, caught.value.code) == (fix, "QT109")


async def test_an_attribute_that_no_framework_has_is_an_attribute_error_like_any_other(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    for owner in (broker.tasks, work, work.delay()):
        with pytest.raises(AttributeError, match="has no attribute 'delya'") as caught:
            _ = owner.delya  # type: ignore[union-attr]
        assert not isinstance(caught.value, CeleryNameError)


async def test_an_attribute_error_inside_of_a_property_is_the_one_that_is_seen(
    broker: ManualBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    @broker.tasks.task
    def work() -> None: ...

    result = work.delay()

    def broken(self: object) -> None:
        raise AttributeError("the cause")

    for owner, name in ((result, "status"), (work, "schedules"), (broker.tasks, "router")):
        monkeypatch.setattr(type(owner), name, property(broken))
        with pytest.raises(AttributeError, match=r"^the cause$"):
            getattr(owner, name)


async def test_the_error_about_a_name_survives_a_pickle() -> None:
    error = CeleryNameError("no", fix="yes")
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied)) == (CeleryNameError, str(error))


# --- handles by id, and calls by name


async def test_a_handle_made_from_an_id_has_the_type_that_the_task_declares(broker: ManualBroker) -> None:
    @broker.tasks.task
    def price() -> Decimal:
        return Decimal("9.90")

    call_id = price.delay().id
    await broker.deliver()
    handle = broker.tasks.result(call_id)
    assert (handle.get(timeout=0), handle.return_value, handle.result) == (Decimal("9.90"),) * 3
    assert (broker.tasks.AsyncResult(call_id).get(timeout=0), price.AsyncResult(call_id).state) == (
        Decimal("9.90"), "SUCCESS",
    )  # fmt: skip
    assert await handle == Decimal("9.90")


async def test_a_handle_made_from_an_id_cancels_a_call_that_waits(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    result = work.delay()
    assert broker.tasks.result(result.id).cancel()
    assert result.state == "REVOKED"


async def test_an_unknown_id_is_pending_and_get_says_that_it_is_unknown() -> None:
    with QTasks(embedded=Embedded(":memory:")) as tasks:
        handle = tasks.AsyncResult("call_nowhere")
        assert (handle.state, handle.status, handle.ready()) == ("PENDING", "unknown", False)
        with pytest.raises(ResultError, match=r"^call_nowhere is unknown"):
            handle.get(timeout=PATIENCE_S)


async def test_send_task_sends_what_the_task_itself_would_send(broker: ManualBroker) -> None:
    mail = TaskRouter(prefix="mail.")

    @mail.task(retries=7, label="post")
    def greet(name: str, times: int = 1) -> str:
        return f"hello {name}" * times

    broker.tasks.include_router(mail)
    result = broker.tasks.send_task("mail.greet", ["Ada"], {"times": 2}, countdown=60, task_id="mine")
    message = broker.take()
    assert (message.task, message.envelope["args"], message.envelope["kwargs"]) == ("mail.greet", ["Ada"], {"times": 2})
    assert (message.options.retries, message.options.delay_ms, message.options.labels) == (7, 60_000, ("post",))
    await broker.deliver(message)
    assert (result.id, result.get(timeout=0)) == ("mine", "hello Adahello Ada")
    with pytest.raises(ArgumentsError, match="argument 'name' is missing"):
        broker.tasks.send_task("mail.greet")
    await broker.tasks.asend_task("mail.greet", ("Eve",))
    assert broker.take().envelope["args"] == ["Eve"]


async def test_send_task_needs_no_code_of_the_task(broker: ManualBroker) -> None:
    result = broker.tasks.send_task(
        "billing.charge", args=[1, "EUR", None], kwargs={"lines": [{"sum": 1.5}]}, retries=2, queue="billing"
    )
    message = broker.take()
    assert (message.task, message.queue, message.options.retries) == ("billing.charge", "billing", 2)
    assert (message.envelope["args"], message.envelope["kwargs"]) == ([1, "EUR", None], {"lines": [{"sum": 1.5}]})
    other = QTasks(embedded=broker.embedded)

    @other.task(name="billing.charge")
    def charge(order: int, currency: str, note: str | None, *, lines: list[dict[str, float]]) -> float:
        return lines[0]["sum"]

    answer = await other.runtime.dispatcher().answer(broker.delivery(message))
    assert (answer.status, answer.body) == (200, b"1.5")
    assert result.state == "PENDING"  # its results are those of another application
    other.close()


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ([datetime(2030, 1, 1, tzinfo=UTC)], r"args\[0\]"),
        ([Decimal(1)], r"args\[0\]"),
        ([[{"when": timedelta(1)}]], "when"),
        ([(1, 2)], r"args\[0\]"),
        ([b"raw"], r"args\[0\]"),
        ([{1, 2}], r"args\[0\]"),
        ([{1: "a"}], r"args\[0\]"),
        ([float("nan")], "args"),
        ([object()], r"args\[0\]"),
    ],
)
async def test_send_task_refuses_what_would_not_arrive_as_it_is(
    broker: ManualBroker, arguments: list[Any], path: str
) -> None:
    with pytest.raises(ArgumentsError, match=path):
        broker.tasks.send_task("elsewhere", arguments)
    assert broker.messages == []


async def test_a_call_with_a_wrong_name_ends_as_an_unknown_task(broker: ManualBroker) -> None:
    @broker.tasks.task
    def charge() -> None: ...

    broker.tasks.send_task("chrage")
    answer = await broker.deliver()
    assert answer.status == 503
    assert json_of(answer)["error"].startswith("UnknownTask: there is no task 'chrage' here; did you mean 'charge'?")


async def test_what_is_no_name_is_refused_at_once(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    with pytest.raises(DefinitionError, match="not a valid name"):
        broker.tasks.send_task("two words")
    with pytest.raises(DefinitionError, match="is not the name of a task"):
        broker.tasks.send_task(work)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="begins with _"):
        broker.tasks.send_task("_end")


# --- options and settings


async def test_a_decorator_with_celery_s_options_says_the_whole_line(broker: ManualBroker) -> None:
    def work() -> None: ...

    def fix_of(**options: Any) -> str | None:
        with pytest.raises(DefinitionError) as caught:
            broker.tasks.task(**options)(work)
        assert caught.value.code == "QT109"
        return caught.value.fix

    assert fix_of(max_retries=5, default_retry_delay=30) == "@tasks.task(retries=5, retry_delay=30)"
    assert fix_of(
        name="x", autoretry_for=(OSError, ValueError), retry_backoff=True, retry_kwargs={"max_retries": 4}, label="a"
    ) == (
        "@tasks.task(label='a', retries=RetryPolicy(max=4, on=(OSError, ValueError), initial=1, factor=2, "
        "max_delay=600, jitter=0.5))"
    )
    assert fix_of(autoretry_for=(OSError,), max_retries=None) == (
        "@tasks.task(retries=RetryPolicy(max=999, on=(OSError,), initial=180, factor=1))"
    )
    assert fix_of(rate_limit="10/m") == '@tasks.task(key="work", rate="10/1m")'
    assert fix_of(time_limit=30) == "@tasks.task(timeout=30)"
    assert fix_of(acks_late=True, ignore_result=True) == "@tasks.task"
    assert fix_of(bind=True) == "@tasks.task, and `ctx: TaskContext = injected` in place of `self`"
    with pytest.raises(DefinitionError, match=r"raise RetryAfter\(60\) from error"):
        broker.tasks.task(bind=True)(work)  # type: ignore[call-overload]
    assert list(broker.tasks.tasks) == []


async def test_the_line_that_an_error_proposes_can_be_written(broker: ManualBroker) -> None:
    from qtasks import RetryPolicy

    def work() -> None: ...

    with pytest.raises(DefinitionError) as caught:
        broker.tasks.task(  # type: ignore[call-overload]
            autoretry_for=(OSError,), retry_backoff=2, max_retries=5, rate_limit="10/m", time_limit=30
        )(work)
    assert caught.value.fix is not None
    names = {"tasks": broker.tasks, "RetryPolicy": RetryPolicy, "work": work}
    exec(f"made = {caught.value.fix.removeprefix('@')}(work)", names)
    made: Any = names["made"]
    assert made.delivery_options.retries == 5
    assert (made.retry_policy.on, made.retry_policy.initial) == ((OSError,), 2)
    assert made.delivery_options.publish.timeout_ms == 30_000
    assert made.delivery_options.publish.flow_control.rate == 10


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"priority": 3}, "key="),
        ({"routing_key": "x"}, "queue="),
        ({"retry": False}, "leave it out"),
        ({"shadow": "x"}, "label="),
        ({"time_limit": 5}, "timeout=5"),
        ({"soft_time_limit": 5}, "soft_time_limit=...), where the task is declared"),
        ({"serializer": "pickle"}, "where the task is declared"),
        ({"headers": {"a": "b"}}, "carrying"),
        ({"queue": "mail", "countdown": 5}, "queue=None"),
    ],
)
async def test_an_option_of_apply_async_works_or_the_error_names_another(
    broker: ManualBroker, options: dict[str, Any], fix: str
) -> None:
    @broker.tasks.task
    def work() -> None: ...

    with pytest.raises(DefinitionError) as caught:
        work.apply_async((), **options)
    assert fix in (caught.value.fix or "")
    assert broker.messages == []


async def test_a_call_may_leave_the_queue_of_its_task_for_a_delay(broker: ManualBroker) -> None:
    @broker.tasks.task(queue="mail")
    def work() -> None: ...

    work.apply_async((), countdown=5, queue=None)  # type: ignore[arg-type]
    message = broker.take()
    assert (message.queue, message.options.delay_ms) == (None, 5000)


async def test_settings_of_celery_say_what_to_write(broker: ManualBroker) -> None:
    conf: Any = broker.tasks.conf  # type: ignore[attr-defined]
    with pytest.raises(CeleryNameError) as caught:
        conf.beat_schedule = {
            "nightly": {"task": "reports.nightly", "schedule": timedelta(hours=6), "args": (7,)},
            "hourly": {"task": "clean", "schedule": Crontab(), "kwargs": {"all": True}},
        }
    assert caught.value.fix == (
        '@tasks.every("6h", args=[7]) above reports.nightly; '
        "@tasks.cron(\"30 7 * * mon\", kwargs={'all': True}) above clean"
    )
    with pytest.raises(CeleryNameError, match=r'@tasks.task\(queue="mail"\) above send'):
        conf.task_routes = {"send": {"queue": "mail"}}
    with pytest.raises(CeleryNameError, match="fixture `qtasks`"):
        conf["CELERY_TASK_ALWAYS_EAGER"] = True
    with pytest.raises(CeleryNameError, match="QTASKS_RESULTS"):
        _ = conf.result_backend
    with pytest.raises(CeleryNameError) as caught:
        conf.update({"timezone": "Europe/Berlin"}, worker_concurrency=4, unheard_of=1)
    assert list(caught.value.details) == ["timezone", "worker_concurrency", "unheard_of"]
    with pytest.raises(CeleryNameError, match=r"tasks.result\(id\).cancel\(\)"):
        broker.tasks.control.revoke("x", terminate=True)  # type: ignore[attr-defined]


class Crontab:
    """Shows itself as Celery's does."""

    def __repr__(self) -> str:
        return "<crontab: 30 7 * * mon (m/h/dM/MY/d)>"


async def test_an_application_made_as_in_celery_says_where_its_settings_go() -> None:
    with pytest.raises(CeleryNameError) as caught:
        QTasks("shop", broker="redis://localhost", backend="redis://localhost")  # type: ignore[arg-type,call-arg]
    assert list(caught.value.details) == ["main", "broker", "backend"]
    assert "QSTASH_URL" in str(caught.value)
    assert "QTASKS_RESULTS" in str(caught.value)


@pytest.mark.parametrize("call_id", [7, b"sum-1", "", "a b", "x" * 500], ids=repr)
def test_an_id_of_a_call_that_is_none_is_refused_in_a_line(broker: ManualBroker, call_id: Any) -> None:
    @broker.tasks.task
    def work() -> None: ...

    with pytest.raises(DefinitionError, match="is not a valid id") as refused:
        work.apply_async(task_id=call_id)
    assert len(str(refused.value)) < 250
    assert ("str(...)" in str(refused.value)) is not isinstance(call_id, str)
    if not isinstance(call_id, str):
        with pytest.raises(DefinitionError, match="is not the id of a call"):
            broker.tasks.AsyncResult(call_id)


def test_an_async_result_takes_no_application(broker: ManualBroker) -> None:
    with pytest.raises(CeleryNameError, match=r"does not take 'app'"):
        broker.tasks.AsyncResult("call_1", app=broker.tasks)
