"""Repair of a database: what a damaged page took, and only that, is lost; and what is lost has a name."""

from __future__ import annotations

import random
import shutil
import tarfile
from pathlib import Path

import apsw
import pytest

from qtasks.broker.core.values import DeadLetterCriteria, Rooms
from qtasks.broker.store.connection import connect
from qtasks.broker.store.integrity.repair import repair
from qtasks.broker.store.integrity.wal_check import find_damage
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs.reads import queries
from tests.support.broker import ACCOUNT, START_MS, VirtualClock, publication
from tests.support.logs import FRAME, HEADER, killed, log_of, stored_messages
from tests.support.pages import FLIPS, PAGE, busy, damage_page, pages_of

RELEASED = Path(__file__).with_name("released")


@pytest.mark.parametrize("release", ["schema_2", "schema_3"])
@pytest.mark.parametrize("page", [None, 1], ids=["one index is damaged", "the schema is damaged"])
def test_a_database_of_an_earlier_release_keeps_all_its_messages(
    tmp_path: Path, release: str, page: int | None
) -> None:
    with tarfile.open(RELEASED / f"{release}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    path = tmp_path / "old.db"
    before = stored_messages(path)  # and moves the log into the database
    damage_page(path, page or pages_of(path, "messages_claimable")[0])
    done = repair(str(path), ".damaged", now_ms=START_MS)
    assert stored_messages(path) == before
    assert done.damaged == []


@pytest.mark.parametrize("table", ["messages", "stored_bodies", "log", "dead_letters", "tokens", "messages_by_id"])
def test_each_table_is_saved_but_for_its_damaged_page(tmp_path: Path, table: str) -> None:
    path = tmp_path / "store.db"
    busy(path)
    before, counts = stored_messages(path), rows_by_table(path)
    damage_page(path, pages_of(path, table)[-1])
    done = repair(str(path), ".damaged", now_ms=START_MS)
    assert done.salvage.unreadable.get(table) == 1
    assert stored_messages(path) | done.salvage.lost_messages.keys() == before
    assert bool(done.salvage.lost_messages) == (table == "messages")
    assert bool(done.damaged) == (table == "stored_bodies")
    db = apsw.Connection(str(path))
    assert db.execute("PRAGMA integrity_check").get == "ok"
    letters = "SELECT count(*) FROM messages WHERE stage = 12 AND seq NOT IN (SELECT seq FROM dead_letters)"
    assert db.execute(letters).get == 0
    db.close()
    less = {name for name, count in rows_by_table(path).items() if count < counts[name]}
    of_messages = {"labels", "log", "stored_bodies", "dead_letters"} if table == "messages" else set()
    assert less <= {table} | of_messages


@pytest.mark.parametrize("release", [None, "schema_3"], ids=["of this version", "written before there were times"])
def test_entries_of_the_log_are_known_by_their_shape(tmp_path: Path, release: str | None) -> None:
    path = tmp_path / "old.db"
    if release is None:
        busy(path)
    else:
        with tarfile.open(RELEASED / f"{release}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        old = apsw.Connection(str(path))
        for _ in range(5):  # more than one page
            old.execute("INSERT INTO log (seq, account, time_ms, state) SELECT seq, account, time_ms, state FROM log")
        old.close()
    db = connect(str(path))
    if release is None:
        db.execute("UPDATE log SET connect_ms = 1, first_byte_ms = n, bundled = 3 WHERE state = 'DELIVERED'")
    entries = "SELECT n, state, connect_ms, first_byte_ms, body_ms, bundled FROM log ORDER BY n"
    before = db.execute(entries).fetchall()
    db.close()
    damage_page(path, pages_of(path, "log")[0])  # the root: no page refers to the entries any more
    repair(str(path), ".damaged", now_ms=START_MS)
    db = apsw.Connection(str(path))
    assert db.execute(entries).fetchall() == before
    db.close()


@pytest.mark.anyio
async def test_messages_that_share_a_lost_body_are_all_named_and_the_others_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    lost, kept = b"x" * 20_000, b"y" * 20_000
    await store.accept([publication(n, body=kept) for n in (1, 2)], now_ms=START_MS)
    await store.accept([publication(n, body=lost) for n in (3, 4, 5)], now_ms=START_MS)
    await store.close()
    damage_page(path, pages_of(path, "shared_bodies")[-1])
    done = repair(str(path), ".damaged", now_ms=START_MS)
    assert sorted(done.damaged) == ["msg_3", "msg_4", "msg_5"]
    again, _ = await SqliteStore.open(str(path), VirtualClock())
    batch = await again.claim(now_ms=START_MS, limit=64, rooms=Rooms(64))
    assert [(claim.message.id, claim.message.body) for claim in batch.claims] == [("msg_1", kept), ("msg_2", kept)]
    page = await again.read(queries.dead_letters, ACCOUNT, DeadLetterCriteria(), cursor=None, count=9)
    assert [letter.message.id for letter in page.items] == ["msg_3", "msg_4", "msg_5"]
    await again.close()


def lost_without_a_name(folder: Path, trials: int) -> list[str]:
    """Damage one frame of a killed broker's log in each trial; the messages that a repair neither saves nor names."""
    origin = killed(folder / "origin.db", commits=40)
    log, before = log_of(origin).read_bytes(), {f"msg_{number}" for number in range(40)}
    chance = random.Random(trials)
    lost: list[str] = []
    for number in range(trials):
        path = folder / f"{number}" / "store.db"
        path.parent.mkdir()
        shutil.copy(origin, path)
        frame, flip = chance.randrange((len(log) - HEADER) // FRAME), chance.choice(FLIPS)
        start = HEADER + frame * FRAME + FRAME - PAGE
        page = bytearray(log[start : start + PAGE])
        flip(page, chance)
        log_of(path).write_bytes(log[:start] + page + log[start + PAGE :])
        if find_damage(str(path)) is not None:
            done = repair(str(path), ".damaged", now_ms=START_MS)
            unnamed = before - stored_messages(path) - done.salvage.lost_messages.keys()
            lost += [f"{flip.__name__} of frame {frame}: {message_id}" for message_id in sorted(unnamed)]
        shutil.rmtree(path.parent)
    return lost


def test_a_damaged_frame_of_the_log_costs_no_message_without_a_name(tmp_path: Path) -> None:
    assert lost_without_a_name(tmp_path, 6) == []


@pytest.mark.release
def test_none_of_hundreds_of_damaged_frames_costs_a_message_without_a_name(tmp_path: Path) -> None:
    assert lost_without_a_name(tmp_path, 200) == []


def rows_by_table(path: Path) -> dict[str, int]:
    db = apsw.Connection(str(path))
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    counts = {name: int(db.execute(f"SELECT count(*) FROM {name}").get) for name in names}
    db.close()
    return counts


def test_the_damaged_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    busy(path)
    damage_page(path, pages_of(path, "log")[0])
    damaged = path.read_bytes()
    done = repair(str(path), ".damaged", now_ms=START_MS)
    assert done.kept.read_bytes() == damaged
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) % PAGE == 0
    assert {file.name for file in tmp_path.iterdir()} == {"store.db", "store.db.damaged"}
