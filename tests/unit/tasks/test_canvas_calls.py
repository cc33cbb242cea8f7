"""Signatures, chains, groups and chords as a Celery code base uses them; groups without members."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qtasks import Cancel, GroupResult, NonRetryable, TaskResult, chain, chord, group
from qtasks.errors import ArgumentsError, CeleryNameError, DefinitionError, TaskFailed
from qtasks.tasks.celery import celery_names
from qtasks.tasks.results.writer import ResultWriter
from qtasks.tasks.task import Task
from tests.support.tasks import application
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ManualBroker]:
    made = ManualBroker(results="memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/r.db")
    yield made
    made.close()


@pytest.fixture
def add(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task(retries=0)
    def add(a: int, b: int = 0) -> int:
        if a < 0:
            raise NonRetryable("negative")
        if a == 99:
            raise Cancel("no need")
        return a + b

    return add


@pytest.fixture
def listed(broker: ManualBroker) -> Task[..., str]:
    @broker.tasks.task(retries=0)
    def listed(results: list[object], name: str = "got") -> str:
        return f"{name} {results}"

    return listed


async def run(broker: ManualBroker) -> None:
    while broker.messages:
        await broker.deliver(broker.messages.pop(0))


class TestSignatures:
    async def test_a_signature_is_called_here_and_sent_with_more_arguments_before_its_own(
        self, broker: ManualBroker, add: Task[..., int]
    ) -> None:
        ten = add.s(10)
        assert (ten(), ten(1), add.s(b=2)(3), add.si(4, 5)()) == (10, 11, 5, 9)
        handles = [
            ten.delay(1),
            await ten.adelay(2),
            add.s(b=5).apply_async((3,)),
            await add.s().aapply_async((4,), {"b": 1}),
        ]
        handles.append(ten.clone((7,)).delay())
        await run(broker)
        assert [handle.get(timeout=1) for handle in handles] == [11, 12, 8, 5, 17]
        assert ten.args == (10,)
        with pytest.raises(DefinitionError, match=r"add: \.si\(\.\.\.\) takes no more arguments"):
            add.si(1).delay(2)

    def test_set_changes_a_signature_and_using_makes_another(self, broker: ManualBroker, add: Task[..., int]) -> None:
        call = add.s(1)
        call.set(countdown=5, retries=7)
        call.delay()
        assert call.set(countdown=6) is call
        call.using(label="x").delay()
        call.apply_async(countdown=7)
        first, second, third = broker.messages
        assert [message.options.delay_ms for message in broker.messages] == [5000, 6000, 7000]
        assert [message.options.retries for message in broker.messages] == [7, 7, 7]
        assert (first.options.labels, second.options.labels, third.options.labels) == ((), ("x",), ())
        add.delay(1)
        assert broker.messages[-1].options.delay_ms is None

    async def test_options_of_signatures_reach_first_and_later_calls(
        self, broker: ManualBroker, add: Task[..., int]
    ) -> None:
        chain(add.s(1).set(countdown=3), add.s(2).set(countdown=4, expires="1h"), add.s(3).set(queue="slow")).delay()
        first = broker.take()
        await broker.deliver(first)
        second = broker.take()
        await broker.deliver(second)
        assert [first.options.delay_ms, second.options.delay_ms, broker.take().queue] == [3000, 4000, "slow"]
        assert second.envelope["expires_ms"] == broker.clock.now_ms() + 3_600_000

    async def test_a_signature_can_be_set_immutable(self, broker: ManualBroker, add: Task[..., int]) -> None:
        handle = (add.s(1) | add.s(5).set(immutable=True)).delay()
        await run(broker)
        assert handle.get(timeout=1) == 5

    def test_options_that_are_not_valid_are_refused_at_once(self, add: Task[..., int]) -> None:
        call = add.s(1)
        with pytest.raises(DefinitionError, match="retries is -1"):
            call.set(retries=-1)
        with pytest.raises(DefinitionError, match="add: countdown is another name for delay"):
            call.set(countdown=1, delay=1)
        assert call.task is add


class TestFlows:
    async def test_calling_a_flow_starts_it(
        self, broker: ManualBroker, add: Task[..., int], listed: Task[..., str]
    ) -> None:
        first = chain([add.s(1), add.s(2)])()
        second = group(add.s(1), add.s(2))()
        third = chord([add.s(1), add.s(2)])(listed.s("all"))
        fourth = chord((add.s(n) for n in range(2)), listed.s())()
        fifth = (chord(group(add.s(3))) | listed.s() | listed.si([])).delay()
        await run(broker)
        assert (first.get(timeout=1), second.get(timeout=1)) == (3, [1, 2])
        assert (third.get(timeout=1), fourth.get(timeout=1), fifth.get(timeout=1)) == (
            "all [1, 2]",
            "got [0, 1]",
            "got []",
        )

    async def test_more_arguments_go_to_the_first_calls(self, broker: ManualBroker, add: Task[..., int]) -> None:
        first = chain(add.s(1), add.s(2))(10)
        second = group(add.s(1), add.s(2) | add.s(5), group(add.s())).delay(100)
        third = await chain(add.s(), add.s(1)).aapply_async((1,), {"b": 2})
        await run(broker)
        assert (first.get(timeout=1), second.get(timeout=1), third.get(timeout=1)) == (13, [101, 107, [100]], 4)

    async def test_apply_async_takes_the_options_of_a_flow(
        self, broker: ManualBroker, add: Task[..., int], listed: Task[..., str]
    ) -> None:
        moment = datetime(2040, 1, 1, tzinfo=UTC)
        chain(add.s(1), add.s(2)).apply_async(countdown=60, expires=120)
        group(add.s(1)).apply_async(eta=moment)
        await group(add.s(1)).aapply_async(delay="1m")
        chord([add.s(1)])(listed.s(), countdown=30)
        flow = chain(add.s(1), add.s(2))
        assert flow.set(countdown=5) is flow
        flow.delay()
        assert [message.options.delay_ms for message in broker.messages] == [60_000, None, 60_000, 30_000, 5_000]
        assert broker.messages[0].envelope["expires_ms"] == broker.clock.now_ms() + 120_000
        assert broker.messages[1].options.not_before_s == moment.timestamp()

    @pytest.mark.parametrize(
        ("options", "fix"),
        [
            ({"queue": "q"}, r"task\.using\(queue=\.\.\.\)\.s"),
            ({"retries": 3}, r"task\.using\(retries=\.\.\.\)\.s"),
            ({"link": None}, r"flow \| other\.s\(\)"),
            ({"link_error": None}, "@task.on_failure"),
            ({"task_id": "x"}, r"flow\.delay\(\)\.id"),
        ],
    )
    def test_an_option_of_a_call_says_where_to_give_it(
        self, add: Task[..., int], options: dict[str, Any], fix: str
    ) -> None:
        with pytest.raises(DefinitionError, match=rf"chain: there is no option '{next(iter(options))}'[^\n]*\n.*{fix}"):
            chain(add.s(1), add.s(2)).apply_async(**options)
        with pytest.raises(DefinitionError, match=f"group: there is no option.*\n.*{fix}"):
            group(add.s(1)).apply_async(**options)

    async def test_the_handle_of_a_flow_knows_what_comes_before_its_call(
        self, broker: ManualBroker, add: Task[..., int], listed: Task[..., str]
    ) -> None:
        members = group(add.s(1), add.s(2) | group(add.s(3), add.s(4)) | listed.s(), group(add.s(5)))
        handle = (add.s(1) | members | listed.s()).delay()
        assert isinstance(handle.parent, GroupResult)
        await run(broker)
        assert handle.parent.get(timeout=1) == [2, "got [6, 7]", [6]]
        listing = handle.parent[1]
        assert isinstance(listing, TaskResult)
        assert listing.parent.get(timeout=1) == [6, 7]
        assert handle.parent.counts() == (3, 0, 0)
        two = (add.s(1) | add.s(5)).delay()
        await run(broker)
        assert (two.parent.get(timeout=1), two.parent.parent) == (1, None)

    async def test_names_of_celery_that_do_not_exist_here_say_what_to_write(self, add: Task[..., int]) -> None:
        tables = [
            (add.s(1), celery_names.SIGNATURE),
            (chain(add.s(1)), celery_names.FLOW),
            (group(add.s(1)), celery_names.FLOW),
            (group(add.s(1)).delay(), celery_names.GROUP_RESULT),
        ]
        for owner, names in tables:
            assert not hasattr(owner, "no_such_name")
            for name, fix in names.items():
                assert not hasattr(owner, name)
                with pytest.raises(CeleryNameError, match=f"which is a name of Celery\n.*{re.escape(fix)}"):
                    getattr(owner, name)
        assert copy.copy(tables[0][0]) == tables[0][0]
        assert copy.deepcopy(group()) == group()


class TestTheHandleOfAGroup:
    async def test_it_counts_done_failed_and_waiting(self, broker: ManualBroker, add: Task[..., int]) -> None:
        handle = group(add.s(1), add.s(-1), add.s(99), add.s(2) | add.s(3), group(add.s(4), add.s(5))).delay()
        assert handle.counts() == (0, 0, 5)
        for _ in range(3):
            await broker.deliver(broker.messages.pop(0))
        assert (handle.counts().done, handle.counts().failed, handle.counts().waiting) == (1, 2, 2)
        assert (handle.ready(), handle.waiting(), handle.failed(), handle.successful()) == (False, True, True, False)
        await run(broker)
        assert await handle.acounts() == (3, 2, 0)
        assert (handle.ready(), handle.waiting(), handle.completed_count()) == (True, False, 3)

    async def test_it_is_successful_when_all_members_are(self, broker: ManualBroker, add: Task[..., int]) -> None:
        handle = group(add.s(1), add.s(2)).delay()
        assert not handle.successful()
        await run(broker)
        assert (handle.successful(), handle.failed(), handle.join(timeout=1)) == (True, False, [1, 2])


class TestGroupsWithoutMembers:
    async def test_an_empty_group_is_done_at_once(self, broker: ManualBroker) -> None:
        for handle in (group().delay(), await group([]).adelay(), group([], collect="successes")()):
            assert (len(handle), handle.status, handle.counts()) == (0, "succeeded", (0, 0, 0))
            assert (handle.get(timeout=0), await handle, handle.wait(timeout=0)) == ([], [], True)
            assert (list(handle.as_completed()), [call async for call in handle.as_completed()]) == ([], [])
            assert not handle.cancel()
        assert broker.embedded.transport.requests == []

    async def test_its_body_runs_with_an_empty_list(
        self, broker: ManualBroker, add: Task[..., int], listed: Task[..., str]
    ) -> None:
        handles = [
            (group([]) | listed.s("a")).delay(),
            chord([], listed.s("b")).delay(),
            chord([])(listed.s(name="c")),
            (add.s(1) | group() | listed.s("d") | listed.si([], "e")).delay(),
            (add.s(1) | group() | listed.s("f")).delay(),
            (group() | group(listed.s("x"), listed.s("y") | listed.si([], "z")) | listed.s("g")).delay(),
            (group() | group([]) | listed.s("h")).delay(),
            chain(group(), listed.si([1], "i")).delay(),
        ]
        await run(broker)
        assert [handle.get(timeout=1) for handle in handles] == [
            "a []", "b []", "c []", "e []", "f []", "g ['x []', 'z []']", "h []", "i [1]",
        ]  # fmt: skip

    async def test_as_a_member_its_result_is_an_empty_list(
        self, broker: ManualBroker, add: Task[..., int], listed: Task[..., str]
    ) -> None:
        empty = group()
        handles = [
            (group(add.s(1), empty) | listed.s()).delay(),
            (group(empty, group(empty, empty)) | listed.s()).delay(),
            (group(add.s(1), add.s(2) | group(empty, empty)) | listed.s()).delay(),
            (group(add.s(1) | empty) | listed.s() | listed.si([])).delay(),
            (add.s(0) | group(add.s(1) | empty | add.si(5), group(add.s(1) | empty, empty)) | listed.s()).delay(),
        ]
        handles[3] = handles[3].parent
        broker.messages.reverse()
        await run(broker)
        assert [handle.get(timeout=1) for handle in handles] == [
            "got [1, []]", "got [[], [[], []]]", "got [1, [[], []]]", "got [[]]", "got [5, [[], []]]",
        ]  # fmt: skip

    async def test_a_call_before_an_empty_member_is_waited_for(
        self, broker: ManualBroker, add: Task[..., int], listed: Task[..., str]
    ) -> None:
        good = (group(add.s(1), add.s(2) | group()) | listed.s()).delay()
        await broker.deliver(broker.messages.pop(0))
        assert len(broker.messages) == 1
        await run(broker)
        assert good.get(timeout=1) == "got [1, []]"
        bad = (group(add.s(1), add.s(-2) | group()) | listed.s()).delay()
        await run(broker)
        with pytest.raises(TaskFailed, match="negative"):
            bad.get(timeout=1)

    async def test_the_body_alone_needs_no_place_for_results(self, broker: ManualBroker) -> None:
        tasks = application(results=None)

        @tasks.task
        def work(numbers: list[int]) -> None: ...

        @tasks.task
        def wrong(numbers: int) -> None: ...

        with pytest.raises(ArgumentsError, match="argument 'numbers' expects int, got \\[\\]"):
            (group() | wrong.s()).delay()

    def test_a_chain_that_ends_with_one_is_refused_as_with_any_group(self, add: Task[..., int]) -> None:
        with pytest.raises(DefinitionError, match="must end with one call"):
            (add.s(1) | group()).delay()
        with pytest.raises(DefinitionError, match="must end with one call"):
            chain(group()).delay()


def test_arguments_of_apply_async_are_a_list_a_tuple_or_none(broker: ManualBroker, add: Task[..., int]) -> None:
    add.apply_async(None, {"a": 1})
    add.s(1).apply_async(None)
    chain(add.s(1), add.s(2)).apply_async(None, None)
    broker.tasks.send_task("add", None, {"a": 1})
    assert len(broker.messages) == 4
    wrong: list[Any] = ["12", b"12", {1, 2}, {"a": 1}, 1]
    for args in wrong:
        for call in (add, add.s(), chain(add.s(), add.s(2)), group(add.s())):
            with pytest.raises(ArgumentsError, match="not a list or a tuple"):
                call.apply_async(args)
    assert len(broker.messages) == 4


@pytest.mark.parametrize("option", ["task_id", "link", "link_error"])
def test_what_a_signature_does_not_keep_is_given_where_the_call_is_made(add: Task[..., int], option: str) -> None:
    signature: Any = add.s(1, 2)
    for change in (signature.set, signature.clone):
        with pytest.raises(DefinitionError, match=re.escape(f"signature.apply_async({option}=...)")):
            change(**{option: "x"})


def test_a_later_call_has_no_id_of_deduplication_that_would_be_ignored(
    broker: ManualBroker, add: Task[..., int]
) -> None:
    once = add.using(deduplication_id="order-11")
    for flow in (add.s(1) | once.s(2), group(add.s(1), add.s(1) | once.s(2)), group(add.s(1)) | once.s(2)):
        with pytest.raises(DefinitionError, match="is sent once by its own id"):
            flow.delay()
    assert not broker.messages
    (once.s(1) | add.s(2)).delay()
    assert len(broker.messages) == 1
    with pytest.raises(DefinitionError, match="give it to the first call"):
        chain(add.s(1), add.s(2)).apply_async(deduplication_id="order-11")  # type: ignore[call-arg]


async def test_the_end_of_a_member_is_not_looked_for_behind_one_that_waits(
    broker: ManualBroker, add: Task[..., int], listed: Task[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = (group(add.s(n) for n in range(40)) | listed.s()).delay()
    reads: list[str] = []
    read = ResultWriter.read

    async def counted(self: ResultWriter, call_id: str) -> Any:
        reads.append(call_id)
        return await read(self, call_id)

    monkeypatch.setattr(ResultWriter, "read", counted)
    for message in list(broker.messages):
        await broker.deliver(message)
    assert len(reads) < 40 * 6  # not the square of the members, if they end in order
    await broker.deliver(broker.messages[-1])
    assert handle.get(timeout=0) == f"got {list(range(40))}"


def test_celery_s_options_of_get_on_a_group_say_what_to_write(broker: ManualBroker, add: Task[..., int]) -> None:
    handle = group(add.s(1)).delay()
    for get in (handle.get, handle.join):
        with pytest.raises(CeleryNameError, match=r"call\.get\(propagate=False\) for call in handle\.calls"):
            get(timeout=0, propagate=False)
