"""The record of a flow: the plan of all its calls, written before its first call is sent.

The value of the record is the plan as JSON, in the form of `tasks.results.flow_shape`:

    [{"task": "fetch", "id": "call_..."}, [{"task": "store", "id": "call_..."}, ...], {"task": "report", ...}]

A group after which the flow goes on with what worked also has a `flow`, which says how (see `tasks.flow.steps`), and
`carried`, what middleware added to the flow's first call.

The record is kept and not final while the flow is open: until its last call has succeeded, or until every call
of it has ended. The records of its calls are kept for as long.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtasks.tasks.encode.envelope import COMPACT
from qtasks.tasks.results.backend import FLOW_PREFIX, ResultRecord, ResultStatus
from qtasks.tasks.results.flow_shape import collects_successes, members_of, sequence_of, with_members

_CALL_PREFIX = "call_"


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call of a flow."""

    task: str
    call_id: str

    def ended(
        self, status: ResultStatus, note: str, now_ms: int, *, attempt: int = 1, kept: bool = True
    ) -> ResultRecord:
        """The record of a call that is not sent any more; `note` is the reason."""
        return ResultRecord(
            call_id=self.call_id,
            message_id=self.call_id,
            task=self.task,
            status=status,
            attempt=attempt,
            updated_ms=now_ms,
            error=note,
            kept=kept,
        )

    def queued(self, now_ms: int) -> ResultRecord:
        """The record of a call that was not to be sent any more, and is sent after all."""
        return ResultRecord(
            call_id=self.call_id,
            message_id=self.call_id,
            task=self.task,
            status=ResultStatus.QUEUED,
            attempt=1,
            updated_ms=now_ms,
            kept=True,
        )


@dataclass(frozen=True, slots=True)
class FlowPlan:
    """The calls of a flow, in order."""

    sequence: Sequence[Any]
    """Calls, and lists for groups, as JSON."""

    @classmethod
    def read(cls, record: ResultRecord) -> FlowPlan:
        """The plan in the record of a flow."""
        return cls(json.loads(record.value or "[]"))

    @property
    def flow_id(self) -> str:
        """The call id of the flow's own record."""
        return flow_id_of(self.end.call_id)

    @property
    def calls(self) -> list[PlannedCall]:
        """All calls, in order."""
        return list(_calls_of(self.sequence))

    @property
    def all_ids(self) -> list[str]:
        """The call ids of every record that the flow keeps, its own included."""
        return [self.flow_id, *(call.call_id for call in self.calls)]

    @property
    def end(self) -> PlannedCall:
        """The last call, for which the handle of the flow stands."""
        return _planned(self.sequence[-1])

    def record(self, status: ResultStatus, now_ms: int, note: str | None = None) -> ResultRecord:
        """The record of the flow in this state."""
        return ResultRecord(
            call_id=self.flow_id,
            message_id=self.flow_id,
            task=self.end.task,
            status=status,
            attempt=1,
            updated_ms=now_ms,
            value=COMPACT.encode(self.sequence),
            error=note,
            kept=not status.is_final,
        )

    def closed(self, records: Iterable[ResultRecord], now_ms: int) -> ResultRecord | None:
        """The last record of the flow if it is over, by the records of its calls; None while it is open.

        It is over when its last call has succeeded (then the record of that call is enough), or all calls have ended.
        """
        ended = {record.call_id: record for record in records if record.status.is_final}
        if (end := ended.get(self.end.call_id)) is None:
            return None
        if end.status is not ResultStatus.SUCCEEDED and any(call.call_id not in ended for call in self.calls):
            return None
        return self.record(end.status, now_ms, end.error)

    def after(self, call_id: str) -> list[PlannedCall]:
        """The calls that are not sent if the call `call_id` fails."""
        waiting = _after(self.sequence, call_id)
        return [] if waiting is None else waiting.calls

    def due(self, succeeded: Iterable[str], ended: Iterable[str] = ()) -> list[PlannedCall]:
        """The calls that nothing holds back, once the calls with the ids `succeeded` have succeeded.

        A group after which the flow goes on with what worked holds nothing back when the calls in it have succeeded or
        `ended` otherwise.
        """
        return list(_due(self.sequence, frozenset(succeeded), frozenset(ended)))

    def due_by(self, records: Iterable[ResultRecord | None]) -> list[PlannedCall]:
        """The calls that nothing holds back, by the records of the calls."""
        final = [record for record in records if record is not None and record.status.is_final]
        succeeded = [record.call_id for record in final if record.status is ResultStatus.SUCCEEDED]
        return self.due(succeeded, (record.call_id for record in final))

    @property
    def collecting(self) -> list[CollectingGroup]:
        """The groups after which the flow goes on with what worked, the inner ones of a group before it."""
        return list(_collecting(self.sequence))

    def collecting_around(self, call_id: str) -> CollectingGroup | None:
        """The innermost of these groups that has the call; None without one."""
        return next((group for group in self.collecting if any(call.call_id == call_id for call in group.calls)), None)

    def carrying(self, carried: Mapping[str, str]) -> FlowPlan:
        """The same plan; its groups that go on with what worked pass on what middleware added to a first call."""
        return FlowPlan(_carrying(self.sequence, carried)) if carried and self.collecting else self


@dataclass(frozen=True, slots=True)
class CollectingGroup:
    """A group after which the flow goes on with what worked, once all members have ended."""

    calls: Sequence[PlannedCall]
    flow: Mapping[str, Any]
    """What follows it: the `flow` of a call that ends a member."""
    carried: Mapping[str, str]
    """What middleware added to the flow's first call."""


def flow_id_of(call_id: str) -> str:
    """The id of the flow that ends with a call."""
    return FLOW_PREFIX + call_id.removeprefix(_CALL_PREFIX)


def planned_call(task: str, call_id: str) -> dict[str, str]:
    """A call as a part of a plan."""
    return {"task": task, "id": call_id}


def _planned(call: Mapping[str, str]) -> PlannedCall:
    return PlannedCall(call["task"], call["id"])


def _calls_of(sequence: Sequence[Any]) -> Iterator[PlannedCall]:
    for node in sequence:
        if (members := members_of(node)) is None:
            yield _planned(node)
            continue
        for member in members:
            yield from _calls_of(sequence_of(member))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The calls that wait for a call."""

    calls: list[PlannedCall]
    is_all: bool
    """True if the group around them goes on without them: nothing else waits."""


def _after(sequence: Sequence[Any], call_id: str) -> _Waiting | None:
    """The calls of a sequence that wait for a call; None if the call is not in the sequence."""
    for place, node in enumerate(sequence):
        inner: _Waiting | None = None
        if (members := members_of(node)) is not None:
            by_member = (_after(sequence_of(member), call_id) for member in members)
            inner = next((waiting for waiting in by_member if waiting is not None), None)
        elif node["id"] == call_id:
            inner = _Waiting([], is_all=False)
        if inner is None:
            continue
        if inner.is_all or collects_successes(node):
            return _Waiting(inner.calls, is_all=True)
        return _Waiting([*inner.calls, *_calls_of(sequence[place + 1 :])], is_all=False)
    return None


def _due(sequence: Sequence[Any], succeeded: frozenset[str], ended: frozenset[str]) -> Iterator[PlannedCall]:
    for node in sequence:
        members = members_of(node)
        if members is None:
            calls = [_planned(node)]
        else:
            calls = [call for member in members for call in _due(sequence_of(member), succeeded, ended)]
        done = succeeded | ended if collects_successes(node) else succeeded
        if waiting := [call for call in calls if call.call_id not in done]:
            yield from waiting
            return


def _collecting(sequence: Sequence[Any]) -> Iterator[CollectingGroup]:
    for node in sequence:
        for member in members_of(node) or ():
            yield from _collecting(sequence_of(member))
        if collects_successes(node):
            yield CollectingGroup(list(_calls_of([node])), node["flow"], node.get("carried", {}))


def _carrying(sequence: Sequence[Any], carried: Mapping[str, str]) -> list[Any]:
    nodes: list[Any] = []
    for node in sequence:
        if (members := members_of(node)) is None:
            nodes.append(node)
        else:
            changed = [_carrying(member, carried) if isinstance(member, list) else member for member in members]
            nodes.append(with_members(node, changed, carried=dict(carried)))
    return nodes
