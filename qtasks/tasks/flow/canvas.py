"""Calls that follow one another: ``chain(fetch.s(url) | parse.s() | group(store.s(1), store.s(2)) | report.s())``.

A call carries what follows it in its signed body. The dispatcher that has run the call sends the next one before it
answers the broker. A group that something follows is a chord: each call of the group reads the results of the others
when it ends, and the last one continues, so there is no counter that a duplicate or a failure could falsify.

A flow ends in one call, and one handle stands for it. If a call of the flow fails for good, every later call is marked
as failed, with the name of the call that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.protocol import wire
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.pickling import Purpose
from qtasks.tasks.flow.steps import Step, derived, following, in_group
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

    def step(self, now_ms: int, call_id: str) -> Step:
        """The call as a step with the id `call_id`. Raises DefinitionError, ArgumentsError for what cannot travel."""
        delivery = self.task.for_flow()
        arguments: dict[str, Any] = {"args": self.args, "kwargs": self.kwargs}
        if delivery.pickled:
            purpose = Purpose.step(self.task.name, call_id)
            arguments = {"pickled": self.task.codec.pickle((self.args, self.kwargs), purpose)}
        elif (refused := envelopes.culprit({"args": list(self.args), **self.kwargs})) is not None:
            raise self.task.parameters.not_json(*refused)
        return Step(
            task=self.task.name,
            immutable=self.immutable,
            is_llm=self.task.is_llm,
            queue=delivery.queue,
            options=dict(wire.write(delivery.publish)),
            retries=delivery.retries,
            expires_ms=delivery.expires_ms(now_ms),
            jitter=delivery.jitter,
            **arguments,
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that are made at once. What follows the group in a chain gets the list of their results, in order."""

    members: tuple[Signature[Any], ...]

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def delay(self) -> list[TaskResult[Any]]:
        """Queue the calls in one request. Returns a handle on each."""
        with Batch(self.members[0].task.runtime):
            return [member.delay() for member in self.members]

    async def adelay(self) -> list[TaskResult[Any]]:
        """As `delay`, without blocking the event loop."""
        async with Batch(self.members[0].task.runtime):
            return [await member.adelay() for member in self.members]


@dataclass(frozen=True, slots=True)
class Chain:
    """Calls in sequence: each gets the result of the call before it as its first argument."""

    nodes: tuple[Signature[Any] | Group, ...]

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def delay(self) -> TaskResult[Any]:
        """Start the chain. Returns the handle on its last call.

        Raises as `Task.delay`, and ResultsDisabled for a chain with a group in it if no result backend is configured.
        """
        calls, handle = self._ready()
        with Batch(self._last.task.runtime):
            for task, message in calls:
                task.send(message)
        return handle

    async def adelay(self) -> TaskResult[Any]:
        """As `delay`, without blocking the event loop."""
        calls, handle = self._ready()
        async with Batch(self._last.task.runtime):
            for task, message in calls:
                await task.asend(message)
        return handle

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

    def _ready(self) -> tuple[list[tuple[BaseTask[..., Any], Outgoing]], TaskResult[Any]]:
        """The calls that start the chain, and the handle on the last one."""
        last, (first, *rest) = self._last, self.nodes
        runtime = last.task.runtime
        if any(isinstance(node, Group) for node in self.nodes):
            runtime.results()
        now_ms = runtime.now_ms()
        end = start = envelopes.new_call_id()
        then: list[Any] = []
        for node in rest:
            end = derived(end, "then")
            then.append(_later_json(node, now_ms, end))
        if isinstance(first, Signature):
            calls = [_first_call(first, start, following(then))]
        else:
            flow = in_group(start, len(first.members), then)
            calls = [
                _first_call(member, derived(start, str(place)), flow) for place, member in enumerate(first.members)
            ]
        return calls, last.task.result(end)


def chain(*parts: Signature[Any] | Group | Chain) -> Chain:
    """Run calls in sequence. A chain among `parts` is flattened, so ``a | b | c`` is one chain of three calls."""
    nodes = tuple(node for part in parts for node in (part.nodes if isinstance(part, Chain) else (part,)))
    if not nodes:
        raise DefinitionError("a chain needs at least one call", code=ErrorCode.FLOW_INVALID)
    return Chain(nodes)


def group(*members: Signature[Any] | Iterable[Signature[Any]]) -> Group:
    """Run calls at once: ``group(a.s(1), a.s(2))`` or ``group(a.s(n) for n in range(9))``."""
    flat = tuple(member for part in members for member in ((part,) if isinstance(part, Signature) else part))
    for member in flat:
        if not isinstance(member, Signature):
            raise DefinitionError(f"a group takes single calls, not {member!r}", code=ErrorCode.FLOW_INVALID)
    if not flat:
        raise DefinitionError("a group needs at least one call", code=ErrorCode.FLOW_INVALID)
    return Group(flat)


def chord(members: Group | Iterable[Signature[Any]], body: Signature[Any] | Chain) -> Chain:
    """Run `body` after all of `members`, with the list of their results: the same as ``group(...) | body``."""
    return chain(members if isinstance(members, Group) else group(*members), body)


def _later_json(node: Signature[Any] | Group, now_ms: int, call_id: str) -> Any:
    """A later call or group as JSON."""
    if isinstance(node, Signature):
        return node.step(now_ms, call_id).to_json()
    return [member.step(now_ms, derived(call_id, str(place))).to_json() for place, member in enumerate(node.members)]


def _first_call(
    signature: Signature[Any], call_id: str, flow: Mapping[str, Any]
) -> tuple[BaseTask[..., Any], Outgoing]:
    message = signature.task.message(signature.args, signature.kwargs, call_id)
    return signature.task, replace(message, envelope=replace(message.envelope, flow=flow))
