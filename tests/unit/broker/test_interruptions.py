"""Interrupted is not failed: outages, probes, allowances and poison, on a virtual clock over the real store."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from qtasks.broker.core.interruptions import PATIENCE_MS
from qtasks.broker.core.rules import Stage
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.settings import DeliveryLimits
from qtasks.broker.store.verbs import cancel, queues
from qtasks.protocol.headers import INTERRUPTED_HEADER
from qtasks.protocol.messages import FlowControl, PublishOptions, Response, State
from tests.support.broker import ACCOUNT
from tests.support.legal_moves import assert_legal
from tests.support.outage import (
    ALLOWED,
    BAD_GATEWAY,
    CUT,
    DAY_MS,
    DONE,
    HOUR_MS,
    REFUSED,
    Answer,
    Outcome,
    World,
)

pytestmark = pytest.mark.anyio

in_both_ways = pytest.mark.parametrize("world", [False, True], ids=["singly", "in bundles"], indirect=True)

PLAIN = PublishOptions()
JOBS = "http://127.0.0.1:8000/jobs/add"
"""A URL with another prefix on the same origin."""


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    opened = await World.opened(in_bundles=getattr(request, "param", False))
    yield opened
    await opened.close()


def message_id_of(request: DeliveryRequest) -> str:
    return dict(request.headers)["Upstash-Message-Id"]


def marked(reason: str, retry_after_s: int | None = None) -> Response:
    pause = () if retry_after_s is None else (("Retry-After", str(retry_after_s)),)
    return Response(status=503, headers=(*DONE.headers, (INTERRUPTED_HEADER, reason), *pause))


# -- an outage


async def outage_of_an_hour(world: World, backlog: int) -> None:
    """A backlog waits through an hour of refused connections, and a minute after the return all of it is delivered."""
    world.answer = lambda request: REFUSED
    message_ids = await world.publish(backlog, max_retries=0)
    await world.pass_time(HOUR_MS)
    before = len(world.sent)
    world.answer = lambda request: DONE
    await world.pass_time(60_000)
    assert await world.dead() == []
    assert await world.count(Stage.DELIVERED) == backlog
    assert [delivery.message_id for delivery in world.sent[before:]] == message_ids
    assert {delivery.retried for delivery in world.sent} == {0}


async def test_an_hour_of_outage_costs_nothing_and_keeps_the_order(world: World) -> None:
    await outage_of_an_hour(world, 300)


@pytest.mark.release
async def test_an_hour_of_outage_costs_a_backlog_of_ten_thousand_nothing(world: World) -> None:
    await outage_of_an_hour(world, 10_000)


async def test_a_prefix_that_refuses_is_probed_by_its_first_message_and_by_no_other(world: World) -> None:
    world.answer = lambda request: REFUSED
    first, *_ = await world.publish(500)
    began_ms = world.clock.now_ms()
    await world.pass_time(HOUR_MS)
    probes = world.sent_since(began_ms + 1)
    assert {probe.message_id for probe in probes} == {first}
    times_ms = [began_ms, *(probe.time_ms for probe in probes)]
    pauses_ms = [(later - earlier, earlier - began_ms) for earlier, later in itertools.pairwise(times_ms)]
    assert all(0 < pause <= (500 if after < 60_000 else 5_000) for pause, after in pauses_ms)
    assert max(pauses_ms)[0] == 5_000
    assert len(probes) < 60 * 2 + 3_540


@in_both_ways
async def test_messages_that_arrive_during_an_outage_wait_behind_the_probe(world: World) -> None:
    world.answer = lambda request: REFUSED
    [first] = await world.publish()
    await world.pass_time(10_000)
    before = len(world.sent)
    later = await world.publish(50)
    assert len(world.sent) == before
    world.answer = lambda request: DONE
    await world.pass_time(500)
    assert [delivery.message_id for delivery in world.sent[before:]] == [first, *later]


async def test_another_prefix_of_the_origin_is_not_held(world: World) -> None:
    world.answer = lambda request: DONE if request.url == JOBS else REFUSED
    await world.publish(3)
    await world.publish(3, url=JOBS)
    assert await world.count(Stage.DELIVERED) == 3


async def test_a_delay_is_not_brought_forward_and_its_message_is_no_probe(world: World) -> None:
    world.answer = lambda request: REFUSED
    [delayed] = await world.publish(not_before_ms=world.clock.now_ms() + HOUR_MS)
    await world.publish()
    await world.pass_time(60_000)
    world.answer = lambda request: DONE
    await world.pass_time(HOUR_MS - 60_001)
    assert delayed not in {delivery.message_id for delivery in world.sent}
    await world.pass_time(1)
    assert await world.stage(delayed) is Stage.DELIVERED


async def test_plain_messages_count_every_attempt_as_before(world: World) -> None:
    world.answer = lambda request: REFUSED
    await world.publish(5, options=PLAIN, max_retries=1)
    assert len(world.sent) == 5
    await world.pass_time(12_000)
    assert len(await world.dead()) == 5
    assert [delivery.retried for delivery in world.sent] == [0] * 5 + [1] * 5


async def test_a_plain_message_waits_for_no_probe(world: World) -> None:
    world.answer = lambda request: REFUSED
    await world.publish()
    [plain] = await world.publish(options=PLAIN)
    assert plain in {delivery.message_id for delivery in world.sent}


@in_both_ways
async def test_a_real_failure_counts_and_ends_the_outage(world: World) -> None:
    world.answer = lambda request: REFUSED
    await world.publish(3, max_retries=0)
    await world.pass_time(5_000)
    world.answer = lambda request: Response(status=500, headers=DONE.headers)
    await world.pass_time(500)
    assert len(await world.dead()) == 3


async def test_the_next_probes_start_beside_one_that_takes_long(world: World) -> None:
    """An application that works on a probe for minutes is back: the others do not wait for its answer."""
    world.answer = lambda request: REFUSED
    await world.publish(20)
    await world.pass_time(5_000)
    never = asyncio.Event()

    async def work(request: DeliveryRequest) -> Outcome:
        await never.wait()
        return DONE

    world.answer = work
    running = []
    for _ in range(6):
        await world.pass_time(PATIENCE_MS)
        running.append(world.in_flight)
    assert running == [1, 3, 7, 15, 20, 20]


async def test_no_more_than_one_probe_is_refused_at_a_time_after_some_took_long(world: World) -> None:
    world.answer = lambda request: REFUSED
    await world.publish(20)
    await world.pass_time(5_000)
    gone = asyncio.Event()

    async def work(request: DeliveryRequest) -> Outcome:
        await gone.wait()
        return CUT

    world.answer = work
    await world.pass_time(2_500)
    world.answer = lambda request: REFUSED
    gone.set()
    before = len(world.sent)
    await world.pass_time(500)
    assert 1 <= len(world.sent) - before <= 2


async def test_a_prefix_that_nothing_was_sent_to_for_long_is_probed_quickly_again(world: World) -> None:
    world.answer = lambda request: REFUSED
    [message_id] = await world.publish()
    await world.pass_time(HOUR_MS)
    await world.store.write(cancel.cancel, ACCOUNT, [message_id], now_ms=world.clock.now_ms())
    await world.pass_time(HOUR_MS)
    before = len(world.sent)
    await world.publish()
    await world.pass_time(2_000)
    assert len(world.sent) - before >= 5


# -- the allowance


async def dead_url(world: World, allowance_ms: int) -> None:
    """Messages to a URL that stays dead count as soon as their allowance is used up; waiting uses it up as well."""
    world.answer = lambda request: REFUSED
    message_ids = await world.publish(40, max_retries=2, options=PublishOptions(interrupted_for_ms=allowance_ms))
    await world.pass_time(allowance_ms - 1_000)
    assert await world.dead() == []
    assert {delivery.retried for delivery in world.sent} == {0}
    await world.pass_time(10 * 60_000)
    assert await world.dead_ids() == sorted(message_ids)


async def test_a_dead_url_ends_in_the_dead_letters_once_the_allowance_is_used_up(world: World) -> None:
    await dead_url(world, 20 * 60_000)


@pytest.mark.release
async def test_a_dead_url_ends_in_the_dead_letters_after_24_hours(world: World) -> None:
    await dead_url(world, DAY_MS)


async def test_newer_messages_do_not_keep_an_expired_one_from_its_end(world: World) -> None:
    world.answer = lambda request: REFUSED
    options = PublishOptions(interrupted_for_ms=10 * 60_000)
    [old] = await world.publish(max_retries=2, options=options)
    for _ in range(14):
        await world.pass_time(60_000)
        await world.publish(options=options)
    assert await world.dead_ids() == [old]


async def test_a_real_answer_begins_the_allowance_anew(world: World) -> None:
    world.answer = lambda request: REFUSED
    await world.publish(max_retries=1, options=PublishOptions(interrupted_for_ms=10 * 60_000))
    await world.pass_time(9 * 60_000)
    world.answer = lambda request: Response(status=500)
    await world.pass_time(5_000)
    world.answer = lambda request: REFUSED
    await world.pass_time(9 * 60_000)
    assert await world.dead() == []


@in_both_ways
async def test_a_restart_in_an_outage_forgets_neither_the_probe_nor_the_time(world: World) -> None:
    world.answer = lambda request: REFUSED
    options = PublishOptions(interrupted_for_ms=20 * 60_000)
    message_ids = await world.publish(50, max_retries=0, options=options)
    await world.pass_time(15 * 60_000)
    await world.crash()
    before = len(world.sent)
    await world.pass_time(60_000)
    assert len(world.sent) - before < 20, "one probe every five seconds, as before the restart"
    await world.pass_time(239_000)
    assert await world.dead() == []
    await world.pass_time(20_000)
    assert await world.dead_ids() == sorted(message_ids)


async def test_an_allowance_of_nothing_counts_every_attempt(world: World) -> None:
    world.answer = lambda request: REFUSED
    await world.publish(options=PublishOptions(interrupted_for_ms=0), max_retries=0)
    assert len(await world.dead()) == 1


# -- which answers are interruptions


async def test_a_proxy_in_front_of_a_dead_application_interrupts_once_the_dispatcher_has_answered(world: World) -> None:
    await world.publish()
    world.answer = lambda request: BAD_GATEWAY
    await world.publish(20, max_retries=0)
    await world.pass_time(HOUR_MS)
    assert await world.dead() == []
    world.answer = lambda request: DONE
    await world.pass_time(10_000)
    assert await world.count(Stage.DELIVERED) == 21


async def test_a_gateway_error_counts_where_no_dispatcher_has_answered(world: World) -> None:
    world.answer = lambda request: DONE if request.url == JOBS else BAD_GATEWAY
    await world.publish(url=JOBS)
    await world.publish(2, max_retries=0)
    assert len(await world.dead()) == 2


async def test_a_gateway_error_of_the_dispatcher_itself_counts(world: World) -> None:
    await world.publish()
    world.answer = lambda request: replace(BAD_GATEWAY, headers=DONE.headers)
    await world.publish(max_retries=0)
    assert len(await world.dead()) == 1


@in_both_ways
async def test_after_a_restart_a_proxy_is_still_recognised(world: World) -> None:
    await world.publish()
    await world.crash()
    world.answer = lambda request: BAD_GATEWAY
    await world.publish(max_retries=0)
    await world.pass_time(1_000)
    assert await world.dead() == []


@in_both_ways
async def test_a_call_that_runs_elsewhere_waits_as_long_as_it_was_told_and_holds_nobody_up(world: World) -> None:
    world.answer = lambda request: marked("running elsewhere", 7) if message_id_of(request) == "msg_0" else DONE
    await world.publish(5, max_retries=0)
    assert await world.count(Stage.DELIVERED) == 4
    await world.pass_time(6_999)
    assert len(world.sent) == 5
    world.answer = lambda request: DONE
    await world.pass_time(1)
    assert await world.count(Stage.DELIVERED) == 5
    assert world.sent[-1].retried == 0


async def test_a_pause_that_a_dispatcher_asks_for_is_bounded(world: World) -> None:
    world.answer = lambda request: marked("running elsewhere", 80_000)
    await world.publish()
    await world.pass_time(60_000)
    assert len(world.sent) == 2


@in_both_ways
async def test_a_dispatcher_that_drains_is_one_that_refuses(world: World) -> None:
    world.answer = lambda request: marked("draining", 60)
    await world.publish(30, max_retries=0)
    await world.pass_time(30_000)
    before = len(world.sent)
    assert before < 30 + 100
    world.answer = lambda request: DONE
    await world.pass_time(500)
    assert await world.count(Stage.DELIVERED) == 30


async def test_a_plain_message_counts_a_marked_answer(world: World) -> None:
    world.answer = lambda request: marked("draining", 1)
    await world.publish(options=PLAIN, max_retries=0)
    assert len(await world.dead()) == 1


@pytest.mark.parametrize("options", [PLAIN, ALLOWED], ids=["plain", "allowed"])
async def test_what_this_broker_could_not_even_send_is_no_attempt_of_any_message(
    world: World, options: PublishOptions
) -> None:
    world.answer = lambda request: Failure("connection_lost", "no file descriptor is free", attempted=False)
    await world.publish(max_retries=0, options=options)
    await world.pass_time(10 * 60_000)
    assert await world.dead() == []
    times_ms = [delivery.time_ms for delivery in world.sent]
    pauses_ms = [later - earlier for earlier, later in itertools.pairwise(times_ms)]
    assert pauses_ms == sorted(pauses_ms)
    assert (pauses_ms[0], pauses_ms[-1]) == (100, 5_000)
    world.answer = lambda request: DONE
    await world.pass_time(5_000)
    assert await world.count(Stage.DELIVERED) == 1
    assert {delivery.retried for delivery in world.sent} == {0}


# -- what an interruption leaves


async def test_the_log_of_an_outage_has_one_interruption_a_minute_and_no_attempts_beside(world: World) -> None:
    world.answer = lambda request: REFUSED
    [message_id] = await world.publish()
    await world.pass_time(10 * 60_000)
    log = await world.log(message_id)
    states = [entry.state for entry in log]
    interruptions = [entry for entry in log if entry.state is State.ERROR]
    assert 9 <= len(interruptions) <= 11
    assert states == [State.CREATED, *[State.ACTIVE, State.ERROR, State.RETRY] * len(interruptions)]
    assert all("interrupted, no retry is spent: connection refused" in (entry.error or "") for entry in interruptions)
    world.answer = lambda request: DONE
    await world.pass_time(5_000)
    final = [entry.state for entry in await world.log(message_id)]
    assert final[-2:] == [State.ACTIVE, State.DELIVERED]
    assert_legal(final, Stage.DELIVERED)


async def test_watchers_are_not_flooded_either(world: World) -> None:
    seen: list[State] = []
    world.watchers.add(lambda event: seen.append(event.state))
    world.answer = lambda request: REFUSED
    await world.publish()
    await world.pass_time(10 * 60_000)
    assert len(seen) < 30


@in_both_ways
async def test_an_interruption_sends_no_callback(world: World) -> None:
    called = "http://127.0.0.1:8000/called"
    options = replace(ALLOWED, callback=called, failure_callback=called)
    world.answer = lambda request: REFUSED
    await world.publish(options=options, max_retries=0)
    await world.pass_time(60_000)
    assert called not in {delivery.url for delivery in world.sent}
    world.answer = lambda request: DONE
    await world.pass_time(1_000)
    assert [delivery.url for delivery in world.sent].count(called) == 1


async def test_a_message_that_is_cancelled_during_a_probe_ends_with_it(world: World) -> None:
    world.answer = lambda request: REFUSED
    [message_id] = await world.publish()
    await world.pass_time(5_000)
    gone = asyncio.Event()

    async def work(request: DeliveryRequest) -> Outcome:
        await gone.wait()
        return CUT

    world.answer = work
    await world.pass_time(500)
    await world.store.write(cancel.cancel, ACCOUNT, [message_id], now_ms=world.clock.now_ms())
    gone.set()
    await world.settle()
    assert await world.stage(message_id) is Stage.CANCELED
    assert_legal([entry.state for entry in await world.log(message_id)], Stage.CANCELED)


@in_both_ways
async def test_a_queue_keeps_its_order_through_an_outage(world: World) -> None:
    world.answer = lambda request: REFUSED
    message_ids = await world.publish(10, queue="q")
    await world.pass_time(10 * 60_000)
    assert {delivery.message_id for delivery in world.sent} == {message_ids[0]}
    before = len(world.sent)
    world.answer = lambda request: DONE
    await world.pass_time(60_000)
    assert [delivery.message_id for delivery in world.sent[before:]] == message_ids


async def test_a_queue_that_is_paused_during_an_outage_sends_no_probe(world: World) -> None:
    world.answer = lambda request: REFUSED
    await world.publish(queue="q")
    await world.store.write(queues.pause_queue, ACCOUNT, "q", paused=True, now_ms=world.clock.now_ms())
    before = len(world.sent)
    await world.pass_time(10_000)
    assert len(world.sent) == before
    world.answer = lambda request: DONE
    await world.store.write(queues.pause_queue, ACCOUNT, "q", paused=False, now_ms=world.clock.now_ms())
    world.deliverer.wake()
    await world.pass_time(1_000)
    assert await world.count(Stage.DELIVERED) == 1


async def test_a_rate_is_kept_through_an_outage(world: World) -> None:
    world.answer = lambda request: REFUSED
    limited = replace(ALLOWED, flow_control=FlowControl("k", rate=1, period_s=10))
    message_ids = await world.publish(10, options=limited)
    await world.pass_time(60_000)
    world.answer = lambda request: DONE
    await world.pass_time(120_000)
    assert await world.count(Stage.DELIVERED) == len(message_ids)
    times_ms = [delivery.time_ms for delivery in world.sent]
    assert all(later - earlier >= 10_000 for earlier, later in itertools.pairwise(times_ms))


# -- poison


class Dispatcher:
    """A dispatcher that a poison message ends, together with everything in flight; it is back after a second."""

    def __init__(self, world: World, poison: str, dies: Outcome = CUT, away: Outcome = REFUSED) -> None:
        self._world = world
        self._poison = poison
        self._dies = dies
        self._away = away
        self._back_ms = 0
        self._end = asyncio.Event()
        self.deaths = 0

    async def __call__(self, request: DeliveryRequest) -> Outcome:
        if self._world.clock.now_ms() < self._back_ms:
            return self._away
        end = self._end
        if message_id_of(request) == self._poison:
            await asyncio.sleep(0)
            self.deaths += 1
            self._back_ms = self._world.clock.now_ms() + 1_000
            self._end = asyncio.Event()
            end.set()
            return self._dies
        work = asyncio.create_task(self._world.clock.wait(end.wait(), self._world.clock.now_ms() + 100))
        await work
        return self._dies if end.is_set() else DONE


@pytest.mark.parametrize(("dies", "away"), [(CUT, REFUSED), (BAD_GATEWAY, BAD_GATEWAY)], ids=["direct", "proxy"])
async def test_one_poison_message_among_many_is_the_only_dead_one(world: World, dies: Outcome, away: Outcome) -> None:
    await world.publish()
    world.answer = Dispatcher(world, "msg_20", dies, away)
    await world.publish(400, max_retries=1)
    for _ in range(15 * 60):
        await world.pass_time(100)
    assert await world.dead_ids() == ["msg_20"]
    assert await world.count(Stage.DELIVERED) == 400
    assert {delivery.retried for delivery in world.sent if delivery.message_id != "msg_20"} == {0}


@in_both_ways
async def test_a_poison_message_on_its_own_spends_its_retries_after_two_cuts(world: World) -> None:
    world.answer = lambda request: CUT
    await world.publish(max_retries=1)
    await world.pass_time(60_000)
    assert await world.dead_ids() == ["msg_0"]
    assert [delivery.retried for delivery in world.sent] == [0, 0, 0, 1]


@in_both_ways
async def test_a_message_that_is_tried_alone_starts_when_its_prefix_is_idle_and_holds_it(world: World) -> None:
    cuts = 0
    ends: dict[str, asyncio.Event] = {}

    async def work(request: DeliveryRequest) -> Outcome:
        nonlocal cuts
        message_id = message_id_of(request)
        if message_id == "msg_0" and cuts < 2:
            cuts += 1
            return CUT
        await ends.setdefault(message_id, asyncio.Event()).wait()
        return DONE

    world.answer = work
    await world.publish(3)
    for _ in range(30):
        await world.pass_time(100)
    assert world.in_flight == 2, "the suspect waits until the two others have ended"
    ends["msg_1"].set()
    await world.pass_time(100)
    ends["msg_2"].set()
    await world.pass_time(100)
    await world.publish(2)
    assert [delivery.message_id for delivery in world.sent][-1] == "msg_0"
    assert world.in_flight == 1
    ends["msg_0"].set()
    await world.settle()
    assert world.in_flight == 2


# -- messages that end the broker itself


async def hang(request: DeliveryRequest) -> Outcome:
    """An attempt that is under way when the broker ends."""
    await asyncio.Event().wait()
    return DONE


async def test_a_message_that_ends_the_broker_three_times_is_a_dead_letter_and_its_neighbours_are_not(
    world: World,
) -> None:
    world.answer = hang
    await world.publish(10, options=PLAIN, max_retries=0)
    assert world.in_flight == 10
    await world.crash()
    await world.settle()
    assert world.in_flight == 10, "once may be anybody's fault"
    await world.crash()
    await world.settle()
    assert world.in_flight == 1, "now one after the other"
    world.answer = lambda request: DONE
    await world.crash()
    await world.settle()
    [letter] = await world.dead()
    assert letter.message.id == "msg_0"
    assert letter.error.startswith("crash_loop: ")
    assert await world.count(Stage.DELIVERED) == 9
    assert_legal([entry.state for entry in await world.log("msg_0")], Stage.FAILED)


@in_both_ways
async def test_messages_that_were_in_flight_at_two_crashes_hold_up_no_others(world: World) -> None:
    world.answer = hang
    await world.publish(10, options=PLAIN)
    await world.crash()
    await world.settle()
    await world.crash()
    await world.publish(5, options=PLAIN)
    assert world.in_flight == 1 + 5


@in_both_ways
async def test_an_orderly_stop_is_no_crash(world: World) -> None:
    world.answer = hang
    await world.publish(3, options=PLAIN)
    for _ in range(5):
        await world.deliverer.drain(0)
        await world.crash()
        await world.settle()
    assert world.in_flight == 3


def failing_once(world: World) -> Answer:
    """An answer that fails the next attempt; the one after it is under way when the broker ends."""
    number = len(world.sent) + 1
    return lambda request: Response(status=500) if len(world.sent) == number else hang(request)


async def test_an_outcome_forgets_the_crashes_before_it(world: World) -> None:
    world.answer = hang
    await world.publish(options=PublishOptions(retry_delay="0"), max_retries=5)
    for _ in range(5):
        await world.crash()
        await world.settle()
        world.answer = failing_once(world)
        await world.crash()
        await world.settle()
    assert await world.dead() == []
    assert world.sent[-1].retried == 5


async def test_the_limits_hold_at_the_return(world: World) -> None:
    await world.close()
    limited = await World.opened(DeliveryLimits(in_flight=8, per_host=3))
    try:
        most = 0
        limited.answer = lambda request: REFUSED
        await limited.publish(30)
        await limited.pass_time(5_000)

        async def work(request: DeliveryRequest) -> Outcome:
            nonlocal most
            most = max(most, limited.in_flight)
            await asyncio.sleep(0)
            return DONE

        limited.answer = work
        await limited.pass_time(5_000)
        assert await limited.count(Stage.DELIVERED) == 30
        assert most == 3
    finally:
        await limited.close()
