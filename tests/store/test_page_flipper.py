"""Any damage of any page: nothing altered is delivered, nothing is lost without a name, and `/readyz` is honest."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qtasks.broker.broker import Broker
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.store.connection import connect
from qtasks.broker.store.integrity import page_check
from qtasks.broker.store.integrity.repair import repair
from qtasks.errors import StoreError
from qtasks.protocol.messages import Message
from tests.support.broker import START_MS, ScriptedTransport, VirtualClock, publication
from tests.support.pages import FLIPS, PAGE, Flip, busy, flip_page

pytestmark = pytest.mark.anyio
HOUR_MS = 3_600_000


@dataclass
class Trial:
    """A database with one damaged page, and what a broker makes of it."""

    path: Path
    waiting: dict[str, Message]
    name: str
    sent: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    """What a repair says is lost."""
    wrong: list[str] = field(default_factory=list)
    """What broke a promise."""

    async def run(self) -> None:
        """Start a broker and let it deliver. If it refuses or ends, repair the database and start it again."""
        refused = await self._deliver()
        if refused is None:
            return
        if "is damaged" not in refused or "qtasks broker" not in refused:
            self.wrong.append(f"ended without what to do: {refused}")
        done = repair(str(self.path), ".damaged", now_ms=START_MS)
        self.named |= {*done.salvage.lost_messages, *done.salvage.lost_bodies}
        after = await self._deliver()
        if after is not None:
            self.wrong.append(f"the repaired database is damaged: {after}")

    async def _deliver(self) -> str | None:
        """Deliver all that is due; the sentence with which the broker refused or ended, or None."""
        clock, transport = VirtualClock(START_MS + 2 * HOUR_MS), ScriptedTransport()
        settings = BrokerSettings(path=str(self.path), credentials=(AccountCredentials("default"),), drain_s=0.0)
        try:
            broker = await Broker.open(settings, clock=clock, transport=transport)
        except StoreError as error:
            return str(error)
        work = asyncio.create_task(_deliver_and_check(broker))
        broken = asyncio.create_task(broker.store.broken.wait())
        await asyncio.wait({work, broken}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, broken):  # an attempt whose end cannot be recorded would try for ever
            task.cancel()
        await asyncio.gather(work, broken, return_exceptions=True)
        for request in transport.sent:
            message_id = dict(request.headers)["Upstash-Message-Id"]
            self.sent.add(message_id)
            expected = self.waiting.get(message_id)
            if expected is None or (request.url, request.method, request.body) != (
                expected.url,
                expected.method,
                expected.body,
            ):
                self.wrong.append(f"altered: {message_id}")
        failure = broker.store.failure
        if (await broker.ready()).status != (200 if failure is None else 503):
            self.wrong.append("/readyz does not say how it is")
        if failure is None:
            if missing := self.waiting.keys() - self.sent - self.named - self.dead():
                self.wrong.append(f"neither delivered nor named by a broker that is ready: {sorted(missing)}")
        else:
            with pytest.raises(StoreError):
                await broker.store.accept([publication(999)], now_ms=START_MS)
        await broker.stop()
        return failure

    def dead(self) -> set[str]:
        """The messages that were set aside."""
        db = connect(str(self.path))
        found = {row[0] for row in db.execute("SELECT id FROM messages JOIN dead_letters USING (seq)")}
        db.close()
        return found


async def _deliver_and_check(broker: Broker) -> None:
    """As the loops of a broker do, each for itself."""
    await asyncio.gather(broker.deliverer.run_once(), return_exceptions=True)
    await asyncio.gather(broker.scrubber.run_once(), return_exceptions=True)
    await asyncio.gather(broker.deliverer.run_once(), return_exceptions=True)
    await broker.page_checker.run_once()


async def broken_promises(folder: Path, trials: list[tuple[int, Flip]], seed: int) -> list[str]:
    """Damage one page in each trial; what was wrong."""
    waiting = busy(folder / "origin.db")
    content = (folder / "origin.db").read_bytes()
    wrong: list[str] = []
    for number, (page, flip) in enumerate(trials):
        page = 1 + page % (len(content) // PAGE)
        path = folder / f"{number}.db"
        path.write_bytes(flip_page(content, page, flip, random.Random(seed + number)))
        trial = Trial(path, waiting, f"page {page}, {flip.__name__}, {number}")
        await trial.run()
        wrong += [f"{trial.name}: {what}" for what in trial.wrong]
        _remove(folder, number)
    return wrong


def _remove(folder: Path, number: int) -> None:
    for file in folder.glob(f"{number}.db*"):
        file.unlink()


@pytest.mark.parametrize("small_bytes", [0, page_check.SMALL_BYTES])
async def test_any_damage_of_a_page_keeps_every_promise(
    tmp_path: Path, small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_check, "SMALL_BYTES", small_bytes)
    chance = random.Random(small_bytes)
    assert await broken_promises(tmp_path, [(chance.randrange(1000), chance.choice(FLIPS)) for _ in range(8)], 1) == []


@pytest.mark.release
@pytest.mark.parametrize("small_bytes", [0, page_check.SMALL_BYTES])
async def test_every_damage_of_every_page_keeps_every_promise(
    tmp_path: Path, small_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_check, "SMALL_BYTES", small_bytes)
    trials = [(page, flip) for page in range(150) for flip in FLIPS]
    assert await broken_promises(tmp_path, trials, 7) == []
