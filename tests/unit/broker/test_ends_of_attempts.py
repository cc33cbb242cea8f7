"""A property: however the deliveries of bundles and single ones end, nothing is counted as in flight afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import Settled, Settlement
from qtasks.broker.loops.host_limits import ROUND_TRIP_MS
from qtasks.broker.ports import Failure
from qtasks.broker.store.verbs import cancel, settle
from qtasks.protocol.headers import INTERRUPTED_HEADER
from tests.support.broker import ACCOUNT
from tests.support.bundle_bench import OF_DISPATCHER, BundleBench, WrittenBundle
from tests.support.outage import CUT, DONE, REFUSED, Outcome

COUNT: Final = 4
Head = Callable[[WrittenBundle], None]

HEADS: dict[str, Head] = {
    "lines": lambda bundle: bundle.begin(),
    "refused": lambda bundle: bundle.begin(404, ()),
    "draining": lambda bundle: bundle.begin(503, (OF_DISPATCHER, (INTERRUPTED_HEADER, "draining"))),
    "no connection": lambda bundle: bundle.answer.set_result(REFUSED),
    "no name server": lambda bundle: bundle.answer.set_result(Failure("dns", "no answer", attempted=False)),
    "blocked": lambda bundle: bundle.answer.set_result(Failure("destination_blocked", "not allowed", final=True)),
    "unusable": lambda bundle: bundle.answer.set_result(Failure("bad_response", "no HTTP")),
    "timeout": lambda bundle: bundle.answer.set_result(Failure("timeout", "no answer")),
    "fault": lambda bundle: bundle.answer.set_exception(RuntimeError("a fault of our own")),
    "cancelled": lambda bundle: bundle.answer.set_exception(asyncio.CancelledError()),
}
ENDS: dict[str, Head] = {
    "end": lambda bundle: bundle.end(),
    "break": lambda bundle: bundle.break_off(),
    "garbage": lambda bundle: bundle.say(b"garbage\n"),
    "silence": lambda _bundle: None,
}
waits_ms = st.sampled_from([0, ROUND_TRIP_MS, 3_000])


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="qtasks.broker")


@settings(
    max_examples=80,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    head=st.sampled_from(sorted(HEADS)),
    end=st.sampled_from(sorted(ENDS)),
    with_line=st.integers(0, COUNT),
    singles=st.sampled_from([DONE, CUT, REFUSED]),
    cancels=st.booleans(),
    waits=st.tuples(waits_ms, waits_ms),
    drains=st.booleans(),
)
def test_nothing_is_in_flight_after_the_end(
    head: str, end: str, with_line: int, singles: Outcome, cancels: bool, waits: Sequence[int], drains: bool
) -> None:
    async def life() -> None:
        bench = await BundleBench.with_known_slots()
        limits = bench.deliverer._limits
        quick = await bench.publish(1, timeout_ms=2_000, not_before_ms=bench.clock.now_ms() + 1_000)
        published = quick + await bench.publish(COUNT - 1, not_before_ms=bench.clock.now_ms() + 1_000)
        await bench.pass_time(1_000)
        bundle = bench.only_bundle()
        bench.answer = lambda request: singles
        await bench.publish()
        await bench.pass_time(waits[0])
        if cancels:
            await bench.store.write(cancel.cancel, ACCOUNT, published[1:2], now_ms=bench.clock.now_ms())
        HEADS[head](bundle)
        await bench.settle()
        bundle.outcome(*range(with_line))
        await bench.pass_time(waits[1])
        ENDS[end](bundle)
        await bench.settle()
        if drains:
            await bench.deliverer.drain(0)
        else:
            await bench.pass_time(60_000)
            await _end_the_rest(bench)
            assert Stage.ACTIVE not in await bench.stages(published)
        rooms = limits.rooms()
        assert (limits.in_flight, rooms.running, rooms.in_flight) == (0, {}, {})
        assert limits._unanswered == {}
        await bench.close()

    asyncio.run(life())


@pytest.mark.anyio
async def test_a_refused_delivery_leaves_although_the_end_of_its_neighbour_cannot_be_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusing(db: Any, settlement: Settlement, **facts: Any) -> Settled | None:
        if settlement.claim.row.id == quick:
            raise RuntimeError("a fault of our own")
        return store(db, settlement, **facts)

    bench = await BundleBench.with_known_slots()
    due_ms = bench.clock.now_ms() + 1_000
    [quick] = await bench.publish(1, timeout_ms=2_000, not_before_ms=due_ms)
    [slow] = await bench.publish(1, not_before_ms=due_ms)
    await bench.pass_time(1_000)
    bundle = bench.only_bundle()
    store = settle.settle
    monkeypatch.setattr(settle, "settle", refusing)
    await bench.pass_time(3_000)
    bundle.begin(404, ())
    await bench.settle()
    assert await bench.stage(slow) is Stage.DELIVERED
    assert (bench.deliverer.in_flight, bench.deliverer._limits.rooms().running) == (0, {})
    await bench.close()


async def _end_the_rest(bench: BundleBench) -> None:
    """Answer the bundles that have left since, until no further one does."""
    bench.answer = bench.done
    while True:
        await bench.settle()
        if bench.arrived.empty():
            return
        bundle = bench.arrived.get_nowait()
        if not bundle.answer.done():
            bundle.begin()
        bundle.outcome(*range(len(bundle.items)))
        bundle.end()
