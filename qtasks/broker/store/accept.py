"""From a request to stored messages: deduplication, rows, first place in a line."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import cast

import apsw

from qtasks.broker.core.rules import Stage
from qtasks.broker.core.values import Accepted, Publication
from qtasks.broker.store import admission, rows
from qtasks.broker.store.log_entries import note
from qtasks.protocol.messages import DEDUPLICATION_WINDOW_MS, Message, State


def accept(
    db: apsw.Connection, publications: Sequence[Publication], *, now_ms: int, congested: Container[str] = ()
) -> list[Accepted]:
    """Store messages with their deduplication keys and log entries.

    `congested` names hosts known to have parked messages: what is due for them queues up behind those at once,
    which saves the claim from looking at it only to park it.
    """
    answers: list[Accepted] = []
    fresh: list[Publication] = []
    for publication in publications:
        message = publication.message
        if (key := publication.deduplication_key) is not None:
            if (earlier := _holder(db, message.account, key, now_ms)) is not None:
                answers.append(Accepted(earlier, deduplicated=True))
                continue
            db.execute(
                "INSERT OR REPLACE INTO deduplication (account, key, message_id, expires_ms) VALUES (?, ?, ?, ?)",
                (message.account, key, message.id, now_ms + DEDUPLICATION_WINDOW_MS),
            )
        answers.append(Accepted(message.id))
        fresh.append(publication)
    insert(db, fresh, now_ms=now_ms, congested=congested)
    return answers


def _holder(db: apsw.Connection, account: int, key: str, now_ms: int) -> str | None:
    found = db.execute(
        "SELECT message_id FROM deduplication WHERE account = ? AND key = ? AND expires_ms > ?", (account, key, now_ms)
    ).get
    return cast("str | None", found)


def insert(
    db: apsw.Connection,
    publications: Sequence[Publication],
    *,
    now_ms: int,
    congested: Container[str] = (),
    parent: int | None = None,
) -> None:
    """Store messages without asking for duplicates; `parent` waits for them (its callbacks)."""
    if not publications:
        return
    first = db.execute("SELECT coalesce(max(seq), 0) + 1 FROM messages").get
    queues: dict[tuple[int, str], None] = {}
    for seq, publication in enumerate(publications, first):
        message = publication.message
        stage = _first_stage(db, message, now_ms, publication.host in congested)
        _insert_row(db, seq, publication, stage, now_ms, parent)
        if stage is Stage.HELD:
            assert message.options.flow_control is not None, "only a flow-controlled message is held"
            admission.refresh(db, message.account, message.options.flow_control.key, now_ms)
        elif stage is Stage.QUEUED and message.queue is not None:
            queues[message.account, message.queue] = None
    for account, queue in queues:
        admission.admit(db, account, queue)


def _first_stage(db: apsw.Connection, message: Message, now_ms: int, congested: bool) -> Stage:
    """Where a new message stands; its queue and its flow-control key are made or brought up to date."""
    flow = message.options.flow_control
    if flow is not None:
        admission.configure(db, message.account, flow, now_ms)
    if message.queue is not None:
        admission.ensure_queue(db, message.account, message.queue, now_ms)
    if message.not_before_ms > now_ms:
        return Stage.DUE
    if message.queue is not None:
        return Stage.QUEUED
    if flow is not None and (
        admission.head(db, message.account, flow.key) is not None
        or not admission.permit(db, message.account, flow.key, now_ms).allowed
    ):
        return Stage.HELD
    return Stage.PARKED if congested else Stage.DUE


def _insert_row(
    db: apsw.Connection, seq: int, publication: Publication, stage: Stage, now_ms: int, parent: int | None
) -> None:
    message = publication.message
    headers = rows.pack_headers(message.headers)
    options = rows.pack_options(message.options)
    flow = message.options.flow_control
    delayed = message.not_before_ms > now_ms
    db.execute(
        "INSERT INTO messages (seq, account, id, stage, due_ms, host, url, method, headers, options, created_ms,"
        " not_before_ms, max_retries, timeout_ms, caller_ip, checksum, queue, place, flow_key, parent, url_group,"
        " endpoint, schedule_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq,
            message.account,
            message.id,
            stage.value,
            message.not_before_ms,
            publication.host,
            message.url,
            message.method,
            headers,
            options,
            message.created_ms,
            message.not_before_ms,
            message.max_retries,
            message.timeout_ms,
            message.caller_ip,
            rows.checksum(message.id, message.url, headers, options, message.body),
            message.queue,
            None if delayed else seq,
            None if flow is None else flow.key,
            parent,
            message.url_group,
            message.endpoint,
            message.schedule_id,
        ),
    )
    db.execute("INSERT INTO bodies (seq, body) VALUES (?, ?)", (seq, message.body))
    for place, label in enumerate(message.options.labels):
        db.execute(
            "INSERT OR IGNORE INTO labels (account, label, seq, place) VALUES (?, ?, ?, ?)",
            (message.account, label, seq, place),
        )
    note(db, seq, message.account, now_ms, State.CREATED, next_ms=message.not_before_ms if delayed else None)
