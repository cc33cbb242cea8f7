"""When a call is repeated, how long between, and when it is given up."""

import json
import math
from typing import Any

import pytest

from qtasks.errors import (
    ApiError,
    BrokerUnreachable,
    ChatRateLimitExceededError,
    ConfigurationError,
    DailyMessageLimitExceededError,
    QStashError,
    RateLimitExceededError,
)
from qtasks.qstash import QStash, Reply, Retry
from qtasks.qstash.conversation.exchange import official_backoff, retry_after_s
from tests.unit.qstash.conftest import TOKEN, AsyncScriptedTransport, InstantClock, Outcome, ScriptedTransport

LOST = BrokerUnreachable("cut off", sent=True)
REFUSED = BrokerUnreachable("connection refused", sent=False)
MESSAGE = {"messageId": "msg_1"}


def status(number: int, *headers: tuple[str, str], body: bytes = b'{"error":"no"}') -> Reply:
    return Reply(number, headers, body)


def client(script: ScriptedTransport, clock: InstantClock, **options: Any) -> QStash:
    return QStash(TOKEN, transport=script, sleep=clock.sleep, monotonic=clock.monotonic, **options)


@pytest.mark.parametrize("trouble", [LOST, REFUSED, status(500), status(502), status(503), status(504), status(429)])
def test_a_publish_survives_trouble_on_the_way(trouble: Outcome, clock: InstantClock) -> None:
    script = ScriptedTransport(trouble, trouble, MESSAGE)
    answer = client(script, clock).message.publish(url="https://example.com")
    assert answer.message_id == "msg_1"  # type: ignore[union-attr]
    assert len(script.sent) == 3
    assert len({request.url for request in script.sent}) == 1


@pytest.mark.parametrize("number", [400, 401, 404, 412, 413, 501, 302])
def test_what_repeating_cannot_mend_is_not_repeated(number: int, clock: InstantClock) -> None:
    script = ScriptedTransport(status(number))
    with pytest.raises(ApiError) as caught:
        client(script, clock).message.publish(url="https://example.com")
    assert caught.value.status == number
    assert caught.value.detail == "no"
    assert len(script.sent) == 1
    assert clock.slept_s == []


def test_the_pauses_are_those_of_the_official_sdk_and_none_follows_the_last_failure(clock: InstantClock) -> None:
    script = ScriptedTransport(REFUSED)
    with pytest.raises(BrokerUnreachable, match=r"connection refused \(6 attempts\)"):
        client(script, clock).message.get("msg_1")
    assert len(script.sent) == 6  # 1 + 5 retries
    assert clock.slept_s == pytest.approx([math.exp(1 + n) * 50 / 1000 for n in range(5)])
    assert sum(clock.slept_s) == pytest.approx(11.66, abs=0.01)


def test_a_backoff_of_ones_own_gets_the_number_of_retries_made_and_gives_milliseconds(clock: InstantClock) -> None:
    script = ScriptedTransport(LOST)
    with pytest.raises(BrokerUnreachable):
        client(script, clock, retry={"retries": 3, "backoff": lambda n: (n + 1) * 100}).message.get("m")
    assert clock.slept_s == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("off", [False, {"retries": 0}, Retry(retries=0), {"retries": -1}])
def test_retries_can_be_switched_off(off: Any, clock: InstantClock) -> None:
    script = ScriptedTransport(LOST)
    with pytest.raises(BrokerUnreachable) as caught:
        client(script, clock, retry=off).message.publish(url="https://example.com")
    assert caught.value is LOST
    assert len(script.sent) == 1
    assert "Upstash-Deduplication-Id" not in dict(script.sent[0].headers)


@pytest.mark.parametrize("on", [None, True, {}, {"retries": 5}, Retry()])
def test_every_form_of_the_default_is_five_retries(on: Any) -> None:
    assert Retry.of(on) == Retry(retries=5, backoff=official_backoff)


def test_an_unknown_retry_setting_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no setting 'attempts'"):
        Retry.of({"attempts": 3})


def test_no_attempt_begins_after_the_total_time(clock: InstantClock) -> None:
    script = ScriptedTransport(LOST)
    retry = Retry(retries=100, backoff=lambda _: 600, total_s=2)
    with pytest.raises(BrokerUnreachable):
        client(script, clock, retry=retry).message.get("m")
    assert clock.slept_s == pytest.approx([0.6, 0.6, 0.6])  # a fourth pause would end after 2.4 s


@pytest.mark.parametrize("useless", [math.inf, math.nan, -5.0])
def test_a_backoff_that_makes_no_sense_does_not_hang(useless: float, clock: InstantClock) -> None:
    script = ScriptedTransport(LOST)
    with pytest.raises(BrokerUnreachable):
        client(script, clock, retry={"retries": 2, "backoff": lambda _: useless}).message.get("m")
    assert all(seconds == 0 for seconds in clock.slept_s)
    assert len(script.sent) <= 3


def test_a_wait_that_the_service_asks_for_replaces_the_backoff(clock: InstantClock) -> None:
    script = ScriptedTransport(status(429, ("retry-after", "7")), status(503, ("Retry-After", "0")), MESSAGE)
    client(script, clock).message.publish(url="https://example.com")
    assert clock.slept_s == [7, 0]


def test_a_wait_longer_than_the_total_time_is_not_waited_for(clock: InstantClock) -> None:
    script = ScriptedTransport(status(503, ("Retry-After", "3600")))
    with pytest.raises(ApiError):
        client(script, clock).message.publish(url="https://example.com")
    assert clock.slept_s == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ((("Retry-After", "1.5"),), 1.5),
        ((("Retry-After", "Wed, 21 Oct 2015 07:28:30 GMT"), ("Date", "Wed, 21 Oct 2015 07:28:00 GMT")), 30),
        ((("Retry-After", "Wed, 21 Oct 2015 07:27:00 GMT"), ("Date", "Wed, 21 Oct 2015 07:28:00 GMT")), 0),
        ((("Retry-After", "Wed, 21 Oct 2015 07:28:30 GMT"),), None),
        ((("Retry-After", "soon"), ("Date", "Wed, 21 Oct 2015 07:28:00 GMT")), None),
        ((("Retry-After", "-1"),), None),
        ((("Retry-After", "nan"),), None),
        ((), None),
    ],
)
def test_retry_after_is_seconds_or_a_date_against_the_services_own(headers: Any, seconds: float | None) -> None:
    assert retry_after_s(Reply(503, headers, b"")) == seconds


def test_every_attempt_of_a_publish_carries_one_deduplication_id(clock: InstantClock) -> None:
    script = ScriptedTransport(LOST, {"messageId": "msg_1", "deduplicated": True})
    answer = client(script, clock).message.publish(url="https://example.com")
    ids = [dict(request.headers)["Upstash-Deduplication-Id"] for request in script.sent]
    assert len(ids) == 2
    assert ids[0] == ids[1]
    assert ":" not in ids[0]
    assert answer.deduplicated is False, "the earlier message was our own"  # type: ignore[union-attr]


def test_two_publishes_never_share_an_id(clock: InstantClock) -> None:
    script = ScriptedTransport(MESSAGE)
    one = client(script, clock)
    one.message.publish(url="https://example.com")
    one.message.publish(url="https://example.com")
    ids = {dict(request.headers)["Upstash-Deduplication-Id"] for request in script.sent}
    assert len(ids) == 2


def test_a_deduplication_of_the_callers_own_stands(clock: InstantClock) -> None:
    script = ScriptedTransport({"messageId": "msg_1", "deduplicated": True})
    one = client(script, clock)
    answer = one.message.publish(url="https://example.com", deduplication_id="mine")
    assert dict(script.sent[0].headers)["Upstash-Deduplication-Id"] == "mine"
    assert answer.deduplicated is True  # type: ignore[union-attr]
    one.message.publish(url="https://example.com", content_based_deduplication=True)
    assert "Upstash-Deduplication-Id" not in dict(script.sent[1].headers)


def test_each_message_of_a_batch_gets_an_id_of_its_own(clock: InstantClock) -> None:
    script = ScriptedTransport(LOST, [MESSAGE, MESSAGE, {"messageId": "m", "deduplicated": True}])  # type: ignore[arg-type]
    answers = client(script, clock).message.batch(
        [
            {"url": "https://a.example"},
            {"url": "https://b.example"},
            {"url": "https://c.example", "deduplication_id": "x"},
        ]
    )
    assert script.sent[0].body == script.sent[1].body
    ids = [item["headers"]["Upstash-Deduplication-Id"] for item in json.loads(script.sent[0].body)]
    assert len(set(ids)) == 3
    assert ids[2] == "x"
    assert [answer.deduplicated for answer in answers] == [False, False, True]  # type: ignore[union-attr]


def test_a_schedule_is_created_under_an_id_that_survives_a_lost_answer(clock: InstantClock) -> None:
    script = ScriptedTransport(LOST, {"scheduleId": "scd_1"})
    assert client(script, clock).schedule.create(destination="https://example.com", cron="* * * * *") == "scd_1"
    names = [dict(request.headers)["Upstash-Schedule-Id"] for request in script.sent]
    assert names[0] == names[1]
    assert names[0].startswith("scd_")


def test_without_retries_the_service_names_the_schedule(clock: InstantClock) -> None:
    script = ScriptedTransport({"scheduleId": "scd_1"})
    client(script, clock, retry=False).schedule.create(destination="https://example.com", cron="* * * * *")
    assert "Upstash-Schedule-Id" not in dict(script.sent[0].headers)


ONCE_ONLY = {
    "rotate": lambda one: one.signing_key.rotate(),
    "chat": lambda one: one.chat.create(model="m", messages=[{"role": "user", "content": "?"}]),
    "retry of a dead letter": lambda one: one.dlq.retry("1-0"),
    "deletion by filter": lambda one: one.dlq.delete_all(filter={"label": "x"}),
    "a limited number of cancels": lambda one: one.message.cancel_all(count=10),
    "a path of the caller's own": lambda one: one.http.request(path="/v2/x", method="POST"),
}


@pytest.mark.parametrize("ask", ONCE_ONLY.values(), ids=ONCE_ONLY.keys())
@pytest.mark.parametrize("lost", [LOST, status(500), status(502), status(504)])
def test_what_must_not_happen_twice_is_not_repeated_when_it_may_have_happened(
    ask: Any, lost: Outcome, clock: InstantClock
) -> None:
    script = ScriptedTransport(lost)
    with pytest.raises(QStashError):
        ask(client(script, clock))
    assert len(script.sent) == 1


@pytest.mark.parametrize("ask", ONCE_ONLY.values(), ids=ONCE_ONLY.keys())
@pytest.mark.parametrize("untouched", [REFUSED, status(503), status(429)])
def test_it_is_repeated_when_the_service_surely_did_nothing(ask: Any, untouched: Outcome, clock: InstantClock) -> None:
    script = ScriptedTransport(untouched, status(400))
    with pytest.raises(ApiError):
        ask(client(script, clock))
    assert len(script.sent) == 2


def test_a_deletion_whose_answer_was_lost_is_done_when_the_thing_is_gone(clock: InstantClock) -> None:
    script = ScriptedTransport(LOST, status(404))
    client(script, clock).message.cancel("msg_1")
    assert len(script.sent) == 2


@pytest.mark.parametrize("first", [REFUSED, status(503)])
def test_a_deletion_that_never_arrived_still_fails_for_an_unknown_id(first: Outcome, clock: InstantClock) -> None:
    with pytest.raises(ApiError) as caught:
        client(ScriptedTransport(first, status(404)), clock).dlq.delete("1-0")
    assert caught.value.status == 404


def test_a_spent_quota_of_the_day_is_not_repeated(clock: InstantClock) -> None:
    headers = (("ratelimit-limit", "1000"), ("ratelimit-remaining", "0"), ("ratelimit-reset", "17"))
    script = ScriptedTransport(status(429, *headers))
    with pytest.raises(DailyMessageLimitExceededError) as caught:
        client(script, clock).message.publish(url="https://example.com")
    assert (caught.value.limit, caught.value.remaining, caught.value.reset) == ("1000", "0", "17")
    assert len(script.sent) == 1


def test_a_burst_limit_that_stays_is_told_with_its_numbers(clock: InstantClock) -> None:
    headers = (("Burst-RateLimit-Limit", "100"), ("Burst-RateLimit-Remaining", "0"), ("Burst-RateLimit-Reset", "99"))
    script = ScriptedTransport(status(429, *headers))
    with pytest.raises(RateLimitExceededError) as caught:
        client(script, clock, retry={"retries": 1}).queue.list()
    assert (caught.value.limit, caught.value.remaining, caught.value.reset) == ("100", "0", "99")
    assert str(caught.value) == "Exceeded burst rate limit: Limit: 100, remaining: 0, reset: 99"
    assert len(script.sent) == 2


def test_a_models_limit_is_told_with_its_numbers(clock: InstantClock) -> None:
    headers = tuple(
        (f"x-ratelimit-{kind}-{of}", f"{kind[:3]}{of[:3]}")
        for kind in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    )
    script = ScriptedTransport(status(429, *headers, ("RateLimit-Limit", "1")))
    with pytest.raises(ChatRateLimitExceededError) as caught:
        client(script, clock, retry=False).chat.prompt(user="?", model="m")
    error = caught.value
    assert (error.limit_requests, error.limit_tokens) == ("limreq", "limtok")
    assert (error.remaining_requests, error.remaining_tokens) == ("remreq", "remtok")
    assert (error.reset_requests, error.reset_tokens) == ("resreq", "restok")


def test_a_models_limit_is_waited_for_even_when_the_service_shows_its_quota_beside_it(clock: InstantClock) -> None:
    limits = (("x-ratelimit-limit-requests", "1"), ("RateLimit-Limit", "1000"), ("Retry-After", "3"))
    script = ScriptedTransport(status(429, *limits), status(400))
    with pytest.raises(ApiError):
        client(script, clock).chat.prompt(user="?", model="m")
    assert clock.slept_s == [3]


def test_attempts_have_the_clients_time_and_chat_has_its_own(clock: InstantClock) -> None:
    script = ScriptedTransport(status(400))
    one = client(script, clock, timeout_s=3)
    for ask in (lambda: one.message.get("m"), lambda: one.chat.prompt(user="?", model="m")):
        with pytest.raises(ApiError):
            ask()
    assert script.timeouts_s == [3, 600]


@pytest.mark.anyio
async def test_the_async_client_runs_the_same_exchange(clock: InstantClock) -> None:
    from qtasks.qstash import AsyncQStash

    script = AsyncScriptedTransport(LOST, status(429, ("Retry-After", "2")), MESSAGE)
    one = AsyncQStash(TOKEN, transport=script, sleep=clock.asleep, monotonic=clock.monotonic)
    answer = await one.message.publish(url="https://example.com")
    assert answer.message_id == "msg_1"  # type: ignore[union-attr]
    assert clock.slept_s == pytest.approx([math.e * 50 / 1000, 2])
    ids = {dict(request.headers)["Upstash-Deduplication-Id"] for request in script.sync.sent}
    assert len(ids) == 1
