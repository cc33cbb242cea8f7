"""Assertions about calls, and the message of each that fails."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from unittest.mock import ANY

import pytest
from pydantic import BaseModel

from qtasks import Codec, QTasks, Snooze
from qtasks.errors import ArgumentsError, QTasksError
from qtasks.tasks.task import SyncTask
from qtasks.testing import Environment


class User(BaseModel):
    name: str
    age: int = 0


@pytest.fixture
def charge(tasks: QTasks) -> SyncTask[..., str]:
    @tasks.task(queue="bills", retries=2)
    def charge(order: int, amount: Decimal = Decimal(10), *, user: User | None = None) -> str:
        return f"{order}"

    return charge


def text(error: pytest.ExceptionInfo[AssertionError]) -> list[str]:
    return str(error.value).splitlines()


def test_a_call_counts_whether_it_has_run_or_not(qtasks: Environment, charge: SyncTask[..., str]) -> None:
    charge.delay(1)
    qtasks.drain()
    charge.delay(2)
    assert len(qtasks.assert_enqueued(charge)) == 2
    assert [call.arguments["order"] for call in qtasks.all_enqueued()] == [1, 2]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((), {"order": 1}),
        ((), {"amount": Decimal("9.90")}),
        ((1, "9.90"), {}),
        ((1, 9.9), {}),
        ((ANY, Decimal("9.9")), {"user": User(name="Ada")}),
        ((), {"user": {"name": "Ada"}}),
    ],
)
def test_arguments_fit_when_they_come_to_the_same(
    qtasks: Environment, charge: SyncTask[..., str], args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    charge.delay(1, Decimal("9.90"), user=User(name="Ada"))
    [call] = qtasks.assert_enqueued(charge, *args, **kwargs)
    assert call.arguments == {"order": 1, "amount": Decimal("9.90"), "user": User(name="Ada")}


def test_a_default_is_as_good_as_given(qtasks: Environment, charge: SyncTask[..., str]) -> None:
    charge.delay(1)
    qtasks.assert_enqueued(charge, 1, Decimal(10), user=None)
    qtasks.refute_enqueued(charge, 1, 11)


def test_the_task_may_be_named(qtasks: Environment, charge: SyncTask[..., str]) -> None:
    charge.delay(1)
    qtasks.assert_enqueued("charge", order=1)
    with pytest.raises(QTasksError, match="unknown task 'chrage'; known tasks: charge"):
        qtasks.assert_enqueued("chrage")


def test_the_handle_on_a_result_comes_with_the_call(qtasks: Environment, charge: SyncTask[..., str]) -> None:
    sent = charge.delay(5)
    qtasks.drain()
    [call] = qtasks.assert_enqueued(charge, 5)
    assert call.id == sent.id
    assert call.result.get() == "5"


def test_options_are_asked_for_by_using(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task
    def mail(to: str, delay: int = 0, queue: str = "") -> None: ...

    moment = qtasks.now + timedelta(days=2)
    mail.using(delay="10m", label="a", expires="1h").delay("ada", delay=3)
    mail.using(queue="mails", key="gun", rate="5/1m").delay("bob")
    mail.using(eta=moment, retries=1, timeout="20s").delay("eve", queue="x")
    for wanted in (
        mail.using(delay="10m"),
        mail.using(delay=timedelta(minutes=10), label="a"),
        mail.using(expires="1h"),
    ):
        [call] = qtasks.assert_enqueued(wanted, delay=3)
        assert call.arguments["to"] == "ada"
        assert call.delay == timedelta(minutes=10)
    assert qtasks.assert_enqueued(mail.using(queue="mails"))[0].queue == "mails"
    qtasks.assert_enqueued(mail.using(key="gun", rate="5/1m"), "bob")
    qtasks.assert_enqueued(mail.using(eta=moment), "eve")
    qtasks.assert_enqueued(mail.using(retries=1, timeout=20), "eve")
    for unwanted in (mail.using(delay="11m"), mail.using(queue="other"), mail.using(retries=3), mail.using(label="b")):
        qtasks.refute_enqueued(unwanted)


def test_an_option_is_asked_for_even_where_the_task_declares_the_same(
    qtasks: Environment, charge: SyncTask[..., str]
) -> None:
    charge.using(retries=5).delay(1)
    qtasks.refute_enqueued(charge.using(retries=2))
    qtasks.assert_enqueued(charge.using(retries=2, queue="bills").using(retries=5))


def test_the_nearest_call_is_shown_with_what_differs(qtasks: Environment, charge: SyncTask[..., str]) -> None:
    charge.delay(1, 5)
    charge.using(queue="fast").delay(42, 9)
    with pytest.raises(AssertionError) as failed:
        qtasks.assert_enqueued(charge.using(queue="bills"), 42, Decimal(10))
    assert text(failed) == [
        "no call charge.using(queue='bills')(order=42, amount=Decimal('10')) was sent",
        "  nearest     charge(42, '9')   (number 2 of 2)",
        "  - amount=Decimal('10')",
        "  + amount=Decimal('9')",
        "  - queue=bills",
        "  + queue=fast",
    ]


def test_times_are_shown_as_people_write_them(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task
    def mail(to: str) -> None: ...

    mail.using(delay="90s").delay("ada")
    with pytest.raises(AssertionError) as failed:
        qtasks.assert_enqueued(mail.using(delay="10m", expires="1h"))
    assert text(failed)[2:] == ["  - delay=10m", "  + delay=1m30s", "  - expires=1h", "  + expires=-"]


def test_without_a_call_of_the_task_those_of_others_are_listed(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task
    def one(n: int) -> None: ...

    @tasks.task
    def two() -> None: ...

    with pytest.raises(AssertionError) as nothing:
        qtasks.assert_enqueued(two)
    assert text(nothing) == ["no call two() was sent", "  sent        nothing"]
    one.map(range(12))
    with pytest.raises(AssertionError) as others:
        qtasks.assert_enqueued(two)
    assert text(others)[:2] == ["no call two() was sent", "  sent        one(0)"]
    assert text(others)[-1] == "              and 2 more"


def test_what_should_not_have_been_sent_is_listed(qtasks: Environment, charge: SyncTask[..., str]) -> None:
    charge.delay(1)
    with pytest.raises(AssertionError) as failed:
        qtasks.refute_enqueued(charge, 1)
    assert text(failed) == [
        "1 call charge(order=1) sent, but none is expected",
        f"  sent        charge(1)   at {qtasks.now.isoformat()}",
    ]
    qtasks.refute_enqueued(charge, 2)


def test_an_argument_that_the_task_does_not_have_is_no_assertion(
    qtasks: Environment, charge: SyncTask[..., str]
) -> None:
    with pytest.raises(ArgumentsError, match="unexpected argument 'ordre'; did you mean 'order'"):
        qtasks.refute_enqueued(charge, ordre=1)
    with pytest.raises(ArgumentsError, match="takes 2 positional arguments, but 3 were given"):
        qtasks.assert_enqueued(charge, 1, 2, 3)


def test_positional_only_and_spread_arguments_can_be_asked_for(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task
    def work(a: int, b: int, /, *rest: int, **more: str) -> None: ...

    work.delay(1, 2, 3, 4, x="y")
    qtasks.assert_enqueued(work)
    qtasks.assert_enqueued(work, 1)
    qtasks.assert_enqueued(work, 1, 2, 3, 4, x="y")
    qtasks.refute_enqueued(work, 1, 2, 3)
    qtasks.refute_enqueued(work, 2)


def test_a_call_that_was_put_off_counts_again(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task
    def wait(n: int) -> None:
        if wait_once.pop():
            raise Snooze("1h")

    wait_once = [False, True]
    wait.delay(1)
    qtasks.advance(hours=2)
    assert [call.snoozed for call in qtasks.assert_enqueued(wait, 1)] == [0, 1]
    assert len({call.id for call in qtasks.sent}) == 1


def test_a_call_knows_its_times(qtasks: Environment, tasks: QTasks) -> None:
    @tasks.task
    def note() -> None: ...

    note.using(delay="1h", expires="2h").delay()
    [call] = qtasks.sent
    assert (call.sent, call.due, call.expires) == (
        qtasks.now,
        qtasks.now + timedelta(hours=1),
        qtasks.now + timedelta(hours=2),
    )
    assert call.sent.tzinfo is UTC
    assert isinstance(call.sent, datetime)
    assert repr(call) == "<Call note()>"


def test_arguments_that_a_codec_encodes_and_that_are_encrypted_are_readable(qtasks: Environment, tasks: QTasks) -> None:
    codec = Codec("reversed", lambda plain: json.dumps(plain).encode()[::-1], lambda it, _limit: json.loads(it[::-1]))

    @tasks.task(codec=codec, encrypt=True)
    def notify(user: User, *, text: str = "") -> str:
        return text

    result = notify.delay(User(name="Ada"), text="hello")
    (call,) = qtasks.assert_enqueued(notify, User(name="Ada"), text="hello")
    assert str(call) == "notify({'name': 'Ada', 'age': 0}, text='hello')"
    qtasks.refute_enqueued(notify, text="goodbye")
    qtasks.drain()
    assert result.get() == "hello"
