"""Calls that follow one another: ``chain(fetch.s(url) | parse.s() | group(store.s(1), store.s(2)) | report.s())``.

A call carries what follows it in its signed body. The dispatcher that has run the call sends the next one before it
answers the broker. A group that something follows is a chord: each call that ends a member of the group reads the
results of the others when it ends, and the last one continues, so there is no counter that a duplicate or a failure
could falsify. A member of a group is a call, a chain or another group.

A flow ends in one call, and one handle stands for it. If a call of the flow fails for good, every later call is marked
as failed, with the name of the call that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, Unpack

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.protocol import wire
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.flow import step_arguments
from qtasks.tasks.flow.flow_times import AT_ONCE, FlowOptions, FlowTimes, earliest
from qtasks.tasks.flow.steps import Step, identified, last_of, placed, starting
from qtasks.tasks.results.flow_plan import FlowPlan, planned_call
from qtasks.tasks.results.group_result import GroupResult
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.outgoing import Outgoing

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Signature(Generic[R]):
    """A call that is not made yet: a task with its options, and the arguments. `Task.s` and `Task.si` make one."""

    task: BaseTask[..., R]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    immutable: bool = False
    """True if the call does not take the result of the call before it as its first argument."""

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def delay(self) -> TaskResult[R]:
        """Queue the call."""
        return self.task.delay(*self.args, **self.kwargs)

    async def adelay(self) -> TaskResult[R]:
        """As `delay`, without blocking the event loop."""
        return await self.task.adelay(*self.args, **self.kwargs)

    def start(self, times: FlowTimes) -> TaskResult[R]:
        """Queue the call as a member of a group with these options."""
        return self._at(times).delay(*self.args, **self.kwargs)

    async def astart(self, times: FlowTimes) -> TaskResult[R]:
        """As `start`, without blocking the event loop."""
        return await self._at(times).adelay(*self.args, **self.kwargs)

    def _at(self, times: FlowTimes) -> BaseTask[..., R]:
        return times.first(self.task, self.task.runtime.now_ms()) if times.options else self.task

    def first_call(self, times: FlowTimes, call_id: str, flow: Mapping[str, Any]) -> Outgoing:
        """The call as the first one of a flow; `flow` follows it. Raises as `Task.delay`, and DefinitionError."""
        message = self._at(times).message(self.args, self.kwargs, call_id)
        if message.unique is not None:
            raise self.task.not_unique_in_flow()
        return replace(message, envelope=replace(message.envelope, flow=flow))

    def step(self, now_ms: int, call_id: str, expires_ms: int | None) -> Step:
        """The call as a step with the id `call_id`, in a flow that expires at `expires_ms`.

        Raises DefinitionError, and ArgumentsError as `Task.delay`.
        """
        delivery = self.task.for_flow()
        arguments = step_arguments.encoded(self.task, self.args, self.kwargs, immutable=self.immutable, call_id=call_id)
        return Step(
            task=self.task.name,
            immutable=self.immutable,
            is_llm=self.task.is_llm,
            queue=delivery.queue,
            options=dict(wire.write(delivery.publish)),
            retries=delivery.retries,
            expires_ms=earliest(delivery.expires_ms(now_ms), expires_ms),
            jitter=delivery.jitter,
            **arguments,
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Calls, chains and groups that start at once. What follows the group in a chain gets the list of their results.

    The results are in order; that of a member that ends with a group is a list itself.
    """

    members: tuple[Signature[Any] | Group | Chain, ...]
    times: FlowTimes = AT_ONCE

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def using(self, **options: Unpack[FlowOptions]) -> Group:
        """Return the same group with options for the whole of it. Raises DefinitionError for an option not valid."""
        return replace(self, times=self.times.using("group", options))

    def delay(self) -> GroupResult:
        """Start the members in one request. Returns the handle on all of them."""
        return self.start(self.times)

    async def adelay(self) -> GroupResult:
        """As `delay`, without blocking the event loop."""
        return await self.astart(self.times)

    def start(self, times: FlowTimes) -> GroupResult:
        """As `delay`, with the options of the group that this one is a member of."""
        runtime = _first_task(self).runtime
        with Batch(runtime, joins=True):
            return GroupResult(runtime, [member.start(times) for member in self.members])

    async def astart(self, times: FlowTimes) -> GroupResult:
        """As `start`, without blocking the event loop."""
        runtime = _first_task(self).runtime
        async with Batch(runtime, joins=True):
            return GroupResult(runtime, [await member.astart(times) for member in self.members])


@dataclass(frozen=True, slots=True)
class Chain:
    """Calls in sequence: each gets the result of the call before it as its first argument."""

    nodes: tuple[Signature[Any] | Group, ...]
    times: FlowTimes = AT_ONCE

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def using(self, **options: Unpack[FlowOptions]) -> Chain:
        """Return the same chain with options for the whole of it. Raises DefinitionError for an option not valid.

        ``chain(fetch.s(url), parse.s()).using(countdown="10m", expires="2h").delay()``
        """
        return replace(self, times=self.times.using("chain", options))

    def delay(self) -> TaskResult[Any]:
        """Start the chain. Returns the handle on its last call.

        Raises as `Task.delay`, and ResultsDisabled for a chain with a group in it if no result backend is configured.
        """
        return self.start(self.times)

    async def adelay(self) -> TaskResult[Any]:
        """As `delay`, without blocking the event loop."""
        return await self.astart(self.times)

    def start(self, times: FlowTimes) -> TaskResult[Any]:
        """As `delay`, with the options of the group that the chain is a member of."""
        ready = self._ready(times)
        with Batch(self._last.task.runtime, joins=True) as batch:
            batch.open_flow(ready.plan)
            for task, message in ready.calls:
                task.send(message)
        return ready.handle

    async def astart(self, times: FlowTimes) -> TaskResult[Any]:
        """As `start`, without blocking the event loop."""
        ready = self._ready(times)
        async with Batch(self._last.task.runtime, joins=True) as batch:
            batch.open_flow(ready.plan)
            for task, message in ready.calls:
                await task.asend(message)
        return ready.handle

    @property
    def _last(self) -> Signature[Any]:
        last = self.nodes[-1]
        if isinstance(last, Group):
            raise DefinitionError(
                "a chain must end with one call, so that one handle can stand for it",
                fix="add a task after the group; it gets the list of results",
                code=ErrorCode.FLOW_INVALID,
            )
        return last

    def _ready(self, times: FlowTimes) -> ReadyFlow:
        last, runtime = self._last, self._last.task.runtime
        if any(isinstance(node, Group) for node in self.nodes):
            runtime.results()
        now_ms, start_id = runtime.now_ms(), envelopes.new_call_id()
        expires_ms, sequence = times.expires_ms(now_ms), _sequence(self)
        plan = None
        if len(self.nodes) > 1 and runtime.results_or_none() is not None:
            plan = FlowPlan(placed(sequence, start_id, first=_planned, later=_planned))
        flow_id = None if plan is None else plan.flow_id
        to_send = placed(
            sequence,
            start_id,
            first=lambda signature, _: signature,
            later=lambda signature, call_id: signature.step(now_ms, call_id, expires_ms).to_json(),
        )
        calls = [
            (signature.task, signature.first_call(times, call_id, identified(flow, flow_id)))
            for signature, call_id, flow in starting(to_send, start_id, {})
        ]
        handle = last.task.result(last_of(start_id, len(self.nodes))).planned()
        return ReadyFlow(calls, plan, handle)


@dataclass(frozen=True, slots=True)
class ReadyFlow:
    """A chain whose first calls can be sent."""

    calls: Sequence[tuple[BaseTask[..., Any], Outgoing]]
    plan: FlowPlan | None
    """None if no result backend is configured, or for a single call."""
    handle: TaskResult[Any]
    """The handle of its last call."""


def chain(*parts: Signature[Any] | Group | Chain) -> Chain:
    """Run calls in sequence. A chain among `parts` is flattened, so ``a | b | c`` is one chain of three calls."""
    _check(parts, "a chain")
    return Chain(tuple(node for part in parts for node in (part.nodes if isinstance(part, Chain) else (part,))))


def group(
    *members: Signature[Any] | Group | Chain | Iterable[Signature[Any] | Group | Chain],
) -> Group:
    """Run calls at once: ``group(a.s(1), a.s(2))`` or ``group(a.s(n) for n in range(9))``.

    A member may be a chain or another group: ``group(a.s(1) | b.s(), group(c.s(), d.s()))``.
    """
    parts = tuple(
        part
        for member in members
        for part in ((member,) if isinstance(member, (Signature, Group, Chain)) else _iterated(member))
    )
    _check(parts, "a group")
    return Group(parts)


def chord(members: Group | Iterable[Signature[Any] | Group | Chain], body: Signature[Any] | Chain) -> Chain:
    """Run `body` after all of `members`, with the list of their results: the same as ``group(...) | body``."""
    return chain(members if isinstance(members, Group) else group(*members), body)


def _iterated(members: Any) -> Iterable[Any]:
    """Members in one argument; a value that is not iterable is refused later, with its name."""
    return members if isinstance(members, Iterable) and not isinstance(members, BaseTask) else (members,)


def _check(parts: Iterable[object], flow: str) -> None:
    """Raise DefinitionError for parts that `flow` cannot have."""
    empty = True
    for part in parts:
        empty = False
        if not isinstance(part, (Signature, Group, Chain)):
            raise DefinitionError(
                f"{flow} takes calls, chains and groups, not {part!r}",
                fix="make a call of a task with .s(...) or .si(...)",
                code=ErrorCode.FLOW_INVALID,
            )
        if not isinstance(part, Signature) and part.times.options:
            raise DefinitionError(
                f"{flow} has a part with options of its own; they apply to a whole flow",
                fix="call .using(...) on the outermost flow",
                code=ErrorCode.FLOW_INVALID,
            )
    if empty:
        raise DefinitionError(f"{flow} needs at least one call", code=ErrorCode.FLOW_INVALID)


def _planned(signature: Signature[Any], call_id: str) -> dict[str, str]:
    return planned_call(signature.task.name, call_id)


def _sequence(flow: Chain) -> list[Any]:
    """A chain as a sequence of `tasks.flow.steps`: its calls, and a list for each group."""
    return [[_member(member) for member in node.members] if isinstance(node, Group) else node for node in flow.nodes]


def _member(member: Signature[Any] | Group | Chain) -> Any:
    """A member of a group: a call alone, or a sequence."""
    sequence = [member] if isinstance(member, Signature) else _sequence(chain(member))
    return sequence[0] if len(sequence) == 1 and isinstance(sequence[0], Signature) else sequence


def _first_task(flow: Signature[Any] | Group | Chain) -> BaseTask[..., Any]:
    """The task of a call that starts the flow."""
    while not isinstance(flow, Signature):
        flow = flow.nodes[0] if isinstance(flow, Chain) else flow.members[0]
    return flow.task
