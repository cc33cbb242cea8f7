"""`search=("user_id",)`: every call carries labels by which it is found by its arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from fastapi import Depends
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from qtasks import Codec, QTasks, TaskContext, injected
from qtasks.errors import DefinitionError
from qtasks.llm import ChatMessage, openai, user
from qtasks.protocol import wire
from qtasks.protocol.labels import argument_labels
from qtasks.tasks.flow.canvas import chain
from tests.support.tasks import BASE_URL
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio

CODEC = Codec("z", lambda value: b"", lambda content, limit: None)


class Colour(Enum):
    RED = "red"


class Person(BaseModel):
    name: str


@dataclass
class Pair:
    left: int


def labels(broker: ManualBroker) -> tuple[str, ...]:
    """The labels of the only message."""
    return broker.take().options.labels


def test_a_call_carries_its_arguments_as_labels_behind_those_of_its_caller(broker: ManualBroker) -> None:
    @broker.tasks.task(search=("user_id", "order"), label="billing")
    def charge(user_id: int, order: str = "none", note: str = "") -> None: ...

    charge.delay(42, order="o-1")
    assert labels(broker) == ("billing", "qtasks.arg.user_id=42", "qtasks.arg.order=o-1")
    charge.delay(user_id=42, note="x")
    assert labels(broker) == ("billing", "qtasks.arg.user_id=42", "qtasks.arg.order")
    charge.using(label=["a", "b"], queue="q").delay(7)
    assert labels(broker)[:3] == ("a", "b", "qtasks.arg.user_id=7")


@pytest.mark.parametrize(
    ("annotation", "value", "label"),
    [
        (int, 2**80, f"qtasks.arg.it={2**80}"),
        (bool, True, "qtasks.arg.it=true"),
        (int | None, None, "qtasks.arg.it=null"),
        (UUID, UUID(int=1), "qtasks.arg.it=00000000-0000-0000-0000-000000000001"),
        (date, date(2026, 11, 28), "qtasks.arg.it=2026-11-28"),
        (Colour, Colour.RED, "qtasks.arg.it=red"),
        (str, "ada@example.com", "qtasks.arg.it=ada@example.com"),
        (str, "", "qtasks.arg.it#e3b0c44298fc1c149afbf4c8996fb924"),
        (str, "a,b", "qtasks.arg.it#1eb7c54d52831bbfe8942af0b1c56b74"),
        (str, "ü", argument_labels.label_of("it", "ü")),
        (str, "x" * 65, argument_labels.label_of("it", "x" * 65)),
        (str | list[str], ["a"], None),
        (Any, {"a": 1}, None),
        (Any, 1.5, None),
    ],
)
def test_a_label_has_the_value_as_json_writes_it_or_its_hash(
    broker: ManualBroker, annotation: Any, value: Any, label: str | None
) -> None:
    def find(it: Any) -> None: ...

    find.__annotations__["it"] = annotation
    broker.tasks.task(search="it")(find).delay(value)
    assert labels(broker) == (() if label is None else (label,))


@given(text=st.text(max_size=80))
def test_every_text_has_one_label_that_a_header_can_carry(text: str) -> None:
    label = argument_labels.label_of("name", text)
    assert "," not in label
    assert all("!" <= character <= "~" for character in label)
    assert len(label) <= wire.MAX_TEXT
    assert argument_labels.name_in(label) == "name"
    assert label != argument_labels.label_of("name", text + "x")
    assert argument_labels.without(["mine", label]) == ("mine",)


def test_the_calls_of_a_map_share_everything_but_their_labels(broker: ManualBroker) -> None:
    @broker.tasks.task(search="n", label="mine")
    def work(n: int) -> None: ...

    work.map(range(3))
    assert [message.options.labels for message in broker.messages] == [("mine", f"qtasks.arg.n={n}") for n in range(3)]
    (batch,) = broker.embedded.transport.requests
    lines = [wire.split(tuple(item["headers"]), tuple(item["headers"].values())) for item in json.loads(batch.body)]
    assert len({line.shared for line in lines if line is not None}) == 1


async def test_a_call_that_is_sent_once_more_and_each_step_of_a_flow_carry_theirs(broker: ManualBroker) -> None:
    from qtasks import Snooze

    @broker.tasks.task(search="n")
    def later(n: int) -> int:
        raise Snooze(5)

    @broker.tasks.task(search=("n", "by"))
    def add(n: int, by: int = 1) -> int:
        return n + by

    later.delay(3)
    await broker.deliver()
    assert labels(broker) == ("qtasks.arg.n=3",)
    flow = chain(add.s(1, by=2), add.s(by=4))
    flow.delay()
    sent: list[tuple[str, ...]] = []
    while broker.messages:
        sent.append(broker.messages[0].options.labels)
        await broker.deliver(broker.messages.pop(0))
    assert sent == [("qtasks.arg.n=1", "qtasks.arg.by=2"), ("qtasks.arg.n=3", "qtasks.arg.by=4")]


def test_a_call_of_a_task_whose_code_is_elsewhere_carries_what_is_named_for_it(broker: ManualBroker) -> None:
    broker.tasks.send_task("elsewhere", (1,), {"user_id": 42}, search=("user_id", "order"), queue="q")
    assert labels(broker) == ("qtasks.arg.user_id=42",)  # the order may be the argument without a name
    broker.tasks.send_task("elsewhere", kwargs={"user_id": 42}, search=("user_id", "order"))
    assert labels(broker) == ("qtasks.arg.user_id=42", "qtasks.arg.order")
    broker.tasks.send_task("elsewhere", kwargs={"user_id": 42})
    assert labels(broker) == ()
    for names in ("api_key", "two words"):
        with pytest.raises(DefinitionError, match=names):
            broker.tasks.send_task("elsewhere", search=names)


def test_a_request_to_a_model_carries_the_labels_of_its_call(broker: ManualBroker) -> None:
    @broker.tasks.llm(provider=openai(token="t"), model="m", search="customer")
    def answer(customer: int, text: str) -> list[ChatMessage]:
        return [user(text)]

    @answer.on_completion
    def keep(text: str) -> None: ...

    answer.delay(5, "hello")
    assert labels(broker) == ("qtasks.arg.customer=5",)


def test_a_schedule_carries_the_labels_of_its_runs_and_its_fingerprint_covers_them() -> None:
    def made(**options: Any) -> Any:
        tasks = QTasks()

        @tasks.cron("0 9 * * *", args=[7], **options)
        def report(team: int) -> None: ...

        return report.declared[0].desired(BASE_URL).options.labels

    kind, fingerprint, label = made(search="team")
    assert label == "qtasks.arg.team=7"
    plain = made()
    assert plain[0] == kind
    assert plain[1] != fingerprint  # a sync replaces a schedule that was made before its task declared it


def test_a_call_that_hides_its_arguments_carries_none(broker: ManualBroker) -> None:
    @broker.tasks.task(search="n")
    def work(n: int) -> None: ...

    work.using(redact=True).delay(1)
    assert labels(broker) == ()


@pytest.fixture
def spread() -> Callable[..., None]:
    def work(
        user_id: int,
        *rest: int,
        password: str = "",
        person: Person | None = None,
        many: list[int] | dict[str, int] = [],  # noqa: B006
        share: float = 0.0,
        sealed: SecretStr | None = None,
        pair: Pair | None = None,
        ctx: TaskContext = injected,
        db: Annotated[int, Depends(int)] = injected,
        **others: int,
    ) -> None: ...

    return work


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"search": "usr_id"}, "no parameter 'usr_id'; did you mean 'user_id'"),
        ({"search": ["user_id", "user_id"]}, "expected the name of a parameter, or a list of names"),
        ({"search": ()}, "expected the name of a parameter, or a list of names"),
        ({"search": list("abcdefghi")}, "search has 9 names; 8 are allowed"),
        ({"search": "password"}, "'password' is secret"),
        ({"search": "sealed"}, "'sealed' is secret"),
        ({"search": "rest"}, r"\*rest has no value of its own"),
        ({"search": "others"}, r"\*\*others has no value of its own"),
        ({"search": "person"}, "'person' is an object"),
        ({"search": "pair"}, "'pair' is an object"),
        ({"search": "many"}, "'many' is a list"),
        ({"search": "share"}, "'share' is a number that need not be whole"),
        ({"search": "ctx"}, "'ctx' is filled where the task runs"),
        ({"search": "db"}, "'db' is filled where the task runs"),
        ({"search": "user_id", "redact": True}, "`redact` hides them"),
        ({"search": "user_id", "encrypt": True}, "travel otherwise: json, encrypted"),
        ({"search": "user_id", "serializer": "pickle"}, "travel otherwise: pickle"),
        (
            {"search": "user_id", "codec": Codec("z", lambda value: b"", lambda content, limit: None)},
            "travel otherwise: z",
        ),
        ({"label": "qtasks.arg.user_id=1"}, "begins the labels of `search`"),
    ],
)
def test_what_cannot_be_searched_is_refused_where_it_is_declared(
    spread: Callable[..., None], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(DefinitionError, match=text) as caught:
        QTasks().task(**options)(spread)
    assert caught.value.code == "QT156"


def test_an_application_that_encrypts_refuses_it_at_its_start() -> None:
    tasks = QTasks(encrypt=True)

    @tasks.task(search="n")
    def work(n: int) -> None: ...

    with pytest.raises(DefinitionError, match="travel otherwise: json, encrypted"):
        work.ready()


def test_a_type_that_is_known_later_is_checked_at_the_start() -> None:
    tasks = QTasks()
    names: dict[str, Any] = {"tasks": tasks}
    exec("@tasks.task(search='it')\ndef work(it: 'Later') -> None: ...", names)
    names["Later"] = Person
    with pytest.raises(DefinitionError, match="'it' is an object"):
        names["work"].ready()


def test_the_manifest_lists_what_can_be_searched() -> None:
    from qtasks.tasks.web.described_tasks import manifest_of

    tasks = QTasks(base_url=BASE_URL)

    @tasks.cron("0 9 * * *", args=[1], search=("b", "a"))
    def work(a: int, b: str = "") -> None: ...

    (described,) = json.loads(manifest_of(tasks.tasks, BASE_URL))["tasks"]
    assert described["searchable"] == ["b", "a"]
    assert not any("qtasks.arg" in label for label in described["schedules"][0]["labels"])
