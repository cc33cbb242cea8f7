"""The promises of the store, verb by verb, on the real SQL."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest

from qtasks.broker.core.interruptions import STOPPED
from qtasks.broker.core.rules import Evaluation, Trigger
from qtasks.broker.core.values import AccountCredentials, Claim, DeadLetterCriteria, LogCriteria, Rooms, Settlement
from qtasks.broker.ports import Failure
from qtasks.broker.store.connection import connect
from qtasks.broker.store.verbs import accept, accounts, admission, cancel, claim, settle, stored
from qtasks.broker.store.verbs.parking import parked
from qtasks.broker.store.verbs.reads import queries
from qtasks.broker.store.verbs.stored import Fault
from qtasks.protocol.messages import (
    DEDUPLICATION_WINDOW_MS,
    FlowControl,
    PublishOptions,
    Redaction,
    Response,
    SigningKeys,
    State,
)
from tests.support.broker import ACCOUNT, START_MS, message, publication

NOW = START_MS


@pytest.fixture
def db() -> Iterator[apsw.Connection]:
    connection = connect(":memory:")
    yield connection
    connection.close()


def claims(db: apsw.Connection, now_ms: int = NOW, limit: int = 100, room: int = 100) -> list[Claim]:
    return list(claim.claim(db, now_ms=now_ms, limit=limit, rooms=Rooms(room)).claims)


def ids(claims: list[Claim]) -> list[str]:
    return [one.message.id for one in claims]


def states(db: apsw.Connection, message_id: str) -> list[State]:
    page = queries.log(db, ACCOUNT, LogCriteria(message_ids=(message_id,), oldest_first=True), cursor=None, count=100)
    return [entry.state for entry in page.items]


def end(db: apsw.Connection, one: Claim, evaluation: Evaluation, now_ms: int = NOW) -> State | None:
    outcome = Response(status=200) if evaluation.trigger is Trigger.SUCCEED else Response(status=500, body=b"oops")
    settled = settle.settle(db, Settlement(one, outcome, evaluation), now_ms=now_ms)
    return None if settled is None else settled.state


def test_an_accepted_message_is_claimed_once_and_comes_back_whole(db: apsw.Connection) -> None:
    options = PublishOptions(
        retry_delay="1000 * retried",
        labels=("a", "b"),
        callback="https://cb.example/x?y=1",
        callback_options=PublishOptions(retries=2, forward=(("X-A", "1"),)),
        flow_control=FlowControl("key", parallelism=2),
        redact=Redaction(body=True),
    )
    sent = publication(1, options=options, queue="q", url_group="g", endpoint="e", schedule_id="s")
    assert [one.message_id for one in accept.accept(db, [sent], now_ms=NOW)] == ["msg_1"]
    [claimed] = claims(db)
    assert claimed.message == sent.message
    assert claims(db) == []
    assert queries.message(db, ACCOUNT, "msg_1") == sent.message


def test_claims_come_by_due_time_and_then_in_order_of_acceptance(db: apsw.Connection) -> None:
    accept.accept(
        db,
        [publication(1, not_before_ms=NOW + 5), publication(2), publication(3), publication(4, not_before_ms=NOW + 2)],
        now_ms=NOW,
    )
    found = claim.claim(db, now_ms=NOW, limit=10, rooms=Rooms(10))
    assert ids(list(found.claims)) == ["msg_2", "msg_3"]
    assert found.next_due_ms == NOW + 2
    assert ids(claims(db, NOW + 10)) == ["msg_4", "msg_1"]


def test_a_claim_says_when_more_is_due_than_it_was_asked_for(db: apsw.Connection) -> None:
    accept.accept(db, [publication(n) for n in range(5)], now_ms=NOW)
    first = claim.claim(db, now_ms=NOW, limit=3, rooms=Rooms(10))
    assert (len(first.claims), first.has_more) == (3, True)
    rest = claim.claim(db, now_ms=NOW, limit=3, rooms=Rooms(10))
    assert (len(rest.claims), rest.has_more) == (2, False)


def test_a_busy_host_holds_back_its_own_messages_and_nobody_elses(db: apsw.Connection) -> None:
    dead = [publication(n, url="http://dead.example/x") for n in range(50)]
    healthy = [publication(n, url="http://healthy.example/x") for n in range(50, 53)]
    accept.accept(db, [*dead, *healthy], now_ms=NOW)
    first = claim.claim(db, now_ms=NOW, limit=10, rooms=Rooms(2))
    picked = ids(list(first.claims))
    while first.has_more:
        first = claim.claim(db, now_ms=NOW, limit=10, rooms=Rooms(2, {"dead.example:80": 0}))
        picked += ids(list(first.claims))
    assert picked == ["msg_0", "msg_1", "msg_50", "msg_51"]
    assert set(parked.of(db)) == {"dead.example:80", "healthy.example:80"}


def test_parked_messages_start_in_order_when_their_host_has_room_again(db: apsw.Connection) -> None:
    accept.accept(db, [publication(n) for n in range(4)], now_ms=NOW)
    busy = Rooms(1, {"127.0.0.1:8000": 0})
    assert claim.claim(db, now_ms=NOW, limit=10, rooms=busy).claims == ()
    later = accept.accept(db, [publication(9)], now_ms=NOW)
    assert later[0].message_id == "msg_9"
    assert ids(claims(db, room=3)) == ["msg_0", "msg_1", "msg_2"]
    assert ids(claims(db)) == ["msg_3", "msg_9"]


def test_success_is_logged_and_final(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1)], now_ms=NOW)
    [one] = claims(db)
    assert end(db, one, Evaluation(Trigger.SUCCEED)) is State.DELIVERED
    assert states(db, "msg_1") == [State.CREATED, State.ACTIVE, State.DELIVERED]
    assert claims(db, NOW + 10**9) == []


def test_a_retry_waits_for_its_time_and_counts(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1)], now_ms=NOW)
    [first] = claims(db)
    assert end(db, first, Evaluation(Trigger.RETRY, "500", NOW + 12_000)) is State.RETRY
    assert claims(db, NOW + 11_999) == []
    [second] = claims(db, NOW + 12_000)
    assert second.message.retried == 1
    assert second.token > first.token
    assert states(db, "msg_1") == [State.CREATED, State.ACTIVE, State.ERROR, State.RETRY, State.ACTIVE]


def test_a_failure_leaves_a_dead_letter_with_the_last_answer(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1)], now_ms=NOW)
    [one] = claims(db)
    assert end(db, one, Evaluation(Trigger.FAIL, "it answered 500"), NOW + 7) is State.FAILED
    [letter] = queries.dead_letters(db, ACCOUNT, DeadLetterCriteria(), cursor=None, count=10).items
    assert (letter.id, letter.message.id, letter.error) == (f"{NOW + 7}-0", "msg_1", "it answered 500")
    assert letter.response == Response(status=500, body=b"oops")
    assert states(db, "msg_1") == [State.CREATED, State.ACTIVE, State.ERROR, State.FAILED]


def test_a_failure_without_an_answer_is_a_dead_letter_too(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1)], now_ms=NOW)
    [one] = claims(db)
    settle.settle(db, Settlement(one, Failure("timeout", "slow"), Evaluation(Trigger.FAIL, "slow")), now_ms=NOW)
    [letter] = queries.dead_letters(db, ACCOUNT, DeadLetterCriteria(), cursor=None, count=10).items
    assert letter.response is None


def test_a_stale_settle_changes_nothing_and_says_so(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1)], now_ms=NOW)
    [stale] = claims(db)
    settle.recover(db, now_ms=NOW)
    [fresh] = claims(db)
    assert end(db, stale, Evaluation(Trigger.FAIL, "late")) is None
    assert queries.dead_letters(db, ACCOUNT, DeadLetterCriteria(), cursor=None, count=10).items == ()
    assert end(db, fresh, Evaluation(Trigger.SUCCEED)) is State.DELIVERED
    assert end(db, fresh, Evaluation(Trigger.SUCCEED)) is None


def test_recovery_returns_interrupted_attempts_at_once_with_their_number_and_says_why(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1), publication(2, not_before_ms=NOW + 9)], now_ms=NOW)
    claims(db)
    found = settle.recover(db, now_ms=NOW + 1)
    assert (found.interrupted, found.waiting) == (1, 2)
    [again] = claims(db, NOW + 1)
    assert again.message.retried == 0
    log = queries.log(db, ACCOUNT, LogCriteria(states=(State.ERROR,)), cursor=None, count=10).items
    assert [entry.error for entry in log] == [STOPPED]


def test_cancelling_a_waiting_message_takes_it_away_at_once(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1, not_before_ms=NOW + 99)], now_ms=NOW)
    assert cancel.cancel(db, ACCOUNT, ["msg_1", "msg_unknown"], now_ms=NOW).count == 1
    assert cancel.cancel(db, ACCOUNT, ["msg_1"], now_ms=NOW).count == 0
    assert claims(db, NOW + 100) == []
    assert states(db, "msg_1") == [State.CREATED, State.CANCEL_REQUESTED, State.CANCELED]


def test_cancelling_an_active_message_stops_its_retries_but_not_its_success(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1), publication(2)], now_ms=NOW)
    failing, succeeding = claims(db)
    assert cancel.cancel(db, ACCOUNT, ["msg_1", "msg_2"], now_ms=NOW).count == 2
    assert end(db, failing, Evaluation(Trigger.RETRY, "500", NOW + 1)) is State.CANCELED
    assert end(db, succeeding, Evaluation(Trigger.SUCCEED)) is State.DELIVERED
    assert states(db, "msg_1")[2:] == [State.CANCEL_REQUESTED, State.ERROR, State.CANCELED]
    assert queries.dead_letters(db, ACCOUNT, DeadLetterCriteria(), cursor=None, count=10).items == ()


def test_a_message_asked_to_cancel_is_not_made_again_after_a_crash(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1)], now_ms=NOW)
    claims(db)
    cancel.cancel(db, ACCOUNT, ["msg_1"], now_ms=NOW)
    settle.recover(db, now_ms=NOW)
    assert claims(db, NOW + 10**9) == []
    assert states(db, "msg_1")[-1] is State.CANCELED


def test_a_deduplication_key_gives_the_first_id_until_its_window_ends(db: apsw.Connection) -> None:
    [first] = accept.accept(db, [publication(1, deduplication_key="id:x")], now_ms=NOW)
    end = NOW + DEDUPLICATION_WINDOW_MS
    [again] = accept.accept(db, [publication(2, deduplication_key="id:x")], now_ms=end - 1)
    [later] = accept.accept(db, [publication(3, deduplication_key="id:x")], now_ms=end)
    assert (again.message_id, again.deduplicated) == (first.message_id, True)
    assert (later.message_id, later.deduplicated) == ("msg_3", False)


def test_one_request_with_the_same_key_twice_stores_one_message(db: apsw.Connection) -> None:
    made = accept.accept(db, [publication(1, deduplication_key="k"), publication(2, deduplication_key="k")], now_ms=NOW)
    assert [one.message_id for one in made] == ["msg_1", "msg_1"]
    assert len(claims(db)) == 1


def test_accounts_see_only_their_own(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1, account=2, deduplication_key="k")], now_ms=NOW)
    assert queries.message(db, ACCOUNT, "msg_1") is None
    assert cancel.cancel(db, ACCOUNT, ["msg_1"], now_ms=NOW).count == 0
    assert queries.log(db, ACCOUNT, LogCriteria(), cursor=None, count=10).items == ()
    [other] = accept.accept(db, [publication(2, deduplication_key="k")], now_ms=NOW)
    assert not other.deduplicated


def test_a_flipped_bit_in_a_stored_body_is_never_sent(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1), publication(2)], now_ms=NOW)
    db.execute("UPDATE stored_bodies SET body = ? WHERE seq = 1", (b'{"n":7}',))
    assert ids(claims(db)) == ["msg_2"]
    [letter] = queries.dead_letters(db, ACCOUNT, DeadLetterCriteria(), cursor=None, count=10).items
    assert letter.error == Fault.CONTENT


def test_the_log_is_paged_without_gaps_in_both_directions(db: apsw.Connection) -> None:
    accept.accept(db, [publication(n) for n in range(7)], now_ms=NOW)
    for oldest_first in (False, True):
        seen: list[str] = []
        cursor = None
        while True:
            page = queries.log(db, ACCOUNT, LogCriteria(oldest_first=oldest_first), cursor=cursor, count=3)
            seen += [entry.message.id for entry in page.items]
            if (cursor := page.cursor) is None:
                break
        expected = [f"msg_{n}" for n in range(7)]
        assert seen == (expected if oldest_first else expected[::-1])


def test_a_page_ends_early_rather_than_fill_the_memory(db: apsw.Connection) -> None:
    large = b"x" * (queries.PAGE_BYTES // 4 - 1000)  # four of them, with their headers, do not fill a page
    accept.accept(db, [publication(n, body=large) for n in range(8)], now_ms=NOW)
    first = queries.log(db, ACCOUNT, LogCriteria(), cursor=None, count=1000)
    assert [entry.message.id for entry in first.items] == ["msg_7", "msg_6", "msg_5", "msg_4", "msg_3"]
    rest = queries.log(db, ACCOUNT, LogCriteria(), cursor=first.cursor, count=1000)
    assert ([entry.message.id for entry in rest.items], rest.cursor) == (["msg_2", "msg_1", "msg_0"], None)
    failed = Evaluation(Trigger.FAIL, "no")
    while some := claims(db):
        for one in some:
            settle.settle(db, Settlement(one, Response(status=500, body=large), failed), now_ms=NOW)
    page = queries.dead_letters(db, ACCOUNT, DeadLetterCriteria(), cursor=None, count=100)
    assert len(page.items) == 3
    assert page.cursor == page.items[-1].id


def test_a_last_page_that_is_just_full_has_no_cursor(db: apsw.Connection) -> None:
    accept.accept(db, [publication(n) for n in range(3)], now_ms=NOW)
    assert queries.log(db, ACCOUNT, LogCriteria(), cursor=None, count=3).cursor is None


def test_the_history_and_the_dead_letter_of_a_message_are_found_without_looking_at_those_of_others(
    db: apsw.Connection,
) -> None:
    for first in range(0, 2_000, 100):
        accept.accept(db, [publication(number) for number in range(first, first + 100)], now_ms=NOW)
        for one in claims(db):
            end(db, one, Evaluation(Trigger.FAIL, "no"))
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    db.set_progress_handler(count, 100)
    wanted = ("msg_7", "msg_1234")
    entries = queries.log(db, ACCOUNT, LogCriteria(message_ids=wanted), cursor=None, count=1000).items
    letters = queries.dead_letters(db, ACCOUNT, DeadLetterCriteria(message_ids=wanted), cursor=None, count=100).items
    assert len(entries) == 8
    assert [letter.message.id for letter in letters] == list(wanted)
    assert steps < 50  # a dozen; hundreds where all are looked at


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-", "-1", "1-x", "1-٣", "9" * 30 + "-1", "1-1; DROP TABLE log"])
def test_a_forged_cursor_is_refused(db: apsw.Connection, cursor: str) -> None:
    with pytest.raises(queries.BadCursorError, match="not a cursor"):
        queries.log(db, ACCOUNT, LogCriteria(), cursor=cursor, count=3)


def test_log_filters_are_anded_and_their_values_ored(db: apsw.Connection) -> None:
    accept.accept(
        db,
        [
            publication(1, options=PublishOptions(labels=("red",))),
            publication(2, options=PublishOptions(labels=("blue", "green"))),
            publication(3, url="http://other.example/"),
        ],
        now_ms=NOW,
    )

    def found(**which: object) -> list[str]:
        page = queries.log(db, ACCOUNT, LogCriteria(oldest_first=True, **which), cursor=None, count=9)  # type: ignore[arg-type]
        return [entry.message.id for entry in page.items]

    assert found(labels=("red", "green")) == ["msg_1", "msg_2"]
    assert found(urls=("http://other.example/",)) == ["msg_3"]
    assert found(labels=("red",), urls=("http://other.example/",)) == []
    assert found(from_ms=NOW + 1) == []
    assert found(from_ms=NOW, to_ms=NOW) == ["msg_1", "msg_2", "msg_3"]
    assert found(states=(State.ACTIVE,)) == []


def test_hostile_text_is_data_and_not_sql(db: apsw.Connection) -> None:
    text = "x'OR(1=1);DROP--"
    accept.accept(db, [publication(1, url=f"http://h/{text}", options=PublishOptions(labels=("%_",)))], now_ms=NOW)
    assert queries.message(db, ACCOUNT, text) is None
    assert len(queries.log(db, ACCOUNT, LogCriteria(urls=(f"http://h/{text}",)), cursor=None, count=9).items) == 1
    assert queries.log(db, ACCOUNT, LogCriteria(labels=("__",)), cursor=None, count=9).items == ()


def test_configured_keys_seed_a_new_account_and_never_replace_what_is_stored(db: apsw.Connection) -> None:
    first, fresh = SigningKeys("sig_aaaaaaaa", "sig_bbbbbbbb"), SigningKeys("sig_cccccccc", "sig_dddddddd")
    account = accounts.ensure_account(db, AccountCredentials("me", "token", first), fresh)
    assert accounts.signing_keys(db, account) == first
    assert accounts.ensure_account(db, AccountCredentials("me", "token", fresh), fresh) == account
    assert accounts.signing_keys(db, account) == first
    other = accounts.ensure_account(db, AccountCredentials("you", "token2"), fresh)
    assert accounts.signing_keys(db, other) == fresh


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (f"{stored.SELECT} {claim._DUE}", "messages_claimable"),
        (f"{stored.SELECT} {claim._PARKED_IN_LOT}", "messages_parked"),
        (parked._LOTS, "messages_parked"),
        (claim._NEXT_DUE, "messages_claimable"),
        (claim._NEXT_DUE, "prefixes_down"),
        (claim._READY_KEYS, "flow_keys_ready"),
        (admission._FIRST_QUEUED, "messages_queued"),
        (admission._FIRST_HELD, "messages_held"),
        (admission._RUNNING, "messages_running"),
    ],
)
def test_a_claim_reads_only_the_indices_of_what_may_start(db: apsw.Connection, sql: str, index: str) -> None:
    plan = " ".join(str(row) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", (NOW,) * sql.count("?")))
    assert index in plan
    assert "TEMP B-TREE" not in plan


def test_a_message_is_kept_readable_after_it_is_finished(db: apsw.Connection) -> None:
    accept.accept(db, [publication(1)], now_ms=NOW)
    [one] = claims(db)
    end(db, one, Evaluation(Trigger.SUCCEED))
    assert queries.message(db, ACCOUNT, "msg_1") == message(1)
