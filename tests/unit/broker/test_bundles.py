"""Deliveries that leave together: who gets bundles, what becomes of each delivery, and what a bad dispatcher can do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from qtasks.broker.core import bundle_lines
from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import ClaimBatch
from qtasks.broker.events import MessageEvent
from qtasks.broker.loops.host_limits import ROUND_TRIP_MS, SOON_MS
from qtasks.broker.ports import Failure
from qtasks.broker.settings import DeliveryLimits
from qtasks.broker.store.verbs import cancel, settle
from qtasks.protocol import bundles, signing
from qtasks.protocol.headers import INTERRUPTED_HEADER
from qtasks.protocol.messages import MAX_BODY, FlowControl, Headers, PublishOptions, Response, State
from tests.support.broker import ACCOUNT
from tests.support.bundle_bench import OF_DISPATCHER, BundleBench
from tests.support.outage import ALLOWED, DONE, HOUR_MS, KEYS, REFUSED, World

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench() -> AsyncIterator[BundleBench]:
    opened = await BundleBench.with_known_slots()
    yield opened
    await opened.close()


# -- who gets bundles


async def test_what_is_due_together_leaves_in_one_signed_request_beside_the_tasks(bench: BundleBench) -> None:
    published = await bench.publish(3)
    bundle = bench.only_bundle()
    request = bundle.request
    assert (request.url, request.method) == ("http://127.0.0.1:8000/qtasks/_bundle", "POST")
    assert bundle.ids == published
    assert [item.target for item in bundle.items] == ["add"] * 3
    headers = dict(request.headers)
    assert headers["Content-Type"] == bundles.CONTENT_TYPE
    claims = signing.verify(
        headers["Upstash-Signature"],
        body=request.body,
        url=request.url,
        keys=KEYS,
        now_s=bench.clock.now_ms() / 1000,
    )
    assert claims.url == request.url
    assert bench.sent == []


async def test_a_message_that_is_alone_leaves_alone_and_at_once(bench: BundleBench) -> None:
    for _ in range(3):
        await bench.publish()
    assert len(bench.sent) == 3
    assert bench.arrived.empty()


async def test_nothing_waits_while_the_deliveries_of_a_bundle_run(bench: BundleBench) -> None:
    await bench.bundle(3)
    await bench.publish()
    assert len(bench.sent) == 1
    await bench.publish(2)
    assert len(bench.only_bundle().items) == 2


async def test_what_becomes_due_during_the_round_trip_of_a_bundle_leaves_together(bench: BundleBench) -> None:
    await bench.publish(3)
    bundle = bench.only_bundle()
    for _ in range(5):
        await bench.publish()
    assert (bench.sent, bench.arrived.empty()) == ([], True)
    bundle.begin()
    await bench.settle()
    assert len(bench.only_bundle().items) == 5


async def test_what_waits_for_a_quick_round_trip_stays_where_it_is(bench: BundleBench) -> None:
    await bench.publish(3)
    bundle = bench.only_bundle()
    waiting = await bench.publish(2)
    await bench.pass_time(SOON_MS - 1)
    assert await bench.stages(waiting) == [Stage.DUE] * 2
    bundle.begin()
    await bench.settle()
    assert await bench.stages(waiting) == [Stage.ACTIVE] * 2


async def test_what_waits_for_a_slow_round_trip_makes_way_for_messages_of_other_hosts(bench: BundleBench) -> None:
    await bench.publish(3)
    bench.only_bundle()
    waiting = await bench.publish(2)
    await bench.pass_time(SOON_MS)
    assert await bench.stages(waiting) == [Stage.PARKED] * 2


async def test_a_message_of_another_host_leaves_at_once_although_one_before_it_waits_for_a_round_trip(
    bench: BundleBench,
) -> None:
    await bench.publish(3)
    bench.only_bundle()
    [waiting] = await bench.publish()
    [elsewhere] = await bench.publish(url="https://elsewhere.example/hook")
    assert await bench.stages([waiting, elsewhere]) == [Stage.PARKED, Stage.DELIVERED]


async def test_a_round_trip_that_takes_long_is_not_waited_for(bench: BundleBench) -> None:
    await bench.publish(3)
    bench.only_bundle()
    await bench.publish()
    await bench.pass_time(ROUND_TRIP_MS - 1)
    assert bench.sent == []
    await bench.pass_time(1)
    assert len(bench.sent) == 1


async def test_a_round_trip_whose_wait_ends_during_a_claim_holds_nothing_back(
    bench: BundleBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.publish(3)
    bench.only_bundle()
    claim = bench.store.claim

    async def slow(**facts: Any) -> ClaimBatch:
        monkeypatch.undo()
        batch = await claim(**facts)
        bench.clock.advance(ROUND_TRIP_MS)
        return batch

    monkeypatch.setattr(bench.store, "claim", slow)
    await bench.publish()
    await bench.settle()
    assert len(bench.sent) == 1


async def test_the_end_of_an_attempt_for_which_nothing_waits_costs_no_claim(
    bench: BundleBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[ClaimBatch] = []
    claim = bench.store.claim

    async def counted(**facts: Any) -> ClaimBatch:
        claims.append(await claim(**facts))
        return claims[-1]

    monkeypatch.setattr(bench.store, "claim", counted)
    [message] = await bench.publish()
    assert await bench.stage(message) is Stage.DELIVERED
    assert [len(batch.claims) for batch in claims] == [1]


async def test_a_message_starts_whose_slot_became_free_during_the_claim_that_parked_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await World.opened(DeliveryLimits(per_host=1))
    await world.publish()
    answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    world.answer = lambda _request: answer
    await world.publish()
    claim = world.store.claim

    async def slow(**facts: Any) -> ClaimBatch:
        monkeypatch.undo()
        batch = await claim(**facts)
        answer.set_result(DONE)
        await world.settle()
        return batch

    monkeypatch.setattr(world.store, "claim", slow)
    [second] = await world.publish()
    await world.settle()
    assert await world.stage(second) is Stage.DELIVERED
    await world.close()


async def test_a_full_bundle_does_not_wait_for_the_one_before_it(bench: BundleBench) -> None:
    bench.slots = 256
    await bench.learn()
    await bench.publish(64)
    await bench.publish(64)
    assert [len(bench.arrived.get_nowait().items) for _ in range(2)] == [64, 64]


async def test_a_dispatcher_that_states_no_slots_gets_no_bundle() -> None:
    bench = await BundleBench.with_known_slots()
    bench.slots = None
    await bench.learn()
    await bench.publish(5)
    assert (len(bench.sent), bench.arrived.empty()) == (5, True)
    await bench.close()


async def test_a_bundle_has_no_more_deliveries_than_there_are_free_slots(bench: BundleBench) -> None:
    bench.slots = 3
    await bench.learn()
    await bench.publish(10)
    bundle = bench.only_bundle()
    assert len(bundle.items) == 3
    assert len(bench.sent) == 7, "the others leave singly"
    bundle.begin()
    bundle.outcome(0, 1, headers=((bundles.SLOTS_HEADER, "3"),))
    await bench.settle()
    await bench.publish(4)
    assert len(bench.only_bundle().items) == 2


async def test_a_bundle_has_at_most_64_deliveries(bench: BundleBench) -> None:
    bench.slots = 200
    await bench.learn()
    await bench.publish(150)
    sizes = [len(bench.arrived.get_nowait().items) for _ in range(bench.arrived.qsize())]
    assert sizes == [64, 64, 22]


async def test_a_bundle_has_at_most_a_mebibyte(bench: BundleBench) -> None:
    await bench.publish(5, body=b"x" * 400_000)
    sizes = [len(bench.arrived.get_nowait().items) for _ in range(bench.arrived.qsize())]
    assert sizes == [2, 2]
    assert len(bench.sent) == 1


async def test_a_bundle_holds_the_messages_of_one_account(bench: BundleBench) -> None:
    first = await bench.publish(2, not_before_ms=bench.clock.now_ms() + 1000)
    second = await bench.publish(2, not_before_ms=bench.clock.now_ms() + 1000, account=2)
    await bench.pass_time(1000)
    assert [bench.arrived.get_nowait().ids for _ in range(2)] == [first, second]
    assert bench.arrived.empty()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "PUT"},
        {"body": b"\xff"},
        {"options": PublishOptions()},
        {"url": "http://127.0.0.1:8000/qtasks/"},
        {"url": "http://127.0.0.1:8000/qtasks/_bundle"},
        {"url": "http://127.0.0.1:8000/elsewhere/add"},
        {"url": "http://user@127.0.0.1:8000/qtasks/add"},
    ],
)
async def test_what_a_bundle_cannot_carry_is_delivered_singly(bench: BundleBench, changes: dict[str, Any]) -> None:
    await bench.publish(3, **changes)
    assert len(bench.sent) == 3
    assert bench.arrived.empty()


async def test_the_query_of_a_url_stays_with_its_delivery(bench: BundleBench) -> None:
    await bench.publish(2, url="http://127.0.0.1:8000/qtasks/add?a=/b?c")
    bundle = bench.only_bundle()
    assert bundle.request.url == "http://127.0.0.1:8000/qtasks/_bundle"
    assert [item.target for item in bundle.items] == ["add?a=/b?c"] * 2


async def test_a_probe_is_in_no_bundle(bench: BundleBench) -> None:
    await bench.publish(3)
    bench.only_bundle().answer.set_result(REFUSED)
    bench.answer = lambda request: REFUSED
    await bench.pass_time(5_000)
    assert len(bench.sent) > 3
    assert bench.arrived.empty()


async def test_a_message_that_is_tried_alone_is_in_no_bundle(bench: BundleBench) -> None:
    published = await bench.publish(2)
    for _ in range(2):
        bundle = bench.only_bundle()
        bundle.begin()
        bundle.break_off()
        bench.answer = lambda request: REFUSED
        await bench.settle()
        bench.answer = bench.done
        await bench.pass_time(1_000)
        if not bench.arrived.empty():
            continue
        break
    assert await bench.stages(published) == [Stage.DELIVERED] * 2
    assert bench.arrived.empty()


async def test_a_transport_that_cannot_stream_gets_no_bundle(bench: BundleBench) -> None:
    bench.transport = bench
    await bench.crash()
    await bench.learn()
    await bench.publish(3)
    assert len(bench.sent) == 3


async def test_the_limits_of_the_operator_count_deliveries() -> None:
    bench = await BundleBench.with_known_slots(DeliveryLimits(in_flight=6, per_host=4))
    await bench.publish(20)
    assert len(bench.only_bundle().items) == 4
    assert bench.deliverer.in_flight == 4
    await bench.close()


async def test_a_dispatcher_with_many_slots_gets_more_than_another_host(bench: BundleBench) -> None:
    bench.slots = 1000
    await bench.learn()
    await bench.publish(600)
    assert bench.deliverer.in_flight == 256
    await bench.publish(300, url="http://10.0.0.1/add")
    assert sum("10.0.0.1" in delivery.url for delivery in bench.sent) <= 128


async def test_a_flow_key_of_one_at_a_time_starts_one_at_a_time(bench: BundleBench) -> None:
    options = replace(ALLOWED, flow_control=FlowControl("one", parallelism=1))
    await bench.publish(3, options=options)
    assert len(bench.sent) == 3, "each leaves when the one before it has ended"
    assert bench.arrived.empty()


# -- what becomes of each delivery


async def test_each_outcome_is_settled_as_its_line_arrives(bench: BundleBench) -> None:
    bundle = await bench.bundle(3)
    bundle.outcome(1)
    await bench.settle()
    assert await bench.stages(bundle.ids) == [Stage.ACTIVE, Stage.DELIVERED, Stage.ACTIVE]
    assert bench.deliverer.in_flight == 2
    bundle.outcome(0, status=500, body=b"oops")
    bundle.outcome(2)
    bundle.end()
    await bench.settle()
    assert await bench.stages(bundle.ids) == [Stage.DUE, Stage.DELIVERED, Stage.DELIVERED]
    assert bundle.closed.is_set()
    [_, _, error, _] = await bench.log(bundle.ids[0])
    assert error.response is not None
    assert error.response.body == b"oops"


async def test_the_outcomes_of_a_piece_are_settled_in_one_write(
    bench: BundleBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    settle_all = settle.settle_all

    def counted(db: Any, settlements: Any, **facts: Any) -> Any:
        groups.append(len(settlements))
        return settle_all(db, settlements, **facts)

    counted.__name__ = "settle_all"
    monkeypatch.setattr(settle, "settle_all", counted)
    bundle = await bench.bundle(20)
    bundle.outcome(*range(20))
    bundle.end()
    await bench.settle()
    assert groups == [20]


async def test_a_broken_exchange_interrupts_only_what_had_no_line(bench: BundleBench) -> None:
    bundle = await bench.bundle(3)
    bundle.outcome(0)
    bundle.break_off()
    await bench.settle()
    first, *others = bundle.ids
    assert await bench.stage(first) is Stage.DELIVERED
    for message_id in others:
        [error] = await bench.errors(message_id)
        assert error.startswith("interrupted, no retry is spent: ")
    assert bench.deliverer.in_flight <= 1


async def test_a_response_that_ends_too_early_interrupts_what_had_no_line(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    bundle.end()
    await bench.settle()
    for message_id in bundle.ids:
        [error] = await bench.errors(message_id)
        assert "ended the response to several deliveries before the line of this one" in error


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>\n",
        b"{}\n",
        b'{"at":1,"status":200,"headers":[],"body":"","ms":-1}\n',
        bundles.outcome_line(bundles.ItemOutcome(0, 200, (), b"", 1)),
        bundles.outcome_line(bundles.ItemOutcome(7, 200, (), b"", 1)),
        bundles.outcome_line(bundles.ItemOutcome(1, 200, (("X", "x"),) * 129, b"", 1)),
        bundles.outcome_line(bundles.ItemOutcome(1, 200, (("X", "x" * 65_536),), b"", 1)),
        b'{"running":1,"more":"' + b"x" * 1_024 + b'"}\n',
        b'{"at":1,"status":200,"headers":[],"body":"","ms":1,"more":[' + b"[]," * 10_000 + b"[]]}\n",
        b'{"at":1,"status":200,"headers":[],"body":"","ms":1,"more":[' + b'"\\\\",' * 10_000 + b"1]}\n",
    ],
    ids=[
        "no JSON",
        "no line",
        "negative",
        "twice",
        "not its own",
        "too many header lines",
        "header lines that are too long",
        "a long report",
        "many values",
        "many texts",
    ],
)
async def test_a_line_that_breaks_the_protocol_fails_what_had_no_line(bench: BundleBench, garbage: bytes) -> None:
    bundle = await bench.bundle(2)
    bundle.outcome(0)
    bundle.say(garbage)
    await bench.settle()
    assert bundle.closed.is_set()
    first, second = bundle.ids
    assert await bench.stage(first) is Stage.DELIVERED
    [error] = await bench.errors(second)
    assert error.startswith("unusable response from 127.0.0.1:8000")
    assert bench.deliverer.in_flight == 0
    await bench.publish(3)
    assert bench.arrived.empty(), "the prefix gets single deliveries"


async def test_a_long_response_is_cut_as_a_single_one_is(bench: BundleBench) -> None:
    events: list[MessageEvent] = []
    bench.watchers.add(events.append)
    bundle = await bench.bundle(2)
    bundle.outcome(0, body=b"x" * (MAX_BODY + 1))
    bundle.outcome(1)
    bundle.end()
    await bench.settle()
    [cut] = [event.outcome for event in events if event.state is State.DELIVERED and event.message.id == bundle.ids[0]]
    assert isinstance(cut, Response)
    assert (len(cut.body), cut.truncated) == (MAX_BODY, True)


async def test_a_response_that_cannot_be_stored_stops_no_neighbour(
    bench: BundleBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(db: Any, settlements: Any, **facts: Any) -> Any:
        if any(settlement.outcome == Response(status=500, headers=(OF_DISPATCHER,)) for settlement in settlements):
            raise ValueError("it cannot be stored")
        return [settle_one(db, settlement, **facts) for settlement in settlements]

    def refusing_one(db: Any, settlement: Any, **facts: Any) -> Any:
        return refusing(db, (settlement,), **facts)[0]

    settle_one = settle.settle
    monkeypatch.setattr(settle, "settle_all", refusing)
    monkeypatch.setattr(settle, "settle", refusing_one)
    bundle = await bench.bundle(3, max_retries=0)
    bundle.outcome(0)
    bundle.outcome(1, status=500)
    bundle.outcome(2)
    bundle.end()
    await bench.settle()
    assert await bench.stages(bundle.ids) == [Stage.DELIVERED, Stage.FAILED, Stage.DELIVERED]


async def test_watchers_are_told_of_each_delivery(bench: BundleBench) -> None:
    told: list[tuple[str, State]] = []
    bench.watchers.add(lambda event: told.append((event.message.id, event.state)))
    bundle = await bench.bundle(2)
    bundle.outcome(0, 1)
    bundle.end()
    await bench.settle()
    states = [State.ACTIVE, State.DELIVERED]
    assert told == [(message_id, state) for state in states for message_id in bundle.ids]


async def test_a_cancel_reaches_a_single_delivery(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    await bench.store.write(cancel.cancel, ACCOUNT, [bundle.ids[1]], now_ms=bench.clock.now_ms())
    bundle.outcome(0, 1, status=500)
    bundle.end()
    await bench.settle()
    assert await bench.stages(bundle.ids) == [Stage.DUE, Stage.CANCELED]


async def test_an_outcome_of_another_claim_is_dropped_alone(
    bench: BundleBench, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = await bench.bundle(2)
    await bench.store.write(
        lambda db: db.execute("UPDATE messages SET claim_token = claim_token + 1 WHERE id = ?", (bundle.ids[0],))
    )
    with caplog.at_level(logging.WARNING):
        bundle.outcome(0, 1)
        bundle.end()
        await bench.settle()
    assert await bench.stage(bundle.ids[1]) is Stage.DELIVERED
    assert f"message {bundle.ids[0]} was settled by another claim" in caplog.text


# -- deadlines and silence


async def test_a_delivery_past_its_deadline_times_out_and_the_others_go_on(bench: BundleBench) -> None:
    now_ms = bench.clock.now_ms()
    [quick] = await bench.publish(not_before_ms=now_ms + 1000, timeout_ms=5_000)
    [slow] = await bench.publish(not_before_ms=now_ms + 1000, timeout_ms=60_000)
    await bench.pass_time(1000)
    bundle = bench.only_bundle()
    bundle.begin()
    bundle.running()
    await bench.pass_time(5_999)
    assert await bench.stages([quick, slow]) == [Stage.ACTIVE] * 2
    await bench.pass_time(1)
    assert await bench.errors(quick) == ["no answer from 127.0.0.1:8000 within 5s (Upstash-Timeout)"]
    assert await bench.stage(slow) is Stage.ACTIVE
    bundle.outcome(0)
    bundle.outcome(1)
    bundle.end()
    await bench.settle()
    assert await bench.stage(slow) is Stage.DELIVERED, "the line of the one that timed out changes nothing"


async def test_the_exchange_is_closed_when_every_delivery_has_timed_out(bench: BundleBench) -> None:
    bundle = await bench.bundle(2, timeout_ms=2_000)
    await bench.pass_time(3_000)
    assert bundle.closed.is_set()
    assert bench.deliverer.in_flight == 0


async def test_after_three_missing_reports_a_connection_is_dead(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    bundle.outcome(0)
    await bench.pass_time(14_999)
    assert await bench.stages(bundle.ids) == [Stage.DELIVERED, Stage.ACTIVE]
    await bench.pass_time(1)
    [error] = await bench.errors(bundle.ids[1])
    assert error == "interrupted, no retry is spent: connection lost: nothing came from 127.0.0.1:8000 for 15s"
    assert bundle.closed.is_set()


async def test_a_report_keeps_a_connection_alive(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    for _ in range(4):
        await bench.pass_time(5_000)
        bundle.running()
    await bench.settle()
    assert await bench.stages(bundle.ids) == [Stage.ACTIVE] * 2


async def test_a_proxy_that_holds_everything_back_is_waited_for(bench: BundleBench) -> None:
    published = await bench.publish(2)
    bundle = bench.only_bundle()
    await bench.pass_time(20_000)
    assert await bench.stages(published) == [Stage.ACTIVE] * 2
    bundle.begin()
    bundle.running()
    bundle.outcome(0, 1, after_ms=19_000)
    bundle.end()
    await bench.settle()
    assert await bench.stages(published) == [Stage.DELIVERED] * 2
    await bench.publish(3)
    assert bench.arrived.empty(), "no more bundles through it"
    await bench.pass_time(HOUR_MS)
    await bench.publish(3)
    assert len(bench.only_bundle().items) == 3


async def test_lines_that_were_sent_apart_and_arrive_together_end_the_bundles_for_an_hour(bench: BundleBench) -> None:
    await bench.publish(2)
    bundle = bench.only_bundle()
    await bench.pass_time(3_000)
    bundle.begin()
    bundle.running()
    bundle.outcome(0, after_ms=5)
    bundle.outcome(1, after_ms=2_990)
    bundle.end()
    await bench.settle()
    await bench.publish(3)
    assert bench.arrived.empty()


async def test_lines_that_arrive_when_they_were_sent_prove_the_way(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    bundle.outcome(0, after_ms=5)
    await bench.pass_time(3_000)
    bundle.outcome(1, after_ms=2_990)
    bundle.end()
    await bench.settle()
    await bench.publish(3)
    assert len(bench.only_bundle().items) == 3


# -- refusals


@pytest.mark.parametrize(("status", "headers"), [(404, ()), (401, (OF_DISPATCHER,)), (503, ()), (502, ()), (200, ())])
async def test_a_refused_bundle_is_delivered_singly_at_once_and_costs_no_retry(
    bench: BundleBench, status: int, headers: Headers
) -> None:
    published = await bench.publish(3)
    bench.only_bundle().begin(status, headers)
    await bench.settle()
    assert [(delivery.message_id, delivery.retried) for delivery in bench.sent] == [(one, 0) for one in published]
    assert await bench.stages(published) == [Stage.DELIVERED] * 3
    assert [entry.state for entry in await bench.log(published[0])] == [State.CREATED, State.ACTIVE, State.DELIVERED]
    await bench.publish(2)
    assert bench.arrived.empty()
    await bench.pass_time(HOUR_MS)
    await bench.publish(2)
    assert len(bench.only_bundle().items) == 2


async def test_a_url_of_bundles_that_must_not_be_called_leaves_single_deliveries(bench: BundleBench) -> None:
    published = await bench.publish(2)
    bench.only_bundle().answer.set_result(Failure("destination_blocked", "not allowed", final=True))
    await bench.settle()
    assert await bench.stages(published) == [Stage.DELIVERED] * 2


async def test_a_dispatcher_that_drains_hands_every_delivery_back(bench: BundleBench) -> None:
    published = await bench.publish(2)
    bench.answer = lambda request: REFUSED
    bundle = bench.only_bundle()
    bundle.begin(503, (OF_DISPATCHER, (INTERRUPTED_HEADER, "draining")))
    bundle.end()
    await bench.settle()
    for message_id in published:
        assert (await bench.errors(message_id))[0] == "interrupted, no retry is spent: the destination answered 503"
    bench.answer = bench.done
    await bench.pass_time(10_000)
    assert await bench.stages(published) == [Stage.DELIVERED] * 2


async def test_a_refused_connection_interrupts_every_delivery(bench: BundleBench) -> None:
    published = await bench.publish(2)
    bench.answer = lambda request: REFUSED
    bench.only_bundle().answer.set_result(REFUSED)
    await bench.settle()
    for message_id in published:
        assert (await bench.errors(message_id))[0] == "interrupted, no retry is spent: connection refused"


@pytest.mark.parametrize("fault", [RuntimeError("a fault of our own"), asyncio.CancelledError()])
async def test_a_transport_that_raises_costs_an_attempt_and_no_message(
    bench: BundleBench, fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    published = await bench.publish(2)
    with caplog.at_level(logging.CRITICAL, logger="qtasks.broker"):
        bench.only_bundle().answer.set_exception(fault)
        await bench.settle()
    assert await bench.stages(published) == [Stage.DUE] * 2
    assert bench.deliverer.in_flight == 0


# -- the end of the broker


async def test_a_drain_waits_for_the_deliveries_of_a_bundle(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    draining = asyncio.create_task(bench.deliverer.drain(5))
    bundle.outcome(0)
    await bench.settle()
    assert not draining.done()
    bundle.outcome(1)
    bundle.end()
    async with asyncio.timeout(5):
        assert await draining is True
    assert await bench.stages(bundle.ids) == [Stage.DELIVERED] * 2


async def test_a_drain_that_runs_out_of_time_leaves_what_is_open_to_the_next_start(bench: BundleBench) -> None:
    bundle = await bench.bundle(3)
    bundle.outcome(0)
    await bench.settle()
    assert await bench.deliverer.drain(0) is False
    assert bench.deliverer.in_flight == 0
    assert bundle.closed.is_set()
    recovery = await bench.store.write(lambda db: settle.recover(db, now_ms=bench.clock.now_ms()))
    assert recovery.interrupted == 2


async def test_a_crash_in_the_middle_of_a_bundle_loses_nothing(bench: BundleBench) -> None:
    bundle = await bench.bundle(3)
    bundle.outcome(1)
    await bench.settle()
    await bench.crash()
    await bench.settle()
    assert await bench.stages(bundle.ids) == [Stage.DELIVERED] * 3
    assert sorted(delivery.message_id for delivery in bench.sent) == sorted([bundle.ids[0], bundle.ids[2]])


async def test_a_body_of_many_values_is_one_text(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    bundle.outcome(0, body=b'[{"a":["\\\\",1]},' * 50_000)
    bundle.outcome(1)
    bundle.end()
    await bench.settle()
    assert await bench.stages(bundle.ids) == [Stage.DELIVERED] * 2


async def test_a_line_without_end_is_bounded(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    piece = b"x" * MAX_BODY
    for _ in range(bundle_lines.MAX_LINE // len(piece) + 1):
        bundle.say(piece)
    await bench.settle()
    assert bundle.closed.is_set()
    [error] = await bench.errors(bundle.ids[0])
    assert "a line of more than" in error


async def test_reports_without_end_are_bounded(bench: BundleBench) -> None:
    bundle = await bench.bundle(2)
    bundle.say(bundles.running_line(2) * (bundle_lines.MAX_REPORTS + 1))
    await bench.settle()
    assert bundle.closed.is_set()
    assert bench.deliverer.in_flight == 0
