"""Pickles: what JSON cannot carry travels, and only pickles that our key has signed for this very call are read."""

from __future__ import annotations

import ast
import base64
import hmac
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

import qtasks
from qtasks import NonRetryable, QTasks, Snooze, TaskEvent, TaskRouter, group
from qtasks.errors import ArgumentsError, ConfigurationError, DefinitionError, PayloadError, ResultError, TaskFailed
from qtasks.tasks.encode import pickling
from qtasks.tasks.encode.envelope import Envelope, encode
from qtasks.tasks.encode.pickling import ForgedError, Pickles, Purpose
from qtasks.tasks.encode.result_codec import ResultForm
from qtasks.tasks.task import Task
from tests.support.tasks import application, envelope
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage, json_of

pytestmark = pytest.mark.anyio

SECRET, OTHER = "the-secret-key-of-these-tests-0001", "the-secret-key-of-these-tests-0002"
PURPOSE = Purpose.arguments("work", "call_1")
PERMITTED: dict[str, Any] = {"allow_pickle": True, "secret_key": SECRET}


class Canary:
    """Sings when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[], str], tuple[()]]:
        return sing, ()


SONGS: list[str] = []


def sing() -> str:
    SONGS.append("la")
    return "la"


@dataclass
class Point:
    """Of a class that pydantic knows nothing of as JSON."""

    x: int
    at: object


class Opaque:
    """What JSON has no form for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


class Row(BaseModel):
    data: bytes
    at: datetime


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    SONGS.clear()
    yield
    SONGS.clear()


@pytest.fixture
def broker() -> Iterator[ManualBroker]:
    made = ManualBroker(**PERMITTED)
    yield made
    made.close()


def pickles(*secrets: str) -> Pickles:
    return Pickles(secrets or (SECRET,))


# --- the seal


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.frozensets(st.text())
    ),
    max_leaves=10,
)


@given(plain, st.text(), st.text())
def test_whatever_was_pickled_for_a_purpose_is_read_for_it(value: Any, task: str, call_id: str) -> None:
    purpose = Purpose.arguments(task, call_id)
    text = pickles().dump(value, purpose)
    assert text.isascii()
    assert pickles().load(text, purpose) == value
    assert pickling.is_pickle(text)
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


@given(st.data())
def test_a_pickle_that_was_changed_anywhere_is_not_read(data: st.DataObject) -> None:
    text = pickles().dump(Canary(), PURPOSE)
    place = data.draw(st.integers(0, len(text) - 1))
    kind = data.draw(st.sampled_from(["change", "cut", "add"]))
    if kind == "change":
        other = data.draw(st.characters().filter(lambda one: one != text[place]))
        changed = text[:place] + other + text[place + 1 :]
    elif kind == "cut":
        changed = text[:place]
    else:
        changed = text[:place] + data.draw(st.text(min_size=1)) + text[place:]
    SONGS.clear()
    try:
        pickles().load(changed, PURPOSE)
    except ForgedError:
        assert SONGS == []
    else:  # the last character of base64 has bits that mean nothing
        assert base64.urlsafe_b64decode(changed.rpartition(".")[2]) == base64.urlsafe_b64decode(text.rpartition(".")[2])


names = st.sampled_from(["a", "b", "ab", "", "a\0b", "a.b"])
purposes = st.builds(Purpose, st.sampled_from(["arguments", "step", "result"]), names, names)


@given(purposes, purposes)
def test_a_pickle_is_good_for_its_own_purpose_alone(made_for: Purpose, read_for: Purpose) -> None:
    text = pickles().dump(Canary(), made_for)
    SONGS.clear()
    if made_for == read_for:
        assert pickles().load(text, read_for) == "la"
        return
    with pytest.raises(ForgedError):
        pickles().load(text, read_for)
    assert SONGS == []


def test_another_key_reads_nothing_and_a_key_that_was_replaced_still_does() -> None:
    text = pickles(OTHER).dump(Canary(), PURPOSE)
    with pytest.raises(ForgedError, match="its MAC was not made with QTASKS_SECRET_KEY"):
        pickles(SECRET).load(text, PURPOSE)
    assert SONGS == []
    assert pickles(SECRET, OTHER).load(text, PURPOSE) == "la"
    assert pickles(SECRET, OTHER).dump(1, PURPOSE) == pickles(SECRET).dump(1, PURPOSE)


def test_a_pickle_of_other_versions_is_not_read_either_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickling, "_versions", lambda: "3.10/2.2")
    text = pickles().dump(Canary(), PURPOSE)
    monkeypatch.setattr(pickling, "_versions", lambda: "3.11/3.1")
    with pytest.raises(PayloadError, match=r"made by Python 3.10 with cloudpickle 2.2; this is Python 3.11") as caught:
        pickles().load(text, PURPOSE)
    assert caught.value.code == "QT417"
    assert SONGS == []


def test_the_key_is_derived_as_rfc_5869_says() -> None:
    """Against the test vector A.1 of the RFC, with its salt and info in place of ours."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    extracted = hmac.digest(salt, b"\x0b" * 22, "sha256")
    assert extracted.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    assert hmac.digest(extracted, info + b"\x01", "sha256").hex().startswith("3cb25f25faacd57a90434f64d0362f2a")
    ours = hmac.digest(hmac.digest(b"qtasks/pickle/1", SECRET.encode(), "sha256"), b"mac\x01", "sha256")
    assert pickling._derived(SECRET) == ours


READERS = {f"{module}.{name}" for module in ("pickle", "cloudpickle") for name in ("load", "loads", "Unpickler")}


def test_there_is_one_place_that_reads_pickles() -> None:
    package = Path(qtasks.__file__).parent
    readers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and f"{ast.unparse(node.value)}.{node.attr}" in READERS
    ]
    assert readers == ["tasks/encode/pickling.py"]


# --- calls


async def test_what_json_cannot_carry_travels_both_ways(broker: ManualBroker) -> None:
    class Local:
        """Of no module that the other side could import."""

        name = "local"

    @broker.tasks.task(serializer="pickle")
    def work(point: Point, numbers: set[int], *rows: Any, then: Callable[[int], int], **more: Any) -> Any:
        return (point, numbers, rows, then(20), more)

    shared = [1]
    given = (Point(1, datetime(2026, 1, 1, tzinfo=UTC)), {1, 2}, Local, SecretStr("s"), shared, shared)
    result = work.delay(*given, then=lambda n: n + 1, opaque=Opaque(3))
    message = broker.take()
    assert set(message.envelope) == {"v", "id", "args", "kwargs", "retries", "pickled"}
    assert (message.envelope["args"], message.envelope["kwargs"]) == ([], {})
    assert (await broker.deliver(message)).status == 200
    point, numbers, rows, then, more = result.get(0)
    assert (point, numbers, then, more) == (given[0], {1, 2}, 21, {"opaque": Opaque(3)})
    assert rows[0].name == "local"
    assert rows[1].get_secret_value() == "s"
    assert rows[2] is rows[3]  # one object, given twice, is still one


async def test_arguments_are_checked_at_the_call_and_the_task_gets_what_it_declares(broker: ManualBroker) -> None:
    @broker.tasks.task(serializer="pickle")
    def work(opaque: Opaque, count: int = 0) -> str:
        return f"{opaque.number} {count!r}"

    with pytest.raises(ArgumentsError, match="'opaque' expects Opaque, got 3") as caught:
        work.delay(3)  # type: ignore[arg-type]
    assert caught.value.code == "QT153"
    with pytest.raises(ArgumentsError, match="missing"):
        work.delay()  # type: ignore[call-arg]
    assert broker.messages == []
    result = work.delay(Opaque(1), "7")  # type: ignore[arg-type]
    await broker.deliver()
    assert result.get(0) == "1 7"


async def test_an_argument_that_cannot_be_pickled_is_named(broker: ManualBroker) -> None:
    @broker.tasks.task(serializer="pickle")
    def work(a: Any, b: Any = None) -> None: ...

    never = (n for n in range(3))
    for args, kwargs in (((1,), {"b": never}), ((1, never), {})):
        with pytest.raises(ArgumentsError, match=r"argument 'b' cannot be pickled: TypeError: .*generator") as caught:
            work.apply_async(args, kwargs)
        assert caught.value.code == "QT154"
    with pytest.raises(ArgumentsError, match=r"argument '0' cannot be pickled"):
        (work.s(1) | work.s(never)).delay()
    with pytest.raises(ArgumentsError, match="allowed") as caught:
        work.delay(b"x" * 1024 * 1024)
    assert caught.value.code == "QT155"
    assert broker.messages == []


@pytest.mark.parametrize(
    ("annotation", "value", "kept"),
    [
        (int, 5, "5"),
        (Decimal, Decimal("1.5"), '"1.5"'),
        (Row, Row(data=b"\xff", at=datetime(2026, 1, 1, tzinfo=UTC)), None),
        (Opaque, Opaque(1), "pickle"),
        (list[Opaque], [Opaque(1)], "pickle"),
        (SecretStr, SecretStr("s"), "pickle"),
        (float, float("inf"), "pickle"),
        (dict, {"at": datetime(2026, 1, 1, tzinfo=UTC)}, "pickle"),
        (Any, (1, "a"), "pickle"),
        (Any, [1, "a"], '[1,"a"]'),
        (None, None, "null"),
    ],
)
async def test_a_result_is_json_where_json_can_carry_it(
    broker: ManualBroker, annotation: Any, value: Any, kept: str | None
) -> None:
    def work() -> Any:
        return value

    work.__annotations__["return"] = annotation
    result = broker.tasks.task(serializer="pickle")(work).delay()
    answer = await broker.deliver()
    assert answer.status == 200
    record = broker.tasks.runtime.results().read(result.id)
    assert record is not None
    if kept == "pickle":
        assert list(json.loads(answer.body)["pickle"]) == ["bytes", "sha256"]  # the broker keeps answers
        assert record.value is not None
        assert pickling.is_pickle(record.value)
    elif kept is not None:
        assert record.value == kept == answer.body.decode()
    back = result.get(0)
    assert type(back) is type(value)
    assert back == value


async def test_a_result_of_the_wrong_type_is_no_more_welcome_than_as_json(broker: ManualBroker) -> None:
    @broker.tasks.task(serializer="pickle")
    def work(what: Any) -> Opaque:
        return what  # type: ignore[no-any-return]

    result = work.delay("text")
    answer = await broker.deliver()
    assert (answer.status, json_of(answer)["code"]) == (489, "QT406")
    with pytest.raises(TaskFailed, match="the str returned by work does not fit Opaque"):
        result.get(0)


async def test_a_second_delivery_gets_the_answer_of_the_first(broker: ManualBroker) -> None:
    @broker.tasks.task(serializer="pickle")
    def work() -> Opaque:
        return Opaque(next(runs))

    runs = itertools.count(1)
    result = work.delay()
    message = broker.take()
    first = await broker.deliver(message)
    again = await broker.deliver(message)
    assert again.body == first.body
    assert result.get(0) == Opaque(1)


async def test_a_hook_sees_the_arguments(broker: ManualBroker) -> None:
    events: list[TaskEvent] = []

    @broker.tasks.task(serializer="pickle")
    def work(opaque: Opaque) -> Opaque:
        return opaque

    @work.on_success
    async def told(event: TaskEvent) -> None:
        events.append(event)

    work.delay(Opaque(2))
    await broker.deliver()
    assert [(event.arguments, event.value) for event in events] == [({"opaque": Opaque(2)}, Opaque(2))]


async def test_calls_may_be_unique_by_parameters_that_json_can_carry(broker: ManualBroker) -> None:
    def work(order: int, opaque: Opaque, note: Any = None) -> None: ...

    task = broker.tasks.task(serializer="pickle", unique="order")(work)
    first = task.delay(1, Opaque(1))
    assert task.delay(1, Opaque(2)).id == first.id
    assert task.delay(2, Opaque(1)).id != first.id
    with pytest.raises(DefinitionError, match="unique=True cannot compare them"):
        broker.tasks.task(serializer="pickle", unique=True, name="all")(work)
    by_object = broker.tasks.task(serializer="pickle", unique="opaque", name="by-object")(work)
    with pytest.raises(DefinitionError, match="parameter 'opaque': Opaque cannot travel as JSON"):
        by_object.delay(1, Opaque(1))
    by_note = broker.tasks.task(serializer="pickle", unique=["note"], name="by-note")(work)
    with pytest.raises(ArgumentsError, match="'note' cannot be written as JSON"):
        by_note.delay(1, Opaque(1), note=Opaque(2))


async def test_a_call_that_is_put_off_comes_again(broker: ManualBroker) -> None:
    @broker.tasks.task(serializer="pickle")
    def work(opaque: Opaque) -> int:
        if next(runs) == 1:
            raise Snooze("1m")
        return opaque.number

    runs = itertools.count(1)
    work.delay(Opaque(7))
    await broker.deliver()
    assert (await broker.deliver()).body == b"7"


async def test_a_schedule_would_outlive_a_pickle(broker: ManualBroker) -> None:
    def work(what: Any = None) -> None: ...

    with pytest.raises(DefinitionError, match="a schedule may outlive the Python version that a pickle needs"):
        broker.tasks.every("1h", serializer="pickle")(work)
    task = broker.tasks.task(serializer="pickle", name="other")(work)
    with pytest.raises(DefinitionError, match="a schedule may outlive the Python version that a pickle needs"):
        task.schedule("0 9 * * *", name="daily", args=[{1}])


async def test_a_call_under_an_old_name_is_read_and_one_of_another_task_is_not(broker: ManualBroker) -> None:
    mail = TaskRouter(prefix="mail.")

    @mail.task(serializer="pickle", aliases=["old"])
    def work(what: Any) -> Any:
        return what

    broker.tasks.include_router(mail)
    runtime = broker.tasks.runtime
    for name, status in (("mail.work", 200), ("mail.old", 200), ("mail.other", 489)):
        work.delay(Canary())
        message = broker.take()
        call_id = message.envelope["id"]
        message.task = "mail.old"
        text = runtime.keyring.pickles().dump(((Canary(),), {}), Purpose.arguments(name, call_id))
        message.body = encode(Envelope(call_id, pickled=text))
        SONGS.clear()
        assert (await broker.deliver(message)).status == status
        assert len(SONGS) == (status == 200)


# --- what follows


async def run_all(broker: ManualBroker) -> None:
    while broker.messages:
        await broker.deliver(broker.messages.pop(0))


async def test_results_go_through_a_flow_as_what_they_are(broker: ManualBroker) -> None:
    @broker.tasks.task
    def row(n: int) -> bytes:
        return bytes([n, 255])

    @broker.tasks.task(serializer="pickle")
    def opaque(given: bytes, add: Any) -> Opaque:
        assert given[1:] == b"\xff"  # and not the base64 that it was in JSON
        return Opaque(given[0] + add.number)

    @broker.tasks.task(serializer="pickle")
    def total(given: list[Opaque], *, more: Opaque) -> int:
        return sum(one.number for one in given) + more.number

    @broker.tasks.task
    def double(n: int) -> int:
        return 2 * n

    handle = (row.s(1) | group(opaque.s(Opaque(n)) for n in (10, 20)) | total.s(more=Opaque(100)) | double.s()).delay()
    (message,) = broker.messages
    assert "Opaque" not in message.body.decode()
    await run_all(broker)
    assert handle.get(0) == 2 * (11 + 21 + 100)
    fixed = (row.s(1) | total.si([Opaque(1)], more=Opaque(2)) | double.s()).delay()
    await run_all(broker)
    assert fixed.get(0) == 6


async def test_a_result_that_is_no_json_cannot_go_to_a_task_that_takes_json(broker: ManualBroker) -> None:
    @broker.tasks.task(serializer="pickle")
    def opaque() -> Opaque:
        return Opaque(1)

    @broker.tasks.task
    def work(given: Any) -> None: ...

    handle = (opaque.s() | work.s()).delay()
    await run_all(broker)
    with pytest.raises(TaskFailed, match="has succeeded, but cannot be continued: ResultError: the result of opaque"):
        handle.get(0)


async def test_arguments_of_a_step_are_not_arguments_of_its_call(broker: ManualBroker) -> None:
    """A broker that leaves out what came before changes the call; it must not be able to."""

    @broker.tasks.task(serializer="pickle")
    def work(given: Any = None, more: Any = None) -> Any:
        return given

    handle = (work.s() | work.s(Canary())).delay()
    (message,) = broker.messages
    (step,) = message.envelope["flow"]["then"]
    message.body = encode(Envelope(handle.id, pickled=step["pickled"]))
    assert (await broker.deliver(message)).status == 489
    assert SONGS == []


# --- who may


def refused(answer: Any) -> tuple[int, str]:
    assert SONGS == [], "something was unpickled"
    return answer.status, json_of(answer)["code"]


def forged(text: str, message: SentMessage) -> bytes:
    """The body of a call with another pickle, well signed by a broker that means no good."""
    return encode(Envelope(message.envelope["id"], pickled=text))


MINE = Purpose.arguments("work", "{id}")
FORGERIES: dict[str, Callable[[str, str], str]] = {
    "no MAC": lambda _text, _call: base64.b64encode(cloudpickle.dumps(((Canary(),), {}))).decode(),
    "no MAC, but the mark": lambda text, _call: "pickle1:." + text.rpartition(".")[2],
    "an empty one": lambda _text, _call: "",
    "another key": lambda _text, call: Pickles([OTHER]).dump(((Canary(),), {}), Purpose.arguments("work", call)),
    "another call": lambda _text, _call: pickles().dump(((Canary(),), {}), Purpose.arguments("work", "call_other")),
    "another task": lambda _text, call: pickles().dump(((Canary(),), {}), Purpose.arguments("other", call)),
    "a result": lambda _text, call: pickles().dump(((Canary(),), {}), Purpose.result("work", call)),
    "a call without an id": lambda _text, _call: pickles().dump(((Canary(),), {}), Purpose.arguments("work", "")),
    "a cut one": lambda text, _call: text[:-8],
    "a longer one": lambda text, _call: text + "AAAA",
    "a byte changed": lambda text, _call: text[:-6] + ("A" if text[-6] != "A" else "B") + text[-5:],
    "a byte of its MAC changed": lambda text, _call: text[:9] + ("A" if text[9] != "A" else "B") + text[10:],
}


@pytest.fixture
def sent(broker: ManualBroker) -> tuple[Task[..., Any], SentMessage]:
    @broker.tasks.task(serializer="pickle")
    def work(what: Any) -> Any:
        return what

    work.delay(Canary())
    return work, broker.take()


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_pickle_that_is_not_ours_for_this_call_is_not_read(
    broker: ManualBroker, sent: tuple[Task[..., Any], SentMessage], forgery: str
) -> None:
    _, message = sent
    message.body = forged(FORGERIES[forgery](message.envelope["pickled"], message.envelope["id"]), message)
    assert refused(await broker.deliver(message)) == (489, "QT416")


async def test_the_one_good_pickle_is_read(broker: ManualBroker, sent: tuple[Task[..., Any], SentMessage]) -> None:
    assert (await broker.deliver(sent[1])).body == b'"la"'
    assert SONGS == ["la"]


async def test_json_for_a_task_that_takes_pickles_runs_nothing(
    broker: ManualBroker, sent: tuple[Task[..., Any], SentMessage]
) -> None:
    message = sent[1]
    message.body = envelope("text")
    assert refused(await broker.deliver(message)) == (489, "QT416")


async def test_a_pickle_for_a_task_that_takes_json_is_not_read(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work(what: Any = None) -> Any:
        return what

    work.delay()
    message = broker.take()
    text = pickles().dump(((Canary(),), {}), Purpose.arguments("work", message.envelope["id"]))
    message.body = forged(text, message)
    assert refused(await broker.deliver(message)) == (489, "QT416")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"secret_key": SECRET}, "pickles are not permitted"),
        ({"allow_pickle": True}, "QTASKS_SECRET_KEY is not set"),
        ({"allow_pickle": True, "secret_key": "short"}, "QTASKS_SECRET_KEY has 5 characters"),
    ],
)
async def test_what_is_missing_is_named_at_the_call_at_the_start_and_where_it_runs(
    broker: ManualBroker, sent: tuple[Task[..., Any], SentMessage], settings: dict[str, Any], text: str
) -> None:
    other = ManualBroker(**settings)

    @other.tasks.task(serializer="pickle")
    def work(what: Any) -> Any:
        return what

    with pytest.raises(ConfigurationError, match=text):
        work.delay(1)
    assert other.messages == []
    answer = await other.deliver(sent[1])
    assert (answer.status, json_of(answer)["code"]) == (500, "QT211")  # kept, and tried again: a deployment may mend it
    assert text in json_of(answer)["error"]
    assert SONGS == []
    app = other.tasks.asgi_app()
    with pytest.raises(ConfigurationError, match=text):
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")
    other.close()


async def test_an_application_without_pickles_needs_none_of_it() -> None:
    tasks = application()

    @tasks.task
    def work() -> None: ...

    app = tasks.asgi_app()
    async with app.router.lifespan_context(app):
        pass


def test_without_cloudpickle_the_declaration_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DefinitionError, match="cloudpickle is not installed") as caught:
        QTasks().task(serializer="pickle")(sing)
    assert caught.value.fix == 'pip install "qstash-tasks[pickle]"'


def test_a_serializer_is_one_of_two_and_a_matter_of_the_task() -> None:
    with pytest.raises(DefinitionError, match="serializer='yaml'"):
        QTasks().task(serializer="yaml")(sing)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match="no option 'serializer'"):
        QTasks().task(sing).using(serializer="pickle")  # type: ignore[call-arg]


async def test_a_result_in_the_place_of_another_is_not_read(
    broker: ManualBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    @broker.tasks.task(serializer="pickle")
    def work(what: Any) -> Any:
        return (what, Opaque(1))

    mine, other = work.delay(1), work.delay(2)
    await run_all(broker)
    backend = broker.tasks.runtime.results()
    records = [backend.read(result.id) for result in (mine, other)]
    monkeypatch.setattr(backend, "read", lambda _key: records[1])
    with pytest.raises(ForgedError, match="the pickled result of work"):
        mine.get(0)
    assert other.get(0) == (2, Opaque(1))


async def test_a_reader_without_the_permission_is_told_what_it_lacks(broker: ManualBroker) -> None:
    @broker.tasks.task(serializer="pickle")
    def work() -> Opaque:
        return Opaque(1)

    result = work.delay()
    await broker.deliver()
    reader = application()
    reader.runtime._results = broker.tasks.runtime.results()

    @reader.task(name="work")
    def elsewhere() -> None: ...

    with pytest.raises(ConfigurationError, match="pickles are not permitted"):
        elsewhere.result(result.id).get(0)


async def test_a_class_that_is_gone_makes_the_attempt_fail_and_not_the_call(
    broker: ManualBroker, sent: tuple[Task[..., Any], SentMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_data: bytes) -> Any:
        raise ModuleNotFoundError("No module named 'frames'")

    monkeypatch.setattr(pickle, "loads", gone)
    answer = await broker.deliver(sent[1])
    assert (answer.status, json_of(answer)["code"]) == (500, "QT417")
    assert "ModuleNotFoundError: No module named 'frames'" in json_of(answer)["error"]


async def test_the_secret_does_not_show_in_an_error(broker: ManualBroker) -> None:
    @broker.tasks.task
    def work() -> None:
        raise NonRetryable(f"the key is {SECRET}")

    work.delay()
    assert json_of(await broker.deliver())["error"] == "NonRetryable: the key is ***"


def test_a_stored_text_that_is_neither_is_a_result_error() -> None:
    encoding = application(**PERMITTED).task(sing).encoding
    with pytest.raises(ResultError, match="values of its declared type cannot be read from JSON"):
        ResultForm(None, encoding).load("5", Purpose.result("work", "call_1"))
