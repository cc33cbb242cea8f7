"""The cost of a claim while other messages are blocked: it must not scan them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from benchmarks.bench import Bench
from benchmarks.figure import Row
from qtasks.broker.core.values import ClaimBatch, Publication, Rooms
from qtasks.broker.store.connection import connect, run_in_transaction
from qtasks.broker.store.verbs import accept, claim
from qtasks.protocol import wire
from qtasks.protocol.messages import FlowControl, Message, PublishOptions

_CLAIMED: Final = 50
_ROUNDS: Final = 20
_URL: Final = "http://127.0.0.1:8000/qtasks/noop"
_HOST: Final = wire.host_of(_URL)
_NOW_MS: Final = 1_800_000_000_000


def claiming(bench: Bench) -> Iterator[Row]:
    """A claim behind ten blocked messages and behind many, blocked by queues and by flow-control keys."""
    many = bench.sizes.waiting
    for kind in ("queues", "keys"):
        few_s = _claim_s(bench.folder / f"few-{kind}.db", kind, lines=10, waiting=10)
        bench.say(f"storing {many:,} messages that may not start, behind {many // 10:,} {kind}")
        many_s = _claim_s(bench.folder / f"many-{kind}.db", kind, lines=many // 10, waiting=many)
        yield Row(
            name=f"claim of {_CLAIMED} behind {many:,} blocked by {kind}",
            value=many_s * 1000,
            unit="ms",
            method=f"median of {_ROUNDS} claims in the store alone, commit included; {many // 10:,} {kind} of one",
            note=f"behind ten: {few_s * 1000:.2f} ms",
        )


def _claim_s(path: Path, kind: str, *, lines: int, waiting: int) -> float:
    db = connect(str(path))
    try:
        run_in_transaction(db, lambda db: _fill(db, kind, lines, waiting))
        return statistics.median(_timed(db) for _ in range(_ROUNDS))
    finally:
        db.close()


def _fill(db: apsw.Connection, kind: str, lines: int, waiting: int) -> None:
    """Every queue or key has one active message, and the others wait; other messages may start."""
    blocked = [_message(number, kind, f"line{number % lines}") for number in range(lines + waiting)]
    accept.accept(db, blocked, now_ms=_NOW_MS)
    batch = ClaimBatch(has_more=True)
    while batch.claims or batch.has_more:
        batch = claim.claim(db, now_ms=_NOW_MS, limit=500, rooms=Rooms(10**9))
    free = range(10**6, 10**6 + _CLAIMED * (_ROUNDS + 1))
    accept.accept(db, [_message(number, "", "") for number in free], now_ms=_NOW_MS + 1)


def _timed(db: apsw.Connection) -> float:
    began_s = time.perf_counter()
    batch = run_in_transaction(db, lambda db: claim.claim(db, now_ms=_NOW_MS + 1, limit=_CLAIMED, rooms=Rooms(10**9)))
    assert len(batch.claims) == _CLAIMED, "enough messages may start"
    return time.perf_counter() - began_s


def _message(number: int, kind: str, line: str) -> Publication:
    flow = FlowControl(line, parallelism=1) if kind == "keys" else None
    return Publication(
        Message(
            id=f"msg_{number}",
            account=1,
            url=_URL,
            method="POST",
            headers=(),
            body=b"{}",
            created_ms=_NOW_MS,
            not_before_ms=_NOW_MS,
            max_retries=3,
            timeout_ms=30_000,
            caller_ip="127.0.0.1",
            queue=line if kind == "queues" else None,
            options=PublishOptions(flow_control=flow),
        ),
        _HOST,
    )
