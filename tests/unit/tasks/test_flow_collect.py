"""A flow that goes on with what worked: `collect="successes"`. However a member ends, nothing is lost or waited for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtasks import Cancel, NonRetryable, chord, group
from qtasks.error_codes import ErrorCode
from qtasks.errors import BrokerUnreachable, DefinitionError, ResultError, TaskCancelled, TaskFailed
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.results.backend import ResultBackend, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, flow_id_of
from qtasks.tasks.results.inquiry import Inquiries, ServiceState, Subject
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.run.decision import Decision
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.send_middleware import Sending
from qtasks.tasks.task import Task
from tests.support.results import BACKENDS, place_for_results
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage, run

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualBroker]:
    with place_for_results(request.param, tmp_path, monkeypatch) as url:
        made = ManualBroker(results=url)
        yield made
        made.close()


broken: set[int] = set()
"""The numbers with which `give` fails."""


@pytest.fixture(autouse=True)
def nothing_broken() -> Iterator[None]:
    broken.clear()
    yield
    broken.clear()


@pytest.fixture
def give(broker: ManualBroker) -> Task[..., int]:
    @broker.tasks.task(retries=0)
    def give(number: int, more: int = 0) -> int:
        if number in broken or number < 0:
            raise NonRetryable("broken")
        if number == 99:
            raise Cancel("no need")
        return number + more

    return give


@pytest.fixture
def listed(broker: ManualBroker) -> Task[..., str]:
    @broker.tasks.task(retries=0)
    def listed(results: list[Any], name: str = "got") -> str:
        if name == "fail":
            raise NonRetryable("the body is broken")
        return f"{name} {results}"

    return listed


def results(broker: ManualBroker) -> ResultBackend:
    return broker.tasks.runtime.results()


def is_over(broker: ManualBroker, handle: TaskResult[Any]) -> bool:
    """True if the flow is closed and keeps nothing."""
    record = results(broker).read(flow_id_of(handle.id))
    assert record is not None
    calls = [results(broker).read(call.call_id) for call in FlowPlan.read(record).calls]
    return record.status.is_final and not any(call.kept for call in (record, *calls) if call is not None)


async def end_unseen(broker: ManualBroker, message: SentMessage, reason: str = "DeliveryFailed: no answer") -> None:
    """The report of an end that only the broker saw: it knows the task, the call and the flow, and no more."""
    dispatcher = broker.tasks.runtime.dispatcher()
    attempt = await dispatcher._decode(broker.delivery(message), None)
    attempt.flow_id = attempt.envelope.flow["id"]
    attempt.envelope = Envelope(attempt.context.call_id)
    await dispatcher._executor._conclude(attempt, Decision.of_reported_failure(reason, notifies=True))


ORDERS = [("memory", order) for order in itertools.permutations(range(3))] + [(place, (2, 0, 1)) for place in BACKENDS]


@pytest.mark.parametrize(("broker", "order"), ORDERS, indirect=["broker"], ids=str)
async def test_the_body_gets_what_worked_in_order_once_all_have_ended(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str], order: tuple[int, ...]
) -> None:
    handle = chord([give.s(1), give.s(-2), give.s(3)], listed.s(), collect="successes").delay()
    members = broker.messages[:]
    broker.messages.clear()
    for place in order:
        assert broker.messages == []
        await broker.deliver(members[place])
    await run(broker)
    assert handle.get(timeout=1) == "got [1, 3]"
    assert handle.parent.counts() == (2, 1, 0)
    assert is_over(broker, handle)


async def test_where_all_members_fail_the_body_gets_an_empty_list(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    handle = chord([give.s(-1), give.s(-2)], collect="successes")(listed.s())
    assert await run(broker, twice=True) == 3
    assert handle.get(timeout=1) == "got []"
    assert handle.parent.counts().failed == 2
    assert is_over(broker, handle)


async def test_members_end_by_cancel_by_expiry_and_unseen(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    members = group(give.s(99), give.using(expires="1m").s(2), give.s(3), give.s(4), collect="successes")
    handle = (members | listed.s() | listed.si([], "last")).delay()
    cancelled, expired, unseen, good = broker.messages
    broker.messages.clear()
    await broker.deliver(good)
    await broker.deliver(cancelled)
    broker.clock.advance(61_000)
    await broker.deliver(expired)
    assert broker.messages == []
    await end_unseen(broker, unseen)
    assert await run(broker) == 2
    assert handle.get(timeout=1) == "last []"
    assert handle.parent.get(timeout=1) == "got [4]"
    assert handle.parent.parent.counts() == (1, 3, 0)
    assert is_over(broker, handle)


async def test_ends_that_only_the_broker_saw_carry_on_what_middleware_added(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    @broker.tasks.send_middleware
    def tenant(message: Outgoing) -> Sending:
        yield message.carrying({"tenant": "seven"})

    handle = (give.s(5) | group(give.s(1), give.si(2), collect="successes") | listed.s()).delay()
    await broker.deliver()
    for member in broker.messages[:]:
        broker.messages.remove(member)
        await end_unseen(broker, member)
    body = broker.take()
    assert (body.envelope["carried"]["tenant"], body.envelope["flow"]["id"]) == ("seven", flow_id_of(handle.id))
    await broker.deliver(body)
    assert handle.get(timeout=1) == "got []"
    assert is_over(broker, handle)


async def test_a_failure_inside_a_member_ends_that_member_alone(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    long = give.s(-1) | give.s(1) | group(give.s(1), give.s(2)) | listed.s()
    handle = (group(long, give.s(7) | give.s(1), collect="successes") | listed.s()).delay()
    first, other = broker.messages
    broker.messages.clear()
    await broker.deliver(first)
    assert (handle.status, broker.messages) == ("queued", [])
    assert [member.status for member in handle.parent] == ["failed", "queued"]
    with pytest.raises(TaskFailed, match=r"the flow ended with give call_\w+, attempt 1: NonRetryable: broken"):
        handle.parent[0].get(timeout=1)
    await broker.deliver(other)
    await run(broker)
    assert handle.get(timeout=1) == "got [8]"
    assert is_over(broker, handle)


SHAPES = [
    # A group that needs all, inside one that does not: it is left out as a whole.
    (lambda g, s: group(group(g(1), g(-2)), g(3), collect="successes") | s, "got [3]"),
    (lambda g, s: group(group(g(1), g(2)), g(-3), collect="successes") | s, "got [[1, 2]]"),
    # The other way round.
    (lambda g, s: group(group(g(1), g(-2), collect="successes"), g(3)) | s, "got [[1], 3]"),
    (lambda g, s: group(g(0) | group(g(1), g(-2, 2), collect="successes"), g(3)) | s, "got [[1], 3]"),
    # Both; and a body inside.
    (
        lambda g, s: group(group(g(-1), collect="successes"), group(g(-1), g(1)), collect="successes") | s,
        "got [[]]",
    ),
    (
        lambda g, s: group(chord([g(1), g(-1)], s, collect="successes"), g(-3), collect="successes") | s,
        "got ['got [1]']",
    ),
    (lambda g, s: group(chord([g(1), g(-1)], s), g(3), collect="successes") | s, "got [3]"),
    # An empty group as a member, alone and after a call.
    (lambda g, s: group(group(), g(-1) | group(), g(2) | group(), collect="successes") | s, "got [[], []]"),
    # Two in sequence, and one at the end of a member of one.
    (
        lambda g, s: group(g(1), g(-1), collect="successes") | group(s, s | g(-1), collect="successes") | s,
        "got ['got [1]']",
    ),
    (
        lambda g, s: group(g(1) | group(g(-1), g(1, 4), collect="successes"), g(-2), collect="successes") | s,
        "got [[5]]",
    ),
]


@pytest.mark.parametrize("broker", ["memory"], indirect=True)
@pytest.mark.parametrize(("shape", "expected"), SHAPES)
@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("is_seen", [False, True])
async def test_groups_of_both_kinds_nest(
    broker: ManualBroker,
    give: Task[..., int],
    listed: Task[..., str],
    shape: Any,
    expected: str,
    newest_first: bool,
    is_seen: bool,
) -> None:
    handle = shape(lambda *numbers: give.si(*numbers), listed.s()).delay()
    while broker.messages:
        message = broker.messages.pop(-1 if newest_first else 0)
        if not is_seen and message.envelope["args"][:1] in ([-1], [-2], [-3]):
            await end_unseen(broker, message)
        else:
            await broker.deliver(message)
    assert handle.get(timeout=1) == expected
    assert is_over(broker, handle)


async def test_a_failure_before_or_after_the_group_ends_the_flow(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    members = group(give.si(1), give.si(-1), collect="successes")
    before = (give.s(-1) | members | listed.s()).delay()
    after = (members | listed.s("fail") | listed.si([])).delay()
    await run(broker)
    with pytest.raises(TaskFailed, match="the flow ended with give"):
        before.get(timeout=1)
    with pytest.raises(TaskFailed, match="the body is broken"):
        after.get(timeout=1)
    assert is_over(broker, before)
    assert is_over(broker, after)


async def test_a_flow_whose_record_is_gone_goes_on_by_its_messages(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    handle = (group(give.s(-1) | give.s(5), give.s(2), collect="successes") | listed.s()).delay()
    for message in broker.messages:
        document = json.loads(message.body)
        document["flow"]["id"] = "flow_of_long_ago"
        message.body = json.dumps(document).encode()
    broker.messages.reverse()
    await run(broker)
    assert handle.get(timeout=1) == "got [2]"
    assert [member.status for member in handle.parent] == ["failed", "succeeded"]


async def test_a_waiting_handle_finds_a_dead_call_after_such_a_group(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    """The body is dead at the service, which does not know the last call yet: its handle asks about what is due."""
    handle = (group(give.s(1), give.s(-1), collect="successes") | listed.s() | listed.si([])).delay()
    for member in broker.messages[:]:
        broker.messages.remove(member)
        await broker.deliver(member)
    body = broker.take().envelope["id"]
    reported: list[Subject] = []

    class Knowing:
        def state_of(self, call_id: str, message_id: str | None) -> ServiceState:
            status = ResultStatus.FAILED if call_id == body else ResultStatus.UNKNOWN
            return ServiceState(status=status, message_id="msg_1")

        def report_end(self, subject: Subject, state: ServiceState) -> None:
            reported.append(subject)

    inquiries = Inquiries(Knowing, lambda: results(broker), broker.tasks.runtime.clock)
    assert inquiries.state(Subject("listed", handle.id), None, at_once=True) is None
    assert reported == [Subject("listed", body, flow=flow_id_of(handle.id))]


async def test_a_cancelled_flow_does_not_go_on(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    handle = (group(give.s(1), give.s(-2), collect="successes") | listed.s()).delay()
    good, bad = broker.messages
    await broker.deliver(good)
    assert handle.cancel()
    broker.messages.clear()
    await broker.deliver(bad)
    assert broker.messages == []
    with pytest.raises(TaskCancelled):
        handle.get(timeout=1)
    assert is_over(broker, handle)


async def test_a_body_that_is_on_its_way_is_cancelled_with_its_flow(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    handle = (group(give.s(-1), collect="successes") | listed.s()).delay()
    await broker.deliver(broker.messages.pop(0))
    assert len(broker.messages) == 1
    assert handle.cancel()
    assert broker.messages == []


async def test_a_dead_letter_sent_again_counts_until_the_flow_has_gone_on(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    broken.add(1)
    handle = (group(give.s(1) | give.s(5), give.s(2), collect="successes") | listed.s()).delay()
    dead, other = broker.messages
    broker.messages.clear()
    await broker.deliver(dead)
    broken.clear()
    dead.message_id += "_again"
    await broker.deliver(dead)
    assert handle.parent[0].status == "queued"
    await broker.deliver(other)
    assert await run(broker) == 2
    assert handle.get(timeout=1) == "got [6, 2]"
    assert is_over(broker, handle)


async def test_a_dead_letter_sent_again_later_changes_nothing(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str]
) -> None:
    broken.add(1)
    handle = (group(give.s(1) | give.s(5), give.s(2), collect="successes") | listed.s()).delay()
    dead = broker.messages[0]
    await run(broker)
    broken.clear()
    dead.message_id += "_again"
    await broker.deliver(dead)
    assert broker.messages == []
    assert handle.get(timeout=1) == "got [2]"
    assert is_over(broker, handle)


async def test_a_body_that_could_not_be_sent_after_a_failure_is_sent_by_the_next_report(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = (group(give.s(-1), collect="successes") | listed.s()).delay()
    message = broker.take()
    publisher = broker.tasks.runtime.publisher()

    async def down(message: Outgoing) -> object:
        raise BrokerUnreachable("down")

    with monkeypatch.context() as patched:
        patched.setattr(publisher, "apublish", down)
        await broker.deliver(message)
    assert broker.messages == []
    await broker.deliver(message)
    await run(broker)
    assert handle.get(timeout=1) == "got []"


@pytest.mark.parametrize("last", [2, -2])
async def test_what_can_never_follow_a_group_ends_as_failed(
    broker: ManualBroker, give: Task[..., int], listed: Task[..., str], last: int
) -> None:
    inner = group(give.s(-1), give.s(last), collect="successes") | listed.s() | listed.si([])
    handle = (group(inner, give.s(5), collect="successes") | listed.s()).delay()
    first, second, other = broker.messages
    broker.messages.clear()
    document = json.loads(second.body)
    del document["flow"]["then"][0]["options"]
    second.body = json.dumps(document).encode()
    for message in (other, first, second):
        await broker.deliver(message)
    await run(broker)
    assert handle.get(timeout=1) == "got [5]"
    with pytest.raises(TaskFailed, match=r"call_\w+.*: KeyError: 'options'"):
        handle.parent[0].get(timeout=1)
    assert is_over(broker, handle)


@pytest.mark.parametrize("collect", ["all", "successes"])
async def test_a_group_whose_results_cannot_be_reached_goes_on_later(
    broker: ManualBroker,
    give: Task[..., int],
    listed: Task[..., str],
    monkeypatch: pytest.MonkeyPatch,
    collect: Any,
) -> None:
    handle = (group(give.s(1), give.s(2), collect=collect) | listed.s()).delay()
    first, second = broker.messages
    broker.messages.clear()
    await broker.deliver(first)
    store, first_id = results(broker), first.envelope["id"]
    read = store.read

    def down(key: str) -> Any:
        if key == first_id:
            raise ResultError("the results cannot be reached", code=ErrorCode.RESULTS_UNREACHABLE)
        return read(key)

    with monkeypatch.context() as patched:
        patched.setattr(store, "read", down)
        assert (await broker.deliver(second)).status == 503
    assert (handle.status, broker.messages) == ("queued", [])
    await broker.deliver(second, retried=1)
    await run(broker)
    assert handle.get(timeout=1) == "got [1, 2]"


async def test_a_group_alone_gives_the_results_that_there_are(broker: ManualBroker, give: Task[..., int]) -> None:
    handle = group(
        give.s(1), give.s(-2), group(give.s(3), give.s(-4), collect="successes"), collect="successes"
    ).delay()
    await run(broker)
    assert handle.get(timeout=1) == await handle.aget(timeout=1) == [1, [3]]
    assert (handle[1:].get(timeout=1), handle.status, handle.counts()) == ([[3]], "failed", (1, 2, 0))


async def test_a_typed_body_gets_typed_results(broker: ManualBroker, give: Task[..., int]) -> None:
    @broker.tasks.task
    def raw(number: int) -> bytes:
        if number < 0:
            raise NonRetryable("broken")
        return bytes([number])

    @broker.tasks.task
    def join(parts: list[bytes]) -> int:
        return sum(b"".join(parts))

    handle = chord((raw.s(number) for number in (255, -1, 254)), join.s(), collect="successes").delay()
    await run(broker)
    assert handle.get(timeout=1) == 509


def test_what_a_group_collects_is_all_or_successes(give: Task[..., int]) -> None:
    with pytest.raises(DefinitionError, match="a group cannot collect 'failures'"):
        group(give.s(1), collect="failures")  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="a group cannot collect 'some'"):
        chord([give.s(1)], collect="some")  # type: ignore[call-overload]
    header = group(give.s(1), collect="successes")
    assert chord(header).group.collect == "successes"
    assert chord(header, collect="all").group.collect == "all"
    assert header.collect == "successes"


class TestThePlan:
    """Which calls wait for which, where the group of 3, 4 and 5 goes on with what worked."""

    PLAN = FlowPlan(
        [
            {"task": "a", "id": "1"},
            [
                {"task": "b", "id": "2"},
                [
                    {"members": [[{"task": "c", "id": "3"}, {"task": "d", "id": "4"}], {"task": "e", "id": "5"}],
                     "collect": "successes", "flow": {"of": "x"}},
                    {"task": "f", "id": "6"},
                ],
            ],
            {"task": "g", "id": "7"},
        ]
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("call_id", "later"), [("1", "234567"), ("2", "7"), ("3", "4"), ("4", ""), ("5", ""), ("6", "7"), ("7", "")]
    )
    def test_calls_that_end_with_a_call(self, call_id: str, later: str) -> None:
        assert "".join(call.call_id for call in self.PLAN.after(call_id)) == later

    @pytest.mark.parametrize(
        ("succeeded", "ended", "due"),
        [
            ("1", "", "235"),
            ("1", "3", "25"),
            ("1", "35", "26"),
            ("134", "5", "26"),
            ("12", "3456", "6"),
            ("126", "345", "7"),
        ],
    )
    def test_calls_that_nothing_holds_back(self, succeeded: str, ended: str, due: str) -> None:
        assert "".join(call.call_id for call in self.PLAN.due(succeeded, ended)) == due

    @pytest.mark.parametrize(("call_id", "flow"), [("2", None), ("4", {"of": "x"}), ("5", {"of": "x"}), ("6", None)])
    def test_the_group_around_a_call(self, call_id: str, flow: Any) -> None:
        around = self.PLAN.collecting_around(call_id)
        assert (None if around is None else around.flow) == flow
