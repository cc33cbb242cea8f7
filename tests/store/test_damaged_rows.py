"""A message of which the store no longer has what was accepted: never sent, named, and in nobody's way."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks.broker.core import message_rows
from qtasks.broker.core.rules import FINAL, Evaluation, Stage, Trigger
from qtasks.broker.core.values import Claim, LogCriteria, Settled, Settlement
from qtasks.broker.store import verbs
from qtasks.broker.store.verbs import flow_control, queues, rows, stored, sums
from qtasks.broker.store.verbs import settle as settling
from qtasks.broker.store.verbs.damage import quarantine, scrub
from qtasks.broker.store.verbs.reads import queries, status
from qtasks.broker.store.verbs.stored import Fault
from qtasks.protocol import views
from qtasks.protocol.messages import FlowControl, Message, PublishOptions
from tests.support import damage
from tests.support.broker import ACCOUNT, message
from tests.support.store import OK, InlineStore, ids

HOOK = "http://127.0.0.1:8000/end"
CALL = PublishOptions(call_id="call_1", end_callback=HOOK, interrupted_for_ms=60_000)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "call": {"options": CALL},
    "queue": {"queue": "q"},
    "key": {"options": PublishOptions(flow_control=FlowControl("k", parallelism=1), labels=("night",))},
    "delayed": {"not_before_ms": 1_800_000_060_000},
}
GOLDEN = 191637449961515667


def opened() -> InlineStore:
    """A store with the account that the messages belong to."""
    store = InlineStore()
    store.db.execute("INSERT INTO accounts (id, name) VALUES (?, 'somebody')", (ACCOUNT,))
    return store


@functools.cache
def columns() -> list[tuple[str, str, str]]:
    """Every column of a message: its table, its name, its type."""
    store = InlineStore()
    found = store.db.execute("SELECT name, type FROM pragma_table_info('messages')").fetchall()
    store.close()
    of_messages = (("messages", str(name), str(kind)) for name, kind in found if name != "seq")
    return [*of_messages, ("stored_bodies", "body", "BLOB"), ("stored_bodies", "shared", "INTEGER")]


@contextlib.contextmanager
def noted(text: str) -> Iterator[None]:
    """An error within it says `text`."""
    try:
        yield
    except BaseException as error:
        error.add_note(text)
        raise


def settle(store: InlineStore, claim: Claim) -> Settled | None:
    """As `InlineStore.end`, where the claim may not count any more."""
    return settling.settle(store.db, Settlement(claim, OK, Evaluation(Trigger.SUCCEED)), now_ms=store.now_ms)


def bring_to(store: InlineStore, stage: Stage) -> None:
    """Accept message 1 and bring it to a stage."""
    match stage:
        case Stage.PARKED:
            store.accept(1)
            store.claims(room=0)
        case Stage.QUEUED:
            store.accept(1, queue="q")
            queues.pause_queue(store.db, ACCOUNT, "q", paused=True, now_ms=store.now_ms)
        case Stage.HELD:
            flow_control.pause_flow_key(store.db, ACCOUNT, "k", paused=True, now_ms=store.now_ms)
            store.accept(1, options=PublishOptions(flow_control=FlowControl("k", parallelism=1)))
        case _:
            store.accept(1)
    if stage in (Stage.ACTIVE, Stage.DELIVERED, Stage.FAILED):
        claim = store.claim()
        if stage is not Stage.ACTIVE:
            store.end(claim, Trigger.SUCCEED if stage is Stage.DELIVERED else Trigger.FAIL)
    if stage is Stage.CANCELED:
        store.cancel("msg_1")
    assert store.stage("msg_1") is stage


def as_of_version_1(db: apsw.Connection) -> None:
    """Make all messages what the release before this schema has written."""
    kept = [one for seq in range(1, 10) if (one := stored.one(db, seq)) is not None]
    with damage.without_rules(db):
        for one in kept:
            checksum = sums.checksum_of_version_1(one.message, one.body)
            db.execute("UPDATE messages SET checksum = ?, state_sum = NULL WHERE seq = ?", (checksum, one.seq))


def drain(store: InlineStore) -> list[Message]:
    """Deliver everything that may start; what the endpoints got."""
    delivered: list[Message] = []
    while claims := store.claims():
        delivered += [claim.message for claim in claims]
        for claim in claims:
            store.end(claim)
    return delivered


def walk(store: InlineStore, **how: Any) -> list[scrub.Finding]:
    """Look at all messages."""
    findings: list[scrub.Finding] = []
    after: int | None = 0
    while after is not None:
        piece = scrub.look_at(store.db, after=after, **how)
        findings += piece.findings
        after = piece.last
    return findings


def scrubbed(store: InlineStore) -> list[int]:
    return quarantine.quarantine(store.db, [finding.seq for finding in walk(store)], now_ms=store.now_ms)


def assert_lists_can_be_read(store: InlineStore) -> None:
    """Everything that the API shows about messages can be shown, and is JSON."""
    log = queries.log(store.db, ACCOUNT, LogCriteria(), cursor=None, count=100).items
    shown = [*map(views.log_json, log), *map(views.dead_letter_json, store.dead())]
    for message_id in {entry.message.id for entry in log}:
        current = status.message_status(store.db, ACCOUNT, message_id, now_ms=store.now_ms)
        shown += [] if current is None else [views.message_json(current.message)]
    json.dumps(shown)


def assert_contained(store: InlineStore, originals: list[Message]) -> None:
    """Nothing altered is delivered, the damaged message is a dead letter, and all others are delivered."""
    assert_lists_can_be_read(store)
    delivered = drain(store)
    assert_lists_can_be_read(store)
    scrubbed(store)
    delivered += drain(store)
    store.now_ms += 60_000
    delivered += drain(store)
    sent = {one.id: one for one in delivered if not one.id.endswith("_end")}
    assert sent == {one.id: one for one in originals[1:]}
    assert [letter.error[:7] for letter in store.dead()] == ["corrupt"]
    assert walk(store, all_bodies=True) == []
    assert store.db.execute("SELECT count(*) FROM messages WHERE stage < 10 OR slot = 1").get == 0
    assert_lists_can_be_read(store)


def originals(kind: str, now_ms: int) -> list[Message]:
    return [message(number, now_ms=now_ms, **{"not_before_ms": now_ms, **KINDS[kind]}) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    "kind", ["call", "queue", *(pytest.param(kind, marks=pytest.mark.release) for kind in ("plain", "key", "delayed"))]
)
def test_whatever_flips_in_a_waiting_message_nothing_altered_is_sent_and_all_others_are(kind: str) -> None:
    for table, column, kind_of_column in columns():
        for flip in itertools.count():
            store = opened()
            published = originals(kind, store.now_ms)
            store.accept_all(published)
            value = damage.value_of(store.db, column, seq=1, table=table)
            flipped = damage.flips(value, kind_of_column)
            if flip == len(flipped):
                break
            damage.put(store.db, column, flipped[flip], seq=1, table=table)
            with noted(f"{table}.{column}: {value!r} became {flipped[flip]!r}"):
                assert_contained(store, published)
            store.close()


@pytest.mark.parametrize("stage", Stage)
def test_whatever_flips_in_the_state_of_a_message_at_any_stage_it_is_found(stage: Stage) -> None:
    for column in sums.FACTORS:
        store = opened()
        bring_to(store, stage)
        value = damage.value_of(store.db, column, seq=1)
        damage.put(store.db, column, 1 << 41 if value is None else int(value) ^ 1, seq=1)
        with noted(f"{column} of {value!r}"):
            assert [finding.fault for finding in walk(store)] == [Fault.STATE]
            assert scrubbed(store) == [1]
            assert walk(store) == []
            assert store.stage("msg_1") is (stage if stage in FINAL else Stage.FAILED)
            assert_lists_can_be_read(store)
        store.close()


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in FINAL])
def test_damage_stays_visible_whatever_statements_change_in_its_row(store: InlineStore, stage: Stage) -> None:
    """A sum that was computed anew would hide the damage; it is only changed by what a statement changes."""
    bring_to(store, stage)
    damage.put(store.db, "retried", 1, seq=1)
    store.db.execute("UPDATE messages SET due_ms = due_ms + 1, cuts = 4")
    store.db.execute("UPDATE messages SET retried = retried + 1")
    assert [finding.fault for finding in walk(store)] == [Fault.STATE]


def test_the_table_computes_the_sum_that_the_queries_expect() -> None:
    """The trigger is text in the schema; the queries are built from the same factors."""
    store = opened()
    trigger = str(store.db.execute("SELECT sql FROM sqlite_schema WHERE name = 'messages_state_sum'").get)
    store.close()
    new, old = (f"coalesce({row}.{{name}}, -1) % {sums.PRIME}" for row in ("NEW", "OLD"))
    at_first = " + ".join(f"{old} * {factor}".format(name=name) for name, factor in sums.FACTORS.items())
    changes = " + ".join(f"({new} - {old}) * {factor}".format(name=name) for name, factor in sums.FACTORS.items())
    total = f"coalesce(OLD.state_sum % {sums.PRIME}, {at_first}) + {changes}"
    sql = " ".join(trigger.split()).replace("( ", "(").replace(" )", ")")
    watched = [name for name in sums.FACTORS if name not in sums.OWN_SUM]
    assert f"AFTER UPDATE OF {', '.join(watched)} ON messages" in sql
    assert f"SET state_sum = (({total}) % {sums.PRIME} + {sums.PRIME}) % {sums.PRIME} WHERE seq = NEW.seq" in sql


def test_no_statement_changes_what_the_checksum_covers() -> None:
    changed: set[str] = set()
    for path in Path(verbs.__file__).parent.rglob("*.py"):
        text = re.sub(r'"\s*f?"', "", path.read_text())
        for assignments in re.findall(r"UPDATE messages(?: AS m)? SET ([^{}]*?) WHERE", text):
            changed |= set(re.findall(r"(\w+) = ", assignments)) - {"seq"}  # `seq` in a subquery
    assert {"place", "lot", "open_callbacks"} <= changed <= {*sums.FACTORS, "lot"}


def test_no_statement_forgets_the_sum() -> None:
    """The trigger does not see a statement that changes nothing but these columns."""
    for path in Path(verbs.__file__).parent.rglob("*.py"):
        text = re.sub(r'"\s*f?"', "", path.read_text())
        for assignments in re.findall(r"UPDATE messages(?: AS m)? SET ([^{}]*?) WHERE", text):
            changed = set(re.findall(r"(\w+) = ", assignments)) & set(sums.FACTORS)
            assert not changed or not changed <= sums.OWN_SUM, f"{path.name}: {assignments}"


@pytest.mark.parametrize("name", sorted(sums.OWN_SUM))
@pytest.mark.parametrize("value", [None, 0, 1, 2**40])
def test_a_statement_that_updates_the_sum_itself_leaves_a_sound_row(
    store: InlineStore, name: str, value: int | None
) -> None:
    store.accept(1)
    with damage.without_rules(store.db):
        store.db.execute(f"UPDATE messages SET {sums.changes(**{name: '?1'})}", (value,))
        assert store.db.execute(f"SELECT state_sum = {sums.state_sum('{}'.format)} FROM messages").get


def test_damage_stays_visible_whatever_a_statement_changes_that_updates_the_sum_itself(store: InlineStore) -> None:
    store.accept(1)
    damage.put(store.db, "due_ms", 5, seq=1)
    store.db.execute(f"UPDATE messages SET {sums.changes(stage='2', claim_token='claim_token + 1')}")
    damage.put(store.db, "state_sum", None, seq=1)
    store.db.execute(f"UPDATE messages SET {sums.changes(stage='1')}")
    assert [finding.fault for finding in walk(store)] == [Fault.STATE]


def test_a_single_flipped_bit_in_a_number_or_in_its_sum_is_always_found(store: InlineStore) -> None:
    store.accept(1)
    for column in (*sums.FACTORS, "state_sum"):
        value = damage.value_of(store.db, column, seq=1)
        with damage.without_rules(store.db):
            for bit in range(63):
                flipped = int(value or 0) ^ 1 << bit
                store.db.execute(f"UPDATE messages SET {column} = ?", (flipped,))
                assert not store.db.execute(f"SELECT {sums.STATE_IS_SOUND} FROM messages m").get, (column, bit)
            store.db.execute(f"UPDATE messages SET {column} = ?", (value,))
    assert walk(store) == []


def test_a_single_flipped_bit_in_the_identity_is_always_found_in_the_bits_that_are_kept() -> None:
    """A CRC is linear: what a flipped bit changes depends only on its distance from the end, not on the text."""
    row = message_rows.pack_message(message(1, options=PublishOptions(end_callback="h" * 2_000)))
    text = orjson.dumps((1, row.account, row.id, row.end_callback, row.queue, None, None, "identity"))
    stored_sum = sums.checksum(row, b"", 1, "", None, None)
    assert (stored_sum >> 32) & 0xFFFFFF == zlib.crc32(text) & 0xFFFFFF
    end = text.index(b',"identity"')
    for place in range(end):
        changed = zlib.crc32(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]) ^ zlib.crc32(text)
        assert changed & 0xFFFFFF
    for bit in range(8):
        assert (zlib.crc32(bytes([1 << bit]) + text) ^ zlib.crc32(b"\0" + text)) & 0xFFFFFF


def test_a_checksum_has_the_same_value_in_every_release(store: InlineStore) -> None:
    """It is stored for months: a library that writes the same values in another way would make everything corrupt."""
    odd = '\u007f\u0085\u2028 \\ " \n \t \x1f \u00e9 \U0001f600'
    row = message_rows.pack_message(message(1, url=odd, queue=odd, endpoint=None, headers=((odd, odd),)))
    assert sums.checksum(row, b"body", 2**40, "h:1", odd, None) == GOLDEN


# -- what the damaged message occupied


def test_the_dead_letter_is_in_the_account_that_the_message_was_accepted_for() -> None:
    store = opened()
    store.db.execute("INSERT INTO accounts (id, name) VALUES (7, 'somebody else')")
    store.accept(1)
    damage.put(store.db, "account", 7, seq=1)
    assert store.claims() == []
    assert [letter.message.id for letter in store.dead()] == ["msg_1"]
    store.close()


@pytest.mark.parametrize(
    ("column", "value"), [("queue", b"p"), ("slot", 0), ("parent", 2), ("url", None), ("open_callbacks", 1)]
)
def test_a_queue_goes_on_behind_a_damaged_message(column: str, value: damage.Value) -> None:
    store = opened()
    store.accept(1, 2, queue="q")
    damage.put(store.db, column, value, seq=1)
    assert scrubbed(store) == [1]
    assert ids(store.claims()) == ["msg_2"]
    store.close()


def test_a_callback_whose_parent_is_damaged_frees_the_slot_of_its_own_parent_and_no_other() -> None:
    store = opened()
    callback = PublishOptions(callback=HOOK)
    store.accept(1, 2, queue="q", options=callback)
    store.accept(3, 4, queue="r", options=callback)
    for claim in store.claims():
        store.end(claim)
    of_1, of_3 = [row for (row,) in store.db.execute("SELECT seq FROM messages WHERE parent IS NOT NULL ORDER BY seq")]
    damage.put(store.db, "parent", 3, seq=of_1)
    assert scrubbed(store) == [of_1]
    started = {claim.seq: claim for claim in store.claims()}
    assert set(started) == {2, of_3}
    store.end(started[of_3])
    assert ids(store.claims()) == ["msg_4"]
    store.close()


def test_a_key_goes_on_behind_a_damaged_message() -> None:
    store = opened()
    store.accept(1, 2, options=PublishOptions(flow_control=FlowControl("k", parallelism=1)))
    store.claim()
    damage.put(store.db, "flow_key", b"kk", seq=1)
    store.crash()
    assert ids(store.claims()) == ["msg_2"]
    store.close()


# -- the moments at which damage is met


def test_damage_during_an_attempt_ends_the_message_as_a_dead_letter(store: InlineStore) -> None:
    store.accept(1, 2, queue="q")
    claim = store.claim()
    damage.put(store.db, "retried", -5, seq=1)
    assert settle(store, claim) is None
    assert [letter.error for letter in store.dead()] == [Fault.STATE]
    assert ids(store.claims()) == ["msg_2"]


def test_a_message_that_has_ended_is_not_sent_again_because_of_a_flipped_stage(store: InlineStore) -> None:
    store.accept(1)
    store.end(store.claim())
    damage.put(store.db, "stage", Stage.DUE.value, seq=1)
    damage.put(store.db, "finished_ms", None, seq=1)
    assert store.claims() == []
    assert (store.stage("msg_1"), store.dead()) == (Stage.DELIVERED, [])


def test_a_message_with_a_damaged_state_can_be_cancelled(store: InlineStore) -> None:
    store.accept(1, 2)
    damage.put(store.db, "stage", 7, seq=1)
    assert store.cancel("msg_1") == 1
    assert [letter.error for letter in store.dead()] == [Fault.STATE]


def test_a_sound_dead_letter_that_is_damaged_later_says_so(store: InlineStore) -> None:
    store.accept(1)
    store.end(store.claim(), Trigger.FAIL)
    damage.put(store.db, "body", b"other", seq=1, table="stored_bodies")
    [letter] = store.dead()
    assert letter.message.damaged
    assert letter.error == f"{rows.DAMAGED}; it failed with: it answered 500"


def test_two_messages_that_have_lost_their_ids_are_both_dead_letters() -> None:
    store = opened()
    store.accept(1, 2, 3)
    damage.put(store.db, "id", None, seq=1)
    damage.put(store.db, "id", None, seq=2)
    assert ids(store.claims()) == ["msg_3"]
    assert [letter.message.id for letter in store.dead()] == ["", "corrupt_2"]
    store.close()


def test_the_end_of_a_call_is_reported_only_to_whom_its_message_says_for_certain(store: InlineStore) -> None:
    store.accept(1, 2, options=CALL)
    damage.put(store.db, "method", b"PUT", seq=1)
    damage.put(store.db, "end_callback", HOOK.replace("end", "enc"), seq=2)
    assert ids(store.claims()) == ["msg_1_end"]
    assert len(store.dead()) == 2


# -- rows of an earlier release


def test_a_message_of_an_earlier_release_is_delivered_and_protected_by_its_old_checksum() -> None:
    store = opened()
    store.accept(1, 2, 3)
    as_of_version_1(store.db)
    damage.put(store.db, "url", "http://127.0.0.1:8000/qtasks/sub", seq=1)
    damage.put(store.db, "finished_ms", 5, seq=2)
    assert walk(store)[0].fault is Fault.CONTENT
    assert ids(store.claims()) == ["msg_3"]
    assert [letter.error for letter in store.dead()] == [Fault.STATE, Fault.CONTENT]
    sound = f"SELECT state_sum IS NOT NULL, {sums.STATE_IS_SOUND} FROM messages m WHERE seq = 3"
    assert store.db.execute(sound).get == (1, 1)
    assert walk(store) == []
    store.close()


def test_the_end_of_a_call_of_an_earlier_release_is_reported(store: InlineStore) -> None:
    store.accept(1, options=CALL)
    as_of_version_1(store.db)
    store.cancel("msg_1")
    assert ids(store.claims()) == ["msg_1_end"]


# -- the walk over all messages


def test_a_walk_is_made_of_pieces_that_are_bounded_in_rows_and_bytes(store: InlineStore) -> None:
    store.accept_all([message(number, body=b"x" * 1000) for number in range(1, 8)])
    damage.put(store.db, "due_ms", 7_258_118_400_000, seq=7)
    assert scrub.look_at(store.db, after=0, rows=5) == scrub.Piece(5, 5, ())
    assert scrub.look_at(store.db, after=0, size=2_500) == scrub.Piece(3, 3, ())
    found = scrub.Finding(7, "msg_7", ACCOUNT, Fault.STATE, False)
    assert scrub.look_at(store.db, after=5, rows=5) == scrub.Piece(2, None, (found,))


def test_bodies_of_ended_messages_are_looked_at_only_on_request(store: InlineStore) -> None:
    store.accept(1)
    store.end(store.claim())
    damage.put(store.db, "body", b"other", seq=1, table="stored_bodies")
    assert walk(store) == []
    assert [finding.fault for finding in walk(store, all_bodies=True)] == [Fault.CONTENT]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_damage_of_any_cells_stops_nothing_else(data: st.DataObject) -> None:
    assert_any_damage_is_contained(data)


@pytest.mark.release
@given(st.data())
@settings(max_examples=1_000, deadline=None)
def test_damage_of_any_cells_stops_nothing_else_in_many_more_cases(data: st.DataObject) -> None:
    assert_any_damage_is_contained(data)


def assert_any_damage_is_contained(data: st.DataObject) -> None:
    """Damage a few cells of ten messages, some of them in flight: all others are delivered as they were accepted."""
    store = opened()
    published = [
        one
        for number, kind in enumerate(KINDS)
        for one in (message(number * 2 + part, **KINDS[kind]) for part in (1, 2))
    ]
    store.accept_all(published)
    started = store.claims(limit=data.draw(st.integers(0, 4)))
    cells = data.draw(
        st.lists(st.tuples(st.integers(1, 10), st.sampled_from(columns())), min_size=1, max_size=6, unique=True)
    )
    for seq, (table, column, kind) in cells:
        value = damage.value_of(store.db, column, seq=seq, table=table)
        damage.put(store.db, column, data.draw(st.sampled_from(damage.flips(value, kind))), seq=seq, table=table)
    damaged = {f"msg_{seq}" for seq, _ in cells}
    assert_lists_can_be_read(store)
    for claim in started:
        settle(store, claim)
    sent = [claim.message for claim in started] + drain(store)
    scrubbed(store)
    store.crash()
    store.now_ms += 60_000
    sent += drain(store)
    assert_lists_can_be_read(store)
    intact = {one.id: one for one in published}
    assert all(intact[one.id] == one for one in sent if not one.id.endswith("_end"))
    assert {one.id for one in sent} | damaged >= set(intact)
    assert scrubbed(store) == []
    assert store.db.execute("SELECT count(*) FROM messages WHERE stage < 10 OR slot = 1").get == 0
    store.close()
