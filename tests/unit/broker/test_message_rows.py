"""A message as a row: what is stored once for all messages of a task, and what is read of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.broker.core import message_rows
from qtasks.protocol.messages import Message, PublishOptions
from tests.support.broker import message

END = "http://127.0.0.1/qtasks/_end?task=add&call=call_1"
OTHER = "http://127.0.0.1/other"

urls = st.none() | st.sampled_from([END, OTHER])
nested = st.none() | st.just(PublishOptions(retries=1))


@st.composite
def messages(draw: st.DrawFn) -> Message:
    options = PublishOptions(
        callback=draw(urls),
        failure_callback=draw(urls),
        failure_callback_options=draw(nested),
        end_callback=draw(urls),
        call_id=draw(st.none() | st.just("call_1")),
        interrupted_for_ms=draw(st.none() | st.just(1000)),
        labels=draw(st.sampled_from([(), ("one",), ("one", 'qtasks.arg.n="1\\', "qtasks.arg.m"), ("qtasks.arg.n=1",)])),
    )
    if options.failure_callback is None:  # nothing could have these options
        options = replace(options, failure_callback_options=None)
    return replace(message(1), options=options)


@given(messages())
def test_a_message_is_read_as_it_was_stored(one: Message) -> None:
    row = message_rows.pack_message(one)

    assert message_rows.is_readable(row)
    assert message_rows.unpack_message(row, one.body).options == one.options


@given(messages())
def test_a_row_shows_whether_the_end_of_an_attempt_may_create_callbacks(one: Message) -> None:
    options = one.options
    is_reported = options.callback is not None or options.failure_callback not in (None, options.end_callback)

    assert message_rows.has_callbacks(message_rows.pack_message(one)) is is_reported


def test_the_calls_of_a_task_have_equal_options_although_each_has_its_own_end_callback() -> None:
    calls = [
        replace(message(1), options=PublishOptions(failure_callback=url, end_callback=url))
        for url in (END, END.replace("call_1", "call_2"))
    ]

    assert len({message_rows.pack_message(call).options for call in calls}) == 1


def test_a_failure_callback_that_an_earlier_release_stored_with_its_url_is_read() -> None:
    options = PublishOptions(failure_callback=END, end_callback=END)
    row = message_rows.pack_message(replace(message(1), options=options))
    row = row._replace(options=f'[["Upstash-Failure-Callback","{END}"]]')

    assert message_rows.unpack_message(row, b"").options == options
    assert not message_rows.has_callbacks(row)


@pytest.mark.parametrize("options", ['[["Upstash-Failure-Callback","end"],["Upstash-Delay","?"]]'])
def test_options_behind_the_report_of_the_end_are_read_too(options: str) -> None:
    assert not message_rows.is_readable(message_rows.pack_message(message(1))._replace(options=options))
