"""Concurrent calls on an event loop share requests; a caller that is cancelled takes nobody with it."""

from __future__ import annotations

import asyncio

import pytest

from qtasks.errors import ApiError, BrokerUnreachable
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.qstash.operations.publishing import BatchResponse
from qtasks.tasks.send import async_coalescer, call_sender
from qtasks.tasks.send.departures import IN_FLIGHT
from tests.unit.tasks.gated_broker import GatedBroker

pytestmark = pytest.mark.anyio

FIRST = tuple(range(IN_FLIGHT))
LATER = (10, 11, 12, 13)


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls wait until the test goes on."""
    monkeypatch.setattr(async_coalescer, "PATIENCE_S", 20.0)


async def in_company(**settings: object) -> tuple[GatedBroker, dict[int, asyncio.Task[str]]]:
    """Calls of which the `FIRST` are under way, and the `LATER` wait. All answers are still to come."""
    broker = GatedBroker(**settings)  # type: ignore[arg-type]
    await broker.apublish(-1)
    broker.requests.clear()
    broker.stored.clear()
    broker.arrived, broker.held = 0, True
    callers: dict[int, asyncio.Task[str]] = {}
    for place, number in enumerate(FIRST, 1):  # one by one, so that they leave alone
        callers[number] = asyncio.create_task(broker.apublish(number))
        await asyncio.to_thread(broker.wait_for_requests, place)
    callers |= {number: asyncio.create_task(broker.apublish(number)) for number in LATER}
    await asyncio.sleep(0)
    return broker, callers


async def test_calls_that_come_while_requests_are_under_way_leave_together() -> None:
    broker, callers = await in_company()
    broker.release_all()
    answers = {number: await caller for number, caller in callers.items()}
    assert {number: broker.of(answer) for number, answer in answers.items()} == {n: n for n in callers}
    share = (len(LATER) + 1 + 1) // IN_FLIGHT  # of those that wait and the one that is still under way
    assert sorted(map(len, broker.requests)) == [1, 1, len(LATER) - share, share]


async def test_calls_of_one_turn_of_the_loop_leave_in_two_requests_of_about_the_same_size() -> None:
    broker, callers = await in_company()
    broker.release_all()
    await asyncio.gather(*callers.values())
    broker.requests.clear()
    await asyncio.gather(*(broker.apublish(number) for number in range(100, 121)))
    assert sorted(map(len, broker.requests)) == [1, 9, 11]


async def test_a_cancelled_call_that_waits_is_not_sent_and_the_others_are() -> None:
    broker, callers = await in_company()
    callers.pop(LATER[0]).cancel()
    broker.release_all()
    assert [broker.of(await caller) for caller in callers.values()] == list(callers) == broker.numbers()


async def test_cancelled_calls_under_way_let_the_others_leave() -> None:
    broker, callers = await in_company()
    for number in FIRST:
        callers.pop(number).cancel()
    await asyncio.to_thread(broker.wait_for_requests, len(FIRST) + 1)
    broker.release_all()
    assert [broker.of(await caller) for caller in callers.values()] == list(LATER)


async def test_a_cancelled_call_of_a_shared_request_takes_nobody_with_it() -> None:
    broker, callers = await in_company()
    broker.release()
    await asyncio.to_thread(broker.wait_for_requests, len(FIRST) + 1)
    callers.pop(LATER[0]).cancel()
    broker.release_all()
    assert [broker.of(await caller) for caller in callers.values()] == list(callers)
    assert broker.numbers() == [*FIRST, *LATER]


async def test_a_cancelled_shared_request_leaves_nobody_behind() -> None:
    broker, callers = await in_company()
    before = asyncio.all_tasks()
    broker.release()
    await asyncio.to_thread(broker.wait_for_requests, len(FIRST) + 1)
    (shared,) = [task for task in asyncio.all_tasks() - before if "_send_group" in repr(task)]
    shared.cancel()
    broker.release_all()
    assert [broker.of(await caller) for caller in callers.values()] == list(callers)
    assert broker.numbers() == [*FIRST, *LATER]


async def test_a_refused_call_gets_the_error_that_it_has_alone_and_the_others_none() -> None:
    broker, callers = await in_company(refused=frozenset({11}))
    broker.release_all()
    refused = callers.pop(11)
    assert [broker.of(await caller) for caller in callers.values()] == list(callers)
    with pytest.raises(ApiError, match="11 is refused"):
        await refused


async def test_calls_of_a_refused_request_are_sent_alone() -> None:
    broker, callers = await in_company(batch_status=413)
    broker.release_all()
    assert [broker.of(await caller) for caller in callers.values()] == list(callers) == broker.numbers()


async def test_each_call_of_a_request_without_an_answer_says_what_was_tried() -> None:
    broker, callers = await in_company()

    def silent(request: Request) -> Reply | None:
        if not request.url.endswith("/v2/batch"):
            return None
        raise BrokerUnreachable("No answer from http://broker.internal: gone", sent=True)

    broker.fault = silent
    broker.release_all()
    answers = await asyncio.gather(*callers.values(), return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, BrokerUnreachable)]
    assert len({id(error) for error in errors}) == len(errors) > 1
    assert all(error.message.startswith("work was not queued: No answer") for error in errors)


async def test_a_call_waits_no_longer_than_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_coalescer, "PATIENCE_S", 0.01)
    broker, callers = await in_company()
    await asyncio.to_thread(broker.wait_for_requests, len(FIRST) + 1)
    broker.release_all()
    assert [broker.of(await caller) for caller in callers.values()] == list(callers)


def test_a_loop_that_ends_in_the_middle_leaves_nothing_behind() -> None:
    async def leave() -> GatedBroker:
        broker, _ = await in_company()
        broker.release_all()
        return broker

    broker = asyncio.run(leave())
    assert broker.of(asyncio.run(broker.apublish(5))) == 5


async def test_many_callers_get_each_its_own_answer_and_nothing_is_stored_twice() -> None:
    broker = GatedBroker()

    async def run(first: int) -> None:
        for number in range(first, first + 20):
            assert broker.of(await broker.apublish(number)) == number

    await asyncio.gather(*(run(1000 * place) for place in range(20)))
    assert len(broker.stored) == len(set(broker.numbers())) == 400


async def known(monkeypatch: pytest.MonkeyPatch) -> GatedBroker:
    """A broker that has answered once, with small requests."""
    monkeypatch.setattr(call_sender, "MAX_ITEMS", 100)
    broker = GatedBroker()
    await broker.apublish(-1)
    broker.arrived = 0
    return broker


async def test_a_map_has_two_requests_under_way_and_its_answers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await known(monkeypatch)
    broker.held = True
    messages = [broker.work.message((number,), {}) for number in range(350)]
    sending = asyncio.create_task(broker.publisher.apublish_many(messages))
    for answered in range(3):
        await asyncio.to_thread(broker.wait_for_requests, answered + IN_FLIGHT)
        assert broker.arrived == answered + IN_FLIGHT
        broker.release()
    broker.release_all()
    answers = await sending
    assert [broker.of(answer.message_id) for answer in answers if isinstance(answer, BatchResponse)] == [*range(350)]


async def test_a_map_of_which_two_requests_fail_raises_the_error_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await known(monkeypatch)

    def lost(request: Request) -> Reply | None:
        if b"[150]" in request.body:
            return Reply(400, (), b'{"error":"no"}')
        raise BrokerUnreachable("the connection was cut", sent=True)

    broker.fault = lost
    with pytest.raises(BrokerUnreachable, match="350 calls"):
        await broker.publisher.apublish_many([broker.work.message((number,), {}) for number in range(350)])


async def test_a_cancelled_map_has_no_request_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await known(monkeypatch)
    broker.held = True
    messages = [broker.work.message((number,), {}) for number in range(350)]
    before = asyncio.all_tasks()
    sending = asyncio.create_task(broker.publisher.apublish_many(messages))
    await asyncio.to_thread(broker.wait_for_requests, IN_FLIGHT)
    started = asyncio.all_tasks() - before
    sending.cancel()
    await asyncio.wait(started)
    assert len(started) == 1 + IN_FLIGHT
    assert all(task.cancelled() for task in started)
    broker.release_all()
