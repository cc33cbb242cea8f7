"""Concurrent calls share requests to our broker, and each one gets its own answer, whatever happens to the others."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from qtasks.errors import ApiError, BrokerUnreachable
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.send import call_sender, coalescer, departures
from qtasks.tasks.send.departures import IN_FLIGHT
from tests.unit.tasks.gated_broker import Callers, GatedBroker

FIRST = tuple(range(IN_FLIGHT))
"""The calls that need not wait."""
LATER = (10, 11, 12, 13)


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls wait until the test goes on."""
    monkeypatch.setattr(coalescer, "PATIENCE_S", 20.0)


def known(**settings: object) -> GatedBroker:
    """A broker that has answered once."""
    broker = GatedBroker(**settings)  # type: ignore[arg-type]
    broker.publish(-1)
    broker.requests.clear()
    broker.stored.clear()
    broker.arrived = 0
    return broker


def in_company(broker: GatedBroker) -> Callers:
    """Calls of which the `FIRST` are under way, and the `LATER` wait. All answers are still to come."""
    broker.held = True
    callers = Callers(broker)
    callers.call(*FIRST)
    broker.wait_for_requests(len(FIRST))
    callers.call(*LATER)
    callers.wait_until_waiting(len(LATER))
    return callers


def test_calls_one_by_one_leave_alone() -> None:
    broker = known()
    for number in range(3):
        broker.publish(number)
    assert broker.requests == [[0], [1], [2]]


def test_calls_that_come_while_requests_are_under_way_leave_together() -> None:
    broker = known()
    callers = in_company(broker)
    broker.release()
    broker.wait_for_requests(len(FIRST) + 1)
    broker.release_all()
    answers = callers.join()
    assert sorted(map(len, broker.requests)) == [1] * len(FIRST) + [len(LATER)]
    assert {number: broker.of(str(answer)) for number, answer in answers.items()} == {n: n for n in (*FIRST, *LATER)}


def test_many_threads_get_each_its_own_answer_and_nothing_is_stored_twice() -> None:
    broker = known()
    mismatches: list[int] = []

    def run(first: int) -> None:
        numbers = range(first, first + 40)
        mismatches.extend(number for number in numbers if broker.of(broker.publish(number)) != number)

    threads = [threading.Thread(target=run, args=(1000 * place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (mismatches, len(broker.stored), len(set(broker.numbers()))) == ([], 320, 320)


def test_a_refused_call_gets_the_error_that_it_has_alone_and_the_others_none() -> None:
    broker = known(refused=frozenset({11}))
    with pytest.raises(ApiError) as alone:
        broker.publish(11)
    broker.arrived = 0
    callers = in_company(broker)
    broker.release_all()
    answers = callers.join()
    error = answers.pop(11)
    assert isinstance(error, ApiError)
    assert (str(error), error.status, error.detail, error.code) == (
        str(alone.value),
        alone.value.status,
        alone.value.detail,
        alone.value.code,
    )
    assert all(broker.of(str(answer)) == number for number, answer in answers.items())


@pytest.mark.parametrize("status", [400, 413, 501])
def test_calls_of_a_refused_request_are_sent_alone(status: int) -> None:
    broker = known(batch_status=status)
    callers = in_company(broker)
    broker.release_all()
    assert sorted(callers.join()) == broker.numbers() == [*FIRST, *LATER]
    assert sorted(map(len, broker.requests)) == [1] * (len(FIRST) + len(LATER)) + [len(LATER)]


def test_an_answer_that_cannot_be_read_stores_each_call_once() -> None:
    broker = known()

    def unreadable(request: Request) -> Reply | None:
        if not request.url.endswith("/v2/batch"):
            return None
        broker.fault = None
        broker._answer(request)  # it is stored, and the answer is lost
        return Reply(201, (), b"<html>")

    callers = in_company(broker)
    broker.fault = unreadable
    broker.release_all()
    answers = callers.join()
    assert sorted(answers) == broker.numbers()
    assert all(broker.of(str(answer)) == number for number, answer in answers.items())


def test_each_call_of_a_request_without_an_answer_says_what_was_tried() -> None:
    broker = known()

    def silent(request: Request) -> Reply | None:
        if not request.url.endswith("/v2/batch"):
            return None
        raise BrokerUnreachable("No answer from http://broker.internal: gone", sent=True)

    callers = in_company(broker)
    broker.fault = silent
    broker.release_all()
    answers = callers.join()
    errors = [answers[number] for number in LATER]
    assert len({id(error) for error in errors}) == len(LATER)
    for error in errors:
        assert isinstance(error, BrokerUnreachable)
        assert error.sent
        assert error.message.startswith("work was not queued: No answer from http://broker.internal: gone")


def test_an_interrupted_thread_leaves_nobody_behind_that_it_sends_for() -> None:
    broker = known()

    def interrupted(request: Request) -> Reply | None:
        if not request.url.endswith("/v2/batch"):
            return None
        broker.fault = None
        broker._answer(request)
        raise KeyboardInterrupt

    callers = in_company(broker)
    broker.fault = interrupted
    broker.release_all()
    answers = callers.join()
    assert [type(answer) for answer in answers.values()].count(KeyboardInterrupt) == 1
    others = {number: answer for number, answer in answers.items() if isinstance(answer, str)}
    assert all(broker.of(answer) == number for number, answer in others.items())
    assert broker.numbers() == [*FIRST, *LATER]
    assert broker.publisher._calls._coalescer._departures.is_free


def test_a_call_waits_no_longer_than_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = known()
    monkeypatch.setattr(coalescer, "PATIENCE_S", 0.01)
    broker.held = True
    callers = Callers(broker)
    callers.call(*FIRST)
    broker.wait_for_requests(len(FIRST))
    callers.call(10)
    broker.wait_for_requests(len(FIRST) + 1)
    broker.release_all()
    assert sorted(callers.join()) == [*FIRST, 10]


def test_a_thread_that_disappears_is_waited_for_only_as_long_as_a_request_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = known()
    shared = broker.publisher._calls._coalescer
    monkeypatch.setattr(coalescer, "PATIENCE_S", 0.05)
    monkeypatch.setattr(shared._departures, "_longest_s", 0.05)
    monkeypatch.setattr(shared, "_send_group", lambda _: None)  # it settles nobody
    broker.held = True
    callers = Callers(broker)
    callers.call(*FIRST, *LATER)
    broker.wait_for_requests(len(FIRST) + len(LATER))
    broker.release_all()
    assert sorted(callers.join()) == broker.numbers() == [*FIRST, *LATER]


def test_another_service_gets_one_request_for_each_call() -> None:
    broker = known(is_ours=False)
    broker.held = True
    callers = Callers(broker)
    callers.call(*FIRST, *LATER)
    broker.wait_for_requests(len(FIRST) + len(LATER))
    broker.release_all()
    callers.join()
    assert set(map(len, broker.requests)) == {1}


def test_the_hosted_service_gets_one_request_for_each_call_whatever_it_answers() -> None:
    broker = known(url="https://qstash.upstash.io")
    broker.held = True
    callers = Callers(broker)
    callers.call(*FIRST, *LATER)
    broker.wait_for_requests(len(FIRST) + len(LATER))
    broker.release_all()
    callers.join()
    assert set(map(len, broker.requests)) == {1}


def test_requests_hold_as_many_calls_as_the_broker_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "MAX_ITEMS", 3)
    broker = known()
    callers = in_company(broker)
    broker.release_all()
    assert sorted(callers.join()) == broker.numbers()
    assert sorted(map(len, broker.requests)) == [1] * (len(FIRST) + 1) + [3]


def test_a_map_learns_from_its_first_request_how_large_the_others_may_be() -> None:
    broker = GatedBroker()
    messages = [broker.work.message((number,), {}) for number in range(250)]
    broker.publisher.publish_many(messages)
    assert broker.requests == [[*range(100)], [*range(100, 250)]]


def test_a_map_to_another_service_has_moderate_requests() -> None:
    broker = GatedBroker(is_ours=False)
    messages = [broker.work.message((number,), {}) for number in range(250)]
    broker.publisher.publish_many(messages)
    assert [len(request) for request in broker.requests] == [100, 100, 50]


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_map_has_two_requests_under_way_and_its_answers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_sender, "MAX_ITEMS", 100)
    broker = known()
    broker.held = True
    answers: list[object] = []
    messages = [broker.work.message((number,), {}) for number in range(350)]
    sending = in_background(lambda: answers.extend(broker.publisher.publish_many(messages)))
    for answered in range(3):
        broker.wait_for_requests(answered + IN_FLIGHT)
        assert broker.arrived == answered + IN_FLIGHT
        broker.release()
    broker.release_all()
    sending.join()
    assert [broker.of(answer.message_id) for answer in answers] == [*range(350)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "options", [{"queue": "q"}, {"key": "k", "rate": "1/s"}, None], ids=["queue", "key", "other service"]
)
def test_requests_of_a_map_wait_for_each_other_where_the_order_matters(
    monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    monkeypatch.setattr(call_sender, "MAX_ITEMS", 100)
    broker = GatedBroker(is_ours=False) if options is None else known()
    under_way: list[int] = []
    broker.fault = lambda _: under_way.append(broker.arrived - len(broker.requests))
    task = broker.work.using(**(options or {}))
    broker.publisher.publish_many([task.message((number,), {}) for number in range(350)])
    assert broker.requests == [[*range(first, min(first + 100, 350))] for first in range(0, 350, 100)]
    assert under_way == [1, 1, 1, 1]


def test_a_map_that_loses_a_request_says_how_many_calls_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_sender, "MAX_ITEMS", 100)
    broker = known()

    def lost(request: Request) -> Reply | None:
        if b'"args":[150]' in request.body.replace(b'\\"', b'"'):
            raise BrokerUnreachable("the connection was cut", sent=True)
        return None

    broker.fault = lost
    messages = [broker.work.message((number,), {}) for number in range(350)]
    with pytest.raises(BrokerUnreachable, match="250 calls"):
        broker.publisher.publish_many(messages)


def test_large_calls_are_divided_into_requests_that_brokers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    broker = known()

    def noted(request: Request) -> Reply | None:
        sizes.append(len(request.body))
        return None

    broker.fault = noted

    @broker.tasks.task
    def keep(n: int, text: str) -> None: ...

    broker.publisher.publish_many([keep.message((number, "é" * 400_000), {}) for number in range(6)])
    assert len(sizes) == 2
    assert max(sizes) <= 4 * 1024 * 1024
    assert json.loads(json.dumps(broker.numbers())) == list(range(6))
