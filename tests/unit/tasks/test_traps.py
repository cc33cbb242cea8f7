"""Traps that other libraries of this kind have fallen into, and that no other test of ours stands beside."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import Depends, FastAPI

from qtasks import QTasks, TaskEvent
from qtasks.tasks.task import Task
from tests.support.tasks import BASE_URL, RecordingBroker, application, deliver, signature
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio

RESPELLED: dict[str, Callable[[bytes], bytes]] = {
    "without spaces": lambda body: json.dumps(json.loads(body), separators=(",", ":")).encode(),
    "with spaces": lambda body: json.dumps(json.loads(body)).encode(),
    "in another order": lambda body: json.dumps(json.loads(body), sort_keys=True).encode(),
    "without escapes": lambda body: json.dumps(json.loads(body), ensure_ascii=False).encode(),
    "with a line behind it": lambda body: body + b"\n",
}
ODD = rb'{ "v":1,"kwargs": {},"id" :"call_1",  "args":["gr\u00fc\u00dfe \/ 1.0", 1.0, 1e2],"retries":3}'
"""A form that no JSON library writes."""


@pytest.mark.parametrize("dependencies", [False, True], ids=["short way", "through FastAPI"])
async def test_the_body_is_verified_as_it_came_and_not_re_encoded(dependencies: bool) -> None:
    tasks = application()
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    ran: list[object] = []

    def work(text: str, *numbers: float, db: str = Depends(lambda: "db") if dependencies else "db") -> str:
        ran.append(numbers)
        return text

    tasks.task(work)
    for respelled in RESPELLED.values():
        # What means the same is not the same: its signature is for other bytes.
        other = respelled(ODD)
        assert json.loads(other) == json.loads(ODD)
        refused = await deliver(app, "work", other, signed=signature(f"{BASE_URL}/work", ODD))
        assert refused.status == 401
    assert ran == []
    taken = await deliver(app, "work", ODD)
    assert (taken.status, taken.json) == (200, "grüße / 1.0")


async def test_a_coroutine_that_a_hook_returns_is_run_and_not_dropped(broker: ManualBroker) -> None:
    told: list[str] = []

    @broker.tasks.task
    def work() -> None: ...

    async def tell(event: TaskEvent) -> None:
        told.append(event.context.task)

    work.on_success(lambda event: tell(event))
    work.delay()
    await broker.deliver()
    assert told == ["work"]


def answered(answer: Any) -> Task[..., Any]:
    """A task on a broker that gives this answer to everything."""
    embedded = RecordingBroker(base_url=BASE_URL)
    embedded.transport.answer = answer
    tasks = QTasks(embedded=embedded)

    @tasks.task
    def work(n: int = 0) -> None: ...

    return work


@pytest.mark.parametrize("way", ["publish", "enqueue", "batch"])
def test_a_call_that_had_to_be_sent_again_is_no_call_that_was_made_before(way: str) -> None:
    """The answer to the first attempt was lost; the id that keeps the second from making another call is ours."""
    answer: dict[str, Any] = {"messageId": "msg_first", "deduplicated": True}
    work = answered([answer] if way == "batch" else answer)
    if way == "batch":
        (result,) = work.map([1])
    else:
        result = (work.using(queue="mails") if way == "enqueue" else work).delay()
    assert result.message_id == "msg_first"
    assert not result.deduplicated
    assert result.id.startswith("call_")


def test_a_call_that_was_not_made_because_of_an_earlier_one_is_not_passed_over_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "qtasks")
    result = answered({"messageId": "msg_first", "deduplicated": True}).using(deduplication_id="today").delay()
    assert result.deduplicated
    (entry,) = caplog.records
    assert entry.getMessage() == "work was not sent: message msg_first takes its place"
