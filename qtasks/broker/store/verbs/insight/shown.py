"""What a list of the console shows of each message: a few values, never its body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import apsw

from qtasks.broker.core.interruptions import NOT_COUNTED, STOPPED
from qtasks.broker.core.observed import error_texts, statuses
from qtasks.broker.core.observed.shown_urls import without_secrets
from qtasks.broker.core.observed.statuses import Status
from qtasks.broker.store.verbs.insight.destinations import task_in
from qtasks.broker.store.verbs.insight.index import IS_TASK
from qtasks.broker.store.verbs.rows import fetch, first
from qtasks.protocol.messages import State

READ_BYTES: Final = 4_096
"""Bytes of an answer in which its error is looked for."""

_MESSAGE: Final = (
    f"SELECT m.id, m.call_id, m.url, {IS_TASK}, m.stage, m.due_ms, m.claim_token, m.quiet, m.created_ms, m.finished_ms,"
    " m.max_retries, m.queue, m.flow_key, m.schedule_id,"
    f" (SELECT max(0, count(*) FILTER (WHERE l.state = '{State.ACTIVE}') - count(*) FILTER (WHERE"
    f" l.state = '{State.ERROR}' AND (l.error LIKE '{NOT_COUNTED}%' OR l.error LIKE '{STOPPED}%')))"
    " FROM log l WHERE l.seq = m.seq)"
    " FROM messages m WHERE m.seq = ? AND m.account = ?"
)
_LAST_ERROR: Final = (
    f"SELECT error, substr(response_body, 1, {READ_BYTES}) FROM log WHERE seq = ? AND state = '{State.ERROR}'"
    " ORDER BY n DESC LIMIT 1"
)
_LABELS: Final = "SELECT label FROM labels WHERE seq = ? ORDER BY place"


class ShownMessage(NamedTuple):
    """A message as lists show it. Times are the broker's, in Unix milliseconds."""

    seq: int
    message_id: str
    call_id: str | None
    task: str | None
    destination: str
    """Its URL without the query."""
    status: Status
    created_ms: int
    due_ms: int | None
    """When the next attempt is due; None if none follows."""
    finished_ms: int | None
    attempts: int
    """Those that have begun and count: an interrupted one spends no retry, and is made again."""
    max_retries: int
    error: str | None
    """That of the last failed attempt."""
    queue: str | None
    flow_key: str | None
    schedule_id: str | None
    labels: tuple[str, ...]


def shown(db: apsw.Connection, account: int, seqs: Iterable[int], *, now_ms: int) -> list[ShownMessage]:
    """The messages `seqs`, in that order, without those that do not exist or are of another account."""
    return [message for seq in seqs if (message := _shown(db, account, seq, now_ms)) is not None]


def _shown(db: apsw.Connection, account: int, seq: int, now_ms: int) -> ShownMessage | None:
    row = first(db, _MESSAGE, (seq, account))
    if row is None:
        return None
    message_id, call_id, url, is_task, stage, due_ms, token, quiet, created_ms, finished_ms, *others = row
    max_retries, queue, flow_key, schedule_id, attempts = others
    status = statuses.of_stage(stage, due_ms=due_ms, claim_token=token, is_quiet=bool(quiet), now_ms=now_ms)
    return ShownMessage(
        seq,
        message_id,
        call_id,
        task_in(url, is_task=bool(is_task)),
        without_secrets(url),
        status,
        created_ms,
        None if finished_ms is not None or status is Status.RUNNING else due_ms,
        finished_ms,
        attempts,
        max_retries,
        _last_error(db, seq, is_task=bool(is_task)),
        queue,
        flow_key,
        schedule_id,
        tuple(label for (label,) in fetch(db, _LABELS, (seq,))),
    )


def _last_error(db: apsw.Connection, seq: int, *, is_task: bool) -> str | None:
    row = first(db, _LAST_ERROR, (seq,))
    return None if row is None else error_texts.text_of(*row, is_task=is_task)
