"""Calls that follow one another: ``chain(fetch.s(url) | parse.s() | group(store.s(1), store.s(2)) | report.s())``.

A call carries what follows it in its signed body. The dispatcher that has run the call sends the next one before it
answers the broker. A group that something follows is a chord: each call that ends a member of the group reads the
results of the others when it ends, and the last one continues, so there is no counter that a duplicate or a failure
could falsify. A member of a group is a call, a chain or another group.

A flow ends in one call, and one handle stands for it. If a call of the flow fails for good, every later call is marked
as failed, with the name of the call that failed; inside a group with ``collect="successes"`` only those of its member.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, Unpack, cast, get_args, overload

from qtasks.api_names import ApiNames
from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.protocol import wire
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.celery import celery_names
from qtasks.tasks.celery.celery_options import positional
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.flow import step_arguments
from qtasks.tasks.flow.flow_times import FlowOptions, FlowTimes, earliest, of_signature, sent_once
from qtasks.tasks.flow.secrecy import check_sequence
from qtasks.tasks.flow.startable import CeleryTask, Startable
from qtasks.tasks.flow.steps import Step, collected, derived, identified, last_of, placed, starting
from qtasks.tasks.options import ApplyOptions, CallOptions
from qtasks.tasks.results.flow_plan import FlowPlan, planned_call
from qtasks.tasks.results.flow_shape import Collect, group_node
from qtasks.tasks.results.group_result import GroupResult
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.runtime_port import Runtime

R = TypeVar("R")


def _kept(value: Any) -> Any:
    """What an iterator gives, as a list that can be read again; a file is not such a value."""
    return list(value) if isinstance(value, Iterator) and not isinstance(value, io.IOBase) else value


@dataclass(slots=True)
class Signature(ApiNames, Generic[R]):
    """A call that is not made yet: a task with its options, and the arguments. `Task.s` and `Task.si` make one."""

    _internal = frozenset({"first_call", "given", "more", "step"})
    task: BaseTask[..., R]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    immutable: bool = False
    """True if the call does not take the result of the call before it as its first argument."""

    def __post_init__(self) -> None:
        # A signature may make many calls, and an iterator can be read once. A pickle carries it as it is.
        if any(isinstance(value, Iterator) for value in (*self.args, *self.kwargs.values())):
            is_pickled = self.task.delivery_options.form.pickled
            self.args = self.args if is_pickled else tuple(map(_kept, self.args))
            self.kwargs = self.kwargs if is_pickled else {name: _kept(value) for name, value in self.kwargs.items()}

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, as a call of the task does. More arguments come before those that it has."""
        call = self.more(args, kwargs)
        return call.task(*call.args, **call.kwargs)

    def using(self, **options: Unpack[CallOptions]) -> Signature[R]:
        """Return the same call with other options, as `Task.using`: ``add.s(1).using(queue="slow", retries=5)``."""
        return replace(self, task=self.task.using(**options))

    def set(self, *, immutable: bool | None = None, **options: Unpack[ApplyOptions]) -> Signature[R]:
        """Change the options of this very signature and return it, as Celery's `set` does. `using` makes another one.

        ``add.s(1).set(countdown=10)``; ``immutable=True`` is `Task.si`. Raises DefinitionError.
        """
        if options:
            self.task = self.task.using(**cast("CallOptions", of_signature(self.task.name, options)))
        if immutable is not None:
            self.immutable = immutable
        return self

    def clone(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[ApplyOptions]
    ) -> Signature[R]:
        """Return another signature with more arguments, before those that it has, and other options: Celery's word."""
        return replace(self.more(positional(self.task.name, args), kwargs or {})).set(**options)

    def delay(self, /, *args: Any, **kwargs: Any) -> TaskResult[R]:
        """Queue the call. More arguments come before those that it has."""
        call = self.more(args, kwargs)
        return call.task.delay(*call.args, **call.kwargs)

    async def adelay(self, /, *args: Any, **kwargs: Any) -> TaskResult[R]:
        """As `delay`, without blocking the event loop."""
        call = self.more(args, kwargs)
        return await call.task.adelay(*call.args, **call.kwargs)

    def apply_async(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[ApplyOptions]
    ) -> TaskResult[R]:
        """As `Task.apply_async`. More arguments come before those that it has."""
        call = self.more(positional(self.task.name, args), kwargs or {})
        return cast("CeleryTask[R]", call.task).apply_async(call.args, call.kwargs, **options)

    async def aapply_async(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[ApplyOptions]
    ) -> TaskResult[R]:
        """As `apply_async`, without blocking the event loop."""
        call = self.more(positional(self.task.name, args), kwargs or {})
        return await cast("CeleryTask[R]", call.task).aapply_async(call.args, call.kwargs, **options)

    def more(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Signature[R]:
        """The same call with more arguments. Raises DefinitionError if it is immutable."""
        if not args and not kwargs:
            return self
        if self.immutable:
            raise DefinitionError(
                f"{self.task.name}: .si(...) takes no more arguments than it has",
                fix="make the call with .s(...)",
                code=ErrorCode.FLOW_INVALID,
            )
        return replace(self, args=(*args, *self.args), kwargs={**self.kwargs, **kwargs})

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return celery_names.attribute(self, name, celery_names.SIGNATURE)

    def given(self, value: Any) -> Signature[R]:
        """The same call with the result of an empty group in place of that of the call before it."""
        return self if self.immutable else replace(self, args=(value, *self.args), immutable=True)

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
        return replace(message, envelope=message.envelope._replace(flow=flow))

    def step(self, now_ms: int, call_id: str, expires_ms: int | None) -> Step:
        """The call as a step with the id `call_id`, in a flow that expires at `expires_ms`.

        Raises DefinitionError, and ArgumentsError as `Task.delay`.
        """
        delivery = self.task.for_flow()
        if delivery.publish.deduplication_id is not None:
            raise sent_once(self.task.name)
        return Step(
            task=self.task.name,
            immutable=self.immutable,
            is_llm=self.task.is_llm,
            queue=delivery.queue,
            options=dict(wire.write(delivery.publish)),
            retries=delivery.retries,
            expires_ms=earliest(delivery.expires_ms(now_ms), expires_ms),
            jitter=delivery.jitter,
            searchable=self.task.searchable,
            **step_arguments.encoded(self.task, self.args, self.kwargs, immutable=self.immutable, call_id=call_id),
        )


@dataclass(slots=True)
class Group(Startable[GroupResult]):
    """Calls, chains and groups that start at once. What follows the group in a chain gets the list of their results.

    The results are in order; that of a member that ends with a group is a list itself. Without members the group is
    done at once, and what follows it gets an empty list.
    """

    word: ClassVar[str] = "group"

    members: tuple[Signature[Any] | Group | Chain, ...]
    collect: Collect = "all"
    """``"successes"``: what follows the group is sent once all members have ended, with the results that there are."""

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def start(self, times: FlowTimes) -> GroupResult:
        """See `Startable`."""
        runtime = _runtime_of(self)
        with contextlib.nullcontext() if runtime is None else Batch(runtime, joins=True):
            return GroupResult(runtime, [member.start(times) for member in self.members], self.collect)

    async def astart(self, times: FlowTimes) -> GroupResult:
        """See `Startable`."""
        runtime = _runtime_of(self)
        async with contextlib.nullcontext() if runtime is None else Batch(runtime, joins=True):
            return GroupResult(runtime, [await member.astart(times) for member in self.members], self.collect)

    def more(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Group:
        """See `Startable`."""
        return replace(self, members=tuple(member.more(args, kwargs) for member in self.members))

    def given(self, value: Any) -> Group:
        """See `Signature.given`: each member gets the value."""
        return replace(self, members=tuple(member.given(value) for member in self.members))


@dataclass(slots=True)
class Chain(Startable[TaskResult[Any]]):
    """Calls in sequence: each gets the result of the call before it as its first argument."""

    word: ClassVar[str] = "chain"

    nodes: tuple[Signature[Any] | Group, ...]

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def start(self, times: FlowTimes) -> TaskResult[Any]:
        """See `Startable`."""
        ready = self._ready(times)
        with Batch(ready.runtime, joins=True) as batch:
            batch.open_flow(ready.plan)
            for task, message in ready.calls:
                task.send_message(message)
        return ready.handle

    async def astart(self, times: FlowTimes) -> TaskResult[Any]:
        """See `Startable`."""
        ready = self._ready(times)
        async with Batch(ready.runtime, joins=True) as batch:
            batch.open_flow(ready.plan)
            for task, message in ready.calls:
                await task.asend_message(message)
        return ready.handle

    def more(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Chain:
        """See `Startable`."""
        return replace(self, nodes=(self.nodes[0].more(args, kwargs), *self.nodes[1:]))

    def given(self, value: Any) -> Chain:
        """See `Signature.given`: the first call gets the value."""
        first, *others = _without_empty(self.nodes)
        return replace(self, nodes=(first.given(value), *others))

    def _ready(self, times: FlowTimes) -> ReadyFlow:
        nodes = _without_empty(self.nodes)
        runtime = _last(nodes).task.runtime
        if any(isinstance(node, Group) for node in nodes):
            runtime.results()
        now_ms, start_id = runtime.now_ms(), envelopes.new_call_id()
        expires_ms, sequence = times.expires_ms(now_ms), _sequence(nodes)
        check_sequence(sequence)
        to_send = placed(
            sequence,
            start_id,
            first=lambda signature, _: signature,
            later=lambda signature, call_id: signature.step(now_ms, call_id, expires_ms).to_json(),
        )
        plan = None
        if len(nodes) > 1 and runtime.results_or_none() is not None:
            plan = FlowPlan(collected(placed(sequence, start_id, first=_planned, later=_planned), to_send, start_id))
        flow_id = None if plan is None else plan.flow_id
        calls = [
            (signature.task, signature.first_call(times, call_id, identified(flow, flow_id)))
            for signature, call_id, flow in starting(to_send, start_id, {})
        ]
        return ReadyFlow(runtime, calls, plan, _handle_at(nodes, start_id))


Part = Signature[Any] | Group | Chain
"""What a flow is made of."""


@dataclass(frozen=True, slots=True)
class ReadyFlow:
    """A chain whose first calls can be sent."""

    runtime: Runtime
    calls: Sequence[tuple[BaseTask[..., Any], Outgoing]]
    plan: FlowPlan | None
    """None if no result backend is configured, or for a single call."""
    handle: TaskResult[Any]
    """The handle of its last call."""


@dataclass(frozen=True, slots=True)
class OpenChord:
    """A chord whose body is not given yet. As in Celery, ``chord(members)(body)`` starts it."""

    group: Group

    def __or__(self, body: Part) -> Chain:
        return self.group | body

    def __call__(self, body: Signature[Any] | Chain, **options: Unpack[FlowOptions]) -> TaskResult[Any]:
        """Start the chord with this body; see `Startable.apply_async`."""
        return (self.group | body).apply_async(**options)


def chain(*parts: Part | Iterable[Part]) -> Chain:
    """Run calls in sequence: ``chain(a, b)`` or ``chain([a, b])``.

    A chain among `parts` is flattened, so ``a | b | c`` is one chain of three calls.
    """
    listed = _listed(parts)
    _check(listed, "a chain")
    if not listed:
        raise DefinitionError("a chain needs at least one call", code=ErrorCode.FLOW_INVALID)
    return Chain(tuple(node for part in listed for node in (part.nodes if isinstance(part, Chain) else (part,))))


def group(*members: Part | Iterable[Part], collect: Collect = "all") -> Group:
    """Run calls at once: ``group(a.s(1), a.s(2))`` or ``group(a.s(n) for n in range(9))``.

    A member may be a chain or another group: ``group(a.s(1) | b.s(), group(c.s(), d.s()))``. With
    ``collect="successes"`` what follows the group is sent once all members have ended, with the list of the results of
    those that have succeeded; otherwise only if all of them do.
    """
    parts = _listed(members)
    _check(parts, "a group")
    if collect not in get_args(Collect):
        raise DefinitionError(
            f"a group cannot collect {collect!r}",
            fix='collect="successes", or collect="all", the default',
            code=ErrorCode.FLOW_INVALID,
        )
    return Group(parts, collect)


@overload
def chord(members: Part | Iterable[Part], body: Signature[Any] | Chain, *, collect: Collect | None = None) -> Chain: ...
@overload
def chord(members: Part | Iterable[Part], body: None = None, *, collect: Collect | None = None) -> OpenChord: ...
def chord(
    members: Part | Iterable[Part], body: Signature[Any] | Chain | None = None, *, collect: Collect | None = None
) -> Chain | OpenChord:
    """Run `body` after all of `members`, with the list of their results: the same as ``group(...) | body``.

    ``chord(members)(body)`` starts it at once. `collect` as in `group`.
    """
    header = members if isinstance(members, Group) else group(members)
    if collect is not None:
        header = replace(group(collect=collect), members=header.members, times=header.times)
    return OpenChord(header) if body is None else chain(header, body)


def _listed(parts: Iterable[Any]) -> tuple[Any, ...]:
    """Parts, of which each may be an iterable of parts. A value that is neither is refused later, with its name."""
    listed: list[Any] = []
    for part in parts:
        is_one = isinstance(part, (Signature, Group, Chain, BaseTask)) or not isinstance(part, Iterable)
        listed.extend((part,) if is_one else part)
    return tuple(listed)


def _check(parts: Iterable[object], flow: str) -> None:
    """Raise DefinitionError for parts that `flow` cannot have."""
    for part in parts:
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


def _planned(signature: Signature[Any], call_id: str) -> dict[str, str]:
    return planned_call(signature.task.name, call_id)


def _last(nodes: Sequence[Signature[Any] | Group]) -> Signature[Any]:
    last = nodes[-1]
    if isinstance(last, Group):
        raise DefinitionError(
            "a chain must end with one call, so that one handle can stand for it",
            fix="add a task after the group; it gets the list of results",
            code=ErrorCode.FLOW_INVALID,
        )
    return last


def _without_empty(nodes: Sequence[Signature[Any] | Group]) -> list[Signature[Any] | Group]:
    """The nodes of a chain without groups that have no calls: what follows one gets its value. A last one stays."""
    kept: list[Signature[Any] | Group] = []
    value: list[Any] | None = None
    for node in nodes:
        if (empty := _empty_value(node)) is None:
            kept.append(node if value is None else node.given(value))
        value = empty
    return kept if value is None else [*kept, nodes[-1]]


def _empty_value(part: Part) -> list[Any] | None:
    """The result of a group without calls: an empty list, or a list of such lists. None for what has calls."""
    if isinstance(part, Signature):
        return None
    values = [_empty_value(inner) for inner in (part.members if isinstance(part, Group) else part.nodes)]
    if None in values:
        return None
    return values if isinstance(part, Group) else values[-1]


def _sequence(nodes: Sequence[Signature[Any] | Group]) -> list[Any]:
    """The nodes of a chain as a sequence of `tasks.flow.steps`."""
    return [
        group_node([_member(member) for member in node.members], node.collect) if isinstance(node, Group) else node
        for node in nodes
    ]


def _member(member: Part) -> Any:
    """A member of a group: a call alone, or a sequence."""
    sequence = _sequence(_nodes(member))
    return sequence[0] if len(sequence) == 1 and isinstance(sequence[0], Signature) else sequence


def _nodes(part: Part) -> list[Signature[Any] | Group]:
    return _without_empty(part.nodes if isinstance(part, Chain) else (part,))


def _handle_at(nodes: Sequence[Signature[Any] | Group], first_id: str) -> TaskResult[Any]:
    """The handle on the last call of a chain."""
    last = _last(nodes)
    handle = last.task.result(last_of(first_id, len(nodes))).planned()
    return handle.after(lambda: _handle_on(nodes[:-1], first_id)) if len(nodes) > 1 else handle


def _handle_on(nodes: Sequence[Signature[Any] | Group], first_id: str) -> TaskResult[Any] | GroupResult:
    """The handle on the end of a sequence: on a call, or on a group."""
    last = nodes[-1]
    if isinstance(last, Signature):
        return _handle_at(nodes, first_id)
    group_id = last_of(first_id, len(nodes))
    members = [_handle_on(_nodes(member), derived(group_id, str(at))) for at, member in enumerate(last.members)]
    return GroupResult(_runtime_of(last), members, last.collect)


def _runtime_of(part: Part) -> Runtime | None:
    """The runtime of the first call; None without calls."""
    if isinstance(part, Signature):
        return part.task.runtime
    runtimes = map(_runtime_of, part.members if isinstance(part, Group) else part.nodes)
    return next((runtime for runtime in runtimes if runtime is not None), None)
