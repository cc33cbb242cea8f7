"""A property: for any mix of outcomes, bundled and single deliveries end in the same rows, logs and callbacks."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import Any, cast

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qtasks.broker.core.values import LogCriteria
from qtasks.broker.ports import DeliveryRequest
from qtasks.broker.store.verbs.reads import queries
from qtasks.protocol.headers import INTERRUPTED_HEADER
from qtasks.protocol.messages import PublishOptions, Response
from qtasks.testing.fakes.bundling import BundlingTransport
from tests.support.broker import ACCOUNT
from tests.support.outage import CUT, DAY_MS, DONE, Outcome, World

OPTIONS = PublishOptions(
    interrupted_for_ms=DAY_MS,
    retry_delay="1000",
    callback="http://reports.example/each",
    failure_callback="http://reports.example/bad",
)
OUTCOMES: tuple[Outcome, ...] = (
    DONE,
    CUT,
    Response(status=200, headers=(*DONE.headers, ("X-Note", "ü"))),
    Response(status=500, headers=DONE.headers, body=b"oops"),
    Response(status=489, headers=(*DONE.headers, ("Upstash-NonRetryable-Error", "true"))),
    Response(status=429, headers=(*DONE.headers, ("Retry-After", "7"))),
    Response(status=503, headers=(*DONE.headers, (INTERRUPTED_HEADER, "busy"))),
    Response(status=503, headers=(*DONE.headers, (INTERRUPTED_HEADER, "draining"))),
    Response(status=502, body=b"<html>"),
    Response(status=301, headers=(("Location", "/x"),)),
)
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
scripts = st.lists(st.lists(st.sampled_from(OUTCOMES), max_size=3), min_size=2, max_size=6)


@settings(max_examples=20, phases=NO_SHRINKING, deadline=None)
@given(scripts)
def test_bundled_and_single_delivery_end_alike(scripts: list[list[Outcome]]) -> None:
    single, _ = asyncio.run(life(scripts, in_bundles=False))
    bundled, sizes = asyncio.run(life(scripts, in_bundles=True))
    assert bundled == single
    assert sizes[0] == len(scripts)


class _SinglesOnly:
    """A transport that takes no bundle; its answers are the same."""

    def __init__(self, taking: BundlingTransport) -> None:
        self.send = taking.send
        self.close = taking.close


async def life(scripts: list[list[Outcome]], *, in_bundles: bool) -> tuple[dict[str, Any], list[int]]:
    """What is stored once messages with these outcomes have ended, the first one a success that states the slots."""
    world = await World.opened(in_bundles=True)
    taking = cast("BundlingTransport", world.transport)
    if not in_bundles:
        world.transport = _SinglesOnly(taking)
        await world.crash()
    remaining: dict[str, list[Outcome]] = {}

    def answer(request: DeliveryRequest) -> Outcome:
        script = remaining.get(dict(request.headers)["Upstash-Message-Id"])
        return script.pop(0) if script else DONE

    world.answer = answer
    await world.publish()
    remaining.update((f"msg_{number}", list(script)) for number, script in enumerate(scripts, 1))
    await world.publish(len(scripts), options=OPTIONS)
    await world.pass_time(120_000)
    stored = await _stored(world)
    await world.close()
    return stored, taking.sizes


async def _stored(world: World) -> dict[str, Any]:
    page = await world.store.read(queries.log, ACCOUNT, LogCriteria(oldest_first=True), cursor=None, count=10_000)
    logs: dict[str, list[Any]] = defaultdict(list)
    callbacks: list[Any] = []
    for entry in page.items:
        if entry.message.id.startswith("msg_") and entry.message.url.endswith("/add"):
            logs[entry.message.id].append((str(entry.state), entry.error, entry.response, entry.time_ms))
        else:
            callbacks.append((entry.message.url, _without_ids(entry.message.body), str(entry.state)))
    rows = await world.store.write(
        lambda db: db.execute(
            "SELECT id, stage, retried, cuts FROM messages WHERE url LIKE '%/add' ORDER BY id"
        ).fetchall()
    )
    dead = [(letter.message.id, letter.error, letter.response) for letter in await world.dead()]
    return {"logs": dict(logs), "callbacks": sorted(callbacks), "rows": rows, "dead": sorted(dead, key=str)}


def _without_ids(body: bytes) -> str:
    report = json.loads(body)
    return json.dumps({name: value for name, value in report.items() if name != "dlqId"}, sort_keys=True)
