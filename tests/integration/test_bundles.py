"""Bundles at the dispatcher: each of their deliveries is answered as if it had come alone, and as it ends."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request

from qtasks import NonRetryable, QTasks, TaskContext, injected
from qtasks.protocol import bundles
from qtasks.protocol.bundles import BundleItem, StillRunning
from qtasks.tasks.run import slots, thread_pool
from qtasks.tasks.run.slots import RunSlots
from qtasks.tasks.run.thread_pool import ThreadPool
from tests.support.bundles import (
    behind_uvicorn,
    body_of,
    header,
    headers_of,
    item,
    outcomes,
    post,
    read,
    run,
    streamed,
)
from tests.support.tasks import BASE_URL, application, envelope, signature

pytestmark = pytest.mark.anyio

SEEN: contextvars.ContextVar[int] = contextvars.ContextVar("SEEN", default=0)


def served(tasks: QTasks) -> FastAPI:
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    return app


class Shop:
    """An application with tasks of each kind; `ran` lists what ran."""

    def __init__(self, **settings: Any) -> None:
        self.tasks = tasks = application(**settings)
        self.app = served(tasks)
        self.ran: list[Any] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.has_waited = threading.Event()

        @tasks.task
        async def add(a: int, b: int = 1) -> int:
            self.ran.append((a, b))
            SEEN.set(SEEN.get() + 1)
            return a + b + 10 * (SEEN.get() - 1)

        @tasks.task
        def in_thread(a: int) -> int:
            self.ran.append(a)
            return -a

        def facts_of(request: Request) -> list[Any]:
            names = ("x-of-item", "upstash-message-id", "host", "content-length", "content-type", "upstash-signature")
            return [request.url.path, request.url.query, *(request.headers.get(name) for name in names)]

        @tasks.task
        async def facts(of_request: list[Any] = Depends(facts_of), *, ctx: TaskContext = injected) -> list[Any]:
            return [*of_request, ctx.attempt]

        async def opened() -> AsyncIterator[str]:
            self.ran.append("open")
            yield "connection"
            self.ran.append("close")

        @tasks.task
        async def dependent(a: int, connection: str = Depends(opened)) -> str:
            return f"{connection} {a}"

        @tasks.task(retries=0)
        async def fails(kind: str) -> None:
            raise {"never": NonRetryable("no"), "error": ValueError("bad")}[kind]

        @tasks.task
        async def waits(gate: str) -> str:
            self.loop = asyncio.get_running_loop()
            self.gate("began").set()
            await self.gate(gate).wait()
            self.has_waited.set()
            return gate

        @tasks.task
        async def cancels_itself() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    def open_from_here(self, gate: str) -> None:
        """Open a gate from the thread of the test, where the application runs in another one."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.gate(gate).set)


@pytest.fixture
def shop() -> Shop:
    return Shop()


# --- each delivery is answered as if it had come alone


Comparable = tuple[int, bytes, dict[str, str | None]] | None
KEPT = ("content-type", "retry-after", "qtasks-dispatcher", "upstash-nonretryable-error", "qtasks-ended")


def compared(status: int, body: bytes, lines: Mapping[str, str]) -> Comparable:
    return status, body, {name: lines.get(name) for name in KEPT}


async def singly(app: FastAPI, each: BundleItem) -> Comparable:
    """The answer to a delivery that comes alone; None if its connection is cut."""
    lines = dict(each.headers) | {"Upstash-Signature": signature(f"{BASE_URL}/{each.target}", each.body)}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://internal") as client:
        posting = asyncio.create_task(client.post(f"/qtasks/{each.target}", content=each.body, headers=lines))
        await asyncio.wait([posting])
    return None if posting.cancelled() else compared(*_parts(posting.result()))


def _parts(answer: httpx.Response) -> tuple[int, bytes, Mapping[str, str]]:
    return answer.status_code, answer.content, answer.headers


async def test_each_delivery_of_a_bundle_is_answered_as_if_it_had_come_alone(shop: Shop) -> None:
    items = [
        item("add", 1, 2),
        item("in_thread", 4),
        item("dependent", 5),
        item("fails", "never"),
        item("fails", "error"),
        item("add", "no number"),
        item("add", 1, body=b"{"),
        item("nothing"),
        item("_tasks"),
        item("add?x=1", 1),
        item("add", 1, Content_Encoding="gzip"),
        item("cancels_itself"),
    ]
    alone = [await singly(shop.app, each) for each in items]
    again = [each._replace(body=each.body.replace(b"call_", b"call_again_")) for each in items]
    found = await run(shop.app, *again)
    bundled = [
        None
        if (outcome := found.get(place)) is None
        else compared(outcome.status, outcome.body, {name.lower(): value for name, value in outcome.headers})
        for place in range(len(items))
    ]
    assert bundled == alone
    statuses = [None if answer is None else answer[0] for answer in alone]
    assert statuses == [200, 200, 200, 489, 500, 489, 489, 503, 200, 489, 415, None]


async def test_there_is_no_bundle_in_a_bundle(shop: Shop) -> None:
    outcome = (await run(shop.app, item("_bundle", body=body_of([item("add", 1)]))))[0]
    assert (outcome.status, shop.ran) == (503, [])
    assert b"there is no task '_bundle' here" in outcome.body


async def test_a_bundle_says_how_many_run_and_how_many_more_may(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_RUNNING", 5)
    response = await post(shop.app, item("add", 1), item("nothing"), item("add", 2))
    assert response.headers["content-type"] == "application/x-ndjson"
    assert (response.headers["qtasks-dispatcher"], response.headers["qtasks-slots"]) == ("true", "3")
    lines = read(response.content)
    assert lines[0] == StillRunning(2)
    found = outcomes(lines)
    assert {header(outcome, "Qtasks-Slots") for outcome in found.values()} <= {"3", "4", "5"}
    assert found[2].after_ms >= 0


async def test_a_task_with_dependencies_sees_the_request_that_would_have_come_alone(shop: Shop) -> None:
    body = envelope()
    found = await run(shop.app, item("facts", body=body, X_Of_Item="yes", Upstash_Retried="2"))
    assert found[0].status == 200, found[0].body
    answer = json.loads(found[0].body)
    assert answer == [
        "/qtasks/facts",
        "",
        "yes",
        "msg_of_facts",
        "internal",
        str(len(body)),
        "application/json",
        None,
        3,
    ]


async def test_each_delivery_has_context_variables_of_its_own(shop: Shop) -> None:
    found = await run(shop.app, *(item("add", number) for number in range(5)))
    assert [found[place].body for place in range(5)] == [b"1", b"2", b"3", b"4", b"5"]


async def test_dependencies_are_closed_before_the_outcome_leaves(shop: Shop) -> None:
    assert (await run(shop.app, item("dependent", 5)))[0].body == b'"connection 5"'
    assert shop.ran == ["open", "close"]


# --- trust


async def test_nothing_runs_of_a_bundle_that_is_not_verified_or_not_readable(shop: Shop) -> None:
    body = body_of([item("add", 1)])
    single = signature(f"{BASE_URL}/add", body)
    other = signature(f"{BASE_URL}/_bundle", body + b" ")
    cases = [
        (body, "", 401),
        (body, single, 401),
        (body, other, 401),
        (b"{}\n", None, 400),
        (body[:-1], None, 400),
        (body * 65, None, 400),
        (b"x" * (bundles.MAX_BYTES + 1), None, 413),
    ]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(shop.app), base_url="http://internal") as client:
        for content, signed, status in cases:
            answer = await client.post("/qtasks/_bundle", content=content, headers=headers_of(content, signed=signed))
            assert answer.status_code == status, answer.text
            assert "qtasks-slots" not in answer.headers
    assert shop.ran == []


@pytest.mark.parametrize("results", ["memory://", None])
async def test_a_bundle_that_arrives_again_runs_nothing(results: str | None) -> None:
    shop = Shop(results=results)
    body = body_of([item("add", 1), item("add", 2), item("fails", "error")])
    lines = headers_of(body)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(shop.app), base_url="http://internal") as client:
        first, second = [await client.post("/qtasks/_bundle", content=body, headers=lines) for _ in range(2)]
    assert [outcome.status for _, outcome in sorted(outcomes(read(first.content)).items())] == [200, 200, 500]
    again = outcomes(read(second.content))
    assert (again[0].status, again[1].status) == (200, 200)
    assert {header(again[place], "Qtasks-Duplicate") for place in (0, 1)} == {"true"}
    assert shop.ran == [(1, 1), (2, 1)]


async def test_one_call_that_is_twice_in_a_bundle_runs_once(shop: Shop) -> None:
    body = envelope(1, call_id="call_twice")
    found = await run(shop.app, item("add", body=body), item("add", body=body))
    assert shop.ran == [(1, 1)]
    assert sorted(outcome.status for outcome in found.values()) in ([200, 200], [200, 503])


# --- room


async def test_a_delivery_without_a_free_slot_is_handed_back_and_nothing_of_it_is_recorded(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "MAX_RUNNING", 2)
    found = await run(shop.app, *(item("add", number) for number in range(4)))
    assert [found[place].status for place in range(4)] == [200, 200, 503, 503]
    assert header(found[3], "Qtasks-Interrupted") == "busy"
    assert header(found[3], "Retry-After") == "200ms"
    assert len(shop.ran) == 2


async def test_a_task_that_needs_a_thread_takes_no_slots_while_it_is_not_called(shop: Shop) -> None:
    assert "in_thread" in shop.tasks.tasks
    response = await post(shop.app, item("add", 1))
    assert response.headers["qtasks-slots"] == str(slots.MAX_RUNNING - 1)


async def test_deliveries_that_need_threads_are_handed_back_while_none_is_free_and_others_run() -> None:
    tasks = application(threads=2)
    release, both_run = threading.Event(), threading.Barrier(3)

    @tasks.task
    def blocks() -> None:
        both_run.wait(20)
        release.wait(20)

    @tasks.task
    async def light() -> int:
        return 1

    app = served(tasks)
    blocked = asyncio.create_task(run(app, item("blocks"), item("blocks"), item("blocks"), item("light")))
    await asyncio.to_thread(both_run.wait, 20)
    response = await post(app, item("light"))
    release.set()
    found = await blocked
    assert [found[place].status for place in range(4)] == [200, 200, 503, 200]
    assert int(response.headers["qtasks-slots"]) < slots.MAX_RUNNING / 2
    assert outcomes(read(response.content))[0].status == 200


def test_the_offer_follows_what_the_latest_deliveries_needed_and_never_keeps_others_out() -> None:
    offered = RunSlots(ThreadPool(2))
    assert offered.free() == slots.MAX_RUNNING
    taken = [offered.take_free(needs_thread=True) for _ in range(200)]
    assert (taken.count(True), offered.free()) == (2, 1)
    for _ in range(200):
        assert offered.take_free(needs_thread=False)
        offered.give_back(needs_thread=False)
    assert offered.free() == slots.MAX_RUNNING - 2
    for _ in range(4):  # one in eight needs a thread, and none is free: it is handed back, and the others run
        for needs_thread in (True, *[False] * 7):
            if offered.take_free(needs_thread=needs_thread):
                offered.give_back(needs_thread=needs_thread)
    assert 4 < offered.free() < 16


async def test_functions_that_are_quick_may_wait_for_a_thread_for_a_moment() -> None:
    shop = Shop(threads=2)
    first = await run(shop.app, *(item("in_thread", number) for number in range(4)))
    assert sorted(outcome.status for outcome in first.values()) == [200, 200, 503, 503]  # nothing is known of them yet
    then = await run(shop.app, *(item("in_thread", number) for number in range(10)))
    assert {outcome.status for outcome in then.values()} == {200}


async def test_nothing_waits_for_threads_that_long_calls_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, release = [0.0], threading.Event()
    monkeypatch.setattr(thread_pool, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    pool = ThreadPool(2)
    assert pool.room() == 2
    await pool.run(lambda: None)
    assert pool.room() == 2 + thread_pool.MAX_WAITING
    held = [pool.start(lambda: release.wait(20)) for _ in range(2)]
    await asyncio.sleep(0)
    assert pool.room() == thread_pool.MAX_WAITING
    now_s[0] += 2 * thread_pool.WAIT_S
    assert pool.room() == 0
    release.set()
    await asyncio.gather(*held)
    pool.close()


async def test_a_dispatcher_that_drains_answers_for_all(shop: Shop) -> None:
    await (await shop.tasks.runtime.adispatcher()).drain(0)
    response = await post(shop.app, item("add", 1))
    assert (response.status_code, response.headers["qtasks-interrupted"]) == (503, "draining")
    assert shop.ran == []


async def test_deliveries_that_run_at_a_drain_are_handed_back(shop: Shop) -> None:
    running = asyncio.create_task(run(shop.app, item("waits", "never"), item("add", 1)))
    await shop.gate("began").wait()
    dispatcher = await shop.tasks.runtime.adispatcher()
    assert not await dispatcher.drain(0)
    found = await running
    assert (found[0].status, header(found[0], "Qtasks-Interrupted")) == (503, "draining")
    assert (found[1].status, found[1].body) == (200, b"2")


# --- outcomes leave as they end


@pytest.fixture
def quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "HEARTBEAT_S", 0.02)


async def test_outcomes_leave_as_they_end_and_a_slow_delivery_holds_nobody(shop: Shop) -> None:
    with behind_uvicorn(shop.app) as server:
        async with streamed(server, item("waits", "gate"), item("add", 1), item("in_thread", 1)) as lines:
            assert await anext(lines) == StillRunning(3)
            early = {await anext(lines), await anext(lines)}
            assert {line.place for line in early} == {1, 2}  # type: ignore[union-attr]
            shop.open_from_here("gate")
            last = await anext(lines)
            assert (last.place, last.body) == (0, b'"gate"')  # type: ignore[union-attr]
            assert [line async for line in lines] == []


@pytest.mark.usefixtures("quick_heartbeat")
async def test_while_nothing_ends_a_line_says_how_many_run(shop: Shop) -> None:
    with behind_uvicorn(shop.app) as server:
        async with streamed(server, item("waits", "never"), item("waits", "never either")) as lines:
            assert [await anext(lines) for _ in range(4)] == [StillRunning(2)] * 4
        await (await shop.tasks.runtime.adispatcher()).hand_back()


@pytest.mark.usefixtures("quick_heartbeat")
async def test_a_client_that_leaves_stops_no_delivery(shop: Shop) -> None:
    with behind_uvicorn(shop.app) as server:
        async with streamed(server, item("waits", "gate")) as lines:
            assert [await anext(lines) for _ in range(2)] == [StillRunning(1)] * 2
        shop.open_from_here("gate")
        assert await asyncio.to_thread(shop.has_waited.wait, 20)


async def test_a_server_that_stops_hands_the_deliveries_back(shop: Shop) -> None:
    with behind_uvicorn(shop.app, timeout_graceful_shutdown=0.05) as server:
        async with streamed(server, item("waits", "never")) as lines:
            await anext(lines)
            server.stop()
            rest = [line async for line in lines]
    assert [header(line, "Qtasks-Interrupted") for line in rest] == ["draining"]  # type: ignore[arg-type]
