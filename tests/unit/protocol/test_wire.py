"""Options as headers and back (docs/protocol.md 3)."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks.protocol import wire
from qtasks.protocol.headers import BROKER_OWNED, PER_CONNECTION
from qtasks.protocol.messages import MAX_DELAY_MS, MAX_TIMEOUT_MS, FlowControl, PublishOptions, Redaction
from qtasks.protocol.wire import WireError

FLOW_TEXT = "Upstash-Flow-Control-Value should be either rate=X or parallelism=Y, or both as comma-separated values"


def read_one(header: str, value: str) -> Any:
    """The one attribute that a header sets."""
    options = wire.read([(header, value)])
    [name] = [field.name for field in dataclasses.fields(options) if getattr(options, field.name) not in {None, ()}]
    return getattr(options, name)


def refusal(*headers: tuple[str, str]) -> WireError:
    with pytest.raises(WireError) as caught:
        wire.read(headers)
    return caught.value


# Round trips

tokens = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789-_", min_size=1, max_size=12)
names = tokens.map(wire.canonical_name).filter(lambda name: name not in BROKER_OWNED | PER_CONNECTION)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(str.strip)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)
trimmed = texts.map(lambda text: text.strip(" \t")).filter(bool)
labels = texts.map(lambda text: text.replace(",", "").strip()).filter(bool)
ascii_ids = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=30)
call_ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=128)
paths = st.lists(st.sampled_from(["a", "1", "%20", "%2F", "/", "?", "=", "&", ".", "-"]), max_size=12).map("".join)
urls = st.builds(
    "{}://{}{}/{}".format,
    st.sampled_from(["http", "https"]),
    tokens.map("h".__add__),
    st.sampled_from(["", ":81"]),
    paths,
)
plain_names = st.text("abcXYZ019._-", min_size=1, max_size=20).filter(lambda text: text not in {".", ".."})
redactions = st.builds(
    Redaction, st.booleans(), st.booleans(), st.lists(names, unique=True, max_size=3).map(tuple)
).filter(lambda redaction: redaction != Redaction())
limits = st.integers(1, 2**31 - 1)
flows = st.builds(FlowControl, trimmed, st.none() | limits, st.none() | limits, st.integers(1, 7 * 86400)).filter(
    lambda flow: flow.parallelism is not None or flow.rate is not None
)
expressions = st.sampled_from(["1000", "pow(2, retried) * 1000", "max(1000, retried)"])


def options_of(depth: int) -> st.SearchStrategy[PublishOptions]:
    """Options with callbacks down to `depth` levels; what has no meaning for a callback only on top."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "method": st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"]),
        "forward": st.lists(st.tuples(names, values), max_size=5).map(tuple),
        "delay_ms": st.integers(0, MAX_DELAY_MS),
        "not_before_s": st.integers(0, wire.MAX_NOT_BEFORE_S),
        "retries": st.integers(0, 999),
        "retry_delay": expressions,
        "timeout_ms": st.integers(1, MAX_TIMEOUT_MS),
        "deduplication_id": ascii_ids,
        "content_based_deduplication": st.booleans(),
        "flow_control": flows,
        "labels": st.lists(labels, max_size=4).map(tuple),
        "redact": redactions,
        "end_callback": urls,
        "interrupted_for_ms": st.integers(0, MAX_DELAY_MS),
    }
    if depth == wire.CALLBACK_DEPTH:
        fields["content_type"] = values.filter(bool)
        fields["forward_all"] = st.booleans()
        fields["cron"] = trimmed
        fields["schedule_id"] = fields["queue"] = plain_names
        fields["call_id"] = call_ids
    options = st.fixed_dictionaries({}, optional=fields).map(lambda chosen: PublishOptions(**chosen))
    if depth == 0:
        return options
    nested = st.none() | options_of(depth - 1).filter(lambda inner: inner != PublishOptions())

    def with_callbacks(given: tuple[PublishOptions, str | None, Any, str | None, Any]) -> PublishOptions:
        outer, callback, callback_options, failure, failure_options = given
        return dataclasses.replace(
            outer,
            callback=callback,
            callback_options=callback_options if callback else None,
            failure_callback=failure,
            failure_callback_options=failure_options if failure else None,
        )

    return st.tuples(options, st.none() | urls, nested, st.none() | urls, nested).map(with_callbacks)


@settings(max_examples=200)
@given(options_of(wire.CALLBACK_DEPTH))
def test_what_is_written_is_read_back(options: PublishOptions) -> None:
    assert wire.read(wire.write(options)) == options


@given(options_of(wire.CALLBACK_DEPTH))
def test_names_may_come_in_any_case(options: PublishOptions) -> None:
    assert wire.read([(name.lower(), value) for name, value in wire.write(options)]) == options
    assert wire.read([(name.upper(), value) for name, value in wire.write(options)]) == options


@given(options_of(wire.CALLBACK_DEPTH))
def test_written_headers_can_be_sent(options: PublishOptions) -> None:
    for name, value in wire.write(options):
        assert wire.canonical_name(name.lower()) == name
        assert "\n" not in value
        assert "\r" not in value


@given(options_of(wire.CALLBACK_DEPTH), st.lists(st.tuples(st.none() | call_ids, st.none() | ascii_ids), max_size=4))
def test_messages_with_equal_options_keep_ids_of_their_own(
    options: PublishOptions, ids: list[tuple[str | None, str | None]]
) -> None:
    for call_id, deduplication_id in ids:
        message = dataclasses.replace(options, call_id=call_id, deduplication_id=deduplication_id)
        assert wire.read(wire.write(message)) == message


def test_an_id_given_twice_must_agree() -> None:
    options = [("Upstash-Retries", "1"), ("Qtasks-Call-Id", "call_1")]
    assert wire.read([*options, ("qtasks-call-id", "call_1")]).call_id == "call_1"
    assert str(refusal(*options, ("qtasks-call-id", "call_2"))) == (
        "Qtasks-Call-Id is given 2 times, with different values"
    )


@pytest.mark.parametrize("lines", [[("Upstash-Forward-X", "x" * 10_000)], [("Upstash-Forward-" + "X" * 10_000, "1")]])
def test_long_lines_are_not_kept_in_memory(lines: list[tuple[str, str]]) -> None:
    text = max(lines[0], key=len)
    before = sys.getrefcount(text)
    count = len(wire.read(lines).forward)
    assert count == 1
    assert sys.getrefcount(text) == before


def test_every_row_has_a_field_and_every_field_a_row() -> None:
    rows = [row.name for row in wire.FIELDS]
    others = {"forward", "flow_control", "callback_options", "failure_callback_options"}
    assert sorted([*rows, *others]) == sorted(field.name for field in dataclasses.fields(PublishOptions))


def test_nothing_said_is_nothing_written() -> None:
    assert wire.write(PublishOptions()) == ()
    assert wire.read([]) == PublishOptions()


def test_the_official_header_block_is_understood() -> None:
    """As the official Python SDK sends it (docs/protocol.md, appendix C)."""
    block = """\
Host: qstash.example
Accept-Encoding: gzip, deflate
Authorization: Bearer TOKEN
Content-Type: application/json
Upstash-Forward-my-header: v
Upstash-Callback-Forward-A: 1
Upstash-Retries: 2
Upstash-Retry-Delay: 1000
Upstash-Callback: https://cb.example
Upstash-Failure-Callback: https://fcb.example
Upstash-Delay: 5s
Upstash-Not-Before: 1700000000
Upstash-Deduplication-Id: d
Upstash-Content-Based-Deduplication: True
Upstash-Timeout: 30s
Upstash-Flow-Control-Key: k
Upstash-Flow-Control-Value: parallelism=2, rate=5, period=1m
Upstash-Label: l1,l2
Upstash-Redact-Fields: body,header[Authorization]
Upstash-Telemetry-Sdk: upstash-qstash-py@v3.4.0"""
    assert wire.read(
        [(name, value) for name, value in (line.split(": ", 1) for line in block.splitlines())]
    ) == PublishOptions(
        content_type="application/json",
        forward=(("My-Header", "v"),),
        delay_ms=5000,
        not_before_s=1_700_000_000,
        retries=2,
        retry_delay="1000",
        timeout_ms=30_000,
        deduplication_id="d",
        content_based_deduplication=True,
        callback="https://cb.example",
        callback_options=PublishOptions(forward=(("A", "1"),)),
        failure_callback="https://fcb.example",
        flow_control=FlowControl("k", parallelism=2, rate=5, period_s=60),
        labels=("l1", "l2"),
        redact=Redaction(body=True, headers=("Authorization",)),
    )


# Where values come from


def test_headers_hide_the_query_and_both_hide_the_defaults() -> None:
    options = wire.read(
        [("upstash-retries", "1"), ("Upstash-Forward-A", "header")],
        [
            ("upstash-retries", "2"),
            ("upstash-delay", "2s"),
            ("upstash-forward-a", "query"),
            ("upstash-forward-b", "query"),
        ],
        [
            ("Upstash-Retries", "3"),
            ("Upstash-Delay", "3s"),
            ("Upstash-Timeout", "3s"),
            ("Upstash-Forward-B", "default"),
        ],
    )
    assert options == PublishOptions(
        retries=1, delay_ms=2000, timeout_ms=3000, forward=(("A", "header"), ("B", "query"))
    )


def test_unknown_headers_are_ignored() -> None:
    assert (
        wire.read([("X", "1"), ("Upstash-Workflow-Init", "true"), ("Upstash-Nonsense", "\x00"), ("", "")])
        == PublishOptions()
    )


def test_a_header_given_twice_must_agree() -> None:
    assert wire.read([("Upstash-Retries", "1"), ("upstash-retries", "1")]).retries == 1
    assert "Upstash-Retries is given 2 times" in str(refusal(("Upstash-Retries", "1"), ("upstash-retries", "2")))
    assert wire.read([("Upstash-Label", "a"), ("upstash-label", "b,c")]).labels == ("a", "b", "c")


def test_hundreds_of_headers_are_too_many() -> None:
    assert refusal(*[(f"Upstash-X-{number}", "") for number in range(257)]).status == 431


# Single values


@pytest.mark.parametrize(
    ("header", "value", "expected"),
    [
        ("Upstash-Method", "patch", "PATCH"),
        ("Upstash-Delay", "1d10h30m", 124_200_000),
        ("Upstash-Delay", "366d", MAX_DELAY_MS),
        ("Upstash-Delay", "0", 0),
        ("Upstash-Not-Before", "0", 0),
        ("Upstash-Retries", "0", 0),
        ("Upstash-Retries", "999", 999),
        ("Upstash-Timeout", "1.5s", 1500),
        ("Upstash-Timeout", "2h", 7_200_000),
        ("Upstash-Content-Based-Deduplication", "1", True),
        ("Upstash-Content-Based-Deduplication", "T", True),
        ("Upstash-Content-Based-Deduplication", "False", False),
        ("Upstash-Content-Based-Deduplication", "f", False),
        ("Upstash-Label", " a , ,b,", ("a", "b")),
        ("Upstash-Label", "größe, 🐱", ("größe", "🐱")),
        ("Upstash-Redact-Fields", "body , HEADERS", Redaction(body=True, all_headers=True)),
        ("Upstash-Redact-Fields", "header[x-key],headers[ X-Key ],header[B]", Redaction(headers=("X-Key", "B"))),
        ("Upstash-Cron", " */10 * * * * ", "*/10 * * * *"),
        ("Upstash-Cron", "CRON_TZ=Europe/Berlin 0 9 * * *", "CRON_TZ=Europe/Berlin 0 9 * * *"),
        ("Upstash-Queue-Name", "my.queue_1", "my.queue_1"),
        ("Content-Type", "text/plain;charset=UTF-8", "text/plain;charset=UTF-8"),
    ],
)
def test_a_value_is_read(header: str, value: str, expected: object) -> None:
    assert read_one(header, value) == expected


@pytest.mark.parametrize(
    ("header", "value", "status", "text"),
    [
        (
            "Upstash-Delay",
            "10",
            400,
            'Upstash-Delay: time: missing unit in duration "10"; expected a duration such as "30s", "10m" or "1d2h"',
        ),
        ("Upstash-Delay", "-1s", 400, "Upstash-Delay: time: invalid duration"),
        ("Upstash-Delay", "", 400, "Upstash-Delay: time: invalid duration"),
        ("Upstash-Delay", "367d", 400, "Upstash-Delay: 367d is longer than the maximum of 366d"),
        ("Upstash-Delay", "9" * 10_000 + "d", 400, "Upstash-Delay: time: invalid duration"),
        ("Upstash-Timeout", "0s", 400, "Upstash-Timeout: a timeout of 0"),
        ("Upstash-Timeout", "2h1ms", 400, "Upstash-Timeout: 2h1ms is longer than the maximum of 2h"),
        ("Upstash-Timeout", "30", 400, 'Upstash-Timeout: time: missing unit in duration "30"'),
        ("Upstash-Not-Before", "1700000000000", 400, "Upstash-Not-Before: 1700000000000 is beyond the year 9999"),
        ("Upstash-Not-Before", "1" + "0" * 18, 400, "Upstash-Not-Before"),
        ("Upstash-Not-Before", "1.5", 400, 'Upstash-Not-Before: "1.5" is not a whole number'),
        ("Upstash-Not-Before", "NaN", 400, "Upstash-Not-Before"),
        ("Upstash-Not-Before", "-1", 400, "Upstash-Not-Before"),
        ("Upstash-Retries", "1000", 412, "Upstash-Retries: 1000 exceeds the maximum of 999 retries"),
        ("Upstash-Retries", "9223372036854775808", 400, "Upstash-Retries"),
        ("Upstash-Retries", "9" * 5000, 400, "Upstash-Retries"),
        (
            "Upstash-Retries",
            "-1",
            400,
            'Upstash-Retries: "-1" is not a whole number; expected an integer from 0 to 999',
        ),
        ("Upstash-Retries", "1e3", 400, "Upstash-Retries"),
        ("Upstash-Retries", "1_0", 400, "Upstash-Retries"),
        ("Upstash-Retries", "٣", 400, 'Upstash-Retries: "\\u0663" is not a whole number'),
        ("Upstash-Retries", "", 400, "Upstash-Retries"),
        ("Upstash-Retry-Delay", "1/0", 400, "Upstash-Retry-Delay: the expression is not a finite number"),
        ("Upstash-Retry-Delay", "foo", 400, "Upstash-Retry-Delay: unknown name 'foo'"),
        ("Upstash-Method", "CONNECT", 400, "Upstash-Method: unknown method 'CONNECT'; expected GET, POST"),
        ("Upstash-Method", "GET / HTTP/1.1\r\nX:", 400, "Upstash-Method contains a control character"),
        ("Upstash-Method", "", 400, "Upstash-Method"),
        (
            "Upstash-Content-Based-Deduplication",
            "yes",
            400,
            "Upstash-Content-Based-Deduplication: 'yes' is not a boolean",
        ),
        ("Upstash-Deduplication-Id", "a:b", 400, "DeduplicationId cannot contain ':'"),
        ("Upstash-Deduplication-Id", "", 400, "Upstash-Deduplication-Id: 0 characters"),
        ("Upstash-Deduplication-Id", "é", 400, "Upstash-Deduplication-Id"),
        ("Upstash-Deduplication-Id", "x" * 513, 400, "Upstash-Deduplication-Id: 513 characters"),
        (
            "Upstash-Callback",
            "example.com",
            400,
            "Upstash-Callback: invalid destination url: endpoint has invalid scheme",
        ),
        ("Upstash-Callback", "http://e.com/" + "x" * 4096, 400, "Upstash-Callback: destination url too long"),
        (
            "Upstash-Failure-Callback",
            "http://e.com:0",
            400,
            "Upstash-Failure-Callback: invalid destination url: port '0'",
        ),
        ("Upstash-Label", "x" * 513, 400, "Upstash-Label: 513 characters"),
        ("Upstash-Label", "a," * 65, 400, "Upstash-Label: 65 labels"),
        ("Upstash-Label", "a\nb", 400, "Upstash-Label contains a control character"),
        ("Upstash-Redact-Fields", "cookies", 400, "Upstash-Redact-Fields: 'cookies' cannot be redacted"),
        ("Upstash-Redact-Fields", "", 400, "Upstash-Redact-Fields"),
        ("Upstash-Redact-Fields", "header[]", 400, "Upstash-Redact-Fields"),
        ("Upstash-Cron", "", 400, "Invalid cron expression empty spec string"),
        ("Upstash-Cron", "*," * 5000, 400, "Upstash-Cron"),
        ("Upstash-Schedule-Id", "a b", 400, 'invalid schedule id "a b"'),
        ("Upstash-Queue-Name", "..", 400, 'invalid queue name ".."'),
        ("Content-Type", "x" * 513, 400, "Content-Type: 513 characters"),
        ("Content-Type", "a\r\nb", 400, "Content-Type contains a control character"),
        ("Upstash-Flow-Control-Key", "k", 400, "belong together: only Upstash-Flow-Control-Key is given"),
        ("Upstash-Flow-Control-Value", "rate=1", 400, "belong together: only Upstash-Flow-Control-Value is given"),
        ("Upstash-Retriés", "1", 400, "invalid header name"),
        ("upstash-forward-X Y", "1", 400, "invalid header name"),
        ("Upstash-Forward-", "1", 400, "invalid forwarded header name"),
        ("Upstash-Forward-X", "a\r\nY: 1", 400, "invalid value of forwarded header X"),
    ],
)
def test_t13_a_value_that_cannot_be_carried_out_is_refused_naming_its_header(
    header: str, value: str, status: int, text: str
) -> None:
    error = refusal((header, value))
    assert text in str(error)
    assert error.status == status


@pytest.mark.parametrize(
    "name", ["Host", "content-length", "CONNECTION", "Transfer-Encoding", "te", "Proxy-Connection"]
)
@pytest.mark.parametrize("of", ["", "Callback-", "Failure-Callback-", "Callback-Failure-Callback-"])
def test_t11_a_gateways_headers_of_one_connection_are_left_out_at_every_level(of: str, name: str) -> None:
    lines = [
        (f"Upstash-{of}Forward-{name}", "17"),
        (f"Upstash-{of}Forward-X", "kept"),
        ("Upstash-Callback", "http://cb.example/"),
        ("Upstash-Failure-Callback", "http://cb.example/"),
        ("Upstash-Callback-Failure-Callback", "http://cb.example/"),
    ]
    options: PublishOptions | None = wire.read(lines)
    for level in of.removesuffix("-").replace("Failure-Callback", "failure_callback").split("-") if of else ():
        options = getattr(options, f"{level.lower()}_options")
    assert options is not None
    assert options.forward == (("X", "kept"),)


# Flow control


@pytest.mark.parametrize(
    ("value", "parallelism", "rate", "period_s"),
    [
        ("parallelism=5,rate=10,period=1m", 5, 10, 60),
        ("rate=10", None, 10, 1),
        ("parallelism=3, rate=5", 3, 5, 1),
        ("rate=5, period=1d", None, 5, 86400),
        ("period=7d,\trate = 1", None, 1, 7 * 86400),
        ("parallelism=5, period=1h30m3s", 5, None, 5403),
    ],
)
def test_flow_control_is_read(value: str, parallelism: int | None, rate: int | None, period_s: int) -> None:
    options = wire.read([("Upstash-Flow-Control-Key", "user: ü"), ("Upstash-Flow-Control-Value", value)])
    assert options.flow_control == FlowControl("user: ü", parallelism, rate, period_s)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "period=1m",
        "rate=0",
        "rate=x",
        "rate=-1",
        "rate=1" + "0" * 18,
        "rate=١",
        "parallelism=0",
        "period=8d,rate=1",
        "foo=1",
        "rate",
        "RATE=1",
        "rate=1,rate=2",
        "rate=1,",
        "rate=1,period=0s",
        "rate=1,period=500ms",
        "rate=1,period=10",
    ],
)
def test_other_limits_are_refused_in_the_words_people_search_for(value: str) -> None:
    error = refusal(("Upstash-Flow-Control-Key", "k"), ("Upstash-Flow-Control-Value", value))
    assert str(error).startswith(FLOW_TEXT)


@pytest.mark.parametrize("key", ["", " ", "k" * 513, "a\x00"])
def test_a_flow_control_key_is_a_text(key: str) -> None:
    assert "Upstash-Flow-Control-Key" in str(
        refusal(("Upstash-Flow-Control-Key", key), ("Upstash-Flow-Control-Value", "rate=1"))
    )


# Forwarding


def test_forwarded_headers_may_be_called_anything_but_what_the_broker_writes() -> None:
    options = wire.read(
        [
            ("Upstash-Forward-Upstash-Workflow-X", "v"),
            ("Upstash-Forward-Authorization", "Bearer mine"),
            ("Upstash-Forward-User-Agent", "me"),
            ("Upstash-Forward-upstash-signature", "forged"),
            ("UPSTASH-FORWARD-UPSTASH-RETRIED", "7"),
        ]
    )
    assert options.forward == (("Upstash-Workflow-X", "v"), ("Authorization", "Bearer mine"), ("User-Agent", "me"))


def test_all_headers_are_forwarded_on_request() -> None:
    options = wire.read(
        [
            ("Upstash-Header-Forward", "true"),
            ("Host", "broker"),
            ("Content-Length", "3"),
            ("Content-Type", "a/b"),
            ("Authorization", "Bearer token"),
            ("Accept-Encoding", "gzip"),
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Upstash-Telemetry-Sdk", "x"),
            ("Upstash-Retries", "1"),
            ("Upstash-Forward-X-Event", "mine"),
            ("X-Event", "theirs"),
            ("X-Hub-Signature", "sha256=1"),
            ("User-Agent", "GitHub"),
        ]
    )
    assert options.forward == (("X-Event", "mine"), ("X-Hub-Signature", "sha256=1"), ("User-Agent", "GitHub"))
    assert options.content_type == "a/b"


def test_nothing_is_forwarded_unasked() -> None:
    assert wire.read([("X-Event", "1"), ("Upstash-Header-Forward", "false")]).forward == ()


def test_too_many_forwarded_headers_are_431() -> None:
    assert refusal(*[(f"Upstash-Forward-{number}", "") for number in range(65)]).status == 431


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PublishOptions(content_type="a/b"), (("Content-Type", "a/b"),)),
        (PublishOptions(content_type="a/b", forward=(("X", "1"),)), (("Content-Type", "a/b"), ("X", "1"))),
        (PublishOptions(content_type="a/b", forward=(("Content-Type", "c/d"),)), (("Content-Type", "c/d"),)),
        (PublishOptions(), ()),
    ],
)
def test_a_forwarded_content_type_hides_the_plain_one(options: PublishOptions, expected: object) -> None:
    assert wire.delivery_headers(options) == expected


# Callbacks


def test_callbacks_have_the_same_options_under_their_prefix() -> None:
    options = wire.read(
        [
            ("Upstash-Callback", "https://cb.example"),
            ("Upstash-Callback-Method", "put"),
            ("Upstash-Callback-Delay", "5s"),
            ("Upstash-Callback-Forward-X", "1"),
            ("Upstash-Callback-Flow-Control-Key", "k"),
            ("Upstash-Callback-Flow-Control-Value", "rate=1"),
            ("Upstash-Callback-Workflow-Runid", "ignored"),
            ("Upstash-Callback-x", "ignored: the official Python SDK adds no -Forward-"),
            ("Upstash-Callback-Failure-Callback", "https://cbf.example"),
            ("Upstash-Callback-Failure-Callback-Retries", "1"),
            ("Upstash-Failure-Callback", "https://f.example"),
            ("Upstash-Failure-Callback-Retries", "2"),
        ]
    )
    assert options == PublishOptions(
        callback="https://cb.example",
        callback_options=PublishOptions(
            method="PUT",
            delay_ms=5000,
            forward=(("X", "1"),),
            flow_control=FlowControl("k", rate=1),
            failure_callback="https://cbf.example",
            failure_callback_options=PublishOptions(retries=1),
        ),
        failure_callback="https://f.example",
        failure_callback_options=PublishOptions(retries=2),
    )


def test_options_of_a_callback_without_url_are_ignored() -> None:
    assert (
        wire.read([("Upstash-Callback-Retries", "nonsense"), ("Upstash-Failure-Callback-Delay", "x")])
        == PublishOptions()
    )


def test_a_bad_option_of_a_callback_names_its_full_header() -> None:
    error = refusal(("Upstash-Failure-Callback", "http://f.example"), ("Upstash-Failure-Callback-Retries", "1000"))
    assert str(error).startswith("Upstash-Failure-Callback-Retries: 1000 exceeds")
    assert error.status == 412


def test_callbacks_of_callbacks_end() -> None:
    chain = [(f"Upstash{'-Callback' * level}", "http://c.example") for level in range(1, 200)]
    assert "nest too deeply" in str(refusal(*chain))


# Anything at all

header_names = st.sampled_from(
    [row.header for row in wire.FIELDS]
    + [
        "Upstash-Flow-Control-Key",
        "Upstash-Flow-Control-Value",
        "Upstash-Forward-X",
        "Upstash-Callback-Retries",
        "Host",
    ]
) | st.text(max_size=10).map("upstash-".__add__)
header_values = st.text(max_size=20) | st.sampled_from(
    ["true", "1", "1s", "http://a.example", "rate=1", "body", "1000"]
)
header_lists = st.lists(st.tuples(header_names, header_values), max_size=8)


@given(header_lists, header_lists, header_lists)
def test_any_headers_are_read_or_refused(
    headers: list[tuple[str, str]], query: list[tuple[str, str]], defaults: list[tuple[str, str]]
) -> None:
    try:
        options = wire.read(headers, query, defaults)
    except WireError as error:
        assert error.status in {400, 412, 431}  # noqa: PT017 - both ends are fine
    else:
        assert wire.read(wire.write(options)) == options


queries = st.sampled_from(
    ["", "?", "?call=1", "?call=2", "?a?b", "? ", "?x ", "?\\", "?#", "?%00", "?é", "?" + "q" * 4096]
)
urls = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", " "]),
    st.sampled_from(
        [
            "http://a.example/_end",
            "HTTP://u@a.example:80",
            "http://a.example/ x",
            "http://127.1/",
            "ftp://a.example",
            "",
        ]
    ),
    queries,
)
url_names = st.sampled_from(
    [
        "Upstash-Callback",
        "Upstash-Failure-Callback",
        "upstash-failure-callback",
        "Qtasks-End-Callback",
        "Upstash-Failure-Callback-Callback",
        "Upstash-Callback-Failure-Callback",
    ]
)
id_names = st.sampled_from(["Qtasks-Call-Id", "qtasks-call-id", "Upstash-Deduplication-Id"])
ids = st.sampled_from(["call_1", "call_2", " call_1", "a:b", "", "\x00", "é"])
lines_of_one = st.lists(st.tuples(url_names, urls) | st.tuples(id_names, ids) | st.tuples(header_names, header_values))


@settings(max_examples=1000)
@given(lines_of_one)
def test_lines_that_are_separated_say_what_they_say_together(lines: list[tuple[str, str]]) -> None:
    def read_together() -> PublishOptions | None:
        try:
            return wire.read(lines, (), [("X-Not-An-Option", "")])  # with defaults, all lines are read together
        except WireError:
            return None

    try:
        separated = wire.read(lines)
    except WireError:
        assert read_together() is None
    else:
        assert separated == read_together()


def test_what_the_messages_of_a_task_have_in_common_is_equal_for_all_of_them() -> None:
    def lines(call: str) -> dict[str, str]:
        url = f"http://a.example/_end?task=t&call={call}"
        ids = {"Qtasks-Call-Id": call, "Upstash-Deduplication-Id": f"retry_{call}"}
        return {"Upstash-Retries": "3", **ids, "Qtasks-End-Callback": url, "Upstash-Failure-Callback": url}

    first, second = (wire.split(tuple(each), tuple(each.values())) for each in map(lines, ("call_1", "call_2")))
    assert first is not None
    assert second is not None
    assert first.shared == second.shared
    options = wire.read_shared(first.shared)
    assert wire.with_own(options, second.own) == wire.read(lines("call_2").items())
    assert wire.with_own(options, first.own) == wire.read(lines("call_1").items())
