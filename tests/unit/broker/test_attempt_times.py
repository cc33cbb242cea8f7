"""Where the time of an attempt goes: measured by the broker's clock, kept with the end of the attempt, and shown."""

from __future__ import annotations

from typing import Any

import pytest

from qtasks.broker.console.console_context import Role
from qtasks.broker.console.views import message_page
from qtasks.broker.ports import DeliveryRequest, Failure, Timing
from qtasks.broker.store.verbs.reads import history, queries
from qtasks.protocol.messages import Response, State
from tests.support.api import Service
from tests.support.broker import ACCOUNT
from tests.support.bundle_bench import BundleBench
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio


def taking(service: Service, *parts_ms: int, outcome: Response | Failure) -> None:
    """End deliveries with `outcome`, after a connect, a wait and a body that take so long, as far as they are given."""

    def answer(request: DeliveryRequest) -> Response | Failure:
        request.stopwatch.begin()
        for number, part_ms in enumerate(parts_ms):
            if number:
                (request.stopwatch.connect, request.stopwatch.answer)[number - 1]()
            service.clock.advance(part_ms)
        return outcome

    service.transport.answer = answer


async def timings(service: Service, message_id: str, role: Role = Role.OPERATOR) -> list[dict[str, int]]:
    shown: Any = await Console(service, role).see(message_page.show, message_id)
    return [attempt["timing"] for attempt in shown["attempts"]]


@pytest.mark.parametrize("headers", [{}, {"Callback": "http://127.0.0.1:8000/back"}], ids=["alone", "with a callback"])
async def test_a_delivery_has_all_parts(service: Service, headers: dict[str, str]) -> None:
    taking(service, 20, 300, 7, outcome=Response(status=200))
    message_id = await service.publish(**headers)
    await service.broker.deliverer.run_once()
    expected = {"queuedMs": 0, "connectMs": 20, "firstByteMs": 300, "bodyMs": 7}
    assert await timings(service, message_id) == [expected]
    assert await timings(service, message_id, Role.METADATA) == [expected], "times are no payload"


async def test_a_failed_attempt_has_the_parts_that_it_reached(service: Service) -> None:
    message_id = await service.publish(Retry_Delay="1000")
    ends: list[tuple[tuple[int, ...], Response | Failure]] = [
        ((5_000,), Failure("timeout", "no connection to 127.0.0.1:8000 within 5s")),
        ((2, 30_000), Failure("timeout", "no answer from 127.0.0.1:8000 within 30s (Upstash-Timeout)")),
        ((2, 40, 3), Response(status=500, body=b"no")),
    ]
    for parts_ms, outcome in ends:
        taking(service, *parts_ms, outcome=outcome)
        await service.run()
        service.clock.advance(1_000)
    assert await timings(service, message_id) == [
        {"queuedMs": 0, "connectMs": 5_000},
        {"queuedMs": 0, "connectMs": 2, "firstByteMs": 30_000},
        {"queuedMs": 0, "connectMs": 2, "firstByteMs": 40, "bodyMs": 3},
    ]


async def test_a_transport_that_measures_nothing_leaves_the_parts_out(service: Service) -> None:
    service.answer(200)
    message_id = await service.publish()
    await service.run()
    assert await timings(service, message_id) == [{"queuedMs": 0}]


async def test_each_delivery_of_a_bundle_has_its_own_wait() -> None:
    bench = await BundleBench.with_known_slots()
    bundle = await bench.bundle(3)
    bench.clock.advance(250)
    bundle.outcome(1)
    await bench.settle()
    bench.clock.advance(500)
    bundle.outcome(0, status=500)
    await bench.settle()
    bundle.break_off()
    await bench.settle()
    assert [await _timing(bench, message_id) for message_id in bundle.ids] == [
        Timing(0, 750, None, 3),
        Timing(0, 250, None, 3),
        Timing(0, 750, None, 3),
    ]
    await bench.close()


async def _timing(bench: BundleBench, message_id: str) -> Timing:
    """That of the only attempt that has ended."""
    seq = await bench.store.read(queries.seq_of, ACCOUNT, message_id)
    assert seq is not None
    [ended] = [
        entry for entry in await bench.store.read(history.entries, seq) if entry.state in (State.DELIVERED, State.ERROR)
    ]
    return ended.timing
