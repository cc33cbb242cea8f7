"""Codecs of one's own: what goes in comes out, or it is said at the call; and the declaration decides what is read."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks import Codec, QTasks, group
from qtasks.errors import ArgumentsError, DefinitionError, PayloadError, TaskFailed
from qtasks.llm import openai, user
from qtasks.protocol.messages import MAX_BODY
from qtasks.tasks.codec import WireForm
from qtasks.tasks.encode.encoding import CODED, CodecError, Encoding, shown
from qtasks.tasks.encode.envelope import Envelope, encode
from qtasks.tasks.encode.pickling import Purpose
from qtasks.tasks.task import Task
from tests.support.simulated_broker import SimulatedBroker
from tests.unit.tasks.manual_broker import ManualBroker, json_of

pytestmark = pytest.mark.anyio

SECRET = "the-secret-key-of-these-tests-0001"
PURPOSE = Purpose.arguments("work", "call_1")
RAN: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


def inflated(packed: bytes, limit: int) -> Any:
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(packed, limit + 1)
    if len(text) > limit or not decompressor.eof:
        raise ValueError("too much, or too little")
    return json.loads(text)


ZLIB = Codec("zlib", lambda plain: zlib.compress(json.dumps(plain).encode()), inflated)
LINES = Codec("lines", lambda plain: json.dumps(plain, indent=1).encode(), lambda text, _limit: json.loads(text))


def declared(tasks: QTasks, **options: Any) -> Task[..., Any]:
    def work(text: str, *more: Decimal, at: date | datetime | None = None) -> Any:
        RAN.append((text, more, at))
        return {"text": text}

    declared_task: Task[..., Any] = tasks.task(**options)(work)
    return declared_task


@pytest.fixture
def others() -> Iterator[Callable[..., ManualBroker]]:
    """Makes processes with other settings."""
    made: list[ManualBroker] = []

    def make(**overrides: Any) -> ManualBroker:
        made.append(ManualBroker(**overrides))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def run_all(broker: ManualBroker) -> None:
    while broker.messages:
        await broker.deliver(broker.messages.pop(0))


# --- values


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


def encoding(codec: Codec | None, **form: Any) -> Encoding:
    tasks = QTasks(secret_key=SECRET, url="https://broker.example.com", token="t", base_url="https://app.example.com")
    return Encoding(WireForm(codec=codec, **form), lambda: tasks.runtime.keyring)


@settings(max_examples=30)
@given(JSON_VALUES, st.booleans(), st.sampled_from([None, ZLIB, LINES]))
def test_every_json_value_comes_out_as_it_went_in(value: Any, encrypts: bool, codec: Codec | None) -> None:
    coder = encoding(codec, encrypts=encrypts)
    arrived = coder.read(coder.write([[value], {}], PURPOSE), PURPOSE).value
    assert json.dumps(arrived) == json.dumps([[value], {}])


def test_a_codec_that_changes_what_it_gets_is_found_at_the_call() -> None:
    def emptied(plain: Any) -> bytes:
        plain.clear()
        return json.dumps(plain).encode()

    coder = encoding(Codec("emptied", emptied, lambda text, _limit: json.loads(text)))
    with pytest.raises(CodecError, match="does not give back what it got"):
        coder.write([["Ada"], {}], PURPOSE)


async def test_arguments_and_results_keep_the_types_of_the_annotations(broker: ManualBroker) -> None:
    work = declared(broker.tasks, codec=ZLIB)
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    handle = work.delay("x" * 50_000, Decimal("1.50"), at=moment)
    (message,) = broker.messages
    assert len(message.body) < 1000
    assert message.envelope["coded"].startswith("codec1:zlib.")
    answer = await broker.deliver(broker.take())
    assert [("x" * 50_000, (Decimal("1.50"),), moment)] == RAN
    assert set(json_of(answer)["coded"]) == {"bytes", "sha256"}
    assert handle.get(0) == {"text": "x" * 50_000}


async def test_a_codec_inside_of_encryption_is_not_seen(others: Callable[..., ManualBroker]) -> None:
    broker = others(secret_key=SECRET)
    handle = declared(broker.tasks, codec=ZLIB, encrypt=True).delay("x" * 50_000)
    (message,) = broker.messages
    assert len(message.body) < 1000
    assert b"zlib" not in message.body
    await run_all(broker)
    assert handle.get(0) == {"text": "x" * 50_000}


async def test_what_is_sent_counts_and_not_what_it_was(broker: ManualBroker) -> None:
    work = declared(broker.tasks, codec=ZLIB)
    handle = work.delay("x" * (2 * MAX_BODY))
    await run_all(broker)
    assert len(handle.get(0)["text"]) == 2 * MAX_BODY
    tight = declared(QTasks(), codec=Codec("zlib", ZLIB.encode, ZLIB.decode, limit=1000))
    with pytest.raises(ArgumentsError, match="its limit is 1,000") as caught:
        tight.message(("x" * 1000,), {})
    assert caught.value.code == "QT441"


async def test_flows_go_through_tasks_of_different_codecs(broker: ManualBroker) -> None:
    @broker.tasks.task(codec=ZLIB)
    def squeeze(text: str) -> bytes:
        return text.encode() + b"\xff"

    @broker.tasks.task(codec=LINES)
    def count(parts: list[bytes], *, more: int) -> int:
        return sum(map(len, parts)) + more

    @broker.tasks.task
    def double(number: int) -> int:
        return 2 * number

    handle = (group(squeeze.s("a"), squeeze.s("bc")) | count.s(more=100) | double.s()).delay()
    await run_all(broker)
    assert handle.get(0) == 2 * 105


# --- codecs that do not what they have to


def _fails(plain: Any) -> bytes:
    raise TypeError("no")


BROKEN: dict[str, tuple[Codec, str]] = {
    "raises": (Codec("bad", _fails, lambda text, _: json.loads(text)), "TypeError: no"),
    "makes no bytes": (Codec("bad", json.dumps, lambda text, _: json.loads(text)), "it made a str"),  # type: ignore[arg-type]
    "cannot read itself": (Codec("bad", lambda plain: b"{", lambda text, _: json.loads(text)), "JSONDecodeError"),
    "changes numbers": (
        Codec("bad", lambda plain: json.dumps(plain).encode(), lambda text, _: json.loads(text, parse_int=float)),
        "does not give back what it got",
    ),
    "forgets": (Codec("bad", lambda plain: b"x", lambda _text, _limit: [[], {}]), "does not give back what it got"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_codec_that_is_not_reversible_is_an_error_at_the_call_and_for_a_result_of_the_task(
    broker: ManualBroker, name: str
) -> None:
    codec, text = BROKEN[name]

    @broker.tasks.task(codec=codec)
    def work(number: int) -> int:
        return number

    with pytest.raises(ArgumentsError, match=text) as caught:
        work.delay(1)
    assert caught.value.code == "QT441"
    assert "bad" in caught.value.message
    assert broker.messages == []

    @broker.tasks.task(codec=codec, accepts=["json"])
    def result_only() -> int:
        return 1

    result = result_only.result("call_x")
    message = _plain_message(broker, result_only)
    answer = await broker.deliver(message)
    assert (answer.status, json_of(answer)["code"]) == (489, "QT441")
    with pytest.raises(TaskFailed, match=text):
        result.get(0)


def _plain_message(broker: ManualBroker, task: Task[..., Any], *args: Any) -> Any:
    @broker.tasks.task(name=f"{task.name}.plain")
    def plain(*args: Any) -> None: ...

    plain.delay(*args)
    message = broker.take()
    message.task, message.body = task.name, encode(Envelope("call_x", args=list(args)))
    return message


BAD_BYTES: dict[str, tuple[str, str]] = {
    "no bytes of the codec": (CODED + "zlib.AAAA", "the codec zlib cannot read it"),
    "no base64": (CODED + "zlib.%%%", "arrived damaged"),
    "no arguments": (CODED + "zlib.eJyrBQABYgDf", "cannot read it"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
async def test_bad_bytes_are_a_named_error_and_nothing_runs(broker: ManualBroker, name: str) -> None:
    declared(broker.tasks, codec=ZLIB).delay("x")
    message = broker.take()
    text, reason = BAD_BYTES[name]
    message.body = encode(Envelope("call_1", coded=text))
    answer = await broker.deliver(message)
    assert (answer.status, json_of(answer)["code"]) == (500, "QT441")
    assert reason in json_of(answer)["error"]
    assert RAN == []


async def test_a_bomb_is_bounded_by_the_decoder_and_by_what_comes_out(broker: ManualBroker) -> None:
    limits: list[int] = []

    def careless(packed: bytes, limit: int) -> Any:
        limits.append(limit)
        return json.loads(zlib.decompress(packed))

    for codec in (Codec("zlib", ZLIB.encode, inflated, limit=5000), Codec("zlib2", ZLIB.encode, careless, limit=5000)):
        work = declared(QTasks(), codec=codec)
        bomb = zlib.compress(json.dumps([["x" * 10_000], {}]).encode())
        envelope = Envelope("call_1", coded=f"{CODED}{codec.name}.{_text(bomb)}")
        with pytest.raises(CodecError, match=f"codec {codec.name}"):
            work.codec.decode(envelope)
    assert limits == [5000]


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()


# --- the declaration decides


@pytest.mark.parametrize(
    ("sends", "runs", "status"),
    [
        ({}, {"codec": ZLIB}, 500),
        ({}, {"codec": ZLIB, "accepts": ["json"]}, 200),
        ({"codec": ZLIB}, {}, 500),
        ({"codec": ZLIB}, {"accepts": [ZLIB]}, 200),
        ({"codec": ZLIB}, {"codec": LINES}, 500),
        ({"codec": ZLIB}, {"codec": LINES, "accepts": [ZLIB, "json"]}, 200),
        ({"codec": ZLIB}, {"codec": LINES, "accepts": ["json"]}, 500),
        ({"codec": ZLIB}, {"codec": ZLIB, "encrypt": True}, 500),
        ({"codec": ZLIB}, {"codec": ZLIB, "encrypt": True, "accepts": ["unencrypted"]}, 200),
        ({}, {"codec": ZLIB, "encrypt": True, "accepts": ["unencrypted"]}, 500),
        ({}, {"codec": ZLIB, "encrypt": True, "accepts": ["unencrypted", "json"]}, 200),
        ({"codec": ZLIB, "encrypt": True}, {}, 500),
        ({"codec": ZLIB, "encrypt": True}, {"accepts": ["encrypted"]}, 500),
        ({"codec": ZLIB, "encrypt": True}, {"accepts": ["encrypted", ZLIB]}, 200),
    ],
)
async def test_only_what_is_declared_or_accepted_runs(
    others: Callable[..., ManualBroker], sends: dict[str, Any], runs: dict[str, Any], status: int
) -> None:
    sender, receiver = others(secret_key=SECRET), others(secret_key=SECRET)
    declared(sender.tasks, **sends).delay("x")
    declared(receiver.tasks, **runs)
    answer = await receiver.deliver(sender.take())
    assert answer.status == status, answer.body
    assert len(RAN) == (status == 200)
    if status != 200:
        assert json_of(answer)["code"] == "QT440"
        assert "accepts=[" in json_of(answer)["error"]


def test_the_application_has_a_codec_for_tasks_that_name_none() -> None:
    tasks = QTasks(codec=ZLIB)

    @tasks.task(serializer="json")
    def plain(text: str) -> None: ...

    @tasks.llm(provider=openai(token="t"), model="m")
    def asked(text: str) -> list[Any]:
        return [user(text)]

    assert declared(tasks).message(("x",), {}).envelope.coded
    assert plain.message(("x",), {}).envelope.args == ["x"]
    assert asked.encoding.form.is_plain


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"codec": "zlib"}, "expected a Codec"),
        ({"codec": ZLIB, "serializer": "json"}, "contradict each other"),
        ({"encrypt": "yes"}, "expected True or False"),
        ({"accepts": "json"}, "expected a list"),
        ({"accepts": ["yaml"]}, "'yaml' is not one of those that can be read"),
        ({"serializer": "pickle", "accepts": ["json"]}, "'json' is not one of those that can be read"),
    ],
)
def test_a_wrong_option_is_named_where_it_is_declared(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        declared(QTasks(), **options)


@pytest.mark.parametrize("name", ["", "a b", "json", "pickle", "encrypted", "x" * 33, "a.b"])
def test_a_wrong_name_of_a_codec_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="is not a valid name for a codec"):
        Codec(name, ZLIB.encode, ZLIB.decode)


def test_the_form_of_one_call_cannot_be_changed() -> None:
    with pytest.raises(DefinitionError, match="no option 'codec'"):
        declared(QTasks()).using(codec=ZLIB)  # type: ignore[call-arg]


def test_what_is_shown_of_a_result_is_its_size() -> None:
    coder = encoding(ZLIB)
    text = coder.write({"a": 1}, Purpose.result("work", "call_1"))
    assert json.loads(shown(text))["coded"]["bytes"] == len(ZLIB.encode({"a": 1})) + (-len(ZLIB.encode({"a": 1})) % 3)
    assert shown('{"codec1":1}') == b'{"codec1":1}'


def test_a_schedule_is_the_same_although_its_bytes_differ() -> None:
    count = iter(range(100))
    changing = Codec(
        "counted",
        lambda plain: struct.pack("I", next(count)) + json.dumps(plain).encode(),
        lambda text, _limit: json.loads(text[4:]),
    )
    broker = SimulatedBroker()
    try:
        with broker.application() as tasks:
            tasks.cron("0 9 * * *", args=["x"])(declared(tasks, codec=changing))
            assert str(tasks.schedules.sync()) == "added work"
            assert str(tasks.schedules.sync()) == "nothing to do"
            broker.advance(hours=24)
            broker.run()
            assert RAN == [("x", (), None)]
    finally:
        broker.stop()


async def test_arguments_that_json_cannot_carry_are_named_as_without_a_codec(broker: ManualBroker) -> None:
    @broker.tasks.task(codec=ZLIB)
    def work(text: str, *, rows: list[str]) -> None: ...

    with pytest.raises(ArgumentsError, match=r"argument 'rows\[1\]' cannot be written as JSON: a text with a NUL"):
        work.delay("a", rows=["b", "c\0"])
    with pytest.raises(PayloadError):
        work.codec.decode(Envelope("call_1", coded=work.codec.encoding.write([1, 2], PURPOSE)))
