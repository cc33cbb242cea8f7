"""`link` and `link_error` of `apply_async`: calls after the success of a call, and after its failure."""

from __future__ import annotations

from typing import Any

import pytest

from qtasks import Cancel, NonRetryable, QTasks, chain, group
from qtasks.errors import ArgumentsError, BrokerUnreachable, DefinitionError
from qtasks.qstash import dlq
from qtasks.testing import Environment
from tests.unit.tasks.manual_broker import ManualBroker


class Shop:
    """An application in an environment of tests, and what its tasks have noted."""

    def __init__(self) -> None:
        self.tasks = QTasks()
        self.notes: list[Any] = []
        tasks, notes = self.tasks, self.notes

        @tasks.task(retries=0)
        def double(n: int) -> int:
            if n == 13:
                raise ValueError("unlucky")
            if n == 14:
                raise NonRetryable("never")
            if n == 15:
                raise Cancel("no need")
            return n * 2

        @tasks.task
        def note(value: Any, label: str = "") -> Any:
            notes.append((value, label))
            return value

        @tasks.task
        def mourn(call_id: str, error: str, label: str = "") -> None:
            notes.append((call_id, error, label))

        @tasks.task
        def mourn_briefly(call_id: str) -> None:
            notes.append(call_id)

        self.double, self.note, self.mourn, self.mourn_briefly = double, note, mourn, mourn_briefly


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_a_link_gets_the_result_of_the_call_and_the_handle_stays_that_of_the_call(shop: Shop) -> None:
    with Environment(shop.tasks) as qtasks:
        result = shop.double.apply_async((4,), link=shop.note.s(label="linked"))
        qtasks.drain()
        assert result.get(timeout=0) == 8
        assert shop.notes == [(8, "linked")]


def test_each_of_several_links_gets_the_result(shop: Shop) -> None:
    with Environment(shop.tasks) as qtasks:
        links = [shop.note.s(label="a"), shop.note.si("fixed", label="b"), chain(shop.double.s(), shop.note.s("c"))]
        shop.double.apply_async((1,), link=links)
        qtasks.drain()
        assert sorted(shop.notes, key=lambda noted: noted[1]) == [(2, "a"), ("fixed", "b"), (4, "c")]


@pytest.mark.anyio
async def test_several_links_wait_for_no_result_of_one_another(broker: ManualBroker) -> None:
    @broker.tasks.task
    def first() -> int:
        return 1

    @broker.tasks.task
    def then(n: int, label: str) -> str:
        return f"{label} {n}"

    first.apply_async(link=[then.s("a"), then.s("b")])
    await broker.deliver()
    assert [message.envelope["args"] for message in broker.messages] == [[1, "a"], [1, "b"]]
    for message in broker.messages:
        assert "of" not in message.envelope.get("flow", {})  # a group would need a place for results


@pytest.mark.parametrize(("n", "error"), [(13, "ValueError: unlucky"), (14, "NonRetryable: never")])
def test_a_failed_call_calls_its_link_error_with_its_id_and_its_error(shop: Shop, n: int, error: str) -> None:
    with Environment(shop.tasks) as qtasks:
        result = shop.double.apply_async(
            (n,),
            link=shop.note.s(),
            link_error=[shop.mourn.s(label="x"), shop.mourn_briefly.s(), shop.note.si("fixed")],
        )
        qtasks.drain()
        assert result.failed()
        assert sorted(map(str, shop.notes)) == sorted(map(str, [(result.id, error, "x"), result.id, ("fixed", "")]))


def test_a_call_that_succeeds_or_is_cancelled_calls_no_link_error(shop: Shop) -> None:
    with Environment(shop.tasks) as qtasks:
        for n in (1, 15):
            shop.double.apply_async((n,), link_error=shop.mourn.s())
        qtasks.drain()
        assert shop.notes == []


def test_link_error_waits_for_the_last_attempt(shop: Shop) -> None:
    with Environment(shop.tasks) as qtasks:
        result = shop.double.apply_async((13,), retries=2, link_error=shop.mourn_briefly.s())
        qtasks.drain()
        assert (result.state, shop.notes) == ("RETRY", [])
        qtasks.advance(days=1)
        assert (result.state, shop.notes) == ("FAILURE", [result.id])


def test_a_process_that_dies_in_the_last_attempt_leaves_the_link_error_to_the_report_of_the_broker(shop: Shop) -> None:
    with Environment(shop.tasks) as qtasks:
        result = shop.double.apply_async((1,), link_error=shop.mourn.s("crashed"))
        qtasks.crash_next(shop.double)
        qtasks.advance(days=1)
        assert result.failed()
        ((call_id, error, label),) = shop.notes
        assert (call_id, label) == (result.id, "crashed")
        assert error.startswith("DeliveryFailed: ")


def test_a_response_that_is_lost_sends_no_link_error_twice(shop: Shop) -> None:
    with Environment(shop.tasks) as qtasks:
        result = shop.double.apply_async((13,), link_error=shop.mourn_briefly.s())
        qtasks.drop_response_next(shop.double)
        qtasks.advance(days=1)
        assert shop.notes == [result.id]


def test_a_broker_that_does_not_take_the_link_error_gets_it_with_its_own_report(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Environment(shop.tasks) as qtasks:
        result = shop.double.apply_async((13,), link_error=shop.mourn_briefly.s())
        dispatcher = shop.tasks.runtime.dispatcher()
        continuation = dispatcher._executor._continuation
        publish = continuation._publish
        refused: list[Any] = []

        async def away_once(message: Any) -> object:
            if not refused:
                refused.append(message)
                raise BrokerUnreachable("away", sent=False)
            assert publish is not None
            return await publish(message)

        monkeypatch.setattr(continuation, "_publish", away_once)
        qtasks.advance(days=1)
        assert len(refused) == 1
        assert (result.state, shop.notes) == ("FAILURE", [result.id])


def test_a_dead_letter_that_is_sent_again_and_fails_again_calls_it_again(shop: Shop) -> None:
    with Environment(shop.tasks) as qtasks:
        result = shop.double.apply_async((13,), link_error=shop.mourn_briefly.s())
        qtasks.drain()
        (dead,) = qtasks.dlq
        shop.tasks.runtime.publisher().call(dlq.retry(dead.letter.id, {}), "the retry")
        qtasks.drain()
        assert shop.notes == [result.id, result.id]


def test_a_link_that_does_not_fit_is_refused_when_the_call_is_made(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASKS_SECRET_KEY", "k" * 43)

    @shop.tasks.task
    def as_in_celery(request: Any, exc: Any, traceback: Any) -> None: ...

    @shop.tasks.task(unique=True)
    def once(n: int) -> None: ...

    @shop.tasks.task(encrypt=True)
    def sealed(call_id: str, error: str) -> None: ...

    with Environment(shop.tasks) as qtasks:
        with pytest.raises(ArgumentsError, match="link_error: as_in_celery: argument 'traceback' is missing") as caught:
            shop.double.apply_async((1,), link_error=as_in_celery.s())
        assert caught.value.fix == "def as_in_celery(call_id: str, error: str, ...): what link_error passes first"
        with pytest.raises(ArgumentsError, match="'label'"):
            shop.double.apply_async((1,), link=shop.note.s(label=3))
        with pytest.raises(DefinitionError, match="cannot be unique"):
            shop.double.apply_async((1,), link=once.s())
        with pytest.raises(DefinitionError, match="cannot be unique"):
            once.apply_async((1,), link_error=shop.mourn.s())
        with pytest.raises(DefinitionError, match="takes a call, or a list of calls"):
            shop.double.apply_async((1,), link=shop.note)
        with pytest.raises(DefinitionError, match="chain"):
            shop.double.apply_async((1,), link=group(shop.note.s()))
        with pytest.raises(DefinitionError, match="do not travel as plain JSON"):
            shop.double.apply_async((1,), link_error=sealed.s())
        with pytest.raises(DefinitionError, match="failure_callback"):
            shop.double.apply_async((1,), link_error=shop.mourn.s(), failure_callback="https://example.com/f")
        assert qtasks.sent == []


@pytest.mark.anyio
async def test_aapply_async_takes_both(shop: Shop) -> None:
    with Environment(shop.tasks) as qtasks:
        await shop.double.aapply_async((13,), link=shop.note.s(), link_error=shop.mourn_briefly.s())
        qtasks.drain()
        assert len(shop.notes) == 1


def test_what_cannot_be_linked_says_what_to_write(shop: Shop) -> None:
    for link, written in (
        (shop.note, r"link=note\.s\(\)"),
        (group(shop.note.s(), shop.note.s()), r"not a group.*\n.*link=\[first\.s\(\), second\.s\(\)\]"),
    ):
        with pytest.raises(DefinitionError, match=written):
            shop.double.apply_async((1,), link=link)
    with pytest.raises(DefinitionError, match=r"not a chain.*\n.*link_error=report\.s\(\)"):
        shop.double.apply_async((1,), link_error=shop.mourn.s() | shop.note.s())
