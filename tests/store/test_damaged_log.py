"""A write-ahead log that is damaged in the middle is noticed at the start; the torn end of a power cut is not."""

from __future__ import annotations

import itertools
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qtasks.broker.store.integrity.wal_check import find_damage, read_frames
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.errors import StoreError
from tests.support.broker import START_MS, VirtualClock, publication
from tests.support.logs import FRAME, HEADER, commit_ends, flip, killed, log_of, stored_messages, tape
from tests.support.power import Acknowledged, Sync, Write

pytestmark = pytest.mark.anyio


async def test_a_flipped_bit_in_the_log_ends_the_start_and_says_how_many_since_when(tmp_path: Path) -> None:
    path = killed(tmp_path / "store.db", commits=40)
    ends = commit_ends(path)
    damaged = ends[19] + 1  # the first frame of the 21st commit
    flip(log_of(path), 8 * (HEADER + (damaged - 1) * FRAME + 2000))
    before = log_of(path).read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError, match="write-ahead log is damaged") as refused:
            await SqliteStore.open(str(path), VirtualClock())
        lost = len(ends) - 20
        assert f"{lost} commits made after 2027-01-15 08:00:19 UTC cannot be read" in refused.value.message
        assert "with at least 20 accepted messages" in refused.value.message
    assert log_of(path).read_bytes() == before, "nothing was changed, so nothing more was lost"
    assert len(stored_messages(path)) == 20, "SQLite would have dropped the rest in silence"


async def test_the_log_of_a_killed_broker_is_sound_and_read_to_its_end(tmp_path: Path) -> None:
    path = killed(tmp_path / "store.db", commits=40, round_pages=60)
    assert find_damage(str(path)) is None
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    await store.close()
    assert len(stored_messages(path)) == 40


def undetected_flips(path: Path, flips: int) -> list[str]:
    """Flip `flips` random bits of the log, one at a time, before its last commit; those that are not noticed."""
    last_but_one = commit_ends(path)[-2]
    size = HEADER + last_but_one * FRAME
    content = log_of(path).read_bytes()
    chance = random.Random(flips)
    undetected: list[str] = []
    for _ in range(flips):
        bit = chance.randrange(8 * size)
        flip(log_of(path), bit)
        if find_damage(str(path)) is None:
            frame, offset = divmod(bit // 8 - HEADER, FRAME)
            undetected.append(f"frame {frame + 1} of {last_but_one}, byte {offset}")
        log_of(path).write_bytes(content)
    return undetected


def test_every_flipped_bit_before_the_last_commit_is_noticed(tmp_path: Path) -> None:
    assert undetected_flips(killed(tmp_path / "store.db", commits=12), 60) == []


@pytest.mark.release
def test_every_one_of_thousands_of_flipped_bits_is_noticed(tmp_path: Path) -> None:
    assert undetected_flips(killed(tmp_path / "store.db", commits=60, round_pages=40), 5_000) == []


def called_damage(folder: Path, *, tapes: int, cuts: int) -> int:
    """Cut the power of a store, start it again, cut it again: how many of the logs are called damaged."""
    wrong = 0
    for seed in range(tapes):
        first = folder / f"{seed}"
        first.mkdir()
        taped = tape(first / "store.db", seed=seed, transactions=25)
        chance = random.Random(seed)
        for cut in range(cuts):
            path, _ = taped.cut(chance.randrange(len(taped.steps)), first / f"{cut}", chance)
            wrong += find_damage(str(path)) is not None
            if cut % 5 == 0 and path.exists():
                wrong += _after_another_cut(path, seed=1000 + cut, cuts=4)
            shutil.rmtree(path.parent)
    return wrong


def _after_another_cut(path: Path, *, seed: int, cuts: int) -> int:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    again = tape(path, seed=seed, transactions=3)
    again.steps[:0] = [step for name, data in before.items() for step in (Write(name, 0, data), Sync(name))]
    for place, step in enumerate(again.steps):
        if not isinstance(step, Acknowledged):
            again.steps[place] = replace(step, file=Path(step.file).name)
    chance = random.Random(seed)
    wrong = 0
    for cut in range(cuts):
        restarted, _ = again.cut(chance.randrange(2 * len(before), len(again.steps)), path.parent / f"{cut}", chance)
        wrong += find_damage(str(restarted)) is not None
    return wrong


def test_no_power_cut_is_called_damage(tmp_path: Path) -> None:
    assert called_damage(tmp_path, tapes=3, cuts=30) == 0


@pytest.mark.release
def test_none_of_thousands_of_power_cuts_is_called_damage(tmp_path: Path) -> None:
    assert called_damage(tmp_path, tapes=100, cuts=100) == 0


async def test_what_a_power_cut_has_torn_is_not_called_damage_after_the_next_power_cut(tmp_path: Path) -> None:
    path = killed(tmp_path / "store.db", commits=10, last=30)
    flip(log_of(path), 8 * (HEADER + commit_ends(path)[-2] * FRAME + 2000))  # the first frame of the last commit
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    await store.accept([publication(100)], now_ms=START_MS)
    after = tmp_path / "after.db"
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{after}{suffix}")
    await store.close()
    sound = itertools.takewhile(lambda frame: frame.is_sound, read_frames(str(after)))
    *_, before, _ = [frame.number for frame in sound if frame.ends_commit]
    flip(log_of(after), 8 * (HEADER + before * FRAME + 2000))
    assert find_damage(str(after)) is None


def test_a_damaged_header_of_the_log_is_noticed(tmp_path: Path) -> None:
    path = killed(tmp_path / "store.db", commits=5)
    for byte in range(HEADER):
        flip(log_of(path), 8 * byte + byte % 8)
        assert find_damage(str(path)) is not None, byte
        flip(log_of(path), 8 * byte + byte % 8)
    assert find_damage(str(path)) is None
