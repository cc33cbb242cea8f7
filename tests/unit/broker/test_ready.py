"""`GET /readyz`: whether the store takes writes, in a limited time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from qtasks.broker import broker as broker_module
from qtasks.broker.broker import Broker
from qtasks.broker.settings import BrokerSettings
from tests.support.broker import ScriptedTransport, VirtualClock

pytestmark = pytest.mark.anyio
PATIENCE_S = 10.0


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    opened = await Broker.open(
        BrokerSettings(path=str(tmp_path / "tasks.db")), clock=VirtualClock(), transport=ScriptedTransport()
    )
    yield opened
    await opened.stop()


async def answer(broker: Broker) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(PATIENCE_S):
        response = await broker.ready()
    return response.status, orjson.loads(response.body)


async def test_a_sound_store_is_ready(broker: Broker) -> None:
    assert (await answer(broker))[0] == 200


async def test_a_store_that_failed_says_why(broker: Broker) -> None:
    broker.store.fail("the disk is gone")
    assert await answer(broker) == (503, {"status": "not ready", "error": "the disk is gone"})


async def test_a_removed_file_is_noticed_at_once_by_the_one_who_asks(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "tasks.db").unlink()
    status, body = await answer(broker)
    assert (status, body["status"]) == (503, "not ready")
    assert body["error"].startswith("tasks.db was removed or renamed")
    assert str(tmp_path) not in body["error"], "strangers may ask"


async def test_a_disk_that_does_not_answer_is_not_ready_however_many_ask(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Awaitable[Any]] = broker.store.write
    gate, writes = asyncio.Event(), 0

    async def hanging(*arguments: Any, **named: Any) -> Any:
        nonlocal writes
        writes += 1
        await gate.wait()
        return await real(*arguments, **named)

    monkeypatch.setattr(broker.store, "write", hanging)
    monkeypatch.setattr(broker_module, "READY_S", 0.02)
    answers = await asyncio.gather(*(answer(broker) for _ in range(20)))
    assert {status for status, _ in answers} == {503}
    assert "has not answered for 0.02 s" in answers[0][1]["error"]
    assert writes == 1
    gate.set()
    monkeypatch.setattr(broker_module, "READY_S", PATIENCE_S)
    assert (await answer(broker))[0] == 200
