"""Accepted means stored: a power cut a moment after the answer loses nothing."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest

from qtasks.broker.core.rules import Evaluation, Trigger
from qtasks.broker.core.values import Rooms, Settlement
from qtasks.broker.store.connection import connect
from qtasks.broker.store.integrity.wal_check import find_damage
from qtasks.broker.store.verbs.accept import accept
from qtasks.broker.store.verbs.claim import claim
from qtasks.broker.store.verbs.settle import settle
from qtasks.protocol.messages import Response
from tests.support.broker import START_MS, publication
from tests.support.power import Acknowledged, Tape, TapingVFS

NOW = START_MS


def record(folder: Path, *, synchronous: str | None = None, rounds: int = 40) -> Tape:
    """Tape a store at work: accepts, claims and settles in groups; each answer that leaves is an acknowledgement."""
    tape = Tape()
    vfs = TapingVFS(tape)
    db = connect(str(folder / "store.db"), vfs=vfs.name)
    try:
        if synchronous is not None:
            db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute("PRAGMA wal_autocheckpoint = 20")
        chance = random.Random(7)
        number = 0
        for _ in range(rounds):
            group = [publication(number + n, body=chance.randbytes(chance.randrange(2000))) for n in range(3)]
            number += len(group)
            db.execute("BEGIN IMMEDIATE")
            accepted = accept(db, group, now_ms=NOW)
            found = claim(db, now_ms=NOW, limit=2, rooms=Rooms(100))
            for claimed in found.claims:
                settle(db, Settlement(claimed, Response(status=200), Evaluation(Trigger.SUCCEED)), now_ms=NOW)
            db.execute("COMMIT")
            for one in accepted:
                tape.acknowledge(f"accepted {one.message_id}")
            for claimed in found.claims:
                tape.acknowledge(f"delivered {claimed.message.id}")
    finally:
        db.close()
        vfs.unregister()
    return tape


def lost_after_cuts(tape: Tape, folder: Path, cuts: int) -> list[str]:
    """Cut the power `cuts` times at random; every promise that the restarted store does not keep."""
    chance = random.Random(cuts)
    start = next(place for place, step in enumerate(tape.steps) if isinstance(step, Acknowledged))
    lost: list[str] = []
    for number in range(cuts):
        path, promised = tape.cut(chance.randrange(start, len(tape.steps)), folder / str(number), chance)
        if number % 8 == 0 and find_damage(str(path)) is not None:
            lost.append(f"the torn end of cut {number} is called damage, so the start would refuse")
        db = connect(str(path))
        assert db.execute("PRAGMA quick_check").get == "ok"
        stored = {f"accepted {row[0]}" for row in db.execute("SELECT id FROM messages JOIN bodies USING (seq)")}
        done = {f"delivered {row[0]}" for row in db.execute("SELECT id FROM messages WHERE stage = 10")}
        db.close()
        lost += sorted(set(promised) - stored - done)
        for file in path.parent.iterdir():
            file.unlink()
    return lost


def test_nothing_acknowledged_is_lost_in_a_power_cut(tmp_path: Path) -> None:
    assert lost_after_cuts(record(tmp_path), tmp_path, 1_000) == []


def test_the_proof_sees_a_missing_sync(tmp_path: Path) -> None:
    assert lost_after_cuts(record(tmp_path, synchronous="NORMAL"), tmp_path, 40) != []


@pytest.mark.release
def test_nothing_acknowledged_is_lost_in_ten_thousand_power_cuts(tmp_path: Path) -> None:
    assert lost_after_cuts(record(tmp_path, rounds=200), tmp_path, 10_000) == []


def test_the_writer_syncs_every_commit_on_a_write_ahead_log(tmp_path: Path) -> None:
    db = connect(str(tmp_path / "store.db"))
    assert db.pragma("journal_mode") == "wal"
    assert db.pragma("synchronous") == 2
    assert apsw.sqlite_lib_version() >= "3.51.3"
    db.close()
