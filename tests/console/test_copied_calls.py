"""What the page of a message offers for copying means the same message to a shell, to Python and to `qtasks send`."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks.cli.send import command as send_command
from qtasks.qstash.operations.options import EnqueueTarget, PublishTarget
from tests.support.programs import program

HERE = Path(__file__).parent
LIBRARY = HERE.parents[1] / "qtasks/broker/console/static/lib"
END = "\x01the end of one command\x01"
SHELL = """curl() { printf '%s\\000' "$@"; case "$*" in *"--data-binary @-") base64 -w 0;; esac; }
"""

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HOSTILE = st.sampled_from(
    [
        "it's",
        '"$(id)"',
        "`id`",
        "\\",
        "\n",
        "'\\''",
        "!!",
        "-x",
        "@file",
        "~",
        "*",
        "\0",
        "\u202eevil",
        "null",
        "NaN",
        "",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | HOSTILE, inner, max_size=3),
    max_leaves=8,
)
VALUES_OF_HEADERS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
NAMES_OF_HEADERS = st.from_regex(r"\A[A-Z][a-z]{0,8}(-[A-Z][a-z]{0,8})?\Z").filter(lambda name: name != "Content-Type")
URLS = st.from_regex(r"\Ahttps://example\.com/[a-z'\[\]{}$&;()!*.\\]{0,12}(\?[a-z=&'$]{0,9})?\Z")
FIELDS = {
    "url": URLS,
    "method": st.sampled_from(["POST", "PUT"]),
    "maxRetries": st.integers(0, 999),
    "header": st.dictionaries(NAMES_OF_HEADERS, st.lists(VALUES_OF_HEADERS, min_size=1, max_size=2), max_size=3),
}
PLAIN = st.fixed_dictionaries(
    {**FIELDS, "body": TEXTS | HOSTILE}, optional={"queueName": st.just("orders/it's"), "labels": st.just(["a", "b c"])}
)
ARGUMENTS = st.tuples(st.lists(VALUES, max_size=3), st.dictionaries(TEXTS | st.just("class"), VALUES, max_size=3))


def texts_of(messages: list[dict[str, Any]], task: str | None) -> list[dict[str, Any]]:
    lines = "\n".join(json.dumps({"message": message, "task": task}) for message in messages)
    done = subprocess.run(
        [program("node"), HERE / "copied_calls.mjs", LIBRARY], input=lines.encode(), capture_output=True, check=True
    )
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


def given_to_curl(commands: list[str]) -> list[tuple[list[str], bytes]]:
    """The arguments that a shell gives to curl, and its input, for each command."""
    script = SHELL + "".join(f"{command}\nprintf '%s' {shlex.quote(END)}\n" for command in commands)
    done = subprocess.run(
        ["sh"], input=script.encode(), capture_output=True, check=True, env={**os.environ, "QSTASH_TOKEN": "secret"}
    )
    *words, last = zip(*[iter(done.stdout.split(END.encode()))], strict=True)
    assert last == (b"",)
    pairs = [output.rpartition(b"\0") for (output,) in words]
    return [([part.decode() for part in line.split(b"\0")], base64.b64decode(rest)) for line, _, rest in pairs]


def as_call(arguments: tuple[list[Any], dict[str, Any]]) -> dict[str, Any]:
    args, kwargs = arguments
    envelope = {"v": 1, "id": "call_1", "args": args, "kwargs": kwargs, "retries": 3}
    return {
        "url": "https://example.com/qtasks/charge",
        "method": "POST",
        "maxRetries": 3,
        "header": {"Content-Type": ["application/json"]},
        "body": json.dumps(envelope),
    }


@settings(max_examples=4, deadline=None)
@given(st.lists(PLAIN, min_size=1, max_size=25))
def test_a_shell_publishes_the_same_message(messages: list[dict[str, Any]]) -> None:
    commands = [texts["curl"] for texts in texts_of(messages, None)]
    assert not any("secret" in command for command in commands)
    for message, (words, stdin) in zip(messages, given_to_curl(commands), strict=True):
        verb = "enqueue/orders%2Fit's" if "queueName" in message else "publish"
        address = f"https://broker.example/v2/{verb}/{message['url']}"
        assert words[:5] == ["-X", "POST", "--globoff", "--path-as-is", address]
        headers = [value for flag, value in zip(words[5::2], words[6::2], strict=True) if flag == "-H"]
        assert headers[:2] == ["Authorization: Bearer secret", "Content-Type:"]
        forwarded = [line.removeprefix("Upstash-Forward-") for line in headers if line.startswith("Upstash-Forward-")]
        expected = [(name, value) for name, values in message["header"].items() for value in values]
        assert forwarded == [f"{name}: {value}" if value else f"{name};" for name, value in expected]
        assert f"Upstash-Retries: {message['maxRetries']}" in headers
        body = stdin if words[-2:] == ["--data-binary", "@-"] else words[-1].encode()
        assert body == message["body"].encode()


@settings(max_examples=4, deadline=None)
@given(st.lists(PLAIN, min_size=1, max_size=25))
def test_python_publishes_the_same_message(messages: list[dict[str, Any]]) -> None:
    for message, texts in zip(messages, texts_of(messages, None), strict=True):
        client = Mock()
        with patch("qtasks.qstash.QStash", client), patch.dict(os.environ, QSTASH_TOKEN="secret"):
            exec(texts["python"], {})
        client.assert_called_once_with("secret", base_url="https://broker.example")
        api = client.return_value.message
        kind, known = (api.enqueue, EnqueueTarget) if "queueName" in message else (api.publish, PublishTarget)
        keywords = kind.call_args.kwargs
        assert (keywords["url"], keywords["body"]) == (message["url"], message["body"])
        assert keywords["retries"] == message["maxRetries"]
        assert keywords.get("headers", {}) == {name: ", ".join(values) for name, values in message["header"].items()}
        assert set(keywords) - {"body", "queue"} <= set(known.__annotations__) | set(PublishTarget.__annotations__)


@settings(max_examples=4, deadline=None)
@given(st.lists(ARGUMENTS, min_size=1, max_size=25))
def test_a_call_has_the_same_arguments_in_python_and_for_qtasks_send(
    calls: list[tuple[list[Any], dict[str, Any]]],
) -> None:
    for (args, kwargs), texts in zip(calls, texts_of([as_call(call) for call in calls], "charge"), strict=True):
        charge = Mock()
        exec(texts["python"], {"charge": charge})
        assert (list(charge.delay.call_args.args), dict(charge.delay.call_args.kwargs)) == (args, kwargs)
        words = shlex.split(texts["command"])
        assert words[:2] == ["qtasks", "send"]
        parsed = send_command.make_context("send", words[2:]).params
        assert parsed["task"] == "charge"
        assert [read_argument(text.removeprefix("\0")) for text in parsed["args"]] == args
        assert json.loads(parsed["kwargs_text"]) == kwargs


def read_argument(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_a_copied_call_is_a_new_one() -> None:
    report = "https://example.com/qtasks/_end?task=charge"
    [texts] = texts_of([as_call(([1], {})) | {"failureCallback": f"{report}&call=call_1"}], "charge")
    [(words, _)] = given_to_curl([texts["curl"]])
    assert json.loads(words[-1]) == {"v": 1, "args": [1], "kwargs": {}, "retries": 3}
    assert f"Upstash-Failure-Callback: {report}" in words


def test_numbers_keep_their_digits() -> None:
    message = as_call(([], {}))
    message["body"] = '{"v": 1, "args": [12345678901234567890123, 1.10], "kwargs": {}}'
    [texts] = texts_of([message], "charge")
    assert texts["python"] == "charge.delay(12345678901234567890123, 1.10)"
    assert texts["command"] == "qtasks send charge 12345678901234567890123 1.10"


def test_a_body_that_is_no_text_goes_through_base64() -> None:
    message = {"url": "https://example.com/", "method": "POST", "maxRetries": 3, "bodyBase64": "/wD+"}
    [texts] = texts_of([message], None)
    assert given_to_curl([texts["curl"]])[0][1] == base64.b64decode("/wD+")


def test_what_the_broker_hides_is_left_out() -> None:
    value = "REDACTED:abc"
    message = {
        "url": "https://example.com/",
        "method": "POST",
        "maxRetries": 3,
        "body": value,
        "header": {"X": [value]},
    }
    [texts] = texts_of([message], None)
    assert value not in texts["curl"]
    assert value not in texts["python"]
