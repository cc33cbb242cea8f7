"""The endpoints of the console: how each application answered last, how quick it is, and whether it takes bundles."""

from __future__ import annotations

from typing import Any

import pytest

from qtasks.broker.console.console_context import Role
from qtasks.broker.console.table_rows import HIDDEN
from qtasks.broker.console.views import endpoints
from qtasks.broker.core.slot_offers import REFUSED_FOR_S
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.settings import DEV_CREDENTIALS
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.protocol.messages import Response
from tests.support.api import Service
from tests.support.broker import START_MS
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1:8000"
PREFIX = f"http://{HOST}/qtasks/"
OF_DISPATCHER = (DISPATCHER_HEADER, "true")
REFUSED = Failure("connection_refused", f"connection refused: nothing listens on {HOST}", interrupted=True)


async def call(service: Service, task: str = "add") -> str:
    """Publish a call as the framework does, without retries."""
    lines = {"Qtasks-Interrupted-For": "1h", "Upstash-Retries": "0"}
    return str((await service.post(f"/v2/publish/{PREFIX}{task}", lines, b"{}"))["messageId"])


async def shown(service: Service, role: Role = Role.OPERATOR) -> Any:
    [endpoint] = await Console(service, role).see(endpoints.list_endpoints)
    return endpoint


async def test_before_any_answer_there_is_only_the_prefix(service: Service) -> None:
    service.answer(REFUSED)
    await call(service)
    assert await Console(service).see(endpoints.list_endpoints) == [], "the broker knows a prefix once it was used"
    await service.run()
    endpoint = await shown(service)
    assert (endpoint["prefix"], endpoint["url"], endpoint["isDispatcher"]) == (f"{HOST}/qtasks/", PREFIX, False)
    assert (endpoint["p50Ms"], endpoint["perMinute"], endpoint["bundles"]) == (None, 0, None)


async def test_the_last_answer_in_the_words_of_the_task(service: Service) -> None:
    service.answer(Response(status=200, headers=(OF_DISPATCHER,)))
    await call(service)
    await service.run()
    assert (await shown(service))["last"] == {"timeMs": START_MS, "status": None, "error": None}
    service.clock.advance(1_000)
    service.answer(Response(status=500, headers=(OF_DISPATCHER,), body=b'{"error": "ValueError: user 4711"}'))
    await call(service)
    await service.run()
    failed = {"timeMs": START_MS + 1_000, "status": 500, "error": "ValueError: user 4711"}
    assert (await shown(service))["last"] == failed
    assert (await shown(service, Role.METADATA))["last"] == {**failed, "error": HIDDEN}


async def test_a_refusal_says_why_the_messages_are_held(service: Service) -> None:
    service.answer(REFUSED)
    await call(service)
    await service.run()
    endpoint = await shown(service)
    assert endpoint["last"] == {"timeMs": START_MS, "status": None, "error": REFUSED.error}
    assert endpoint["down"]["sinceMs"] == START_MS
    assert endpoint["down"]["nextProbeMs"] > START_MS


async def test_figures_leave_the_reports_of_the_framework_out(service: Service) -> None:
    def answer(request: DeliveryRequest) -> Response:
        service.clock.advance(5_000 if request.url.endswith("_end") else 100)
        return Response(status=500 if request.url.endswith("fail") else 200, headers=(OF_DISPATCHER,))

    service.transport.answer = answer
    for task in ("add", "subtract", "fail", "_end"):
        await call(service, task)
        await service.run()
    endpoint = await shown(service)
    assert (endpoint["delivered"], endpoint["failed"], endpoint["retried"]) == (2, 1, 0)
    assert endpoint["p50Ms"] == pytest.approx(100, rel=0.1)
    assert endpoint["p95Ms"] == pytest.approx(100, rel=0.1)
    assert endpoint["perMinute"] == pytest.approx(0.4, abs=0.1)
    service.clock.advance(2 * 3_600_000)
    later = await shown(service)
    assert (later["delivered"], later["p50Ms"], later["perMinute"]) == (0, None, 0)
    assert later["last"]["error"] is None, "it stays known"


async def test_bundles_are_what_the_dispatcher_said_last(service: Service) -> None:
    seen = []
    for slots in ((), (("Qtasks-Slots", "7"),)):
        service.answer(Response(status=200, headers=(OF_DISPATCHER, *slots)))
        await call(service)
        await service.run()
        seen.append((await shown(service))["bundles"])
    assert seen == [{"slots": None, "refusedUntilMs": None}, {"slots": 7, "refusedUntilMs": None}]
    service.broker.deliverer._limits.refuse_bundles(f"{HOST}/qtasks/")
    until_ms = START_MS + round(REFUSED_FOR_S * 1000)
    assert (await shown(service))["bundles"] == {"slots": 7, "refusedUntilMs": until_ms}


async def test_accounts_see_their_own_answers_only() -> None:
    service = await Service.open(credentials=DEV_CREDENTIALS)
    service.answer(Response(status=500, headers=(OF_DISPATCHER,), body=b'{"error": "of the first"}'))
    await call(service)
    await service.run()
    service.user = 1
    assert await Console(service).see(endpoints.list_endpoints) == []
    service.answer(Response(status=200, headers=(OF_DISPATCHER,)))
    await call(service)
    await service.run()
    other = await shown(service)
    assert (other["last"]["error"], other["delivered"], other["failed"]) == (None, 1, 0)
    service.user = 0
    assert (await shown(service))["last"]["error"] == "of the first"
    await service.close()
