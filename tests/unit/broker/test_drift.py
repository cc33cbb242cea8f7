"""How the schedules at the broker differ from those that the code of its applications declares."""

from __future__ import annotations

from typing import Any

import pytest

from qtasks import QTasks
from qtasks.broker.console.views import drift
from qtasks.broker.ports import DeliveryRequest
from qtasks.protocol import wire
from qtasks.protocol.messages import Response
from qtasks.tasks.web.described_tasks import manifest_of
from tests.support.api import HOOK, Service
from tests.support.tasks import application
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio

BASE_URL = "http://127.0.0.1:8000/qtasks"


def reports(cron: str = "0 9 * * *", days: int = 1, *, more: bool = False) -> QTasks:
    """An application whose code declares a schedule, or two."""
    tasks = application(base_url=BASE_URL)

    @tasks.cron(cron, args=[days])
    def report(days: int) -> None: ...

    if more:

        @tasks.cron("0 3 * * *")
        def clean() -> None: ...

    return tasks


async def synced(service: Service, tasks: QTasks) -> None:
    """Make the broker have what the code declares, as a sync does."""
    for desired in tasks.schedules.check():
        lines = dict(wire.write(desired.sent(0)))
        await service.post(f"/v2/schedules/{desired.destination}", lines, desired.body)


async def states(service: Service, code: QTasks | None) -> dict[str, Any]:
    """State and text of each schedule by the name of its task, while the application `code` answers."""

    def answer(request: DeliveryRequest) -> Response:
        assert request.url == f"{BASE_URL}/_manifest"
        return Response(status=404) if code is None else Response(status=200, body=manifest_of(code.tasks, BASE_URL))

    service.transport.answer = answer
    lines = (await Console(service).see(drift.show))["schedules"]
    return {line["scheduleId"].rpartition("-")[0]: (line["state"], line["text"]) for line in lines}


async def test_what_was_synced_is_in_step(service: Service) -> None:
    await synced(service, reports())
    assert (await states(service, reports()))["report"][0] == "inStep"


async def test_another_expression_is_shown_with_both(service: Service) -> None:
    await synced(service, reports())
    state, text = (await states(service, reports("30 9 * * *")))["report"]
    assert state == "differs"
    assert "30 9 * * *" in text
    assert "0 9 * * *" in text


async def test_other_arguments_differ(service: Service) -> None:
    await synced(service, reports())
    state, text = (await states(service, reports(days=2)))["report"]
    assert state == "differs"
    assert "arguments" in text


async def test_what_is_only_in_the_code_is_not_synced(service: Service) -> None:
    await synced(service, reports())
    assert (await states(service, reports(more=True)))["clean"][0] == "notSynced"


async def test_what_the_code_does_not_declare_any_more_is_left_over(service: Service) -> None:
    await synced(service, reports(more=True))
    seen = await states(service, reports())
    assert (seen["clean"][0], seen["report"][0]) == ("leftOver", "inStep")


async def test_an_application_that_does_not_answer_says_nothing_of_its_schedules(service: Service) -> None:
    await synced(service, reports())
    state, text = (await states(service, None))["report"]
    assert state == "noAnswer"
    assert "no dispatcher serves this prefix" in text


async def test_a_schedule_that_a_person_made_belongs_to_no_code(service: Service) -> None:
    await service.post(f"/v2/schedules/{HOOK}", {"Upstash-Cron": "0 9 * * *", "Upstash-Schedule-Id": "mine-1"})
    assert (await states(service, reports()))["mine"][0] == "byHand"
