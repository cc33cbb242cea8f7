"""The record of a flow: the plan of all its calls, written before its first call is sent.

The value of the record is the plan as JSON: calls in sequence are a list, in which a list is a group; in a group a list
is again a sequence, as in `tasks.flow.steps`:

    [{"task": "fetch", "id": "call_..."}, [{"task": "store", "id": "call_..."}, ...], {"task": "report", ...}]

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
        """The calls that are not sent before the call `call_id` has succeeded."""
        return _after(self.sequence, call_id) or []

    def due(self, succeeded: Iterable[str]) -> list[PlannedCall]:
        """The calls that nothing holds back, once the calls with the ids `succeeded` have succeeded."""
        return list(_due(self.sequence, frozenset(succeeded)))


def flow_id_of(call_id: str) -> str:
    """The id of the flow that ends with a call."""
    return FLOW_PREFIX + call_id.removeprefix(_CALL_PREFIX)


def planned_call(task: str, call_id: str) -> dict[str, str]:
    """A call as a part of a plan."""
    return {"task": task, "id": call_id}


def _planned(call: Mapping[str, str]) -> PlannedCall:
    return PlannedCall(call["task"], call["id"])


def _members(group: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The members of a group, each as a sequence."""
    return (member if isinstance(member, list) else [member] for member in group)


def _calls_of(sequence: Sequence[Any]) -> Iterator[PlannedCall]:
    for node in sequence:
        if not isinstance(node, list):
            yield _planned(node)
            continue
        for member in _members(node):
            yield from _calls_of(member)


def _after(sequence: Sequence[Any], call_id: str) -> list[PlannedCall] | None:
    """The calls of a sequence that wait for a call; None if the call is not in the sequence."""
    for place, node in enumerate(sequence):
        inner: list[PlannedCall] | None = None
        if isinstance(node, list):
            waiting = (_after(member, call_id) for member in _members(node))
            inner = next((calls for calls in waiting if calls is not None), None)
        elif node["id"] == call_id:
            inner = []
        if inner is not None:
            return [*inner, *_calls_of(sequence[place + 1 :])]
    return None


def _due(sequence: Sequence[Any], succeeded: frozenset[str]) -> Iterator[PlannedCall]:
    for node in sequence:
        calls = (
            [call for member in _members(node) for call in _due(member, succeeded)]
            if isinstance(node, list)
            else [_planned(node)]
        )
        if waiting := [call for call in calls if call.call_id not in succeeded]:
            yield from waiting
            return
