"""Values that would change in silence: of subclasses where nothing is declared, and of types that pydantic makes."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from pydantic import AwareDatetime, Base64Bytes, JsonValue, PastDatetime

from qtasks.errors import ArgumentsError, ResultError
from tests.support.round_trip import as_argument, as_result


class Mode(enum.StrEnum):
    FAST = "fast"


class Level(enum.IntEnum):
    LOW = 1


class Money(float):
    pass


class Point(NamedTuple):
    x: int


WAYS = pytest.mark.parametrize("way", [as_argument, as_result])


@WAYS
@pytest.mark.parametrize(
    ("annotation", "value", "path"),
    [
        (Any, Mode.FAST, ""),
        (object, Level.LOW, ""),
        (JsonValue, Money(1.5), ""),
        (Hashable, Mode.FAST, ""),
        (list, ["plain", {"mode": Mode.FAST}], "[1].mode"),
        (dict, {"rows": [Point(1)]}, "rows[0]"),
        (dict[str, Any], {"by": collections.OrderedDict(a=1)}, "by"),
        (Any, {"by": {Mode.FAST: 1}}, "by"),
        (tuple[Any, ...], (collections.Counter("a"),), "[0]"),
    ],
)
def test_a_value_of_a_subclass_is_refused_with_its_path(
    way: Callable[[Any, Any], Any], annotation: Any, value: Any, path: str
) -> None:
    with pytest.raises((ArgumentsError, ResultError)) as refused:
        way(annotation, value)
    assert refused.value.code in ("QT154", "QT406")
    assert repr(path)[1:-1] in refused.value.message


@WAYS
@pytest.mark.parametrize("annotation", [dict[str, int], Mapping[str, int], dict, Any])
def test_half_of_a_surrogate_pair_in_a_key_is_refused_and_not_replaced(
    way: Callable[[Any, Any], Any], annotation: Any
) -> None:
    assert way(annotation, {"\U0001f600": 1}) == {"\U0001f600": 1}
    with pytest.raises((ArgumentsError, ResultError)):
        way(annotation, {"\ud83d": 1})


def test_a_declared_type_makes_its_own_values_of_a_subclass() -> None:
    assert type(as_argument(str, Mode.FAST)) is str
    assert type(as_result(float, Money(1.5))) is float


def test_a_result_without_a_declaration_may_have_tuples_but_no_named_ones() -> None:
    assert as_result_of_nothing((1, [2, (3,)])) == [1, [2, [3]]]
    with pytest.raises(ResultError, match=r"at '\[0\]': Point\(x=1\) \(Point\)"):
        as_result_of_nothing((Point(1),))


def as_result_of_nothing(value: Any) -> Any:
    return as_result(inspect.Parameter.empty, value)


@dataclasses.dataclass
class Priced:
    net: int
    rate: dataclasses.InitVar[int] = 2

    def __post_init__(self, rate: int) -> None:
        self.gross = self.net * rate


@WAYS
def test_what_an_init_variable_made_is_compared_too(way: Callable[[Any, Any], Any]) -> None:
    assert way(Priced, Priced(1)).gross == 2
    with pytest.raises((ArgumentsError, ResultError), match="gross"):
        way(Priced, Priced(1, 5))


@WAYS
@pytest.mark.parametrize("kind", [AwareDatetime, PastDatetime, AwareDatetime | None])
def test_a_datetime_with_a_condition_keeps_its_zone_too(way: Callable[[Any, Any], Any], kind: Any) -> None:
    moment = dt.datetime(2020, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    assert repr(way(kind, moment)) == repr(moment)
    with pytest.raises((ArgumentsError, ResultError), match="Input should"):
        way(kind, "yesterday")


@WAYS
def test_bytes_with_an_encoding_of_their_own_keep_it(way: Callable[[Any, Any], Any]) -> None:
    assert way(list[Base64Bytes], [b"/w=="]) == [b"\xff"]


def test_the_value_of_a_result_is_not_shown_under_the_name_of_a_secret() -> None:
    with pytest.raises(ResultError, match="at 'password'") as refused:
        as_result(dict[str, Any], {"password": Money(4.75)})
    assert "4.75" not in refused.value.message
