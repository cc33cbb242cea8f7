"""The words of a filter: read, written, and compared with messages."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.errors import InvalidCallError
from qtasks.tasks.admin.filter_words import FilterMatcher, FilterWord, read, time_ms, written
from qtasks.tasks.admin.summaries import MessageSummary

NOW_MS = 1_764_300_000_000
MESSAGE = MessageSummary(
    message_id="msg_1",
    call_id="call_1",
    task="charge",
    destination="https://app.example/qtasks/charge",
    status="failed",
    created_ms=NOW_MS - 3_600_000,
    error="TimeoutError: the Gateway",
    queue="email",
    flow_key="tenant 1",
    schedule_id="scd_1",
    labels=("a", "b, c"),
    arguments={"0": 42, "user": {"id": 7, "tags": ["x", None]}, "ok": True},
)


@pytest.mark.parametrize(
    "text",
    [
        "", "task:charge", "task:other,charge", "url:https://app.example/qtasks/charge", "url:https://app.example/*",
        "status:failed,running", "error:gateway", "id:msg_1", "id:call_1", "queue:email", 'key:"tenant 1"',
        'label:"b, c"', "schedule:scd_1", "after:2h", "before:30m", "-status:delivered", "arg.0:42", "arg.user.id:7",
        "arg.user.tags.1:null", "arg.ok:true", "charge", "CHAR", "msg_1", "-refund", "task:charge -queue:sms after:1d",
        f"after:{datetime.fromtimestamp(NOW_MS / 1000 - 7200, UTC):%Y-%m-%dT%H:%M}",
    ],
)  # fmt: skip
def test_a_message_matches(text: str) -> None:
    assert FilterMatcher(read(text), NOW_MS).matches(MESSAGE)


@pytest.mark.parametrize(
    "text",
    [
        "task:charges", "url:https://app.example/qtasks", "status:delivered", "error:refused", "id:msg_2", "queue:sms",
        "label:b", "after:30m", "before:2h", "-status:failed", "arg.0:4", "arg.user:7", "arg.missing:null", "refund",
        "task:charge queue:sms", "https://app.example/other",
    ],
)  # fmt: skip
def test_a_message_does_not_match(text: str) -> None:
    assert not FilterMatcher(read(text), NOW_MS).matches(MESSAGE)


@pytest.mark.parametrize("text", ["tsk:x", "task:", 'error:"x', "status:done", "Task.x:1 nonsense:y"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidCallError):
        read(text)


def test_times_are_dates_times_with_or_without_an_offset_and_ages() -> None:
    assert time_ms("2025-11-28", 0) == time_ms("2025-11-28T00:00Z", 0) == time_ms("2025-11-28T01:00+01:00", 0)
    assert time_ms("90m", NOW_MS) == NOW_MS - 90 * 60_000
    with pytest.raises(InvalidCallError, match="is not a time"):
        time_ms("soon", NOW_MS)


VALUES = st.lists(st.text(st.characters(exclude_characters='"', exclude_categories=["C"]), min_size=1), min_size=1)


@given(st.dictionaries(st.sampled_from(["task", "error", "label", "queue", "key"]), VALUES))
def test_keyword_arguments_become_words_that_are_read_as_they_were_given(options: dict[str, list[str]]) -> None:
    assert read(written("-x", options)) == (
        FilterWord("", ("x",), negated=True),
        *(FilterWord(name, tuple(values)) for name, values in options.items()),
    )
