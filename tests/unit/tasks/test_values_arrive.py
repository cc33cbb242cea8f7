"""What a call or a result accepts arrives equal to what pydantic makes of it directly, or is refused with its path.

Hypothesis builds the annotation, nested up to two deep, and values for it.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import ipaddress
import itertools
import pathlib
import re
import uuid
import zoneinfo
from collections import abc
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypeVar, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, Json, RootModel, Strict, TypeAdapter, create_model
from pydantic import ValidationError as Invalid
from typing_extensions import TypeAliasType, TypedDict

from qtasks.errors import ArgumentsError, DefinitionError, ResultError
from tests.support.round_trip import as_argument, as_result

T = TypeVar("T")
Bound = TypeVar("Bound", bound=dt.date)
OneOf = TypeVar("OneOf", int, bytes)
UserId = NewType("UserId", uuid.UUID)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    FAST = "fast"
    SLOW = "slow"


class Right(enum.IntFlag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: int
    right: dt.date


class Place(TypedDict, total=False):
    name: str
    since: dt.date


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: decimal.Decimal = decimal.Decimal("1.0")


class Cat(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str


class Dog(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str


class Loose(BaseModel):
    content: Any


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")


class Exact(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    day: dt.date
    key: uuid.UUID
    sizes: tuple[int, ...] = ()


class Aliased(BaseModel):
    count: int = Field(validation_alias="n", serialization_alias="theCount")


class Circle(BaseModel):
    kind: Literal["circle"] = "circle"
    size: int


class Square(BaseModel):
    kind: Literal["square"] = "square"
    size: int


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Numbers(RootModel[list[int]]):
    pass


class Box(BaseModel, Generic[T]):
    item: T


Nested = TypeAliasType("Nested", "dict[str, Nested] | list[Nested] | str | int | None")
Words = TypeAliasType("Words", list[str | bytes])

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5) | st.sampled_from(
    ["YWI=", "deadbeef", "2026-01-01", "1", "red", "00000000-0000-0000-0000-000000000001", "PT1H", "/tmp", "true"]
)
WHOLE = st.integers(-(2**70), 2**70)
REAL = st.floats(allow_nan=False, allow_infinity=False)
DAY = st.dates()
NAIVE_OR_FIXED = st.datetimes(timezones=st.none() | st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=-7))]))
ZONES = st.sampled_from([zoneinfo.ZoneInfo(name) for name in ("Europe/Berlin", "America/New_York", "Asia/Kolkata")])
ZONED = st.datetimes(dt.datetime(1900, 1, 1), timezones=ZONES)  # noqa: DTZ001 - the strategy adds a zone
MIDNIGHT = st.builds(lambda day: dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC), DAY)
FOLD = st.just(dt.datetime(2026, 10, 25, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1))
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | REAL | TEXT, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
SPANS = st.timedeltas(dt.timedelta(days=-10_000), dt.timedelta(days=10_000))
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=2)
ANYTHING = JSON | DAY | st.binary(max_size=3) | st.sets(st.integers(), min_size=1, max_size=2) | st.just((1, 2))
PATTERNS = st.builds(re.compile, st.sampled_from(["a", "(?i)b", "c+"]), st.sampled_from([0, re.IGNORECASE, re.ASCII]))


@dataclasses.dataclass(frozen=True)
class Kind:
    """An annotation of the zoo, values for it, and whether they may be refused: at the top, and in a class."""

    annotation: Any
    values: st.SearchStrategy[Any]
    is_hashable: bool = True
    may_be_refused: bool = False
    may_be_refused_in_class: bool = False
    is_abstract: bool = False
    """True if a part of it is an abstract container, for which another container may arrive."""


LEAVES = [
    Kind(int, WHOLE | st.booleans() | st.just(Level.HIGH)),
    Kind(float, REAL | WHOLE.filter(lambda number: abs(number) < 2**60) | st.just(-0.0)),
    Kind(str, TEXT | st.just(Mode.FAST)),
    Kind(bool, st.booleans() | st.sampled_from([0, 1])),
    Kind(None, st.none()),
    Kind(bytes, st.binary(max_size=5), may_be_refused_in_class=True),
    Kind(dt.datetime, NAIVE_OR_FIXED | ZONED | FOLD, may_be_refused_in_class=True),
    Kind(dt.date, DAY),
    Kind(dt.time, st.times() | st.times(timezones=ZONES), may_be_refused_in_class=True),
    Kind(dt.timedelta, SPANS),
    Kind(decimal.Decimal, DECIMALS),
    Kind(fractions.Fraction, st.fractions()),
    Kind(complex, st.complex_numbers(allow_nan=False, allow_infinity=False)),
    Kind(uuid.UUID, st.uuids()),
    Kind(pathlib.Path, st.sampled_from([pathlib.Path("/tmp/a"), pathlib.Path("b")])),
    Kind(pathlib.PurePosixPath, st.just(pathlib.PurePosixPath("/a/b"))),
    Kind(ipaddress.IPv4Address, st.ip_addresses(v=4)),
    Kind(ipaddress.IPv6Address, st.ip_addresses(v=6)),
    Kind(AnyUrl, st.just(AnyUrl("https://example.com/a?b=1"))),
    Kind(re.Pattern, PATTERNS, may_be_refused_in_class=True),
    Kind(Colour, st.sampled_from(Colour)),
    Kind(Level, st.sampled_from(Level)),
    Kind(Mode, st.sampled_from(Mode)),
    Kind(Right, st.sampled_from([Right.READ, Right.READ | Right.WRITE]), may_be_refused=True),
    Kind(Literal["a", 1, True], st.sampled_from(["a", True])),
    Kind(Literal[Colour.RED], st.just(Colour.RED), may_be_refused_in_class=True),
    Kind(UserId, st.uuids()),
    Kind(Any, JSON, is_hashable=False),
    Kind(object, ANYTHING, is_hashable=False, may_be_refused=True),
    Kind(T, ANYTHING, is_hashable=False, may_be_refused=True),
    Kind(Bound, DAY | NAIVE_OR_FIXED, may_be_refused=True),
    Kind(OneOf, WHOLE | st.binary(max_size=3), may_be_refused_in_class=True),
    Kind(list, st.lists(ANYTHING, max_size=2), is_hashable=False, may_be_refused=True),
    Kind(dict, st.dictionaries(TEXT, ANYTHING, max_size=2), is_hashable=False, may_be_refused=True),
    Kind(set, st.sets(TEXT, max_size=3), is_hashable=False, may_be_refused=True),
    Kind(collections.Counter[str], st.dictionaries(TEXT, st.integers(1, 9), max_size=2), is_hashable=False),
    Kind(collections.OrderedDict[str, int], st.dictionaries(TEXT, WHOLE, max_size=2), is_hashable=False),
    Kind(dict[int, bool], st.dictionaries(WHOLE, st.booleans(), max_size=2), is_hashable=False),
    Kind(dict[int | str, int], st.dictionaries(WHOLE | TEXT, WHOLE, max_size=2), False, may_be_refused_in_class=True),
    Kind(dict[tuple[int, int], str], st.dictionaries(st.just((1, 2)), TEXT), False, may_be_refused_in_class=True),
    Kind(list[int] | set[int], st.lists(WHOLE, max_size=2) | st.sets(WHOLE), False, may_be_refused_in_class=True),
    Kind(list[int] | tuple[int, ...], st.just((1, 2)) | st.just([1]), False, may_be_refused_in_class=True),
    Kind(Annotated[int, Field(ge=0)], st.integers(0, 9)),
    Kind(Annotated[dt.date, Strict()], DAY),
    Kind(Annotated[tuple[uuid.UUID, ...], Strict()], st.tuples(st.uuids())),
    Kind(Json[list[int]], st.just("[1, 2]"), is_hashable=False, may_be_refused=True),
    Kind(Pair, st.builds(Pair, WHOLE, DAY)),
    Kind(Place, st.fixed_dictionaries({"name": TEXT}, optional={"since": DAY}), is_hashable=False),
    Kind(Point, st.builds(Point, WHOLE, DECIMALS)),
    Kind(Cat, st.builds(Cat, name=TEXT)),
    Kind(Cat | Dog, st.builds(Cat, name=TEXT) | st.builds(Dog, name=TEXT), may_be_refused_in_class=True),
    Kind(Loose, st.builds(Loose, content=ANYTHING), is_hashable=False, may_be_refused=True),
    Kind(Extra, st.builds(Extra, more=ANYTHING), is_hashable=False, may_be_refused=True),
    Kind(Exact, st.builds(Exact, day=DAY, key=st.uuids(), sizes=st.just((1, 2)))),
    Kind(Aliased, st.builds(lambda n: Aliased.model_validate({"n": n}), WHOLE), is_hashable=False),
    Kind(Annotated[Circle | Square, Field(discriminator="kind")], st.builds(Square, size=WHOLE), is_hashable=False),
    Kind(Tree, st.builds(lambda n: Tree(value=n, children=[Tree(value=1)]), WHOLE), is_hashable=False),
    Kind(Numbers, st.builds(Numbers, st.lists(WHOLE, max_size=2)), is_hashable=False),
    Kind(Box[dt.date], st.builds(Box[dt.date], item=DAY), is_hashable=False),
    Kind(Box, st.builds(Box, item=ANYTHING), is_hashable=False, may_be_refused=True),
    Kind(
        Nested, st.recursive(TEXT | WHOLE, lambda inner: st.lists(inner, max_size=2), max_leaves=3), is_hashable=False
    ),
    Kind(Words, st.lists(TEXT | st.binary(max_size=3), max_size=2), is_hashable=False, may_be_refused_in_class=True),
]
ALIKE = [
    bytes,
    str,
    dt.datetime,
    dt.date,
    dt.timedelta,
    decimal.Decimal,
    uuid.UUID,
    pathlib.Path,
    Colour,
    int,
    float,
    Mode,
]
_COUNT = itertools.count()


def _wrapped(inner: Kind, annotation: Any, values: Any, **changes: Any) -> Kind:
    return dataclasses.replace(inner, annotation=annotation, values=values, **changes)


def _of(base: Any) -> Callable[[Kind], Kind]:
    def wrap(inner: Kind) -> Kind:
        values = st.lists(inner.values, max_size=2).map(base)
        return _wrapped(inner, base[inner.annotation], values, is_hashable=False)

    return wrap


def _sequence(make: Callable[[Any], Any]) -> Callable[[Kind], Kind]:
    def wrap(inner: Kind) -> Kind:
        values = st.lists(inner.values, max_size=2).map(make)
        return _wrapped(inner, abc.Sequence[inner.annotation], values, is_hashable=False, is_abstract=True)  # type: ignore[name-defined]

    return wrap


def _iterable(inner: Kind) -> Kind:
    values = st.lists(inner.values, max_size=2).map(iter)
    changes = {"is_hashable": False, "is_abstract": True, "may_be_refused_in_class": True}
    return _wrapped(inner, abc.Iterable[inner.annotation], values, **changes)  # type: ignore[name-defined]


def _set(base: Any) -> Callable[[Kind], Kind]:
    def wrap(inner: Kind) -> Kind:
        return _of(base)(inner) if inner.is_hashable else _of(list)(inner)

    return wrap


def _dict(inner: Kind) -> Kind:
    values = st.dictionaries(TEXT | st.just("qtasks.type"), inner.values, max_size=2)
    return _wrapped(inner, dict[str, inner.annotation], values, is_hashable=False)  # type: ignore[name-defined]


def _tuple(inner: Kind) -> Kind:
    return _wrapped(inner, tuple[int, inner.annotation], st.tuples(WHOLE, inner.values))  # type: ignore[name-defined]


def _optional(inner: Kind) -> Kind:
    return _wrapped(inner, Optional[inner.annotation], st.none() | inner.values)  # noqa: UP045 - it may be None


def _model(inner: Kind) -> Kind:
    made: Any = create_model(f"Model{next(_COUNT)}", part=(inner.annotation, ...))
    return _in_class(inner, made, inner.values.map(lambda value: {"part": value}))


def _strict_model(inner: Kind) -> Kind:
    made: Any = create_model(f"Strict{next(_COUNT)}", __config__=ConfigDict(strict=True), part=(inner.annotation, ...))
    return _in_class(inner, made, inner.values.map(lambda value: {"part": value}))


def _dataclass(inner: Kind) -> Kind:
    made = dataclasses.make_dataclass(f"Data{next(_COUNT)}", [("part", inner.annotation)])
    return _in_class(inner, made, inner.values.map(lambda value: {"part": value}))


def _record(inner: Kind) -> Kind:
    made: Any = TypedDict(f"Record{next(_COUNT)}", {"part": inner.annotation})  # type: ignore[misc]
    return _in_class(inner, made, inner.values.map(lambda value: {"part": value}))


def _generic(inner: Kind) -> Kind:
    return _in_class(inner, Box[inner.annotation], inner.values.map(lambda value: {"item": value}))  # type: ignore[name-defined]


def _in_class(inner: Kind, made: Any, values: Any) -> Kind:
    may_be_refused = inner.may_be_refused or inner.may_be_refused_in_class
    return _wrapped(inner, made, values, is_hashable=False, may_be_refused=may_be_refused)


WRAPPERS = (
    *(_of(list), _of(collections.deque), _set(set), _set(frozenset), _sequence(tuple), _sequence(list), _iterable),
    *(_dict, _tuple, _optional, _model, _strict_model, _dataclass, _record, _generic),
)


def _union(members: tuple[Kind, ...]) -> Kind:
    annotation: Any = Union[tuple(kind.annotation for kind in members)]  # noqa: UP007 - made at run time
    values = st.one_of([kind.values for kind in members])
    return Kind(annotation, values, all(kind.is_hashable for kind in members), may_be_refused_in_class=True)


UNIONS = st.lists(
    st.sampled_from([kind for kind in LEAVES if kind.annotation in ALIKE]), min_size=2, max_size=3, unique=True
).map(lambda members: _union(tuple(members)))
KINDS = st.sampled_from(LEAVES) | UNIONS
NESTED = st.builds(
    lambda kind, wrappers: functools.reduce(lambda inner, wrap: wrap(inner), wrappers, kind),
    KINDS,
    st.lists(st.sampled_from(WRAPPERS), max_size=2),
)


def exact(value: Any, *, is_abstract: bool) -> Any:
    """A value with its type at every depth, so that ``==`` compares both.

    `is_abstract`: lists, tuples and iterators count as the same.
    """
    inner = functools.partial(exact, is_abstract=is_abstract)
    if isinstance(value, BaseModel):
        parts = {**value.__dict__, **(value.__pydantic_extra__ or {})}
        return type(value), {name: inner(part) for name, part in parts.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), {name: inner(part) for name, part in vars(value).items()}
    if isinstance(value, (list, tuple, collections.deque)) or type(value).__name__ == "ValidatorIterator":
        return list if is_abstract else type(value), [inner(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted((inner(item) for item in value), key=repr)
    if isinstance(value, dict):
        return type(value), [(inner(key), inner(item)) for key, item in value.items()]
    return type(value), _of_scalar(value)


def _of_scalar(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, complex):
        return value.real.hex(), value.imag.hex()
    if isinstance(value, (dt.datetime, dt.time)):
        zone = value.tzinfo if isinstance(value.tzinfo, zoneinfo.ZoneInfo) else value.utcoffset()
        return value.replace(tzinfo=None), zone, value.fold
    if isinstance(value, re.Pattern):
        return value.pattern, value.flags
    return str(value) if isinstance(value, decimal.Decimal) else value


WAYS = (as_argument, as_result)
REFUSALS = (DefinitionError, ArgumentsError, ResultError)


def refused(kind: Kind, way: Callable[[Any, Any], Any], value: Any) -> bool:
    """True if the value was refused; otherwise it arrived as pydantic makes it, which is checked."""
    adapter = TypeAdapter(kind.annotation)  # which a lazy iterator needs until its end
    try:
        expected = exact(adapter.validate_python(copy.deepcopy(value)), is_abstract=kind.is_abstract)
    except Invalid:
        return True
    try:
        arrived = way(kind.annotation, copy.deepcopy(value))
    except REFUSALS:
        if not kind.may_be_refused:
            raise
        return True
    for _ in ("a look", "a second look"):
        assert exact(arrived, is_abstract=kind.is_abstract) == expected
    return False


@pytest.mark.parametrize("count", [150, pytest.param(4000, marks=pytest.mark.release)])
def test_values_of_nested_types_arrive_equal_or_are_refused(count: int) -> None:
    seen: collections.Counter[bool] = collections.Counter()

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(NESTED, st.data())
    def arrives(kind: Kind, draw: st.DataObject) -> None:
        for value in draw.draw(st.lists(kind.values, min_size=5, max_size=5)):
            seen[refused(kind, draw.draw(st.sampled_from(WAYS)), value)] += 1

    arrives()
    assert seen[False] > seen[True]
