"""Values arrive as they were sent, or the call says which of them would not, and where it is.

Each test is one kind of value; `test_values_arrive` tries nested types at random.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime as dt
import enum
import json
import re
import threading
import uuid
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Reversible, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from typing import Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    Secret,
    SecretBytes,
    SecretStr,
    Strict,
)
from typing_extensions import TypedDict

from qtasks.errors import ArgumentsError, DefinitionError, ResultError
from qtasks.tasks.encode.annotations import form, record_form
from qtasks.tasks.encode.equality import difference
from qtasks.tasks.llm.chat_messages import ModelAnswer, Usage
from qtasks.tasks.llm.output import Output
from tests.support.round_trip import as_argument, as_result, taking

BERLIN = ZoneInfo("Europe/Berlin")
NOON = dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC)


class Animal(BaseModel):
    name: str


class Dog(Animal):
    breed: str


class Robot(BaseModel):
    name: str


class Free(BaseModel):
    rows: list[dict[str, Any]]


class Login(BaseModel):
    user: str
    password: SecretStr


class Level(enum.IntEnum):
    HIGH = 3


def refusal(annotation: Any, value: Any) -> ArgumentsError:
    made = taking(annotation)
    with pytest.raises(ArgumentsError) as caught:
        made.to_json(made.check({"value": value}))
    assert caught.value.code == "QT154"
    return caught.value


@pytest.mark.parametrize("way", [as_argument, as_result])
@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int | bytes | str, "YWI="),
        (str | uuid.UUID, uuid.UUID(int=7)),
        (str | dt.time, dt.time(1, 2)),
        (Decimal | float, 2.5),
        (Decimal | float, Decimal("2.5")),
        (Level | int, Level.HIGH),
        (Level | int, 3),
        (dt.date | dt.datetime, NOON.replace(hour=0)),
        (dt.datetime | dt.date, dt.date(2026, 7, 1)),
        (frozenset[str] | list[str], frozenset({"a"})),
        (Animal | Robot, Robot(name="R2")),
        (Animal | Dog, Dog(name="Rex", breed="collie")),
        (list[Robot | Animal], [Animal(name="A"), Robot(name="R2")]),
        (dict[str, Any] | Animal, {"qtasks.type": "Animal", "value": {"name": "A"}}),
        (dict[int | str, str], {1: "a", "1": "b"}),
        (dict[tuple[int, str], bytes], {(1, "a"): b"\xff"}),
        (dict[bytes, int], {b"\xff": 1}),
        (collections.OrderedDict[dt.datetime, int], collections.OrderedDict({NOON.astimezone(BERLIN): 1})),
    ],
)
def test_a_value_of_a_union_or_a_key_arrives_as_the_member_that_it_was(
    way: Callable[[Any, Any], Any], annotation: Any, value: Any
) -> None:
    assert difference(value, way(annotation, value)) is None


def test_a_union_is_written_plainly_where_that_is_enough() -> None:
    made = taking(uuid.UUID | str | None)
    assert made.to_json({"value": "text"}) == {"value": "text"}
    assert made.to_json({"value": None}) == {"value": None}
    assert made.to_json({"value": uuid.UUID(int=1)}) == {
        "value": {"qtasks.type": "UUID", "value": "00000000-0000-0000-0000-000000000001"}
    }


@pytest.mark.parametrize("plain", [{"qtasks.type": "Cat", "value": 1}, {"qtasks.type": "str"}])
def test_the_name_of_an_unknown_member_is_an_error_that_lists_the_known_ones(plain: Any) -> None:
    with pytest.raises(ArgumentsError, match="it has UUID, str"):
        taking(uuid.UUID | str).check({"value": plain}, from_wire=True)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (bytes, "AP8="),
        (uuid.UUID | str, "00000000-0000-0000-0000-000000000001"),
        (dt.date | dt.datetime, "2026-01-01"),
        (dict[int | str, int], {"1": 1}),
        (re.Pattern[str], "a+"),
        (Iterable[int], [1, 2]),
    ],
)
def test_what_an_earlier_version_wrote_is_read_as_before(annotation: Any, value: Any) -> None:
    before = {bytes: b"\x00\xff", re.Pattern[str]: re.compile("a+"), dt.date | dt.datetime: dt.date(2026, 1, 1)}
    assert taking(annotation).check({"value": value}, from_wire=True)["value"] == before.get(annotation, value)


def test_a_model_is_not_asked_for_names_of_members_and_its_plain_answers_are_read() -> None:
    class Answer(BaseModel):
        when: dt.date | dt.datetime

    output = Output[dict[str, dt.date | str]](dict[str, dt.date | str], task="work")
    assert "qtasks" not in json.dumps(output.schema)
    assert output.schema["additionalProperties"] == {
        "anyOf": [{"format": "date", "type": "string"}, {"type": "string"}]
    }
    read = output.read(ModelAnswer('{"a": "2026-01-01"}', Usage("any", 1, 1), {}))
    assert read == {"a": dt.date(2026, 1, 1)}


class StrictOrder(BaseModel):
    model_config = ConfigDict(strict=True)
    day: dt.date
    key: uuid.UUID
    level: Level
    sizes: tuple[int, ...]
    labels: frozenset[str]


ORDER = StrictOrder(day=dt.date(2026, 1, 1), key=uuid.UUID(int=1), level=Level.HIGH, sizes=(1,), labels=frozenset("a"))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (StrictOrder, ORDER),
        (StrictOrder | None, ORDER),
        (list[StrictOrder], [ORDER]),
        (Iterable[StrictOrder], [ORDER]),
        (StrictOrder | Animal | str, ORDER),
        (dict[tuple[int, int], StrictOrder], {(1, 2): ORDER}),
        (Annotated[dt.date, Strict()], dt.date(2026, 1, 1)),
        (Annotated[dt.datetime, Strict()], NOON),
        (Annotated[dt.time, Strict()], dt.time(1, 2)),
        (Annotated[bytes, Strict()], b"\xff"),
        (Annotated[set[int], Strict()], {1}),
    ],
)
def test_a_strict_type_arrives_wherever_it_is(annotation: Any, value: Any) -> None:
    assert as_argument(annotation, value) == value == as_result(annotation, value)


class Place(NamedTuple):
    notes: Any


class Record(TypedDict):
    notes: dict[str, Any]


@dataclasses.dataclass
class Sheet:
    notes: list[Any]


@pytest.mark.parametrize(
    ("annotation", "value", "path", "text"),
    [
        (Free, Free(rows=[{}, {"at": NOON}]), "value.rows[1].at", "would arrive as '2026-07-01T12:00:00Z' (str)"),
        (Free, Free(rows=[{"ids": {1}}]), "value.rows[0].ids", "{1} (set) would arrive as [1] (list)"),
        (Sheet, Sheet([(1, 2)]), "value.notes[0]", "(1, 2) (tuple) would arrive as [1, 2] (list)"),
        (Record, {"notes": {"level": Level.HIGH}}, "value.notes.level", "would arrive as 3 (int)"),
        (Place, Place(Decimal(1)), "value.notes", "would arrive as '1' (str)"),
        (Animal, Dog(name="Rex", breed="collie"), "value", "(Dog) would arrive as Animal(name='Rex') (Animal)"),
        (list[Animal], [Animal(name="A"), Dog(name="R", breed="c")], "value[1]", "(Dog) would arrive as"),
    ],
)
def test_a_value_that_would_arrive_changed_is_refused_with_its_path(
    annotation: Any, value: Any, path: str, text: str
) -> None:
    error = refusal(annotation, value)
    assert f"argument {path!r} cannot be written as JSON" in error.message
    assert text in error.message
    assert error.fix
    with pytest.raises(ResultError) as caught:
        as_result(annotation, value)
    assert caught.value.code == "QT406"
    assert text in caught.value.message
    assert path.removeprefix("value").removeprefix(".") in caught.value.message


def test_the_fix_names_the_subclass_that_would_lose_its_fields() -> None:
    assert refusal(Animal, Dog(name="Rex", breed="collie")).fix == (
        "declare Dog, or a union that contains it; fields of a subclass are lost"
    )


class Hidden(BaseModel):
    name: str
    rank: int = Field(default=0, exclude=True)
    _seen: list[int] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


def test_fields_that_are_not_written_are_refused_unless_they_have_their_default() -> None:
    assert as_argument(Hidden, Hidden(name="a")).name == "a"
    assert "argument 'value.rank'" in refusal(Hidden, Hidden(name="a", rank=2)).message
    seen = Hidden(name="a")
    seen._seen.append(1)
    assert "argument 'value._seen'" in refusal(Hidden, seen).message


def test_a_model_that_was_made_without_validation_is_refused_where_it_does_not_fit() -> None:
    error = refusal(list[Animal], [Animal.model_construct(name=5)])
    assert "argument 'value[0].name'" in error.message
    assert "could not be read again: Input should be a valid string" in error.message


def test_a_validator_that_changes_its_own_result_is_found_at_the_call() -> None:
    twice = Annotated[str, BeforeValidator(lambda text: text + text)]
    stripped = Annotated[str, BeforeValidator(str.strip)]
    assert "'aa' (str) would arrive as 'aaaa' (str)" in refusal(twice, "a").message
    assert as_argument(stripped, " a ") == "a"


def test_bytes_in_a_model_that_are_no_text_are_refused_with_their_path() -> None:
    class File(BaseModel):
        content: bytes

    assert as_argument(File, File(content=b"text")) == File(content=b"text")
    assert "argument 'value[0].content'" in refusal(list[File], [File(content=b"\xff")]).message


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_named_in_a_result(number: float) -> None:
    with pytest.raises(ResultError, match=r"\[1\].*is not a JSON number"):
        as_result(list[float], [1.0, number])


typed_dict: Any = TypedDict  # a type checker wants a class
MASKED: dict[str, Any] = {
    "model": Login,
    "list of models": list[Login],
    "bytes": SecretBytes,
    "generic": Secret[dt.date],
    "optional": dict[str, Login | None],
    "subclass": type("Key", (SecretStr,), {}),
    "union": Login | Animal,
    "dataclass": dataclasses.make_dataclass("Data", [("metadata", list[SecretStr])]),
    "named tuple": NamedTuple("Named", [("config", SecretStr)]),
    "record": typed_dict("Typed", {"type": SecretStr}),
}


@pytest.mark.parametrize("case", MASKED)
def test_a_secret_at_any_depth_of_the_declaration_is_refused(case: str) -> None:
    with pytest.raises(
        DefinitionError, match="cannot be an argument or a result: it would arrive as asterisks"
    ) as caught:
        taking(MASKED[case])
    assert "parameter 'value'" in caught.value.message
    with pytest.raises(DefinitionError, match="asterisks"):
        as_result(MASKED[case], None)


def test_the_path_of_a_secret_in_a_recursive_model_is_named() -> None:
    class Node(BaseModel):
        children: list[Node] = []
        login: Login | None = None

    Node.model_rebuild(_types_namespace={"Node": Node, "Login": Login})
    with pytest.raises(DefinitionError, match=r"SecretStr cannot be .* \(at login.password\)"):
        taking(Node)


def test_a_secret_that_no_declaration_shows_is_refused_and_not_shown() -> None:
    error = refusal(Free, Free(rows=[{"key": SecretStr("hunter2")}]))
    assert "argument 'value.rows[0].key'" in error.message
    assert "hunter2" not in str(error)
    named = refusal(Free, Free(rows=[{"password": ("hunter2",)}]))
    assert "argument 'value.rows[0].password'" in named.message
    assert "hunter2" not in str(named)


def test_a_secret_that_its_owner_writes_revealed_arrives() -> None:
    shown = Annotated[SecretStr, PlainSerializer(lambda secret: secret.get_secret_value(), when_used="json")]
    assert as_argument(shown, SecretStr("hunter2")) == SecretStr("hunter2")


class Vault(BaseModel):
    login: Login
    keys: set[SecretStr] = set()
    born: Secret[dt.date] | None = None
    raw: SecretBytes = SecretBytes(b"")


def test_a_codec_that_encrypts_has_secrets_written_as_they_are() -> None:
    vault = Vault(
        login=Login(user="a", password=SecretStr("hunter2")),
        keys={SecretStr("k2"), SecretStr("k1")},
        born=Secret(dt.date(2026, 1, 1)),
        raw=SecretBytes(b"b"),
    )
    whole = form(list[Vault | Animal], where="work", reveals_secrets=True)
    plain = whole.write(whole.check([vault, Animal(name="A")]))
    assert plain[0]["login"] == {"user": "a", "password": "hunter2"}
    assert plain[0]["keys"] == ["k1", "k2"]
    assert whole.read(plain) == [vault, Animal(name="A")]
    record = record_form("work", {"key": SecretStr, "n": int}, where="work", reveals_secrets=True)
    assert record.write(record.check({"key": "k", "n": 1})) == {"key": "k", "n": 1}


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (dt.datetime(2026, 7, 1, 12, tzinfo=BERLIN), "2026-07-01T12:00:00+02:00[Europe/Berlin]"),
        (dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), "2026-10-25T02:30:00+02:00[Europe/Berlin]"),
        (dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), "2026-10-25T02:30:00+01:00[Europe/Berlin]"),
        (dt.datetime(2026, 7, 1, 12, tzinfo=BERLIN, fold=1), "2026-07-01T12:00:00+02:00[Europe/Berlin][_fold=1]"),
        (dt.datetime(1890, 1, 1, tzinfo=BERLIN), "1890-01-01T00:00:00+00:53:28[Europe/Berlin]"),
        (dt.datetime(2026, 7, 1, 12, fold=1), "2026-07-01T12:00:00[_fold=1]"),  # noqa: DTZ001 - a local time
        (NOON, "2026-07-01T12:00:00Z"),
        (dt.time(12, tzinfo=BERLIN), "12:00:00[Europe/Berlin]"),
        (dt.time(12, fold=1), "12:00:00[_fold=1]"),
    ],
)
def test_a_time_arrives_with_its_zone(moment: Any, text: str) -> None:
    annotation: Any = list[type(moment)]  # type: ignore[misc]
    assert taking(annotation).to_json({"value": [moment]}) == {"value": [text]}
    assert difference([moment], as_argument(annotation, [moment])) is None
    assert difference([moment], as_result(annotation, [moment])) is None


def test_a_moment_is_kept_if_the_rules_of_its_zone_have_changed() -> None:
    made = taking(dt.datetime).check({"value": "2026-07-01T12:00:00+05:00[Europe/Berlin]"}, from_wire=True)
    assert made["value"] == dt.datetime(2026, 7, 1, 9, tzinfo=BERLIN)
    assert made["value"].utcoffset() == dt.timedelta(hours=2)
    with pytest.raises(ArgumentsError, match="does not know the time zone 'Mars/Base'"):
        taking(dt.datetime).check({"value": "2026-07-01T12:00:00+05:00[Mars/Base]"}, from_wire=True)


def test_a_zone_in_a_model_is_refused_unless_its_offset_never_changes() -> None:
    class Event(BaseModel):
        at: dt.datetime

    error = refusal(Event, Event(at=NOON.astimezone(BERLIN)))
    assert "argument 'value.at'" in error.message
    assert error.fix is not None
    assert error.fix.startswith("convert it to UTC")
    for zone in (dt.UTC, ZoneInfo("UTC"), dt.timezone(dt.timedelta(hours=2))):
        assert as_argument(Event, Event(at=NOON.astimezone(zone))).at == NOON


def test_a_regular_expression_keeps_its_flags() -> None:
    for pattern in (re.compile("a", re.IGNORECASE | re.ASCII), re.compile("(?s)a"), re.compile("a")):
        assert difference(pattern, as_argument(re.Pattern, pattern)) is None
        assert difference(pattern, as_argument(re.Pattern[str], pattern)) is None
    assert taking(re.Pattern).to_json({"value": re.compile("a")}) == {"value": "a"}
    assert "argument 'value'" in refusal(re.Pattern, re.compile(b"a")).message


@pytest.mark.parametrize("base", [Iterable, Iterator, Collection, Reversible, Sequence])
def test_what_can_be_iterated_arrives_as_a_list(base: Any) -> None:
    for annotation, value in ((base[int], [1, 2]), (base, [1, 2]), (base[int] | None, [1, 2])):
        assert as_argument(annotation, value) == [1, 2]
        assert as_result(annotation, value) == [1, 2]
    assert as_argument(base[dt.date], [dt.date(2026, 1, 1)]) == [dt.date(2026, 1, 1)]


def test_a_generator_is_read_once_where_the_call_is_made() -> None:
    reads: list[int] = []

    def rows() -> Iterator[int]:
        for row in (1, 2):
            reads.append(row)
            yield row

    made = taking(Generator[int, None, None])
    checked = made.check({"value": rows()})
    assert checked == {"value": [1, 2]}
    assert made.to_json(checked) == made.to_json(checked) == {"value": [1, 2]}
    assert reads == [1, 2]
    with pytest.raises(ArgumentsError, match=r"value\[1\]"):
        made.check({"value": iter([1, "x"])})


def test_a_class_with_an_iterator_in_it_is_refused_where_it_is_declared() -> None:
    class Batch(BaseModel):
        rows: Iterable[int]

    with pytest.raises(DefinitionError, match=r"could be read only once \(at \[\].rows\)") as caught:
        taking(list[Batch])
    assert caught.value.fix == "declare list[...] or Sequence[...] there"


def test_an_abstract_container_may_arrive_as_another_one() -> None:
    class Tags(BaseModel):
        names: Sequence[str] = ()
        kinds: AbstractSet[str] = frozenset()
        sizes: Mapping[str, Sequence[int]] = {}

    assert as_argument(Tags, Tags(names=("a",), kinds=frozenset("b"), sizes={"a": (1,)})).names == ["a"]
    assert as_argument(Sequence[int], (1, 2)) == [1, 2]
    assert as_argument(AbstractSet[int], frozenset({1})) == {1}


@pytest.mark.parametrize(
    ("sent", "other", "path"),
    [
        (1, True, ""),
        (0.0, -0.0, ""),
        (Decimal("1.50"), Decimal("1.5"), ""),
        ([1, [2]], [1, [3]], "[1][0]"),
        ({"a": 1}, {"b": 1}, ""),
        ({1}, {True}, ""),
        (collections.deque([1], 2), collections.deque([1]), ""),
        (collections.defaultdict(int, a=1), collections.defaultdict(lambda: 0, a=1), ""),
        (re.compile("a"), re.compile("a", re.IGNORECASE), ""),
        (dt.time(1, fold=1), dt.time(1), ""),
        (Sheet([1]), Sheet([2]), ".notes[0]"),
        (complex(0.0, 0.0), complex(0.0, -0.0), ""),
    ],
)
def test_a_difference_is_found_that_equality_does_not_show(sent: Any, other: Any, path: str) -> None:
    found = difference(sent, other)
    assert found is not None
    assert found.path == path
    assert difference(sent, copy.deepcopy(sent)) is None


def test_nan_is_itself_by_its_bits() -> None:
    assert difference([float("nan")], [float("nan")]) is None
    assert difference({float("nan")}, {float("nan")}) is None
