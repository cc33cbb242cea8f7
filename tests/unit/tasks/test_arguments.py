"""Arguments fit at the call or an error says which one does not; what was sent arrives as it was."""

from __future__ import annotations

import enum
import json
import sys
import typing
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from fastapi import Depends
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, computed_field
from typing_extensions import TypedDict

from qtasks import TaskContext, injected
from qtasks.errors import ArgumentsError, DefinitionError
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.parameter_reader import read_parameters
from qtasks.tasks.encode.parameters import TaskParameters


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int = 0


def refuse_password(value: str) -> str:
    raise ValueError(f"{value} is too weak")


Strong = Annotated[str, AfterValidator(refuse_password)]


class User(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    created: datetime
    tags: list[str] = []
    home: Point | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def initial(self) -> str:
        return self.name[:1]


class Aliased(BaseModel):
    count: int = Field(validation_alias="n", serialization_alias="theCount")


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    colour: Colour


def get_db() -> str:
    return "db"


def of(function: Callable[..., Any]) -> TaskParameters:
    return read_parameters("work", function)


def over_the_wire(made: TaskParameters, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Bind, check and write at the caller; read, bind and check at the dispatcher."""
    plain = made.to_json(made.check(made.bind(args, kwargs)))
    sent_args, sent_kwargs = made.arrange(plain, len(args))
    envelope = envelopes.decode(envelopes.encode(envelopes.Envelope("call_1", sent_args, sent_kwargs)))
    return made.check(made.bind(envelope.args, envelope.kwargs), from_wire=True)


def refusal(made: TaskParameters, *args: Any, **kwargs: Any) -> ArgumentsError:
    with pytest.raises(ArgumentsError) as caught:
        made.to_json(made.check(made.bind(args, kwargs)))
    return caught.value


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
WHEN = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 2**70),
        (float, 1.5),
        (str, "grüße 🐍"),
        (bool, True),
        (bytes, b"\xff\x00binary"),
        (list[bytes], [b"\xfe", b""]),
        (datetime, WHEN),
        (date, date(2026, 3, 1)),
        (timedelta, timedelta(days=2, microseconds=5)),
        (UUID, UUID("12345678-1234-5678-1234-567812345678")),
        (Decimal, Decimal("1.10")),
        (Colour, Colour.BLUE),
        (Point, Point(1, 2)),
        (Pair, Pair(1, "r")),
        (Options, {"colour": Colour.RED}),
        (User, User(name="Ada", created=WHEN, tags=["a"], home=Point(3))),
        (Aliased, Aliased.model_validate({"n": 4})),
        (list[User], [User(name="B", created=WHEN)]),
        (dict[int, set[str]], {1: {"a", "b"}}),
        (tuple[int, ...], (1, 2)),
        (tuple[int, str], (1, "a")),
        (frozenset[int], frozenset({1})),
        (int | None, None),
        (Literal["a", "b"], "b"),
        (PurePosixPath, PurePosixPath("/a/b")),
        (Annotated[int, Field(gt=0)], 3),
        (Any, {"deep": [1, None, {"x": 2.5}]}),
        (dict, {"a": [1]}),
        (list[Any], [1, "a", [True]]),
    ],
)
def test_values_arrive_as_they_were_sent(annotation: Any, value: Any) -> None:
    def work(value: Any) -> None: ...

    work.__annotations__["value"] = annotation
    arrived = over_the_wire(of(work), value)["value"]
    assert arrived == value
    assert type(arrived) is type(value)


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_json_value_passes_where_nothing_is_declared(value: Any) -> None:
    def work(value): ...  # type: ignore[no-untyped-def]

    assert over_the_wire(of(work), value)["value"] == value


def test_positional_keyword_and_spread_parameters_find_their_way() -> None:
    def work(a: int, /, b: int, *rest: int, c: int = 5, ctx: TaskContext = injected, **more: str) -> Any:
        return a, b, rest, c, ctx, more

    made = of(work)
    values = over_the_wire(made, 1, 2, 3, 4, c=6, x="y")
    context = TaskContext(task="work", call_id="c", message_id="m", attempt=1, retries=0)
    assert made.call(work, values, context, {}) == (1, 2, (3, 4), 6, context, {"x": "y"})


def test_a_missing_argument_before_a_spread_keeps_its_default() -> None:
    def work(a: int = 1, ctx: TaskContext = injected, *rest: int) -> Any:
        return a, ctx, rest

    made = of(work)
    context = TaskContext(task="work", call_id="c", message_id="m", attempt=1, retries=0)
    assert made.call(work, over_the_wire(made), context, {}) == (1, context, ())


def test_defaults_are_left_to_the_side_that_runs() -> None:
    def work(a: int, b: int = 2) -> None: ...

    assert over_the_wire(of(work), 1) == {"a": 1}


def example(order_id: int, note: str = "", *, password: str = "") -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs", "code", "text"),
    [
        ((), {}, "QT151", "argument 'order_id' is missing"),
        ((1, "a", 3), {}, "QT152", "takes 2 positional arguments, but 3 were given"),
        ((1,), {"order_id": 2}, "QT152", "got two values for argument 'order_id'"),
        ((), {"orderid": 1}, "QT152", "unexpected argument 'orderid'; did you mean 'order_id'?"),
        (("forty",), {}, "QT153", "argument 'order_id' expects int, got 'forty' (str): "),
        ((1.5,), {}, "QT153", "argument 'order_id' expects int, got 1.5 (float): "),
        ((1, None), {}, "QT153", "argument 'note' expects str, got None (NoneType): "),
    ],
)
def test_a_wrong_call_names_the_argument_the_type_and_the_value(
    args: tuple[Any, ...], kwargs: dict[str, Any], code: str, text: str
) -> None:
    error = refusal(of(example), *args, **kwargs)
    assert error.code == code
    assert text in error.message
    assert error.message.startswith("work: ")
    assert error.details == {"signature": "work(order_id: int, note: str = '', *, password: str = '') -> None"}
    assert isinstance(error, TypeError)


def test_the_dispatcher_uses_the_words_of_the_call() -> None:
    made = of(example)
    at_the_call = refusal(made, "forty")
    with pytest.raises(ArgumentsError) as at_dispatch:
        made.check(made.bind(["forty"], {}), from_wire=True)
    assert str(at_dispatch.value) == str(at_the_call)


def test_a_value_that_may_be_secret_is_not_shown() -> None:
    error = refusal(of(example), 1, password=["hunter2"])
    assert "hunter2" not in str(error)
    assert "'password' expects str" in str(error)


@pytest.mark.parametrize(
    "name", ["credential", "passwd", "api_key", "apikey", "token", "authorization", "pwd", "Secret"]
)
def test_arguments_under_the_names_of_secrets_are_not_shown(name: str) -> None:
    def work(**more: str) -> None: ...

    error = refusal(of(work), **{name: ["hunter2"]})
    assert "hunter2" not in str(error)
    assert name in str(error)


def test_a_secret_inside_another_value_and_in_the_words_of_a_validator_is_masked() -> None:
    def work(user: User, password: Strong = "") -> None: ...

    inside = refusal(of(work), {"name": "A", "password": "hunter2"})
    assert "hunter2" not in str(inside)
    validated = refusal(of(work), {"name": "A", "created": WHEN}, password="hunter2")
    assert "hunter2" not in str(validated)
    assert "*** is too weak" in str(validated)


def test_the_default_of_a_secret_is_not_shown_in_the_signature() -> None:
    def work(number: int, password: str = "hunter2", token: str | None = None) -> None: ...

    error = refusal(of(work), "x")
    assert error.details == {"signature": "work(number: int, password: str = ***, token: str | None = None) -> None"}


def test_the_path_leads_into_models_and_lists() -> None:
    def work(users: list[User]) -> None: ...

    rows: Any = [{"name": "A", "created": WHEN}, {"name": "B", "created": "yesterday"}]
    assert "argument 'users[1].created' expects list[" in refusal(of(work), rows).message


def test_an_object_where_nothing_is_declared_is_refused_with_its_path() -> None:
    def work(user, extra: Any = None): ...  # type: ignore[no-untyped-def]

    made = of(work)
    error = refusal(made, {"rows": [1, {"created": WHEN}]})
    assert error.code == "QT154"
    assert "'user.rows[1].created'" in error.message
    assert "datetime" in error.message
    assert refusal(made, 1, extra=(1, 2)).code == "QT154"
    assert refusal(made, {1: "a"}).code == "QT153"


@pytest.mark.parametrize(
    ("annotation", "plain", "other"),
    [
        (set, {1, "a"}, {WHEN}),
        (frozenset, frozenset({1}), frozenset({WHEN})),
        (deque, deque([1, "a"]), deque([WHEN])),
        (OrderedDict, OrderedDict(a=1), OrderedDict(a=WHEN)),
        (Counter, Counter("aab"), Counter([1, 1])),
        (Mapping, {"a": 1}, {1: "a"}),
        (Sequence, [1, "a"], [WHEN]),
        (typing.Dict, {"a": 1}, {1: 2}),  # noqa: UP006
        (typing.List, [1, "a"], [WHEN]),  # noqa: UP006
        (typing.Set, {1, "a"}, {WHEN}),  # noqa: UP006
        (typing.Tuple, (1, "a"), (WHEN,)),  # noqa: UP006
    ],
)
def test_a_collection_of_whatever_is_one_of_json_values(annotation: Any, plain: Any, other: Any) -> None:
    """Anything else would arrive as something else: a datetime as text, a number that is a key as text."""

    def work(value: Any) -> None: ...

    work.__annotations__["value"] = annotation
    arrived = over_the_wire(of(work), plain)["value"]
    assert arrived == plain
    assert type(arrived) is type(plain)
    assert refusal(of(work), other).code in ("QT153", "QT154")


def test_a_type_that_cannot_travel_is_refused_where_the_plan_is_made() -> None:
    class Session: ...

    def work(session: Any) -> None: ...

    work.__annotations__["session"] = Session
    with pytest.raises(DefinitionError) as caught:
        of(work)
    assert caught.value.code == "QT103"
    assert "parameter 'session'" in caught.value.message
    assert "Session" in caught.value.message


@pytest.mark.parametrize("annotation", [SecretStr, list[SecretStr], SecretStr | None])
def test_a_secret_that_would_arrive_as_asterisks_is_refused(annotation: Any) -> None:
    def work(key: Any) -> None: ...

    work.__annotations__["key"] = annotation
    with pytest.raises(DefinitionError, match="asterisks"):
        of(work)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the statement is of Python 3.12")
def test_a_type_statement_stands_for_its_type() -> None:
    names: dict[str, Any] = {"datetime": datetime}
    exec("type Moment = datetime\ntype Either = bytes | str\ntype Some[T] = list[T] | set[T]", names)
    moment = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    for annotation, value in ((names["Moment"], moment), (names["Either"], "YQ=="), (names["Some"][int], {1})):

        def work(value: Any) -> None: ...

        work.__annotations__["value"] = annotation
        assert repr(over_the_wire(of(work), value)["value"]) == repr(value)


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    def work(user: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(DefinitionError, match="'Missing'"):
        of(work)


def test_a_context_without_its_default_is_refused() -> None:
    def work(ctx: TaskContext) -> None: ...

    with pytest.raises(DefinitionError, match="ctx: TaskContext = injected"):
        of(work)


def test_only_a_context_can_be_injected() -> None:
    def work(ctx: int = injected) -> None: ...

    with pytest.raises(DefinitionError, match="only a TaskContext"):
        of(work)


def test_what_the_dispatcher_fills_is_no_argument_of_the_call() -> None:
    def work(
        a: int,
        db: str = Depends(get_db),
        other: Annotated[str, Depends(get_db)] = "",
        ctx: TaskContext = injected,
    ) -> None: ...

    made = of(work)
    assert made.signature == "work(a: int) -> None"
    assert [parameter.name for parameter in made.dependencies] == ["db", "other"]
    assert made.contexts == ("ctx",)
    assert "is filled where the task runs" in refusal(made, 1, ctx=None).message
    assert "is filled where the task runs" in refusal(made, 1, db="x").message
    assert refusal(made, 1, "x").code == "QT152"


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"a": [float("nan")]}, "value.a[0]", "nan is not a JSON number"),
        ("a\0b", "value", "NUL"),
        ({"k\0": 1}, "value", "NUL"),
        (["\ud800"], "value[0]", "surrogate"),
        pytest.param(10**4300, "value", "4300 digits", id="huge"),
        (json.loads("[" * 31 + "]" * 31), "value" + "[0]" * 30, "nested deeper than 30"),
    ],
)
def test_what_the_other_side_would_refuse_is_found_with_its_path(value: Any, path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        envelopes.encode(envelopes.Envelope("call_1", [value]))
    found = envelopes.culprit({"value": value})
    assert found is not None
    assert found[0] == path
    assert reason in found[1]


def test_a_value_whose_text_cannot_be_made_is_still_reported() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "expects int, got a Odd" in refusal(of(example), Odd()).message
