"""How errors show what they hold, and that they survive copying and pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

from qtasks import errors
from qtasks.errors import BrokerUnreachable, ConfigurationError, QTasksError, did_you_mean

EXAMPLES = [
    QTasksError("plain"),
    ConfigurationError("wrong", details={"tried": "a", "looked for": ("b", "c")}, fix="set it", code="QT999"),
    errors.TaskFailed("failed", error="ValueError: no"),
    errors.TaskExpired("expired", reason="too late"),
    errors.ProviderError("refused", status=429, detail="slow down"),
    errors.OutputError("does not fit", text="[]"),
    BrokerUnreachable("no answer", sent=False, fix="start it"),
    errors.ApiError("refused", status=404, detail="gone"),
    errors.PartlyRefused("some", refused={"a": "too large"}),
    errors.RateLimitExceededError("1", "0", None, detail="wait"),
    errors.ChatRateLimitExceededError("1", "2", "3", "4", "5", "6"),
    errors.SignatureError("rejected", reason="url", details={"received": "x"}),
]


def test_an_error_without_facts_is_its_message() -> None:
    assert str(QTasksError("plain")) == "plain"
    assert QTasksError("plain").hint is None


def test_facts_stand_below_the_message_in_one_aligned_column() -> None:
    error = ConfigurationError(
        "nothing found\nat all",
        details={"tried": "a\nb", "looked for": ["here", "there"]},
        fix="start it",
    )
    assert str(error).splitlines() == [
        "nothing found",
        "at all",
        "  tried       a",
        "              b",
        "  looked for  here",
        "  looked for  there",
        "  fix         start it",
    ]
    assert error.hint == "\n".join(line[2:] for line in str(error).splitlines()[2:])


def test_a_long_label_widens_the_column() -> None:
    assert str(QTasksError("m", details={"a very long label": "x"}, fix="y")).splitlines() == [
        "m",
        "  a very long label x",
        "  fix               y",
    ]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_copying_and_pickling(error: QTasksError, duplicate: object) -> None:
    again = duplicate(error)  # type: ignore[operator]
    assert type(again) is type(error)
    assert again is not error
    assert (again.args, again.__dict__, again.code, str(again)) == (error.args, error.__dict__, error.code, str(error))


def test_a_reworded_error_keeps_all_facts_but_the_message() -> None:
    error = BrokerUnreachable("no answer", sent=False, details={"tried": "x"}, fix="start it")
    again = error.reworded("no answer (3 attempts)")
    assert (again.message, again.args) == ("no answer (3 attempts)", ("no answer (3 attempts)",))
    assert (again.sent, again.details, again.fix) == (False, {"tried": "x"}, "start it")
    assert error.message == "no answer"


def test_the_nearest_candidate_is_suggested() -> None:
    assert did_you_mean("retires", ["delay", "retries"]) == "; did you mean 'retries'?"
    assert did_you_mean("xyzzy", ["delay", "retries"]) == ""
    assert did_you_mean("x", iter(())) == ""
