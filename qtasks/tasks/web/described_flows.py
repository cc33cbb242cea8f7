"""The flow of a call as the dispatcher tells it: its calls in order with their states, long parts only counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from qtasks.protocol.dispatcher_questions import FlowGroup, FlowReport, FlowStep, LeftOut
from qtasks.tasks.results.backend import ResultBackend, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, flow_id_of
from qtasks.tasks.results.flow_shape import SUCCESSES, collects_successes, members_of, sequence_of

ALL_SHOWN: Final = 40
"""Calls of a flow of which every one is shown."""
FIRST: Final = 5
"""Parts of a long sequence or group that are shown in any case."""
NOTED: Final = 5
"""Parts that are shown because a call in them failed or runs, in addition to those."""
MAX_STATES: Final = 20_000
"""Calls whose states are read; those of a longer flow count as queued."""

_SETTLED: Final = frozenset({ResultStatus.SUCCEEDED, ResultStatus.QUEUED})
"""States of which a reader looks for no single call."""


def report_flow(results: ResultBackend, call_id: str, flow_id: str | None) -> FlowReport | None:
    """The flow with that id, or the one that ends with the call; None if the call has none. Raises ResultError."""
    record = results.read(flow_id or flow_id_of(call_id))
    if record is None:
        return None
    plan = FlowPlan.read(record)
    ids = [call.call_id for call in plan.calls]
    if call_id not in ids:
        return None
    flow = _ReportedParts(results.statuses(ids[:MAX_STATES]), call_id, shows_all=len(ids) <= ALL_SHOWN)
    return {"id": record.call_id, "state": record.status.value, "sequence": flow.sequence(plan.sequence)}


class _FlowPart(NamedTuple):
    """One node of a sequence, or one member of a group."""

    node: Any
    calls: Counter[ResultStatus]
    is_noted: bool
    """True if a call in it failed or runs."""
    has_call: bool
    """True if the call that the question is about is in it."""


@dataclass(frozen=True, slots=True)
class _ReportedParts:
    """Makes the parts of one flow, each time from its plan and the states of its calls."""

    states: Mapping[str, ResultStatus]
    call_id: str
    shows_all: bool

    def sequence(self, nodes: Sequence[Any]) -> list[FlowStep | FlowGroup | LeftOut]:
        """A sequence of the plan. The last node of a long one is shown as well: the flow ends there."""
        parts = self._shortened([self._part(node) for node in nodes], last=1)
        return [_left_out(part) if isinstance(part, Counter) else self._node(part.node) for part in parts]

    def _node(self, node: Any) -> FlowStep | FlowGroup:
        if (members := members_of(node)) is None:
            return {"task": node["task"], "id": node["id"], "state": self._state(node).value}
        parts = self._shortened([self._part(sequence_of(member)) for member in members], last=0)
        members_shown: list[list[Any]] = [
            [_left_out(part)] if isinstance(part, Counter) else self.sequence(part.node) for part in parts
        ]
        return {
            "members": members_shown,
            "collect": SUCCESSES if collects_successes(node) else "all",
        }

    def _shortened(self, parts: Sequence[_FlowPart], *, last: int) -> Iterator[_FlowPart | Counter[ResultStatus]]:
        """The parts that are shown, in order; between them, the calls of those that are left out."""
        noted = 0
        left_out: Counter[ResultStatus] = Counter()
        for place, part in enumerate(parts):
            is_shown = self.shows_all or place < FIRST or place >= len(parts) - last or part.has_call
            if not is_shown and part.is_noted and noted < NOTED:
                noted, is_shown = noted + 1, True
            if not is_shown:
                left_out += part.calls
                continue
            if left_out:
                yield left_out
                left_out = Counter()
            yield part
        if left_out:
            yield left_out

    def _part(self, node: Any) -> _FlowPart:
        calls = list(_calls_in(node))
        states = Counter(self._state(call) for call in calls)
        is_noted = any(state not in _SETTLED for state in states)
        return _FlowPart(node, states, is_noted, any(call["id"] == self.call_id for call in calls))

    def _state(self, call: Mapping[str, str]) -> ResultStatus:
        return self.states.get(call["id"], ResultStatus.QUEUED)


def _calls_in(node: Any) -> Iterator[Mapping[str, str]]:
    """The calls of a node, or of a sequence, which reads as a group of its nodes."""
    if (members := members_of(node)) is None:
        yield node
        return
    for member in members:
        yield from _calls_in(member)


def _left_out(calls: Counter[ResultStatus]) -> LeftOut:
    return {"leftOut": {state.value: number for state, number in calls.items()}}
