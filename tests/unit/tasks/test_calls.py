"""Calls in every form: one by one and many at once, with Celery's words, through routers, under old names."""

from __future__ import annotations

import gc
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qtasks import QTasks, TaskContext, TaskRouter, injected
from qtasks.errors import ArgumentsError, ConfigurationError, DefinitionError, PartlyRefused
from qtasks.protocol.messages import FlowControl, Redaction
from qtasks.tasks.options import delivery_options
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio


# --- Celery's form


async def test_apply_async_takes_celery_s_words(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=7)
    def add(a: int, b: int = 2) -> int:
        return a + b

    result = add.apply_async((3,), {"b": 4}, countdown=90, expires=600, task_id="mine-1", label="x")
    message = broker.take()
    assert result.id == message.envelope["id"] == "mine-1"
    assert message.options.delay_ms == 90_000
    assert message.envelope["expires_ms"] == broker.clock.now_ms() + 600_000
    assert (message.options.retries, message.options.labels) == (7, ("x",))
    assert (await broker.deliver(message)).body == b"7"
    assert result.get(timeout=0) == 7
    await add.aapply_async([1], eta=datetime.fromtimestamp(broker.clock.now_ms() / 1000, UTC) + timedelta(hours=1))
    assert broker.take().options.not_before_s == broker.clock.now_ms() / 1000 + 3600
    add.apply_async(kwargs={"a": 1}, queue="slow")
    assert broker.take().queue == "slow"


async def test_apply_async_checks_what_it_is_given(broker: ManualBroker) -> None:
    @broker.tasks.task
    def add(a: int) -> int:
        return a

    with pytest.raises(ArgumentsError):
        add.apply_async(("x",))
    with pytest.raises(DefinitionError, match="task_id"):
        add.apply_async((1,), task_id="with blank")
    with pytest.raises(DefinitionError, match="no option 'priority'"):
        add.apply_async((1,), priority=3)  # type: ignore[call-arg]
    assert broker.messages == []


# --- options


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"key": "k", "parallelism": 2}, "flow_control", FlowControl("k", 2)),
        ({"key": "k", "rate": 5}, "flow_control", FlowControl("k", None, 5)),
        ({"key": "k", "rate": "5/s"}, "flow_control", FlowControl("k", None, 5)),
        ({"key": "k", "rate": "10/2m", "parallelism": 1}, "flow_control", FlowControl("k", 1, 10, 120)),
        ({"callback": "https://e.com/x"}, "callback", "https://e.com/x"),
        ({"failure_callback": "https://e.com/x"}, "failure_callback", "https://e.com/x"),
        ({"redact": True}, "redact", Redaction(body=True)),
        ({"redact": False}, "redact", None),
    ],
)
async def test_every_option_reaches_the_wire(options: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(delivery_options("work", options).publish, field) == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rate": 5}, "limits of a key"),
        ({"key": "k"}, "limits nothing"),
        ({"key": "", "rate": 1}, "key=''"),
        ({"key": "k", "rate": 0}, "rate=0"),
        ({"key": "k", "rate": True}, "rate=True"),
        ({"key": "k", "rate": "5"}, "rate='5'"),
        ({"key": "k", "rate": "5/500ms"}, "rate='5/500ms'"),
        ({"key": "k", "rate": "5/8d"}, "rate='5/8d'"),
        ({"key": "k", "parallelism": 0}, "parallelism=0"),
        ({"callback": "example.com"}, "callback='example.com'"),
        ({"redact": "body"}, "redact='body'"),
        ({"queue": "a/b"}, "queue='a/b'"),
        ({"queue": "q", "delay": 5}, "delay and eta have no meaning"),
    ],
)
async def test_what_cannot_be_meant_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        delivery_options("work", options)


async def test_a_queue_is_part_of_the_address(broker: ManualBroker) -> None:
    @broker.tasks.task(queue="mail")
    def work() -> None: ...

    result = work.delay()
    message = broker.take()
    assert (message.queue, result.message_id) == ("mail", message.message_id)
    await work.using(queue="other").adelay()
    assert broker.take().queue == "other"
    with pytest.raises(DefinitionError, match="no meaning"):
        work.using(delay=5)


async def test_limits_of_a_declared_key_can_be_changed(broker: ManualBroker) -> None:
    @broker.tasks.task(key="k", rate=5)
    def work() -> None: ...

    work.using(rate="1/1m").delay()
    assert broker.take().options.flow_control == FlowControl("k", None, 1, 60)
    work.using(key="other").delay()
    assert broker.take().options.flow_control == FlowControl("other", None, 5)


# --- many at once


async def test_map_sends_one_request(broker: ManualBroker) -> None:
    @broker.tasks.task(timeout="5s")
    def double(n: int, times: int = 2) -> int:
        return n * times

    results = double.map([1, 2, 3])
    assert len(broker.embedded.transport.requests) == 1
    assert [message.envelope["args"] for message in broker.messages] == [[1], [2], [3]]
    assert [result.message_id for result in results] == [message.message_id for message in broker.messages]
    assert all(message.options.timeout_ms == 5000 for message in broker.messages)
    for message in broker.messages:
        await broker.deliver(message)
    assert [result.get(timeout=0) for result in results] == [2, 4, 6]
    broker.messages.clear()
    await double.using(queue="q").astarmap([(1, 2), (3, 4)])
    assert [(message.envelope["args"], message.queue) for message in broker.messages] == [([1, 2], "q"), ([3, 4], "q")]
    assert len(await double.amap(range(2))) == 2


async def test_a_map_of_nothing_sends_nothing(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(n: int) -> None: ...

    assert work.map([]) == []
    assert broker.embedded.transport.requests == []


async def test_one_wrong_argument_of_a_map_sends_nothing(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(n: int) -> None: ...

    with pytest.raises(ArgumentsError):
        work.starmap([(1,), ("x",)])
    assert broker.embedded.transport.requests == []


async def test_calls_in_a_batch_go_out_together_at_its_end(broker: ManualBroker) -> None:
    @broker.tasks.task
    def one(n: int) -> int:
        return n

    @broker.tasks.task
    def two() -> None: ...

    with broker.tasks.batch() as batch:
        first = one.delay(1)
        second = await two.adelay()
        assert (first.message_id, len(batch), broker.messages) == (None, 2, [])
    assert [message.task for message in broker.messages] == ["one", "two"]
    assert second.message_id == broker.messages[1].message_id
    async with broker.tasks.batch():
        await one.adelay(2)
    assert len(broker.embedded.transport.requests) == 2
    one.delay(3)
    assert len(broker.embedded.transport.requests) == 3


async def test_an_exception_that_leaves_a_batch_sends_nothing(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    def failing() -> None:
        with broker.tasks.batch():
            work.delay()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert broker.embedded.transport.requests == []
    work.delay()
    assert len(broker.messages) == 1


async def test_calls_of_another_application_are_not_held(broker: ManualBroker) -> None:
    other = ManualBroker()

    @other.tasks.task
    def work() -> None: ...

    with broker.tasks.batch():
        work.delay()
        assert len(other.messages) == 1
    other.close()


async def test_a_batch_that_is_taken_in_part_says_which_part(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(n: int) -> None: ...

    broker.refuses = '"args":[2]'
    with pytest.raises(PartlyRefused, match="1 of 3 calls were refused, the first one with: refused") as caught:
        work.map([1, 2, 3])
    assert list(caught.value.refused.values()) == ["refused"]
    assert [message.envelope["args"] for message in broker.messages] == [[1], [3]]


# --- routers and aliases


async def test_a_router_s_tasks_belong_to_the_application_that_includes_it(broker: ManualBroker) -> None:
    mail = TaskRouter(prefix="mail.")

    @mail.task
    def send(to: str) -> str:
        return to

    @mail.task(name="bulk", retries=1)
    async def many() -> None: ...

    with pytest.raises(ConfigurationError, match="include_router"):
        send.delay("a")
    broker.tasks.include_router(mail)

    @mail.task
    def later() -> None: ...

    assert list(broker.tasks.tasks) == ["mail.send", "mail.bulk", "mail.later"]
    send.using(delay=1).delay("a")
    message = broker.take()
    assert message.task == "mail.send"
    assert (await broker.deliver(message)).body == b'"a"'


async def test_routers_nest(broker: ManualBroker) -> None:
    inner, outer = TaskRouter(prefix="a."), TaskRouter()

    @inner.task
    def work() -> None: ...

    outer.include_router(inner)
    broker.tasks.include_router(outer)
    work.delay()
    assert broker.take().task == "a.work"


async def test_a_name_is_unique_over_all_routers() -> None:
    tasks, one, two = QTasks(), TaskRouter(), TaskRouter()

    def work() -> None: ...

    one.task(work)
    two.task(work)
    tasks.include_router(one)
    with pytest.raises(DefinitionError, match="two tasks named 'work'"):
        tasks.include_router(two)
    with pytest.raises(DefinitionError, match="two tasks named 'work'"):
        tasks.task(work)
    with pytest.raises(DefinitionError, match="included twice"):
        QTasks().include_router(one)


async def test_calls_under_an_old_name_run_the_renamed_task(broker: ManualBroker) -> None:
    contexts: list[TaskContext] = []

    @broker.tasks.task(name="new", aliases=["old", "older"])
    def work(ctx: TaskContext = injected) -> None:
        contexts.append(ctx)

    work.delay()
    message = broker.take()
    assert message.task == "new"
    message.task = "old"
    assert (await broker.deliver(message)).status == 200
    assert contexts[0].task == "new"
    assert list(broker.tasks.tasks) == ["new"]
    with pytest.raises(DefinitionError, match="two tasks named 'older'"):
        broker.tasks.task(name="older")(lambda: None)
    with pytest.raises(DefinitionError, match="not a valid name for a task"):
        broker.tasks.task(name="x", aliases=["a b"])(lambda: None)


async def test_a_batch_item_has_the_headers_of_a_publish(broker: ManualBroker) -> None:
    @broker.tasks.task(label="a", retries=2)
    def work(n: int) -> None: ...

    work.map([1])
    (item,) = json.loads(broker.embedded.transport.requests[0].body)
    assert item["headers"]["Upstash-Retries"] == "2"
    assert item["headers"]["Upstash-Label"] == "a"
    assert item["headers"]["Content-Type"] == "application/json"


async def test_an_adelay_that_nobody_awaits_sends_nothing_and_python_says_so(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None: ...

    def forget() -> None:
        work.adelay()  # type: ignore[unused-coroutine]
        gc.collect()

    with pytest.warns(RuntimeWarning, match="was never awaited"):
        forget()
    assert broker.messages == []
