"""What is sent of a call is the same, whether it is made from the template of its task or from all of its options."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol import wire
from qtasks.protocol.messages import FlowControl, PublishOptions
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.prepared_call import CallPreparer

BASE_URL = "https://app.example.com/qtasks"

OPTIONS = st.builds(
    PublishOptions,
    method=st.just("POST"),
    content_type=st.sampled_from([None, "application/json"]),
    retries=st.sampled_from([None, 0, 7]),
    delay_ms=st.sampled_from([None, 90_000]),
    timeout_ms=st.sampled_from([None, 5_000]),
    deduplication_id=st.sampled_from([None, "mine"]),
    content_based_deduplication=st.sampled_from([None, True]),
    callback=st.sampled_from([None, "https://e.com/done"]),
    failure_callback=st.sampled_from([None, "https://e.com/failed"]),
    failure_callback_options=st.sampled_from([None, PublishOptions(retries=2)]),
    labels=st.sampled_from([(), ("a", "b")]),
    flow_control=st.sampled_from([None, FlowControl("k", 2)]),
    forward=st.sampled_from([(), (("X-A", "1"), ("X-B", '"a\\'))]),
    interrupted_for_ms=st.sampled_from([None, 0, 60_000]),
)
CALLS = st.builds(
    Outgoing,
    task=st.just("work"),
    call_id=st.sampled_from(["call_0f", "mine-1", "a&b=c/d"]),
    options=OPTIONS,
    queue=st.sampled_from([None, "mail"]),
    own_deduplication=st.booleans(),
    argument_labels=st.sampled_from([(), ("qtasks.arg.n=1", "qtasks.arg.m")]),
    envelope=st.builds(
        partial(Envelope, "call_0f"),
        args=st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3), max_size=2
        ),
        unique=st.sampled_from([None, "work:é"]),
        flow=st.sampled_from([{}, {"id": "flow1"}, {"id": "flow1", "else": {"task": "mend"}}]),
    ),
)


@given(call=CALLS, interrupted_for_ms=st.sampled_from([None, 30_000]))
def test_a_prepared_call_has_the_options_of_its_message(call: Outgoing, interrupted_for_ms: int | None) -> None:
    target, options = call.addressed(BASE_URL, interrupted_for_ms=interrupted_for_ms)
    if options.deduplication_id is None and not options.content_based_deduplication:
        options = replace(options, deduplication_id="retry_1")
    sent = wire.read(wire.write(options))
    preparer = CallPreparer(BASE_URL, interrupted_for_ms)
    for prepared in (preparer.prepared(call, "retry_1"), preparer.prepared(call, "retry_1")):  # made, and kept
        operation = prepared.operation()
        item = json.loads(prepared.item())
        assert wire.read(operation.headers) == wire.read(tuple(item["headers"].items())) == sent
        assert (item["destination"], item["queue"], item["body"].encode()) == (target, call.queue, call.body)
        assert operation.path == f"/v2/{'publish' if call.queue is None else 'enqueue/mail'}/{target}"
        assert operation.body == call.body
        assert prepared.has_retry_id == (options.deduplication_id == "retry_1")
        assert prepared.template.is_shareable != bool(options.content_based_deduplication)


def test_two_calls_of_one_task_share_nothing_of_their_own() -> None:
    preparer = CallPreparer(BASE_URL, None)
    calls = [Outgoing(task="work", call_id=f"call_{n}", options=PublishOptions(), envelope=Envelope("x")) for n in "ab"]
    first, second = (preparer.prepared(call, f"retry_{call.call_id}") for call in calls)
    assert first.template is second.template
    assert wire.read(first.operation().headers).call_id == "call_a"
    assert wire.read(second.operation().headers).call_id == "call_b"
    assert wire.read(second.operation().headers).end_callback == f"{BASE_URL}/_end?task=work&call=call_b"


@pytest.mark.parametrize("url", ["https://api.openai.com/v1/chat/completions", "api/llm"])
def test_a_request_to_a_language_model_leaves_alone(url: str) -> None:
    class Elsewhere(Outgoing):
        def addressed(self, base_url: str, *, interrupted_for_ms: int | None = None) -> tuple[str, PublishOptions]:
            return url, self.options

    call = Elsewhere(task="work", call_id="call_1", options=PublishOptions(), envelope=Envelope("call_1"))
    assert not CallPreparer(BASE_URL, None).prepared(call, "retry_1").template.is_shareable
