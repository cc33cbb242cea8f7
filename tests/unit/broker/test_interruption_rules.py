"""Which attempts are interruptions, and what they change (docs/protocol.md 5.14)."""

from __future__ import annotations

import itertools

import pytest

from qtasks.broker.core.interruptions import UNTROUBLED, WITH_DISPATCHER, Sign, Situation, probe_pause_ms
from qtasks.broker.core.rules import Evaluation, Trigger, evaluate
from qtasks.broker.ports import Failure
from qtasks.protocol.messages import Message, PublishOptions, Response
from tests.support.broker import START_MS, message
from tests.support.outage import ALLOWED, BAD_GATEWAY, CUT, DAY_MS, DONE, REFUSED

NOW = START_MS
DRAINING = Response(status=503, headers=(*DONE.headers, ("qtasks-interrupted", " Draining "), ("Retry-After", "9")))
ELSEWHERE = Response(status=503, headers=(*DONE.headers, ("Qtasks-Interrupted", "running elsewhere")))
TIMEOUT = Failure("timeout", "no answer within 30 s")
UNSENT = Failure("connection_lost", "no file descriptor is free", attempted=False)


def allowed(options: PublishOptions = ALLOWED) -> Message:
    return message(1, options=options, max_retries=0)


def judged(outcome: Response | Failure, situation: Situation = UNTROUBLED) -> Evaluation:
    return evaluate(allowed(), outcome, now_ms=NOW, situation=situation)


@pytest.mark.parametrize(
    ("outcome", "situation", "trigger", "sign"),
    [
        (DONE, UNTROUBLED, Trigger.SUCCEED, Sign.ANSWERS),
        (REFUSED, UNTROUBLED, Trigger.INTERRUPT, Sign.REFUSES),
        (CUT, UNTROUBLED, Trigger.INTERRUPT, Sign.REFUSES),
        (DRAINING, UNTROUBLED, Trigger.INTERRUPT, Sign.REFUSES),
        (ELSEWHERE, UNTROUBLED, Trigger.INTERRUPT, Sign.ANSWERS),
        (BAD_GATEWAY, WITH_DISPATCHER, Trigger.INTERRUPT, Sign.REFUSES),
        (BAD_GATEWAY, UNTROUBLED, Trigger.FAIL, Sign.ANSWERS),
        (Response(status=500), WITH_DISPATCHER, Trigger.FAIL, Sign.ANSWERS),
        (Response(status=503, headers=DONE.headers), WITH_DISPATCHER, Trigger.FAIL, Sign.ANSWERS),
        (TIMEOUT, WITH_DISPATCHER, Trigger.FAIL, Sign.NONE),
        (UNSENT, UNTROUBLED, Trigger.INTERRUPT, Sign.NONE),
    ],
)
def test_only_what_says_nothing_about_the_message_is_an_interruption(
    outcome: Response | Failure, situation: Situation, trigger: Trigger, sign: Sign
) -> None:
    evaluation = judged(outcome, situation)
    assert (evaluation.trigger, evaluation.sign) == (trigger, sign)


@pytest.mark.parametrize("outcome", [REFUSED, CUT, DRAINING, ELSEWHERE, BAD_GATEWAY, TIMEOUT, Response(status=500)])
def test_every_attempt_of_a_plain_message_counts_and_tells_nothing_of_its_prefix(outcome: Response | Failure) -> None:
    evaluation = evaluate(message(1, max_retries=0), outcome, now_ms=NOW, situation=WITH_DISPATCHER)
    assert (evaluation.trigger, evaluation.sign) == (Trigger.FAIL, Sign.NONE)


def test_an_interruption_begins_the_time_that_the_allowance_is_measured_by() -> None:
    assert judged(REFUSED).since_ms == NOW
    assert judged(REFUSED, Situation(since_ms=NOW - 5)).since_ms == NOW - 5
    assert judged(DONE, Situation(since_ms=NOW - 5)).since_ms is None


@pytest.mark.parametrize("outcome", [REFUSED, CUT, DRAINING, ELSEWHERE])
def test_beyond_the_allowance_an_interruption_counts(outcome: Response | Failure) -> None:
    assert judged(outcome, Situation(since_ms=NOW - DAY_MS + 1)).trigger is Trigger.INTERRUPT
    expired = judged(outcome, Situation(since_ms=NOW - DAY_MS))
    assert (expired.trigger, expired.is_expired) == (Trigger.FAIL, True)


def test_a_cut_counts_only_while_the_message_is_alone() -> None:
    assert judged(CUT).cuts == 1
    assert judged(CUT, Situation(cuts=1)).cuts == 2
    assert judged(REFUSED, Situation(cuts=1)).cuts == 1
    assert judged(REFUSED, Situation(cuts=2, is_alone=True)).trigger is Trigger.INTERRUPT
    assert judged(CUT, Situation(cuts=2, is_alone=True)).trigger is Trigger.FAIL


def test_a_retry_after_a_cut_is_alone_again_and_one_after_an_answer_is_not() -> None:
    suspect = message(1, options=ALLOWED, max_retries=3)
    situation = Situation(since_ms=NOW, cuts=2, is_alone=True)
    cut = evaluate(suspect, CUT, now_ms=NOW, situation=situation)
    assert (cut.trigger, cut.cuts) == (Trigger.RETRY, 3)
    answered = evaluate(suspect, Response(status=500), now_ms=NOW, situation=situation)
    assert (answered.trigger, answered.cuts, answered.since_ms) == (Trigger.RETRY, 0, None)


def test_a_proxy_cuts_a_message_only_while_its_application_was_there() -> None:
    assert judged(BAD_GATEWAY, WITH_DISPATCHER).cuts == 1
    assert judged(BAD_GATEWAY, Situation(has_dispatcher=True, is_probe=True)).cuts == 0


def test_a_call_that_runs_elsewhere_waits_within_bounds() -> None:
    def wait_ms(*seconds: str) -> int:
        pause = tuple(("Retry-After", value) for value in seconds)
        outcome = Response(status=503, headers=(*ELSEWHERE.headers, *pause))
        return (judged(outcome).due_ms or 0) - NOW

    assert [wait_ms(), wait_ms("7"), wait_ms("0"), wait_ms("86400"), wait_ms("nonsense")] == [
        1_000,
        7_000,
        100,
        60_000,
        1_000,
    ]


def test_what_waits_for_its_prefix_keeps_its_time() -> None:
    assert [judged(outcome).due_ms for outcome in (REFUSED, CUT, DRAINING)] == [None, None, None]


def test_an_error_says_that_it_was_an_interruption_and_which() -> None:
    assert judged(REFUSED).error == "interrupted, no retry is spent: connection refused"


def test_the_pauses_between_probes_grow_within_their_bounds() -> None:
    pauses = [probe_pause_ms(down_ms) for down_ms in range(0, 1_000_000, 50)]
    assert pauses[0] == 50
    assert max(pauses[:1_200]) == 500
    assert pauses[-1] == 5_000
    assert all(earlier <= later for earlier, later in itertools.pairwise(pauses))
