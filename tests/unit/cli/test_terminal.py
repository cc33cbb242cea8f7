"""What the terminal shows of an event, and what never reaches it."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks.broker.events import MessageEvent
from qtasks.broker.ports import Failure
from qtasks.cli.dev.terminal import EventPrinter, printable, short_id, shorten
from qtasks.protocol.messages import PublishOptions, Response, State
from tests.support.broker import START_MS, message

BASE_URL = "http://127.0.0.1:8000/qtasks"
CLOCK = time.strftime("%H:%M:%S", time.localtime(START_MS / 1000))


class FakeStream(io.TextIOWrapper):
    """A text stream with strict errors, as real ones have, that can claim to be a terminal."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = False) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding, newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        return self.raw_bytes.getvalue().decode(self.encoding)


def event(state: State, body: bytes = b"", *, url: str = f"{BASE_URL}/add", **facts: Any) -> MessageEvent:
    named = ("retried", "max_retries", "options", "schedule_id")
    about = {name: facts.pop(name) for name in named if name in facts}
    return MessageEvent(
        time_ms=START_MS, state=state, message=message(123456, id="msg_abcdefgh", url=url, body=body, **about), **facts
    )


def envelope(*args: object, **kwargs: object) -> bytes:
    return json.dumps({"v": 1, "id": "call_1", "args": args, "kwargs": kwargs}).encode()


def shown(one: MessageEvent, screen: FakeStream | None = None) -> str:
    """The line that an event becomes, without its time."""
    screen = screen or FakeStream()
    EventPrinter(screen, base_url=BASE_URL).print_event(one)
    text = screen.text
    assert text.count("\n") == 1
    assert text.startswith(f"{CLOCK}  ")
    return text.removeprefix(f"{CLOCK}  ").removesuffix("\n")


def answered(status: int, document: object) -> Response:
    return Response(status=status, body=json.dumps(document).encode())


# -- golden lines


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (event(State.CREATED, envelope(2, b="x")), "→  add               msg_..cdefgh  2, b='x'"),
        (event(State.CREATED, envelope()), "→  add               msg_..cdefgh"),
        (
            event(State.CREATED, envelope(1), next_delivery_ms=START_MS + 90_000),
            "→  add               msg_..cdefgh  1  in 1m30s",
        ),
        (event(State.CREATED, envelope(2), schedule_id="add-1"), "◷  add               msg_..cdefgh  2"),
        (event(State.CREATED, b"plain"), "→  add               msg_..cdefgh  5 bytes"),
        (
            event(State.CREATED, b'{"v":2,"args":[],"kwargs":{},"coded":"sealed1:' + b"x" * 1226 + b'"}'),
            "→  add               msg_..cdefgh  encrypted, 1,234 characters",
        ),
        (
            event(State.CREATED, b'{"v":2,"args":[],"kwargs":{},"coded":"codec1:' + b"x" * 1227 + b'"}'),
            "→  add               msg_..cdefgh  encoded, 1,234 characters",
        ),
        (
            event(State.CREATED, b'{"v":1,"args":[],"kwargs":{},"pickled":"' + b"x" * 1234 + b'"}'),
            "→  add               msg_..cdefgh  a pickle of 1,234 characters",
        ),
        (
            event(State.DELIVERED, outcome=answered(200, 5), duration_ms=8.6),
            "✓  add               msg_..cdefgh  9 ms  5",
        ),
        (
            event(State.DELIVERED, outcome=answered(200, None), duration_ms=1234.0, retried=2),
            "✓  add               msg_..cdefgh  3/4  1.2 s",
        ),
        (
            event(
                State.RETRY,
                outcome=answered(500, {"error": "OSError: away\n  at x.py:1"}),
                next_delivery_ms=START_MS + 12_000,
            ),
            "↻  add               msg_..cdefgh  1/4  OSError: away  retry in 12s",
        ),
        (
            event(
                State.RETRY,
                outcome=Failure("timeout", "no answer"),
                error="no answer",
                next_delivery_ms=START_MS + 204,
                retried=1,
            ),
            "↻  add               msg_..cdefgh  2/4  no answer  retry in 200ms",
        ),
        (
            event(State.FAILED, outcome=answered(489, {"error": "NonRetryable: never"}), retried=3),
            "✗  add               msg_..cdefgh  4/4  NonRetryable: never  kept in the dead letters",
        ),
        (event(State.CANCELED), "–  add               msg_..cdefgh  cancelled"),
    ],
)
def test_an_event_is_a_line(one: MessageEvent, line: str) -> None:
    assert shown(one) == line


@pytest.mark.parametrize("state", [State.ACTIVE, State.ERROR, State.CANCEL_REQUESTED])
def test_steps_that_other_lines_tell_of_are_none_of_their_own(state: State) -> None:
    screen = FakeStream()
    EventPrinter(screen).print_event(event(state))
    assert screen.text == ""


def test_a_delivery_elsewhere_is_shown_by_its_address_without_what_may_be_secret() -> None:
    url = "https://user:hunter2@hooks.example.com/in?token=hunter2"
    assert shown(event(State.CREATED, b"1", url=url)) == "→  https://***@hooks.example.com/in  msg_..cdefgh  1 bytes"


def test_a_request_to_a_language_model_is_shown_as_the_task_that_makes_it() -> None:
    url = "https://api.openai.com/v1/chat/completions"
    asked = json.dumps({"model": "gpt", "messages": []}).encode()
    own = PublishOptions(callback=f"{BASE_URL}/summarise?call=call_1")
    assert shown(event(State.CREATED, asked, url=url, options=own)) == (
        "→  summarise         msg_..cdefgh  asks gpt at api.openai.com"
    )
    busy = answered(429, {"error": {"message": "slow down"}})
    again = event(State.RETRY, url=url, options=own, outcome=busy, next_delivery_ms=START_MS + 12_000)
    assert shown(again) == "↻  summarise         msg_..cdefgh  1/4  slow down  retry in 12s"
    told = json.dumps({"sourceMessageId": "msg_1", "status": 200}).encode()
    back = event(State.CREATED, told, url=f"{BASE_URL}/summarise?call=call_1")
    assert shown(back) == "→  summarise         msg_..cdefgh  callback with status 200"


def test_the_name_of_a_task_is_read_from_its_url() -> None:
    assert shown(event(State.CREATED, b"", url=f"{BASE_URL}/send%20mail?x=1")).startswith("→  send mail         msg_")


END = f"{BASE_URL}/_end?task=add&call=call_1"


@pytest.mark.parametrize("state", [State.CREATED, State.ACTIVE, State.DELIVERED, State.CANCELED])
def test_an_end_callback_that_arrives_is_no_line(state: State) -> None:
    screen = FakeStream()
    printer = EventPrinter(screen, base_url=BASE_URL)
    printer.print_event(event(state, b"{}", url=END))
    assert screen.text == ""
    assert str(printer.tally) == "0 done, 0 retried, 0 failed"


def test_an_end_callback_that_fails_is_shown_with_its_task_and_the_reason() -> None:
    away = Failure("connection_refused", "connection refused")
    again = event(State.RETRY, url=END, outcome=away, error=away.error, next_delivery_ms=START_MS + 1_000)
    assert shown(again) == "↻  add               msg_..cdefgh  end callback  connection refused  retry in 1s"
    dead = event(State.FAILED, url=END, outcome=answered(489, {"error": "no such call"}))
    assert shown(dead) == "✗  add               msg_..cdefgh  end callback  no such call  kept in the dead letters"


def test_what_came_of_it_is_counted() -> None:
    printer = EventPrinter(FakeStream())
    for state in (State.CREATED, State.RETRY, State.DELIVERED, State.DELIVERED, State.FAILED, State.CANCELED):
        printer.print_event(event(state))
    assert str(printer.tally) == "2 done, 1 retried, 1 failed"


# -- secrets

SECRET_NAMES = (
    "credential",
    "credentials",
    "passwd",
    "passphrase",
    "api_key",
    "apiKey",
    "x-api-key",
    "token",
    "authorization",
    "private_key",
    "clientSecret",
)


@pytest.mark.parametrize(
    "body",
    [
        envelope(password="hunter2"),
        envelope(API_KEY="hunter2"),
        envelope(user_token="hunter2"),
        envelope({"Authorization": "hunter2"}),
        envelope({"a": {"b": {"client_secret": "hunter2"}}}),
        envelope([[{"password": "hunter2"}]]),
        envelope(users=[{"password": ["hunter2"]}]),
        *(envelope(**{name: "hunter2"}) for name in SECRET_NAMES),
    ],
)
def test_values_under_the_names_of_secrets_are_masked_at_every_depth(body: bytes) -> None:
    assert "hunter2" not in shown(event(State.CREATED, body))
    assert "***" in shown(event(State.CREATED, body))
    result = answered(200, json.loads(body))
    assert "hunter2" not in shown(event(State.DELIVERED, outcome=result, duration_ms=1))


def test_positional_arguments_are_masked_by_the_names_of_their_parameters() -> None:
    screen = FakeStream()
    printer = EventPrinter(screen, base_url=BASE_URL, parameters={"add": ("user", "password"), "other": ("token",)})
    printer.print_event(event(State.CREATED, envelope("ada", "hunter2", "rest")))
    assert screen.text.endswith("  'ada', ***, 'rest'\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("ValueError: bad password=hunter2, sorry", "ValueError: bad password=***, sorry"),
        ('ValueError: {"api_key": "a b", "n": 1}', 'ValueError: {"api_key": ***, "n": 1}'),
        ("ValueError: {'user': 'ada', 'passwd': 12}", "ValueError: {'user': 'ada', 'passwd': ***}"),
        ("ApiError: Authorization: Bearer abc.def was refused", "ApiError: Authorization: *** was refused"),
        (
            "ApiError: no answer of https://x.example/?token=abc&n=1",
            "ApiError: no answer of https://x.example/?token=***",
        ),
        ("TokenExpired: the session is over", "TokenExpired: the session is over"),
        ("KeyError: 'token'", "KeyError: 'token'"),
        ("ValueError: never mind", "ValueError: never mind"),
        ("password: hunter2", "password: ***"),
    ],
)
def test_pairs_of_a_secret_name_and_a_value_are_masked_in_errors(error: str, line: str) -> None:
    failed = event(State.FAILED, outcome=answered(489, {"error": error}))
    assert shown(failed).partition("1/4  ")[2] == f"{line}  kept in the dead letters"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (envelope(token="hunter2"), "ValueError: hunter2 is too short"),
        (envelope(user={"passwd": ["hunter2"]}), "ValueError: 'hunter2'"),
        (envelope("ada", "hunter2"), "ValueError: hunter2"),
        (envelope(pwd="it's \n hunter2"), r"ValueError: got it's \n hunter2"),
        (envelope(pwd="h2"), "ValueError: h2 is not h2"),
        (envelope(pwd=4711), "ValueError: 4711 is used up"),
    ],
)
def test_the_values_of_secret_arguments_are_masked_in_the_errors_of_their_call(body: bytes, error: str) -> None:
    screen = FakeStream()
    printer = EventPrinter(screen, base_url=BASE_URL, parameters={"add": ("user", "credential")})
    printer.print_event(event(State.FAILED, body, outcome=answered(489, {"error": error})))
    printer.print_event(event(State.RETRY, body, error=error, next_delivery_ms=START_MS))
    assert screen.text.count("***") >= 2
    assert not re.search("hunter2|h2|4711", screen.text)


def test_a_short_secret_is_masked_as_a_word_only() -> None:
    failed = event(State.FAILED, envelope(token="a"), outcome=answered(489, {"error": "ValueError: a bad value"}))
    assert "ValueError: *** bad value" in shown(failed)


# -- what strangers send


ESCAPES = "\x1b[31m\x1b]0;owned\x07\x9b2J\r\b\u2028\u202e\x00"
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Everything that moves a cursor, changes a colour, or turns the direction of text; a line feed ends our line."""


@pytest.mark.parametrize(
    "make",
    [
        lambda text: event(State.CREATED, envelope(text)),
        lambda text: event(State.CREATED, envelope(**{text: text})),
        lambda text: event(State.CREATED, envelope({text: text})),
        lambda text: event(State.CREATED, b"", url=f"{BASE_URL}/%1B%5B31m%9B%07%0A"),
        lambda text: event(State.CREATED, b"", url=f"https://x.example/{text}"),
        lambda text: event(State.DELIVERED, outcome=answered(200, text), duration_ms=1),
        lambda text: event(State.FAILED, outcome=answered(500, {"error": text})),
        lambda text: event(State.RETRY, error=text, outcome=Failure("bad_response", text)),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_no_escape_sequence_of_somebody_else_reaches_the_terminal(
    make: Callable[[str], MessageEvent], terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    line = shown(make(ESCAPES), FakeStream(terminal=terminal))
    if terminal:  # the colour of the mark is ours
        line, count = re.subn(r"^\x1b\[\d+m(.)\x1b\[0m", r"\1", line)
        assert count == 1
    assert not UNSAFE.search(line)


@pytest.mark.parametrize(
    "body",
    [
        b'{"v":1,"args":5,"kwargs":{}}',
        b'{"v":1,"args":"abc"}',
        b'{"v":1,"kwargs":[1]}',
        b'{"v":1,"args":null,"kwargs":null}',
        b'{"v":1,"args":[' + b"[" * 400 + b"]" * 400 + b"]}",
        b"[" * 100_000,
        b'{"v":1,"args":[' + b"9" * 5000 + b"]}",
        b'{"v":1,"args":[1e999,"\\ud800"]}',
        b"\xff\xfe",
        b"",
    ],
)
def test_a_body_that_only_looks_like_a_call_is_shown_somehow(body: bytes) -> None:
    assert shown(event(State.CREATED, body)).startswith("→  add ")
    outcome = Response(status=200, body=body)
    assert shown(event(State.DELIVERED, outcome=outcome, duration_ms=1)).startswith("✓  add ")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(
    args=st.lists(VALUES, max_size=3),
    kwargs=st.dictionaries(st.text(), VALUES, max_size=3),
    encoding=st.sampled_from(["utf-8", "ascii", "cp1252", "gbk"]),
)
def test_any_call_is_one_short_line_in_any_encoding(args: list[Any], kwargs: dict[str, Any], encoding: str) -> None:
    body = json.dumps({"v": 1, "args": args, "kwargs": kwargs}).encode()
    line = shown(event(State.CREATED, body), FakeStream(encoding))
    assert len(line) <= 100
    assert not UNSAFE.search(line)


def test_long_values_are_cut() -> None:
    assert shown(event(State.CREATED, envelope("x" * 1000))).endswith("msg_..cdefgh  '" + "x" * 56 + "...")
    failed = event(State.FAILED, outcome=answered(500, {"error": "e" * 1000}))
    assert shown(failed).endswith("e" * 97 + "...  kept in the dead letters")
    assert shorten("123456", 6) == "123456"
    assert shorten("1234567", 6) == "123..."


# -- streams


@pytest.mark.parametrize(
    ("encoding", "value"), [("cp1252", "ß ?"), ("gbk", "? 中"), ("ascii", "? ?"), ("utf-8", "ß 中")]
)
def test_what_a_stream_cannot_encode_is_a_question_mark(encoding: str, value: str) -> None:
    line = shown(event(State.CREATED, envelope("ß 中")), FakeStream(encoding))
    mark = "→" if encoding == "utf-8" else ">"
    assert line == f"{mark}  add               msg_..cdefgh  '{value}'"


def test_plain_marks_take_the_place_of_all_or_none() -> None:
    states = (State.CREATED, State.DELIVERED, State.FAILED, State.RETRY, State.CANCELED)
    marks = [shown(event(state, duration_ms=1), FakeStream("cp1252"))[0] for state in states]
    assert marks == [">", "+", "x", "~", "-"]


def test_colour_is_for_terminals_whose_owner_has_nothing_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    delivered = event(State.DELIVERED, outcome=answered(200, 5), duration_ms=9)
    coloured = "\x1b[32m✓\x1b[0m  add               msg_..cdefgh  9 ms  5"
    plain = "✓  add               msg_..cdefgh  9 ms  5"
    assert shown(delivered, FakeStream(terminal=True)) == coloured
    assert shown(delivered, FakeStream(terminal=False)) == plain
    monkeypatch.setenv("NO_COLOR", "")
    assert shown(delivered, FakeStream(terminal=True)) == coloured  # empty counts as unset (no-color.org)
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(delivered, FakeStream(terminal=True)) == plain


def test_printable_text_is_left_alone() -> None:
    text = "a ü 中 → 'x' {}"
    assert printable(text, FakeStream()) == text
    assert short_id("msg_1pAUWK2CE77UYbaX4c6VCMpA3eGS1B") == "msg_..3eGS1B"


# -- what the terminal is


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_a_line_is_as_long_as_the_terminal_and_keeps_its_end(encoding: str) -> None:
    screen = FakeStream(encoding)
    printer = EventPrinter(screen, base_url=BASE_URL, columns=lambda: 80)
    printer.note_failure("msg_abcdefgh", ["tasks.py:3 in add: " + "x" * 200, "caused by KeyError: 'ü→'"])
    failure = Failure("bad_response", "y" * 300)
    printer.print_event(
        event(State.RETRY, envelope(1), outcome=failure, error="y" * 300, next_delivery_ms=START_MS + 12_000)
    )
    mark, unknown = ("↻", "→") if encoding == "utf-8" else ("~", "?")
    assert screen.text.splitlines() == [
        f"{CLOCK}  {mark}  add               msg_..cdefgh  1/4  yyyyyyyyyyyyy...  retry in 12s",
        "             tasks.py:3 in add: " + "x" * 45 + "...",
        f"             caused by KeyError: 'ü{unknown}'",
    ]
    assert max(map(len, screen.text.splitlines())) <= 80


def test_a_request_of_the_application_is_a_line() -> None:
    screen = FakeStream()
    EventPrinter(screen).print_request("GET", "/reports", 200, 12.4, now_ms=START_MS)
    assert screen.text == f"{CLOCK}  ·  GET /reports      200  12 ms\n"


def test_a_callback_that_reports_a_failure_is_no_success() -> None:
    body = json.dumps({"sourceMessageId": "msg_1", "status": 500, "body": ""}).encode()
    screen = FakeStream()
    printer = EventPrinter(screen, base_url=BASE_URL)
    printer.print_event(event(State.CREATED, body))
    printer.print_event(event(State.DELIVERED, body, outcome=Response(status=200)))
    assert screen.text == ""
    assert printer.tally.done == 0


def test_what_runs_is_known_from_its_beginning_to_its_end() -> None:
    printer = EventPrinter(FakeStream(), base_url=BASE_URL)
    printer.print_event(event(State.ACTIVE, envelope(1)))
    assert printer.running == {"msg_abcdefgh": "add"}
    printer.print_event(event(State.DELIVERED, envelope(1), outcome=Response(status=200)))
    assert printer.running == {}
