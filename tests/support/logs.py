"""Write-ahead logs as a killed broker leaves them, sound and damaged."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import apsw

from qtasks.broker.core.rules import Evaluation, Trigger
from qtasks.broker.core.values import Rooms, Settlement
from qtasks.broker.store.connection import connect
from qtasks.broker.store.integrity.wal_check import empty_log
from qtasks.broker.store.verbs.accept import accept
from qtasks.broker.store.verbs.claim import claim
from qtasks.broker.store.verbs.settle import settle
from qtasks.protocol.messages import Response
from tests.support.broker import START_MS, publication
from tests.support.power import Tape, TapingVFS

HEADER = 32
FRAME = 24 + 4096


def killed(path: Path, *, commits: int, round_pages: int = 1_000_000, last: int = 1) -> Path:
    """Files of a broker that was killed after `commits` commits, one accepted message each; at `path` and beside it.

    The log begins a new round when it has `round_pages` pages. The last commit accepts `last` messages.
    """
    db = connect(str(path.with_suffix(".live")))
    empty_log(db)
    db.execute(f"PRAGMA wal_autocheckpoint = {round_pages}")
    chance = random.Random(commits)
    for number in range(commits):
        db.execute("BEGIN IMMEDIATE")
        now_ms = START_MS + 1000 * number
        count = last if number == commits - 1 else 1
        bodies = [chance.randbytes(chance.randrange(9000)) for _ in range(count)]
        accept(db, [publication(number + n, body=body) for n, body in enumerate(bodies)], now_ms=now_ms)
        if number % 3 == 2:
            for claimed in claim(db, now_ms=now_ms, limit=2, rooms=Rooms(100)).claims:
                settle(db, Settlement(claimed, Response(status=200), Evaluation(Trigger.SUCCEED)), now_ms=now_ms)
        db.execute("COMMIT")
    for suffix in ("", "-wal"):
        shutil.copy(f"{path.with_suffix('.live')}{suffix}", f"{path}{suffix}")
    db.close()
    return path


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def commit_ends(path: Path) -> list[int]:
    """The numbers of the last frames of the commits in the log, from 1."""
    content = log_of(path).read_bytes()
    salts = content[16:24]
    starts = range(HEADER, len(content) - FRAME + 1, FRAME)
    return [
        number
        for number, start in enumerate(starts, 1)
        if content[start + 8 : start + 16] == salts and content[start + 4 : start + 8] != bytes(4)
    ]


def flip(file: Path, bit: int) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def stored_messages(path: Path) -> set[str]:
    """The ids of the messages that SQLite finds in the database."""
    db = apsw.Connection(str(path))
    found = {message_id for (message_id,) in db.execute("SELECT id FROM messages")}
    db.close()
    return found


def tape(path: Path, *, seed: int, transactions: int) -> Tape:
    """What a store with a cache of ten pages writes to the disk: it writes pages before a commit, and some before a
    rollback. It begins as a start of the broker does."""
    taped = Tape()
    vfs = TapingVFS(taped)
    db = connect(str(path), vfs=vfs.name)
    try:
        empty_log(db)
        db.execute("PRAGMA wal_autocheckpoint = 60")
        db.execute("PRAGMA cache_size = 10")
        chance = random.Random(seed)
        for number in range(transactions):
            group = [
                publication(1000 * seed + 30 * number + n, body=chance.randbytes(chance.choice((50, 3000, 9000))))
                for n in range(chance.choice((1, 1, 2, 12)))
            ]
            db.execute("BEGIN IMMEDIATE")
            accept(db, group, now_ms=START_MS)
            db.execute("ROLLBACK" if chance.random() < 0.3 else "COMMIT")
    finally:
        db.close()
        vfs.unregister()
    return taped
