"""Every accepted request can be carried out: shown, fired, delivered, retried.

A refusal is a valid response. An accepted message that breaks a list or a loop would break it for all accounts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.protocol import wire
from qtasks.protocol.messages import PublishOptions, Response
from tests.support.api import HOOK, Service
from tests.unit.protocol.test_wire import options_of

LISTS = ("/v2/events", "/v2/schedules", "/v2/dlq", "/v2/topics", "/v2/queues", "/v2/flowControl")
TARGETS = (
    *(f"/v2/{way}/{to}" for way in ("publish", "enqueue/q", "schedules") for to in (HOOK, "g", "api/llm")),
    f"/v2/enqueue/no%20name/{HOOK}",
    f"/v2/publish/{HOOK}?a=1&upstash-retries=2&upstash-label=x",
    "/v2/dlq/retry",
    "/v2/batch",
    "/v2/topics/g",
)
CRONS = (None, None, "* * * * *", "CRON_TZ=Europe/Berlin */5 * * * *", "@every 90s")
options = st.builds(
    lambda chosen, cron: dataclasses.replace(chosen, cron=cron), options_of(wire.CALLBACK_DEPTH), st.sampled_from(CRONS)
)


def unsteady(chance: random.Random) -> Callable[[DeliveryRequest], Response | Failure]:
    """An endpoint of every mood."""
    moods: tuple[Response | Failure, ...] = (
        Response(status=200, headers=(("A", "b"),), body=b"ok"),
        Response(status=500, headers=(("Retry-After", "1"),), body=b"\xff\xfe"),
        Response(status=489, headers=(("Upstash-NonRetryable-Error", "true"),)),
        Response(status=302, headers=(("Location", "\u20ac"),)),
        Failure("timeout", "no answer"),
    )
    return lambda _: chance.choice(moods)


async def live(orders: list[tuple[str, PublishOptions]], seed: int) -> None:
    service = await Service.open()
    service.transport.answer = unsteady(random.Random(seed))
    endpoints = {"endpoints": [{"url": HOOK}, {"url": f"{HOOK}/2", "name": "é \\"}]}
    await service.call("POST", "/v2/topics/g/endpoints", json_body=endpoints)
    for target, order in orders:
        lines = dict(wire.write(order))
        if target == "/v2/topics/g":
            answered = await service.call("PATCH", target, json_body={"headers": lines})
        elif target == "/v2/batch":
            batch = [{"destination": HOOK, "headers": lines, "body": "x", "queue": queue} for queue in (None, "q")]
            answered = await service.call("POST", target, json_body=batch)
        else:
            answered = await service.call("POST", target, lines, "" if target == "/v2/dlq/retry" else "x")
        assert answered.status < 500, answered.body
        service.clock.advance(60_000)
        await service.run()
        for listed in LISTS:
            await service.get(listed)
    await service.close()


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # lives are long: making a bad one shorter takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from(TARGETS), options), min_size=4, max_size=10), st.integers(0, 2**32))
def test_whatever_is_accepted_is_shown_fired_and_delivered(
    caplog: pytest.LogCaptureFixture, orders: list[tuple[str, PublishOptions]], seed: int
) -> None:
    caplog.clear()
    asyncio.run(live(orders, seed))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
