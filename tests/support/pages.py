"""Databases with damaged pages."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import apsw

from qtasks.broker.core.rules import Evaluation, Trigger
from qtasks.broker.core.values import AccountCredentials, Rooms, Settlement
from qtasks.broker.store.connection import connect
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import accounts
from qtasks.broker.store.verbs.accept import accept
from qtasks.broker.store.verbs.claim import claim
from qtasks.broker.store.verbs.settle import settle
from qtasks.protocol.messages import FlowControl, Message, PublishOptions, Response, SigningKeys
from tests.support.broker import ACCOUNT, START_MS, VirtualClock, publication

PAGE = 4096


async def stored(path: Path, count: int) -> Path:
    """A database at rest with `count` waiting messages; every body fills most of a page."""
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    await store.accept([publication(n, body=bytes([n % 251]) * 3000) for n in range(count)], now_ms=START_MS)
    await store.close()
    return path


def pages_of(path: Path, table: str) -> list[int]:
    """The numbers of the pages of a table or index, counted from 1."""
    db = apsw.Connection(str(path))
    numbers = [page for (page,) in db.execute("SELECT pageno FROM dbstat WHERE name = ? ORDER BY pageno", (table,))]
    db.close()
    return numbers


def damage_page(path: Path, page: int) -> None:
    """Fill the page with bytes that mean nothing to SQLite."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xa5" * PAGE)


def busy(path: Path) -> dict[str, Message]:
    """A database at rest with messages in all stages; those that have not ended, by id. All are due within an hour."""
    db = connect(str(path))
    db.execute("BEGIN")
    account = accounts.ensure_account(
        db, AccountCredentials("default"), SigningKeys("sig_" + "c" * 28, "sig_" + "n" * 28)
    )
    assert account == ACCOUNT
    accounts.add_token(db, "secret", account, "first", read_only=False, now_ms=START_MS)
    chance = random.Random(1)
    waiting: dict[str, Message] = {}
    for number in range(72):
        kind = number % 6
        key = FlowControl(f"key-{number % 2}", parallelism=1)
        options = PublishOptions(labels=("a label",), flow_control=key if kind == 3 else None)
        changes = {
            "options": options,
            "queue": f"queue-{number % 2}" if kind == 2 else None,
            "not_before_ms": START_MS + 60_000 * number if kind == 4 else START_MS,
            "body": chance.randbytes(chance.choice((20, 900, 9000))),
        }
        one = publication(number, deduplication_key=f"d{number}", **changes)
        accept(db, [one], now_ms=START_MS)
        waiting[one.message.id] = one.message
    for claimed in claim(db, now_ms=START_MS, limit=24, rooms=Rooms(100)).claims:
        if claimed.seq % 3 == 0:
            continue  # it is being sent
        sent_well = claimed.seq % 3 == 1
        answer = Response(status=200 if sent_well else 500, body=b"an answer" * 50)
        evaluation = Evaluation(Trigger.SUCCEED) if sent_well else Evaluation(Trigger.FAIL, "it answered 500")
        settle(db, Settlement(claimed, answer, evaluation), now_ms=START_MS)
        del waiting[claimed.message.id]
    db.execute("COMMIT")
    db.close()
    return waiting


Flip = Callable[[bytearray, random.Random], None]


def _bit(page: bytearray, chance: random.Random) -> None:
    page[chance.randrange(PAGE)] ^= 1 << chance.randrange(8)


def _byte(page: bytearray, chance: random.Random) -> None:
    page[chance.randrange(PAGE)] ^= chance.randrange(1, 256)


def _zeros(page: bytearray, chance: random.Random) -> None:
    page[:] = bytes(PAGE)


def _sector(page: bytearray, chance: random.Random) -> None:
    start = 512 * chance.randrange(8)
    page[start : start + 512] = bytes(512)


def _garbage(page: bytearray, chance: random.Random) -> None:
    page[:] = chance.randbytes(PAGE)


FLIPS: tuple[Flip, ...] = (_bit, _byte, _sector, _zeros, _garbage)


def flip_page(content: bytes, page: int, flip: Flip, chance: random.Random) -> bytes:
    """The content of a database whose page `page`, from 1, is damaged by `flip`."""
    damaged = bytearray(content[(page - 1) * PAGE : page * PAGE])
    flip(damaged, chance)
    return content[: (page - 1) * PAGE] + damaged + content[page * PAGE :]
