"""No handle shows the result of another task: ids of deduplication, ids that callers choose, handles made of ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qtasks import Embedded, QTasks, chain, group
from qtasks.errors import ResultError
from qtasks.llm import ChatMessage, user
from qtasks.tasks.send.outgoing import Outgoing
from tests.unit.tasks.manual_broker import ManualBroker, json_of

pytestmark = pytest.mark.anyio
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def tasks() -> Iterator[QTasks]:
    """An application on a real broker."""
    with QTasks(embedded=Embedded(":memory:")) as made:

        @made.task
        def charge(order: int) -> str:
            return f"charged {order}"

        @made.task
        def ship(order: int) -> str:
            return f"shipped {order}"

        @made.task
        def both(texts: list[str]) -> str:
            return " and ".join(texts)

        yield made


def test_one_id_for_two_tasks_makes_two_calls(tasks: QTasks) -> None:
    charge, ship = (tasks.tasks[name].using(deduplication_id="order-1") for name in ("charge", "ship"))
    charged, shipped, again = charge.delay(1), ship.delay(1), ship.delay(2)
    assert [each.deduplicated for each in (charged, shipped, again)] == [False, False, True]
    results = [each.get(timeout=PATIENCE_S) for each in (charged, shipped, again)]
    assert results == ["charged 1", "shipped 1", "shipped 1"]


def test_one_id_for_two_tasks_in_a_batch_makes_two_calls(tasks: QTasks) -> None:
    charge, ship = (tasks.tasks[name].using(deduplication_id="order-2") for name in ("charge", "ship"))
    with tasks.batch():
        handles = [charge.delay(2), ship.delay(2), charge.delay(3)]
    assert [each.deduplicated for each in handles] == [False, False, True]
    assert [each.get(timeout=PATIENCE_S) for each in handles] == ["charged 2", "shipped 2", "charged 2"]
    queued = [each.using(queue="line", deduplication_id="order-2q").delay(4) for each in (charge, ship)]
    assert [each.get(timeout=PATIENCE_S) for each in queued] == ["charged 4", "shipped 4"]


def test_one_id_for_two_tasks_in_a_group_makes_two_calls(tasks: QTasks) -> None:
    charge, ship = (tasks.tasks[name].using(deduplication_id="order-3") for name in ("charge", "ship"))
    assert group(charge.s(3), ship.s(3)).delay().results(timeout=PATIENCE_S) == ["charged 3", "shipped 3"]
    charge, ship = (each.using(deduplication_id="order-3c") for each in (charge, ship))
    flow = chain(group(charge.s(3), ship.s(3)), tasks.tasks["both"].s())
    assert flow.delay().get(timeout=PATIENCE_S) == "charged 3 and shipped 3"


def test_a_handle_made_of_the_id_of_another_task_shows_nothing_of_it(tasks: QTasks) -> None:
    charge, ship = tasks.tasks["charge"], tasks.tasks["ship"]
    call_id = charge.delay(7).id
    assert charge.result(call_id).get(timeout=PATIENCE_S) == "charged 7"
    stranger = ship.result(call_id)
    for look in (
        lambda: stranger.get(timeout=PATIENCE_S),
        lambda: stranger.status,
        lambda: stranger.state,
        lambda: stranger.return_value,
        lambda: stranger.progress,
        lambda: stranger.waiting_for,
        stranger.cancel,
    ):
        with pytest.raises(ResultError, match=f"{call_id} is a call of charge, not of ship") as caught:
            look()
        assert (caught.value.code, caught.value.fix) == ("QT434", f"tasks.result('{call_id}')")
    assert tasks.result(call_id).get(timeout=PATIENCE_S) == "charged 7"


async def test_the_twins_for_async_code_show_nothing_either(tasks: QTasks) -> None:
    call_id = (await tasks.tasks["charge"].adelay(8)).id
    assert await tasks.result(call_id) == "charged 8"
    stranger = tasks.tasks["ship"].result(call_id)
    for look in (stranger.aget, stranger.astatus, stranger.aprogress, stranger.awaiting_for, stranger.acancel):
        with pytest.raises(ResultError, match="is a call of charge"):
            await look()


async def test_a_second_task_with_the_task_id_of_a_first_does_not_run_and_does_not_get_its_result(
    broker: ManualBroker,
) -> None:
    ran: list[str] = []

    @broker.tasks.task
    def charge() -> str:
        ran.append("charge")
        return "charged"

    @broker.tasks.task
    def ship() -> str:
        ran.append("ship")
        return "shipped"

    charged = charge.apply_async(task_id="order-5")
    await broker.deliver()
    shipped = ship.apply_async(task_id="order-5")
    answer = await broker.deliver()
    assert (answer.status, json_of(answer)["code"]) == (489, "QT434")
    assert json_of(answer)["error"] == ("ResultError: order-5 is already the id of a call of charge; ship was not run")
    assert ran == ["charge"]
    assert charged.get(timeout=0) == "charged"
    with pytest.raises(ResultError, match="order-5 is a call of charge, not of ship"):
        shipped.get(timeout=0)
    again = charge.apply_async(task_id="order-5")
    assert (await broker.deliver()).status == 200
    assert (again.get(timeout=0), ran) == ("charged", ["charge"])


async def test_a_renamed_task_keeps_the_calls_of_its_old_name(broker: ManualBroker) -> None:
    @broker.tasks.task(name="old")
    def first() -> int:
        return 1

    first.apply_async(task_id="mine")
    await broker.deliver()
    renamed = QTasks(embedded=broker.embedded)
    renamed.runtime._given_results = broker.tasks.runtime.results()

    @renamed.task(name="new", aliases=["old"])
    def second() -> int:
        return 2

    assert second.result("mine").get(timeout=0) == 1
    assert second.using(retries=1).result("mine").get(timeout=0) == 1
    first.apply_async(task_id="mine")
    answer = await renamed.runtime.dispatcher().answer(broker.delivery(broker.take()))
    assert (answer.status, answer.body) == (200, b"1")
    renamed.runtime._results = None
    renamed.close()


async def test_one_task_at_two_addresses_is_two_tasks(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(n: int) -> None: ...

    @broker.tasks.llm(model="m")
    def ask(n: int) -> list[ChatMessage]:
        return [user(str(n))]

    @broker.tasks.llm(model="m")
    def ask_again(n: int) -> list[ChatMessage]:
        return [user(str(n))]

    def wire_id(task: Any, base_url: str) -> str | None:
        message: Outgoing = task.using(deduplication_id="once").message((1,), {})
        deduplication_id: str | None = message.addressed(base_url)[1].deduplication_id
        return deduplication_id

    places = [(task, url) for task in (work, ask, ask_again) for url in ("https://a.example/q", "https://b.example/q")]
    ids = [wire_id(task, url) for task, url in places]
    assert len(set(ids)) == len(places)
    assert ids == [wire_id(task, url) for task, url in places]
    assert all(each is not None and each.isalnum() and len(each) == 64 for each in ids)


async def test_ids_that_the_framework_chooses_stay_as_they_are(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(n: int = 0) -> int:
        return n

    chain(work.s(), work.s()).delay()
    await broker.deliver()
    first = broker.take().options.deduplication_id
    message = work.message((), {})
    assert first is not None
    assert message.addressed("https://a.example")[1].deduplication_id is None
