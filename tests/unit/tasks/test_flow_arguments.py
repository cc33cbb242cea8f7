"""Arguments of the later calls of a flow: checked and encoded when the flow starts, as `.delay()` does it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import pathlib
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import pytest
from fastapi import Depends
from pydantic import BaseModel, BeforeValidator, Field

from qtasks import TaskContext, chain, group, injected
from qtasks.errors import ArgumentsError, TaskFailed
from qtasks.llm import system
from qtasks.tasks.flow.canvas import Signature
from qtasks.tasks.task import Task
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio


class Size(enum.Enum):
    SMALL = "s"


class Parcel(BaseModel):
    weight: Decimal
    sent: dt.date


@dataclasses.dataclass
class Place:
    where: tuple[float, float]


@pytest.fixture
def broker() -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://")
    yield made
    made.close()


@pytest.fixture
def one(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task
    def one() -> int:
        return 1

    return one


@pytest.fixture
def got() -> list[Any]:
    """The last arguments of the tasks that `taking` makes."""
    return []


@pytest.fixture
def taking(broker: ManualBroker, got: list[Any]) -> Callable[..., Task[..., Any]]:
    """Makes a task whose second parameter has a type."""

    def make(kind: Any, **options: Any) -> Task[..., Any]:
        def take(before: int, value: Any) -> None:
            got.append(value)

        take.__annotations__["value"] = kind
        return broker.tasks.task(**options)(take)

    return make


async def run(broker: ManualBroker) -> None:
    while broker.messages:
        await broker.deliver(broker.messages.pop(0))


VALUES: list[tuple[Any, Any]] = [
    (Decimal, Decimal("1.10")),
    (dt.datetime, dt.datetime(2026, 5, 4, 3, 2, 1, 7, tzinfo=dt.UTC)),
    (dt.timedelta, dt.timedelta(days=-1, microseconds=3)),
    (uuid.UUID, uuid.UUID(int=7)),
    (bytes, b"\x00\xff"),
    (frozenset[int], frozenset({1, 2})),
    (tuple[int, str], (1, "a")),
    (dict[str, Decimal], {"a": Decimal("0.10")}),
    (Size, Size.SMALL),
    (Parcel, Parcel(weight=Decimal("2.50"), sent=dt.date(2026, 1, 2))),
    (list[Place], [Place((1.5, 2.5))]),
    (pathlib.PurePosixPath, pathlib.PurePosixPath("a/b")),
]


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=lambda item: getattr(item, "__name__", ""))
async def test_a_later_call_gets_its_arguments_in_their_types(
    broker: ManualBroker,
    one: Task[..., int],
    taking: Callable[..., Task[..., Any]],
    got: list[Any],
    kind: Any,
    value: Any,
) -> None:
    take = taking(kind)
    (one.s() | take.s(value)).delay()
    (one.s() | take.s(value=value)).delay()
    (one.s() | take.si(0, value)).delay()
    (group(one.s(), one.s() | take.s(value)) | one.si()).delay()
    take.delay(0, value)
    await run(broker)
    assert got == [value] * 5
    assert [type(item) for item in got] == [type(value)] * 5


def wrong_calls(broker: ManualBroker) -> list[Signature[Any]]:
    tasks = broker.tasks

    @tasks.task
    def two(before: int, value: int = 0) -> None: ...

    @tasks.task
    def none() -> None: ...

    @tasks.task
    def places(before: int, value: int, /) -> None: ...

    @tasks.task
    def names(before: int, *, must: int) -> None: ...

    @tasks.task
    def stars(*numbers: int, **more: int) -> None: ...

    @tasks.task
    def wired(before: int, tool: Annotated[str, Depends(str)], ctx: TaskContext = injected) -> None: ...

    return [
        two.s("x"),
        two.s(value="x"),
        two.s(valeu=1),
        two.s(1, 2),
        two.s(before=1),
        none.s(),
        places.s(),
        places.s(value=1),
        names.s(),
        stars.s("x"),
        stars.s(1, more="x"),
        wired.s(tool="x"),
        wired.s(ctx=None),
        two.si(),
        two.si("x"),
    ]


def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent(
    broker: ManualBroker, one: Task[..., int]
) -> None:
    for wrong in wrong_calls(broker):
        inner = group(one.s(), one.s() | group(one.si(), wrong)) | one.si()
        for flow in (one.s() | wrong, one.s() | one.si() | wrong, group(one.s(), one.s()) | wrong, inner):
            with pytest.raises(ArgumentsError, match=wrong.task.name):
                flow.delay()
        with pytest.raises(ArgumentsError), broker.tasks.batch():
            group(one.s(), one.s() | wrong).delay()
    assert broker.messages == []


def test_the_error_says_that_the_result_comes_first(broker: ManualBroker, one: Task[..., int]) -> None:
    @broker.tasks.task
    def first(before: int) -> None: ...

    with pytest.raises(ArgumentsError, match=r"its first argument is the result of the call before it\n.*\.si\("):
        (one.s() | one.s()).delay()
    with pytest.raises(ArgumentsError, match="got two values for argument 'before'"):
        (one.s() | first.s(before=1)).delay()


async def test_every_kind_of_parameter_gets_its_argument(
    broker: ManualBroker, one: Task[..., int], got: list[Any]
) -> None:
    @broker.tasks.task
    def take(before: int, /, a: dt.date, *rest: Decimal, key: uuid.UUID, last: int = 5, **more: bytes) -> None:
        got.append((before, a, rest, key, last, more))

    @broker.tasks.task
    def every(*numbers: Decimal, **named: dt.date) -> None:
        got.append((numbers, named))

    day, key = dt.date(2026, 3, 4), uuid.UUID(int=1)
    (one.s() | take.s(day, Decimal("0.1"), Decimal(2), key=key, b=b"\xfe")).delay()
    (one.s() | every.s(Decimal("2.0"), d=day)).delay()
    (one.s() | every.s()).delay()
    (one.s() | every.si(Decimal(9))).delay()
    await run(broker)
    assert got == [
        (1, day, (Decimal("0.1"), Decimal(2)), key, 5, {"b": b"\xfe"}),
        ((Decimal(1), Decimal("2.0")), {"d": day}),
        ((Decimal(1),), {}),
        ((Decimal(9),), {}),
    ]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


async def test_a_later_call_takes_an_argument_as_deep_as_delay_does(
    broker: ManualBroker, one: Task[..., int], taking: Callable[..., Task[..., Any]], got: list[Any]
) -> None:
    take = taking(Any)
    take.delay(1, nested(30))
    (one.s() | take.s(nested(30))).delay()
    (group(one.s(), group(one.s(), one.s() | take.s(value=nested(30))) | one.si()) | one.si()).delay()
    await run(broker)
    assert got == [nested(30)] * 3
    with pytest.raises(ArgumentsError, match="argument 'value"):
        take.delay(1, nested(31))
    with pytest.raises(ArgumentsError, match="argument 'value"):
        (one.s() | take.s(nested(31))).delay()


def test_ordinary_arguments_travel_as_version_0_1_reads_them(
    broker: ManualBroker, one: Task[..., int], taking: Callable[..., Task[..., Any]]
) -> None:
    (one.s() | taking(Any).s({"a": [1, {"b": 2}]})).delay()
    (step,) = broker.take().envelope["flow"]["then"]
    assert (step["args"], step["kwargs"], "packed" in step) == ([{"a": [1, {"b": 2}]}], {}, False)


@pytest.mark.parametrize("value", ["nul \0", float("nan"), 10**4300, "\ud800"], ids=["nul", "nan", "digits", "half"])
def test_values_that_no_receiver_reads_are_refused(
    one: Task[..., int], taking: Callable[..., Task[..., Any]], value: object
) -> None:
    with pytest.raises(ArgumentsError, match=r"argument 'value"):
        (one.s() | taking(Any).s({"a": [value]})).delay()


def test_a_flow_that_is_nested_too_deep_says_so(one: Task[..., int]) -> None:
    flow: Any = one.s()
    for _ in range(40):
        flow = group(flow, one.s()) | one.si()
    with pytest.raises(ArgumentsError, match=r"the flow after it cannot be written as JSON.*nested deeper"):
        flow.delay()


def test_a_step_of_a_language_model_is_checked(broker: ManualBroker, one: Task[..., int]) -> None:
    @broker.tasks.llm(model="echo")
    def ask(before: int, topic: str) -> Any:
        return [system(topic)]

    with pytest.raises(ArgumentsError, match="argument 'topic' expects str, got 5"):
        (one.s() | ask.s(5)).delay()


async def test_pickled_arguments_are_checked_too(monkeypatch: pytest.MonkeyPatch, got: list[Any]) -> None:
    monkeypatch.setenv("QTASKS_SECRET_KEY", "k" * 32)
    broker = ManualBroker(results="memory://", allow_pickle=True)

    @broker.tasks.task
    def one() -> int:
        return 1

    @broker.tasks.task(serializer="pickle")
    def take(before: int, value: complex, *more: set[int]) -> None:
        got.append((before, value, more))

    with pytest.raises(ArgumentsError, match="argument 'value' expects complex"):
        (one.s() | take.s("x y")).delay()
    with pytest.raises(ArgumentsError, match="argument 'value' is missing"):
        (one.s() | take.s()).delay()
    (one.s() | take.s(1j, {3})).delay()
    await run(broker)
    assert got == [(1, 1j, ({3},))]
    broker.close()


MIDNIGHT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

PASSED: list[tuple[Any, Any, Any, Any]] = [
    (str, "aGk=", bytes, b"aGk="),
    (bytes, b"\xff", bytes, b"\xff"),
    (dt.datetime, dt.datetime(2026, 1, 1, tzinfo=dt.UTC), str, "2026-01-01T00:00:00Z"),
    (Parcel, Parcel(weight=Decimal("1.0"), sent=dt.date(2026, 1, 1)), dict, {"weight": "1.0", "sent": "2026-01-01"}),
    (set[int], {1, 2}, list[int], [1, 2]),
    (int, 3, float, 3.0),
    (Annotated[int, Field(strict=True)], 3, Decimal, Decimal(3)),
    (dt.date | dt.datetime, MIDNIGHT, dt.datetime | dt.date, MIDNIGHT),
    (bytes | str, b"a", str | bytes, b"a"),
    (bytes | str, "a", Any, "a"),
    (
        dt.datetime,
        dt.datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.datetime,
        dt.datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    ),
]
"""The type and value of a result, and the type and value of the argument that it becomes."""


@pytest.mark.parametrize(("returned", "value", "kind", "expected"), PASSED)
async def test_a_result_becomes_the_argument_that_delay_would_make_of_it(
    broker: ManualBroker, got: list[Any], returned: Any, value: Any, kind: Any, expected: Any
) -> None:
    def give() -> Any:
        return value

    def take(before: Any) -> None:
        got.append(before)

    def listed(before: Any) -> None:
        got.extend(before)

    give.__annotations__["return"], take.__annotations__["before"] = returned, kind
    listed.__annotations__["before"] = list[kind]
    first, then, body = broker.tasks.task(give), broker.tasks.task(take), broker.tasks.task(listed)
    (first.s() | then.s()).delay()
    (group(first.s(), first.s()) | body.s()).delay()
    await run(broker)
    assert got == [expected] * 3
    assert [type(item) for item in got] == [type(expected)] * 3


async def test_a_result_that_does_not_fit_the_next_call_names_both_tasks(
    broker: ManualBroker, one: Task[..., int]
) -> None:
    @broker.tasks.task
    def shout(text: str) -> str:
        return text.upper()

    handle = (one.s() | shout.s()).delay()
    both = (group(one.s(), one.s()) | shout.s()).delay()
    await run(broker)
    with pytest.raises(TaskFailed, match=r"shout: argument 'text' .*the first argument is the result of one, the call"):
        handle.get(timeout=1)
    with pytest.raises(TaskFailed, match="the first argument is the result of a group of one, the call before it"):
        both.get(timeout=1)


def refuse(value: object) -> object:
    raise RuntimeError("no validator of pydantic raises this")


async def test_a_validator_that_raises_anything_leaves_the_decision_to_the_next_call(
    broker: ManualBroker, one: Task[..., int]
) -> None:
    """An error here would make a dead letter of a call that has succeeded."""

    @broker.tasks.task(retries=0)
    def picky(number: Annotated[int, BeforeValidator(refuse)]) -> None: ...

    handle = (one.s() | picky.s()).delay()
    first = broker.take()
    assert (await broker.deliver(first)).status == 200
    assert broker.messages[0].envelope["args"] == [1]
    await run(broker)
    with pytest.raises(TaskFailed, match="RuntimeError: no validator"):
        handle.get(timeout=1)


async def test_the_result_of_a_task_that_the_next_dispatcher_does_not_know_is_passed_on(
    broker: ManualBroker, one: Task[..., int], taking: Callable[..., Task[..., Any]]
) -> None:
    """A dispatcher of a part of the tasks: it sends on what it was given."""
    (one.s() | taking(Decimal).s(Decimal("0.10"))).delay()
    first = broker.take()
    document = json.loads(first.body)
    document["flow"]["then"][0]["task"] = "elsewhere"
    first.body = json.dumps(document).encode()
    await broker.deliver(first)
    then = broker.take()
    assert (then.task, then.envelope["args"]) == ("elsewhere", [1, "0.10"])


async def test_calls_of_map_leave_with_the_open_batch(broker: ManualBroker) -> None:
    @broker.tasks.task
    def double(n: int) -> int:
        return 2 * n

    with broker.tasks.batch():
        handles = [*double.map([1, 2]), *double.starmap([(3,)])]
        assert broker.messages == []
    async with broker.tasks.batch():
        handles += [*await double.amap([4]), *await double.astarmap([(5,)])]
        assert len(broker.messages) == 3
    assert len(broker.embedded.transport.requests) == 2
    await run(broker)
    assert [handle.get(timeout=1) for handle in handles] == [2, 4, 6, 8, 10]


async def test_nothing_of_a_batch_is_sent_when_a_value_of_map_does_not_fit(broker: ManualBroker) -> None:
    @broker.tasks.task
    def double(n: int) -> int:
        return 2 * n

    with pytest.raises(ArgumentsError), broker.tasks.batch():
        double.map([1, "x"])
    assert broker.messages == []
    chain(double.s(1)).delay()
    assert len(broker.messages) == 1


async def test_an_iterator_in_a_signature_is_there_for_each_of_its_calls(broker: ManualBroker) -> None:
    @broker.tasks.task
    def total(numbers: Iterator[int]) -> None: ...

    call = total.s(number for number in (1, 2))
    call.delay()
    chain(call, total.si(numbers=iter([3]))).delay()
    first, second = broker.messages
    assert first.envelope["args"] == second.envelope["args"] == [[1, 2]]
    assert '"numbers":[3]' in json.dumps(second.envelope, separators=(",", ":"))
