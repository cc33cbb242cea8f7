"""The table of transitions, and what the outcome of an attempt means for its message (docs/protocol.md 4.3 to 5.2)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from qtasks.broker.core import rules
from qtasks.broker.core.rules import FINAL, TRANSITIONS, Evaluation, Stage, Trigger, backoff_s, evaluate, is_final
from qtasks.broker.ports import Failure
from qtasks.protocol.messages import Headers, Message, PublishOptions, Response, State
from tests.support.broker import START_MS, message

NOW = START_MS
DAY_S = 86_400

C, A, E, R = State.CREATED, State.ACTIVE, State.ERROR, State.RETRY
DELIVERED, FAILED = State.DELIVERED, State.FAILED
ASKED, CANCELED = State.CANCEL_REQUESTED, State.CANCELED
STARTABLE = {
    Trigger.CLAIM,
    Trigger.PARK,
    Trigger.HOLD,
    Trigger.QUEUE,
    Trigger.CANCEL,
    Trigger.CORRUPT,
    Trigger.CRASH_LOOP,
}

ENDS_OF_AN_ATTEMPT = {Trigger.SUCCEED, Trigger.RETRY, Trigger.FAIL, Trigger.STOP, Trigger.INTERRUPT}


def failing(**changes: Any) -> Message:
    return message(1, **changes)


def answer(status: int, **headers: str) -> Response:
    lines = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Response(status=status, headers=lines)


def after(*triggers: Trigger) -> tuple[Stage, tuple[State, ...]]:
    """Where `triggers` lead a fresh message, and its log."""
    stage = Stage.DUE
    log: tuple[State, ...] = (State.CREATED,)
    for trigger in triggers:
        transition = TRANSITIONS[stage, trigger]
        stage, log = transition.to, log + transition.log
    return stage, log


# -- the table


@pytest.mark.parametrize(
    ("triggers", "stage", "log"),
    [
        ((Trigger.CLAIM, Trigger.SUCCEED), Stage.DELIVERED, (C, A, DELIVERED)),
        ((Trigger.CLAIM, Trigger.FAIL), Stage.FAILED, (C, A, E, FAILED)),
        ((Trigger.CLAIM, Trigger.RETRY, Trigger.CLAIM, Trigger.SUCCEED), Stage.DELIVERED, (C, A, E, R, A, DELIVERED)),
        ((Trigger.CANCEL,), Stage.CANCELED, (C, ASKED, CANCELED)),
        ((Trigger.CLAIM, Trigger.CANCEL, Trigger.STOP), Stage.CANCELED, (C, A, ASKED, E, CANCELED)),
        ((Trigger.CLAIM, Trigger.CANCEL, Trigger.SUCCEED), Stage.DELIVERED, (C, A, ASKED, DELIVERED)),
        (
            (Trigger.CLAIM, Trigger.INTERRUPT, Trigger.CLAIM, Trigger.SUCCEED),
            Stage.DELIVERED,
            (C, A, E, R, A, DELIVERED),
        ),
        ((Trigger.PARK, Trigger.CLAIM, Trigger.SUCCEED), Stage.DELIVERED, (C, A, DELIVERED)),
        ((Trigger.PARK, Trigger.PARK, Trigger.CLAIM, Trigger.SUCCEED), Stage.DELIVERED, (C, A, DELIVERED)),
        ((Trigger.CRASH_LOOP,), Stage.FAILED, (C, E, FAILED)),
        ((Trigger.PARK, Trigger.CANCEL), Stage.CANCELED, (C, ASKED, CANCELED)),
        ((Trigger.CORRUPT,), Stage.FAILED, (C, E, FAILED)),
        ((Trigger.QUEUE, Trigger.ADMIT, Trigger.CLAIM, Trigger.SUCCEED), Stage.DELIVERED, (C, A, DELIVERED)),
        ((Trigger.QUEUE, Trigger.CANCEL), Stage.CANCELED, (C, ASKED, CANCELED)),
        ((Trigger.HOLD, Trigger.CLAIM, Trigger.SUCCEED), Stage.DELIVERED, (C, A, DELIVERED)),
        ((Trigger.HOLD, Trigger.PARK, Trigger.HOLD, Trigger.CANCEL), Stage.CANCELED, (C, ASKED, CANCELED)),
    ],
)
def test_every_course_of_a_message_leaves_the_log_of_the_protocol(
    triggers: tuple[Trigger, ...], stage: Stage, log: tuple[State, ...]
) -> None:
    assert after(*triggers) == (stage, log)


@pytest.mark.parametrize(
    ("stage", "possible"),
    [
        (Stage.DUE, STARTABLE),
        (Stage.PARKED, STARTABLE),
        (Stage.HELD, STARTABLE),
        (Stage.QUEUED, {Trigger.ADMIT, Trigger.CANCEL, Trigger.CORRUPT}),
        (Stage.ACTIVE, ENDS_OF_AN_ATTEMPT | {Trigger.CANCEL, Trigger.CORRUPT}),
        (Stage.DELIVERED, set()),
        (Stage.FAILED, set()),
        (Stage.CANCELED, set()),
    ],
)
def test_a_pair_that_is_not_in_the_table_cannot_happen(stage: Stage, possible: set[Trigger]) -> None:
    assert {trigger for trigger in Trigger if (stage, trigger) in TRANSITIONS} == possible


def test_final_stages_are_final_and_all_others_can_end() -> None:
    assert {stage for stage, _ in TRANSITIONS} == set(Stage) - FINAL
    reachable: dict[Stage, set[Stage]] = {stage: {stage} for stage in Stage}
    for _ in Stage:
        for (stage, _), transition in TRANSITIONS.items():
            reachable[stage] |= reachable[transition.to]
    assert all(reachable[stage] >= FINAL for stage in set(Stage) - FINAL)
    assert reachable[Stage.DUE] == set(Stage)


def test_a_move_that_ends_a_message_says_so_last_in_its_log() -> None:
    last = {Stage.DELIVERED: DELIVERED, Stage.FAILED: FAILED, Stage.CANCELED: CANCELED}
    for transition in TRANSITIONS.values():
        if transition.to in FINAL:
            assert transition.log[-1] is last[transition.to]
        else:
            assert not set(transition.log) & set(last.values())


# -- the evaluation


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 299])
def test_any_2xx_is_success_whatever_its_headers_say(status: int) -> None:
    shouting = answer(status, Upstash_NonRetryable_Error="true", Retry_After="10")
    assert evaluate(failing(), shouting, now_ms=NOW) == Evaluation(Trigger.SUCCEED)


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 409, 412, 429, 489, 500, 503, 599])
def test_any_other_status_is_a_failure_and_is_retried(status: int) -> None:
    evaluation = evaluate(failing(), answer(status), now_ms=NOW)
    assert evaluation.trigger is Trigger.RETRY
    assert evaluation.due_ms == NOW + 12_000
    assert str(status) in (evaluation.error or "")


@pytest.mark.parametrize("code", ["timeout", "dns", "connection_refused", "connection_lost", "tls", "bad_response"])
def test_no_answer_is_a_failure_and_is_retried_with_the_reason_kept(code: str) -> None:
    assert evaluate(failing(), Failure(code, "why"), now_ms=NOW) == Evaluation(Trigger.RETRY, "why", NOW + 12_000)


@pytest.mark.parametrize(
    ("retried", "seconds"),
    [
        (0, 12),  # e^2.5 = 12.18
        (1, 148),  # e^5 = 148.41
        (2, 1_808),  # e^7.5 = 1808.04
        (3, 22_026),  # e^10 = 22026.47
        (4, DAY_S),  # e^12.5 = 268337, capped at a day
        (5, DAY_S),
        (998, DAY_S),
    ],
)
def test_the_backoff_is_e_to_the_two_and_a_half_n_truncated_and_at_most_a_day(retried: int, seconds: int) -> None:
    evaluation = evaluate(failing(retried=retried, max_retries=999), answer(500), now_ms=NOW)
    assert evaluation == Evaluation(Trigger.RETRY, "the destination answered 500", NOW + seconds * 1000)
    assert backoff_s(retried + 1) == seconds


@pytest.mark.parametrize(
    ("expression", "delays_ms"),
    [
        ("1000", [1000, 1000, 1000]),
        ("1000 * (1 + retried)", [1000, 2000, 3000]),
        ("pow(2, retried) * 1000", [1000, 2000, 4000]),
        ("max(1000, pow(2, retried) * 100)", [1000, 1000, 1000]),
        ("7000 * retried", [0, 7000, 14000]),
        ("pow(retried, 2) * 1000", [0, 1000, 4000]),
        ("pow(1000, retried) * 1000", [1000, 1_000_000, DAY_S * 1000]),
    ],
)
def test_an_expression_replaces_the_backoff_and_retried_is_0_before_the_first_retry(
    expression: str, delays_ms: list[int]
) -> None:
    for retried, delay_ms in enumerate(delays_ms):
        sent = failing(retried=retried, options=PublishOptions(retry_delay=expression))
        assert evaluate(sent, answer(500), now_ms=NOW).due_ms == NOW + delay_ms


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ((("Retry-After", "0"),), 0),
        ((("Retry-After", "10"),), 10),
        ((("retry-after", "6m5s"),), 365),
        ((("Retry-After", "Fri, 15 Jan 2027 08:01:00 GMT"),), 60),  # NOW is 08:00:00 of that day
        ((("Retry-After", "Sun, 15 Jan 2023 08:01:00 GMT"),), 0),  # the past, and the wrong weekday: now
        ((("X-RateLimit-Reset", "7"),), 7),
        ((("X-RateLimit-Reset-Requests", "20"), ("X-RateLimit-Reset-Tokens", "1m")), 60),  # both must have passed
        ((("Retry-After", "90000"),), None),  # more than a day is ignored
        ((("Retry-After", "25h"),), None),
        ((("Retry-After", "abc"),), None),
        ((("Retry-After", "90000"), ("X-RateLimit-Reset", "5")), 5),
    ],
)
def test_the_answers_own_wish_wins_over_the_expression_and_the_expression_over_the_backoff(
    headers: Headers, seconds: int | None
) -> None:
    refused = Response(status=429, headers=headers)
    plain = evaluate(failing(), refused, now_ms=NOW)
    assert plain.due_ms == NOW + (12 if seconds is None else seconds) * 1000
    with_expression = evaluate(failing(options=PublishOptions(retry_delay="3000")), refused, now_ms=NOW)
    assert with_expression.due_ms == NOW + (3 if seconds is None else seconds) * 1000


def test_the_answers_wish_changes_the_time_of_a_retry_and_not_their_number() -> None:
    wish = answer(503, Retry_After="0")
    assert evaluate(failing(retried=2), wish, now_ms=NOW).trigger is Trigger.RETRY
    assert evaluate(failing(retried=3), wish, now_ms=NOW).trigger is Trigger.FAIL


@pytest.mark.parametrize(
    ("outcome", "final"),
    [
        (answer(489, Upstash_NonRetryable_Error="true"), True),
        (answer(489, upstash_nonretryable_error="TRUE "), True),
        (answer(400, Upstash_NonRetryable_Error="true"), True),  # the header alone decides (docs/compatibility.md A16)
        (answer(489), False),
        (answer(489, Upstash_NonRetryable_Error="false"), False),
        (answer(489, Upstash_NonRetryable_Error=""), False),
        (Failure("destination_blocked", "refused", final=True), True),
        (Failure("timeout", "slow"), False),
    ],
)
def test_what_says_never_again_goes_straight_to_the_dead_letters(outcome: Response | Failure, final: bool) -> None:
    assert is_final(outcome) is final
    evaluation = evaluate(failing(), outcome, now_ms=NOW)
    assert evaluation.trigger is (Trigger.FAIL if final else Trigger.RETRY)
    assert (evaluation.due_ms is None) is final


def test_a_redirect_is_a_failure_that_names_where_it_points() -> None:
    moved = evaluate(failing(), answer(302, Location="http://elsewhere.example/x"), now_ms=NOW)
    assert moved.trigger is Trigger.RETRY
    assert "redirect to http://elsewhere.example/x; redirects are not followed" in (moved.error or "")
    lost = evaluate(failing(), answer(304), now_ms=NOW)
    assert "nowhere" in (lost.error or "")
    long = evaluate(failing(), answer(301, Location="http://h/" + "x" * 10_000), now_ms=NOW)
    assert len(long.error or "") < 400


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_attempts_are_one_more_than_retries(max_retries: int) -> None:
    triggers = [
        evaluate(failing(retried=retried, max_retries=max_retries), answer(500), now_ms=NOW).trigger
        for retried in range(max_retries + 1)
    ]
    assert triggers == [Trigger.RETRY] * max_retries + [Trigger.FAIL]


def test_only_a_retry_has_a_time_and_only_a_success_has_no_error() -> None:
    outcomes: tuple[Response | Failure, ...] = (
        answer(204),
        answer(500),
        answer(302),
        Failure("dns", "no such host"),
        Failure("tls", "x", final=True),
    )
    for outcome, retried in itertools.product(outcomes, range(4)):
        evaluation = evaluate(failing(retried=retried), outcome, now_ms=NOW)
        assert (evaluation.due_ms is not None) is (evaluation.trigger is Trigger.RETRY)
        assert (evaluation.error is None) is (evaluation.trigger is Trigger.SUCCEED)


def test_an_error_is_text_that_every_store_can_keep() -> None:
    evaluation = evaluate(failing(), Failure("connection_lost", "bad \udc80 and \x00 and " + "x" * 10_000), now_ms=NOW)
    assert evaluation.error is not None
    assert evaluation.error.encode().startswith(b"bad ? and ")
    assert "\x00" not in evaluation.error
    assert len(evaluation.error) <= rules.MAX_ERROR
