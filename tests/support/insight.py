"""The tables behind the console, and what they must say, recomputed from the log in the simplest way."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import apsw

from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.store.verbs import accounts
from qtasks.broker.store.verbs.insight import index
from qtasks.protocol.messages import SigningKeys

TABLES = (
    "insight_messages",
    "insight_spans",
    "insight_failure_messages",
    "insight_failure_spans",
    "insight_answers",
    "insight_searchable",
)
OPEN = {"scheduled": 1, "waiting": 2, "running": 3, "retrying": 4, "dead": 7}


def add_account(db: apsw.Connection) -> None:
    """The account of the store's tests."""
    accounts.ensure_account(db, AccountCredentials("tests", "token"), SigningKeys("current-key", "next-key"))


def count_all(db: apsw.Connection, now_ms: int, most: int = index.SLICE) -> int:
    """Count the whole log in slices; return how many entries there were."""
    counted = 0
    while (progress := index.count_log(db, now_ms=now_ms, most=most)).counted:
        counted += progress.counted
    return counted


def rows(db: apsw.Connection) -> dict[str, list[Any]]:
    """The rows of all tables that are not numbered by chance."""
    kept: dict[str, list[Any]] = {name: sorted(db.execute(f"SELECT * FROM {name}")) for name in TABLES}
    kept["counts"] = sorted(db.execute("SELECT * FROM insight_counts WHERE count <> 0"))
    failures = "SELECT fingerprint, error, pattern, first_ms, last_ms, sample FROM insight_failures"
    kept["failures"] = sorted(db.execute(failures))
    return kept


def ledger(db: apsw.Connection, now_ms: int) -> dict[str, int]:
    """How many messages have each status, by the last entries of their logs; and how many dead letters there are."""
    statuses: Counter[str] = Counter()
    for (seq,) in db.execute("SELECT seq FROM messages").fetchall():
        status = ""
        for state, next_ms in db.execute("SELECT state, next_ms FROM log WHERE seq = ? ORDER BY n", (seq,)):
            if state == "CREATED":
                status = "scheduled" if (next_ms or 0) > now_ms else "waiting"
            elif state in ("ACTIVE", "RETRY"):
                status = {"ACTIVE": "running", "RETRY": "retrying"}[state]
            elif state in ("DELIVERED", "FAILED", "CANCELED"):
                status = "ended"
        statuses[status] += 1
    statuses["dead"] = db.execute("SELECT count(*) FROM dead_letters").get
    return {name: statuses[name] for name in OPEN}


def counted(db: apsw.Connection) -> dict[str, int]:
    """The same as the tables say."""
    sums = db.execute(
        "SELECT json_group_object(status, total) FROM (SELECT status, sum(count) AS total"
        " FROM insight_counts GROUP BY status)"
    ).get
    totals = json.loads(sums)
    return {name: totals.get(str(status), 0) for name, status in OPEN.items()}
