"""`tasks.dlq` in an environment: dead letters are listed and sent again as at any service."""

from __future__ import annotations

import pytest

from qtasks import QTasks
from qtasks.testing import Environment


def test_a_dead_letter_is_listed_and_sent_again(tasks: QTasks) -> None:
    is_open = False

    @tasks.task(retries=0)
    def charge(order: int) -> str:
        if not is_open:
            raise ConnectionError("the bank does not answer")
        return f"charged {order}"

    with Environment(tasks) as qtasks:
        result = charge.delay(7)
        qtasks.drain()
        (letter,) = tasks.dlq.list(task="charge").dead_letters
        assert letter.error == "ConnectionError: the bank does not answer"
        is_open = True
        tasks.dlq.retry(letter.dlq_id)
        assert [message.status for message in tasks.messages.iterate(task="charge")] == ["waiting", "failed"]
        qtasks.drain()
        assert result.get() == "charged 7"
        assert qtasks.dlq == []


@pytest.fixture
def failing(tasks: QTasks) -> list[int]:
    """The orders for which the task `charge` has run; it always fails. So does `refund`."""
    ran: list[int] = []

    @tasks.task(retries=0)
    def charge(order: int) -> None:
        ran.append(order)
        raise ConnectionError("the bank does not answer")

    @tasks.task(retries=0)
    def refund(order: int) -> None:
        raise ConnectionError(f"no refund for {order}")

    return ran


def test_all_that_match_are_sent_again_and_no_other(tasks: QTasks, failing: list[int]) -> None:
    with Environment(tasks) as qtasks:
        for order in range(3):
            tasks.send_task("charge", [order])
            tasks.send_task("refund", [order])
        qtasks.drain()
        failing.clear()
        assert len(tasks.dlq.retry_all("arg.0:0,2", task="charge")) == 2
        qtasks.drain()
        assert sorted(failing) == [0, 2]
        assert len(qtasks.dlq) == 6  # those that were sent again have failed again


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_async_code_sends_all_again_that_match(tasks: QTasks, failing: list[int]) -> None:
    with Environment(tasks) as qtasks:
        for order in range(3):
            await tasks.asend_task("charge", [order])
        await qtasks.adrain()
        failing.clear()
        assert len(await tasks.dlq.aretry_all()) == 3
        assert await tasks.dlq.aretry_all(task="refund") == []
        await qtasks.adrain()
        assert sorted(failing) == [0, 1, 2]
