"""The tests of `shop.py`: days pass, banks fail and mails go out, in milliseconds and on this machine alone.

    cd examples/testing && pytest

The fixture `qtasks` finds the application by `[tool.qtasks]` in pyproject.toml.
"""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from shop import Bank, Mailer, app, charge, confirm, get_bank, get_mailer, remind, report

from qtasks.errors import TaskFailed
from qtasks.testing import Environment


class FakeBank(Bank):
    """Accepts every payment, after as many failures as the test sets."""

    def __init__(self) -> None:
        self.taken: dict[int, int] = {}
        self.failures = 0

    async def take(self, order: int, cents: int) -> str:
        """See `Bank.take`."""
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the bank is closed")
        self.taken[order] = cents
        return f"receipt {order}"


class Outbox(Mailer):
    """Records the mails instead of sending them."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, str]] = []

    def send(self, to: str, text: str) -> None:
        """See `Mailer.send`."""
        self.mails.append((to, text))


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    outbox = Outbox()
    app.dependency_overrides[get_mailer] = lambda: outbox
    yield outbox
    del app.dependency_overrides[get_mailer]


@pytest.fixture
def fake_bank() -> Iterator[FakeBank]:
    bank = FakeBank()
    app.dependency_overrides[get_bank] = lambda: bank
    yield bank
    del app.dependency_overrides[get_bank]


def test_an_order_is_charged_now_and_reminded_of_three_days_later(
    qtasks: Environment, fake_bank: FakeBank, outbox: Outbox
) -> None:
    TestClient(app).post("/orders/42?cents=990&email=ada@example.com")

    qtasks.assert_enqueued(charge, order=42, cents=990)
    qtasks.assert_enqueued(remind.using(delay="3d"), "ada@example.com")
    qtasks.refute_enqueued(confirm)

    qtasks.drain()  # runs what is due now, and the calls that these tasks make
    assert fake_bank.taken == {42: 990}
    assert outbox.mails == [("customer of 42", "paid: receipt 42")]

    qtasks.advance(days=3)
    assert ("ada@example.com", "how do you like order 42?") in outbox.mails
    assert qtasks.dlq == []


def test_a_bank_that_is_closed_is_asked_again(qtasks: Environment, fake_bank: FakeBank, outbox: Outbox) -> None:
    fake_bank.failures = 2
    result = charge.delay(1, 500)
    qtasks.advance(minutes=5)
    assert result.get() == "receipt 1"
    assert outbox.mails == [("customer of 1", "paid: receipt 1")]


def test_a_bank_that_stays_closed_leaves_a_dead_letter(qtasks: Environment, fake_bank: FakeBank) -> None:
    fake_bank.failures = 99
    result = charge.delay(1, 500)
    qtasks.advance(days=1)
    [dead] = qtasks.dlq
    assert (dead.task, dead.error) == ("charge", "ConnectionError: the bank is closed")
    with pytest.raises(TaskFailed, match="the bank is closed"):
        result.get()


def test_nothing_is_charged_twice_when_a_delivery_arrives_twice(
    qtasks: Environment, fake_bank: FakeBank, outbox: Outbox
) -> None:
    qtasks.duplicate_next(charge)
    charge.delay(1, 500)
    qtasks.drain()
    assert fake_bank.taken == {1: 500}
    assert len(outbox.mails) == 1


@pytest.mark.qtasks(start="2030-01-05T12:00:00+01:00")  # a Saturday
def test_the_report_goes_out_on_mondays(qtasks: Environment, outbox: Outbox) -> None:
    qtasks.advance(days=14)
    assert [call.sent.isoformat() for call in qtasks.assert_enqueued(report)] == [
        "2030-01-07T08:00:00+00:00",
        "2030-01-14T08:00:00+00:00",
    ]
    assert outbox.mails == [("boss", "the week")] * 2


@pytest.mark.qtasks("inline")
@pytest.mark.usefixtures("fake_bank")
def test_inline_everything_has_happened_when_the_request_returns(outbox: Outbox) -> None:
    answer = TestClient(app).post("/orders/7?cents=100&email=eve@example.com").json()
    assert charge.result(answer["charge"]).get() == "receipt 7"
    assert len(outbox.mails) == 2  # the wait of three days was skipped


@pytest.mark.qtasks("capture")
def test_captured_nothing_runs(qtasks: Environment) -> None:
    TestClient(app).post("/orders/7?cents=100&email=eve@example.com")
    assert [call.task for call in qtasks.sent] == ["charge", "remind"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("fake_bank", "outbox")
async def test_async_tests_have_async_verbs(qtasks: Environment) -> None:
    result = await charge.adelay(1, 500)
    await qtasks.adrain()
    assert await result == "receipt 1"
