"""Chains, groups and chords: what follows what, once, and how a flow ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qtasks import NonRetryable, chain, chord, group
from qtasks.errors import ArgumentsError, BrokerUnreachable, DefinitionError, ResultsDisabled, TaskFailed
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.task import Task
from tests.support.tasks import application
from tests.unit.tasks.manual_broker import ManualBroker, run

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


@pytest.fixture
def add(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task
    def add(a: int, b: int = 0) -> int:
        if a < 0:
            raise NonRetryable("negative")
        return a + b

    return add


@pytest.fixture
def total(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    return total


async def test_each_call_of_a_chain_gets_the_result_before_it(broker: ManualBroker, add: Task[..., int]) -> None:
    result = chain(add.s(1, 2), add.s(10), add.s(b=100)).delay()
    assert result.status == "queued"
    assert await run(broker) == 3
    assert result.get(timeout=1) == 113
    piped = await (add.s(1) | add.s(2) | add.si(5, 6)).adelay()
    await run(broker)
    assert await piped == 11


async def test_options_of_a_step_are_its_own(broker: ManualBroker, add: Task[..., int]) -> None:
    (add.s(1) | add.using(delay="1m", retries=7, label="x").s(2) | add.using(queue="q", retries=0).s(3)).delay()
    await broker.deliver(broker.messages.pop())
    second = broker.messages.pop()
    assert (second.options.delay_ms, second.options.retries, second.options.labels) == (60_000, 7, ("x",))
    assert second.envelope["retries"] == 7
    assert second.options.deduplication_id is not None
    assert ":" not in second.options.deduplication_id
    await broker.deliver(second)
    third = broker.messages.pop()
    assert (third.queue, third.options.retries, third.envelope["retries"]) == ("q", 0, 0)


async def test_a_chord_gets_the_results_in_order_whoever_ends_last(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    @broker.tasks.task
    def listed(numbers: list[int], name: str) -> str:
        return f"{name} {numbers}"

    result = chord([add.s(n, 1) for n in range(3)], listed.s("got")).delay()
    broker.messages.reverse()
    assert await run(broker) == 4
    assert result.get(timeout=1) == "got [1, 2, 3]"


async def test_groups_may_stand_anywhere_but_at_the_end(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    flow = add.s(1) | group(add.s(10), add.s(20)) | total.s() | group(add.s(1), add.s(2)) | total.s() | add.s(1000)
    result = flow.delay()
    assert await run(broker) == 8
    assert result.get(timeout=1) == 1000 + (32 + 1) + (32 + 2)
    with pytest.raises(DefinitionError, match="must end with one call"):
        chain(add.s(1), group(add.s(2))).delay()


async def test_a_group_by_itself_gives_a_handle_on_each(broker: ManualBroker, add: Task[..., int]) -> None:
    results = group(add.s(n) for n in range(3)).delay()
    assert len(broker.embedded.transport.requests) == 1
    await run(broker)
    assert [result.get(timeout=1) for result in results] == [0, 1, 2]
    assert len(await group(add.s(1), add.s(2)).adelay()) == 2


async def test_chains_and_groups_nest_in_groups(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    members = group(
        add.s(1) | add.s(10),
        add.s(2),
        group(add.s(3), add.s(4) | add.s(40)) | total.s() | add.s(100),
        chain(add.s(5), group(add.s(50), add.s(500))) | total.s(),
    )
    result = (add.s(0, 1000) | members | total.s() | add.s(1)).delay()
    assert await run(broker, twice=True) == 15
    assert result.get(timeout=1) == 1011 + 1002 + (1003 + 1044 + 100) + (1055 + 1505) + 1


async def test_a_member_that_ends_with_a_group_gives_a_list(broker: ManualBroker, add: Task[..., int]) -> None:
    @broker.tasks.task
    def listed(results: list[object]) -> str:
        return str(results)

    inner = group(add.s(2), add.si(3) | group(add.s(1), add.s(2)))
    result = (group(add.s(1), inner, group(add.s(6))) | listed.s()).delay()
    broker.messages.reverse()
    await run(broker)
    assert result.get(timeout=1) == "[1, [2, [4, 5]], [6]]"


async def test_a_flow_of_any_shape_carries_on_whatever_ends_last(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    result = (group(group(add.s(1), add.s(2)) | total.s(), add.s(3) | add.s(4)) | total.s()).delay()
    while broker.messages:
        await broker.deliver(broker.messages.pop())  # the newest first
    assert result.get(timeout=1) == 10


async def test_a_failure_inside_a_group_ends_what_follows_on_every_level(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    inner = group(add.s(-1) | add.s(2), add.s(3)) | total.s()
    result = (group(inner, add.s(4)) | total.s() | add.s(5)).delay()
    await run(broker)
    with pytest.raises(TaskFailed, match=r"the flow ended with add call_\w+, attempt 1: NonRetryable: negative"):
        result.get(timeout=1)


async def test_a_call_of_the_first_version_still_continues_its_group(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    """What 0.1.0 has sent: members have a size and no nesting."""
    result = (group(add.s(1), add.s(2)) | total.s()).delay()
    flow = broker.messages[0].envelope["flow"]
    assert (flow["size"], [step["task"] for step in flow["then"]]) == (2, ["total"])
    assert set(flow) <= {"of", "size", "then", "id"}
    await run(broker)
    assert result.get(timeout=1) == 3


async def test_a_chain_starts_when_its_options_say_and_no_call_runs_after_it_has_expired(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    flow = chain(group(add.s(1), add.using(delay="5s", expires="10s").s(2)), total.s(), add.using(expires="9h").s(1))
    result = flow.using(countdown=60, expires="2m").delay()
    assert [message.options.delay_ms for message in broker.messages] == [60_000, 60_000]
    assert [message.envelope["expires_ms"] - broker.clock.now_ms() for message in broker.messages] == [120_000, 10_000]
    await broker.deliver(broker.messages.pop(0))
    await broker.deliver(broker.messages.pop(0))
    broker.clock.advance(130_000)
    await run(broker)
    assert result.status == "expired"


async def test_options_of_a_group_are_for_every_member(broker: ManualBroker, add: Task[..., int]) -> None:
    moment = datetime(2040, 1, 1, tzinfo=UTC)
    handle = group(add.s(1), add.s(2) | add.s(3), group(add.s(4))).using(eta=moment).delay()
    assert [message.options.not_before_s for message in broker.messages] == [moment.timestamp()] * 3
    assert len(broker.embedded.transport.requests) == 1
    await run(broker)
    assert handle.get(timeout=1) == [1, 5, [4]]


def test_options_of_a_flow_are_checked_and_belong_to_all_of_it(add: Task[..., int]) -> None:
    with pytest.raises(DefinitionError, match="there is no option 'retries'"):
        chain(add.s(1)).using(retries=3)  # type: ignore[call-arg]
    with pytest.raises(DefinitionError, match="another name for delay"):
        chain(add.s(1)).using(countdown=1, delay=2)
    with pytest.raises(DefinitionError, match="on the outermost flow"):
        group(add.s(1), chain(add.s(1)).using(delay=1))
    with pytest.raises(DefinitionError, match="a queue starts its calls in order"):
        chain(add.using(queue="q").s(1)).using(delay=1).delay()


async def test_a_flow_in_a_batch_leaves_with_it(broker: ManualBroker, add: Task[..., int]) -> None:
    with broker.tasks.batch():
        first = chain(add.s(1), add.s(2)).delay()
        second = group(add.s(3), add.s(4)).delay()
        assert broker.messages == []
    assert len(broker.embedded.transport.requests) == 1
    await run(broker)
    assert (first.get(timeout=1), second.results(timeout=1)) == (3, [3, 4])


async def test_every_delivery_made_twice_changes_nothing(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    result = (add.s(1) | group(add.s(10), add.s(20)) | total.s() | add.s(5)).delay()
    assert await run(broker, twice=True) == 5
    assert result.get(timeout=1) == 37


async def test_a_failure_in_the_middle_ends_the_flow_and_tells_the_whole_story(
    broker: ManualBroker, add: Task[..., int], total: Task[..., int]
) -> None:
    result = (add.s(1) | group(add.s(1), add.si(-5)) | total.s() | add.s(1)).delay()
    await run(broker)
    with pytest.raises(TaskFailed, match=r"the flow ended with add call_\w+, attempt 1: NonRetryable: negative"):
        result.get(timeout=1)


async def test_what_cannot_be_sent_now_is_sent_when_the_delivery_comes_back(
    broker: ManualBroker, add: Task[..., int]
) -> None:
    result = (add.s(1) | add.s(2)).delay()
    message = broker.take()
    publisher = broker.tasks.runtime.publisher()

    async def down(message: Outgoing) -> object:
        raise BrokerUnreachable("down")

    publisher.apublish = down  # type: ignore[method-assign, assignment]
    assert (await broker.deliver(message)).status == 503
    del publisher.apublish
    assert (await broker.deliver(message, retried=1)).body == b"1"
    await run(broker)
    assert result.get(timeout=1) == 3


async def test_what_cannot_travel_or_be_kept_is_refused_at_the_call(broker: ManualBroker, add: Task[..., int]) -> None:
    with pytest.raises(ArgumentsError):
        (add.s("x") | add.s()).delay()
    with pytest.raises(ArgumentsError, match="argument 'b' expects int, got <object"):
        (add.s(1) | add.s(object())).delay()
    with pytest.raises(DefinitionError, match="cannot be unique"):
        (add.s(1) | add.using(unique=True).s(1)).delay()
    with pytest.raises(DefinitionError, match="cannot be unique"):
        (add.using(unique=True).s(1) | add.s(1)).delay()
    with pytest.raises(DefinitionError, match="takes calls, chains and groups, not 5"):
        group(5)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="a chain needs at least one call"):
        chain()
    assert broker.messages == []
    tasks = application(results=None)

    @tasks.task
    def work(n: int) -> None: ...

    with pytest.raises(ResultsDisabled, match="QTASKS_RESULTS"):
        chord([work.s(1)], work.s()).delay()
