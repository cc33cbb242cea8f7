"""A signed request that arrives again: without a place for results, the process itself remembers what it has run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from qtasks import QTasks
from qtasks.clock import SystemClock
from qtasks.errors import ResultError
from qtasks.protocol.signing import Claims
from qtasks.tasks.results.backend import Lock
from qtasks.tasks.results.memory import MemoryResults
from qtasks.tasks.run import received
from qtasks.tasks.run.attempt import Delivery
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.tasks.run.dispatcher import Dispatcher
from qtasks.tasks.run.received import MAX_WAITING, ReceivedRequests
from qtasks.testing.fakes.virtual_clock import VirtualClock
from tests.support.tasks import BASE_URL, application, dispatcher_of, envelope, signature
from tests.unit.tasks.manual_broker import json_of

pytestmark = pytest.mark.anyio


class Work:
    """A task whose runs are counted; each run waits until `go_on`, then raises `error`."""

    def __init__(self, tasks: QTasks) -> None:
        self.runs = 0
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()
        self.error: Exception | None = None

        @tasks.task
        async def work() -> int:
            self.runs += 1
            self.begun.set()
            await self.go_on.wait()
            if self.error is not None:
                raise self.error
            return self.runs


@pytest.fixture
def tasks() -> QTasks:
    return application(results=None)


@pytest.fixture
def work(tasks: QTasks) -> Work:
    return Work(tasks)


@pytest.fixture
def dispatcher(tasks: QTasks, work: Work) -> Dispatcher:
    return dispatcher_of(tasks, None)


def delivery(body: bytes | None = None) -> Delivery:
    """A delivery, newly signed."""
    content = envelope() if body is None else body
    signed = signature(f"{BASE_URL}/work", content)
    return Delivery(task="work", body=content, signature=signed, message_id="msg_1", retried=0)


async def test_a_replay_of_a_success_runs_nothing_and_succeeds(dispatcher: Dispatcher, work: Work) -> None:
    request = delivery()
    assert (await dispatcher.answer(request)).body == b"1"
    for _ in range(100):
        again = await dispatcher.answer(request)
        assert (again.status, dict(again.headers)["Qtasks-Duplicate"]) == (200, "true")
        assert json_of(again)["code"] == "QT419"
    assert work.runs == 1


async def test_a_replay_of_a_failure_runs_nothing_and_counts(dispatcher: Dispatcher, work: Work) -> None:
    request, work.error = delivery(), OSError("no")
    assert (await dispatcher.answer(request)).status == 500
    again = await dispatcher.answer(request)
    assert (again.status, json_of(again)["error"]) == (503, "this request was received before")
    assert dict(again.headers).keys() == {"Retry-After"}, "a proxy that sends requests twice ends its retries"
    assert work.runs == 1


async def test_the_next_attempt_of_the_broker_runs(dispatcher: Dispatcher, work: Work) -> None:
    """It has the same body and a signature of its own."""
    body, work.error = envelope(), OSError("no")
    assert (await dispatcher.answer(delivery(body))).status == 500
    work.error = None
    assert (await dispatcher.answer(delivery(body))).body == b"2"


async def test_a_request_repeated_by_a_proxy_gets_the_response_of_the_first(dispatcher: Dispatcher, work: Work) -> None:
    work.go_on.clear()
    request = delivery()
    first = asyncio.create_task(dispatcher.answer(request))
    await work.begun.wait()
    repeated = [asyncio.create_task(dispatcher.answer(request)) for _ in range(3)]
    repeated[0].cancel()
    await asyncio.wait(repeated, timeout=0)
    work.go_on.set()
    responses = await asyncio.wait_for(asyncio.gather(first, *repeated[1:]), 10)
    assert [response.body for response in responses] == [b"1", b"1", b"1"]
    assert work.runs == 1


async def test_replays_of_a_long_run_do_not_pile_up(dispatcher: Dispatcher, work: Work) -> None:
    work.go_on.clear()
    request = delivery()
    first = asyncio.create_task(dispatcher.answer(request))
    await work.begun.wait()
    waiting = [asyncio.create_task(dispatcher.answer(request)) for _ in range(MAX_WAITING)]
    await asyncio.wait(waiting, timeout=0)
    further = await asyncio.wait_for(dispatcher.answer(request), 10)
    assert (further.status, dict(further.headers)["Qtasks-Interrupted"]) == (503, "running elsewhere")
    work.go_on.set()
    responses = await asyncio.wait_for(asyncio.gather(first, *waiting), 10)
    assert {response.status for response in responses} == {200}
    assert work.runs == 1


async def test_a_run_that_was_interrupted_may_be_repeated(dispatcher: Dispatcher, work: Work) -> None:
    """Its end is expected as another delivery; a proxy's is as good as one of the broker."""
    requests = ReceivedRequests(SystemClock())
    claims = claims_of("jwt_1")
    assert requests.begin(claims) is None
    requests.end(claims, DispatchResponse.draining())
    assert requests.begin(claims) is None
    assert requests.begin(claims) is not None


async def test_a_run_that_was_cancelled_from_outside_is_not_repeated(dispatcher: Dispatcher, work: Work) -> None:
    work.go_on.clear()
    request = delivery()
    first = asyncio.create_task(dispatcher.answer(request))
    await work.begun.wait()
    waiting = asyncio.create_task(dispatcher.answer(request))
    await asyncio.wait([waiting], timeout=0)
    first.cancel()
    await asyncio.wait([first])
    assert (await asyncio.wait_for(waiting, 10)).status == 503
    assert (await dispatcher.answer(request)).status == 503
    assert work.runs == 1


class Away(MemoryResults):
    """A result backend that can be made unreachable."""

    is_away = False

    def lock(self, locks: Sequence[Lock], *, now_ms: int) -> list[Lock]:
        if self.is_away:
            raise ResultError("away")
        return super().lock(locks, now_ms=now_ms)


async def test_while_the_result_backend_is_away_replays_are_still_caught(tasks: QTasks, work: Work) -> None:
    results = Away(ttl_ms=60_000)
    dispatcher = dispatcher_of(tasks, results)
    before, during = delivery(), delivery()
    assert (await dispatcher.answer(before)).status == 200
    results.is_away = True
    assert (await dispatcher.answer(during)).status == 200
    for request in (before, during):
        assert json_of(await dispatcher.answer(request))["code"] == "QT419"
    assert work.runs == 2


# --- the memory itself


def claims_of(jti: str, *, expires_s: int | None = None) -> Claims:
    now_s = int(time.time())
    return Claims("https://a.example", now_s, expires_s or now_s + 300, jti, "", "current")


def test_requests_are_forgotten_when_their_signature_is_no_longer_valid() -> None:
    clock = VirtualClock(1_700_000_000_000)
    requests = ReceivedRequests(clock)
    first, second = claims_of("a", expires_s=1_700_000_300), claims_of("b", expires_s=1_700_000_900)
    assert requests.begin(first) is None
    clock.advance(329_000)
    assert requests.begin(first) is not None
    clock.advance(2_000)
    assert requests.begin(second) is None
    assert list(requests._requests) == ["b"]


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "MAX_REQUESTS", 3)
    requests = ReceivedRequests(SystemClock())
    for number in range(10):
        assert requests.begin(claims_of(f"jwt_{number}")) is None
    assert requests.begin(claims_of("jwt_9")) is not None
    assert requests.begin(claims_of("jwt_0")) is None, "the oldest are forgotten first"


def test_a_signature_without_an_id_is_not_remembered() -> None:
    requests = ReceivedRequests(SystemClock())
    assert [requests.begin(claims_of("")) for _ in range(2)] == [None, None]
