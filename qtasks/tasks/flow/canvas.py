"""Calls that follow one another: ``chain(fetch.s(url) | parse.s() | group(store.s(1), store.s(2)) | report.s())``.

A call carries what is to follow, in its signed body. The dispatcher that has run it sends the next one before it
answers, under an id that is a hash of the parent's id and the place in the flow: whoever started the flow knows the id
of its end, and a delivery that comes twice continues twice under the same ids, which is once. A group that something
follows is a chord: whoever finishes finds out from the results of the others whether it was the last, so there is no
counter that a duplicate or a failure could spoil.

A flow ends in one place. When a call of it has failed for good, all that should have followed is failed with it, and
says which call it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.protocol import wire
from qtasks.tasks.encode import argument_codec
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.pickling import Pickles, Purpose
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.tasks.send.runtime_port import Runtime
    from qtasks.tasks.task import Task

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Signature(Generic[R]):
    """A call that is not made yet: a task, its options and its arguments, or all but the first of them."""

    task: Task[..., R]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = False
    """Whether it does without the result of the call before it."""

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def delay(self) -> TaskResult[R]:
        """Make the call."""
        return self.task.delay(*self.args, **self.kwargs)

    async def adelay(self) -> TaskResult[R]:
        """As `delay`, without blocking the event loop."""
        return await self.task.adelay(*self.args, **self.kwargs)

    def step(self, now_ms: int, call_id: str) -> dict[str, Any]:
        """As it travels, to be the call `call_id`. Raises DefinitionError, ArgumentsError for what cannot travel."""
        how = self.task.for_flow()
        purpose = Purpose.step(self.task.name, call_id)
        said: dict[str, Any] = {
            "task": self.task.name,
            "args": [] if how.pickled else list(self.args),
            "kwargs": {} if how.pickled else dict(self.kwargs),
            "pickled": argument_codec.pickle(self.task, (self.args, self.kwargs), purpose) if how.pickled else None,
            "fixed": self.fixed,
            "asks": self.task.asks,
            "queue": how.queue,
            "options": dict(wire.write(how.publish)),
            "retries": how.retries,
            "expires_ms": how.expires_ms(now_ms),
            "jitter": how.jitter,
        }
        try:
            envelopes.encode(Envelope(None, [said]))
        except ValueError as error:
            path, reason = envelopes.culprit({"args": said["args"], **said["kwargs"]}) or ("", str(error))
            raise self.task.parameters.not_json(path, reason) from None
        # What says nothing is left out; a 0 says something.
        return {name: value for name, value in said.items() if value is not None and value is not False}


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that are made at once. As a part of a chain, what follows gets the list of their results, in order."""

    members: tuple[Signature[Any], ...]

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def delay(self) -> list[TaskResult[Any]]:
        """Make the calls, in one request; a handle on each."""
        with Batch(_runtime(self.members)):
            return [member.delay() for member in self.members]

    async def adelay(self) -> list[TaskResult[Any]]:
        """As `delay`, without blocking the event loop."""
        async with Batch(_runtime(self.members)):
            return [await member.adelay() for member in self.members]


@dataclass(frozen=True, slots=True)
class Chain:
    """Calls each of which gets the result of the one before it as its first argument."""

    nodes: tuple[Signature[Any] | Group, ...]

    def __or__(self, other: Signature[Any] | Group | Chain) -> Chain:
        return chain(self, other)

    def delay(self) -> TaskResult[Any]:
        """Start it; the handle is on its last call. Raises as `Task.delay`, ResultsDisabled for a group in it."""
        runtime, messages, handle = self._ready()
        with Batch(runtime):
            for task, message in messages:
                task.send(message)
        return handle

    async def adelay(self) -> TaskResult[Any]:
        """As `delay`, without blocking the event loop."""
        runtime, messages, handle = self._ready()
        async with Batch(runtime):
            for task, message in messages:
                await task.asend(message)
        return handle

    def _ready(self) -> tuple[Runtime, list[tuple[Task[..., Any], Outgoing]], TaskResult[Any]]:
        last = self.nodes[-1]
        if isinstance(last, Group):
            raise DefinitionError(
                "a chain ends with one call, so that one handle can stand for it",
                fix="let a task that takes the list of results follow the group",
                code=ErrorCode.FLOW_INVALID,
            )
        first, *rest = self.nodes
        runtime = _runtime([last])
        if any(isinstance(node, Group) for node in self.nodes):
            runtime.results()
        now_ms = runtime.now_ms()
        end = root = envelopes.new_call_id()
        then: list[Any] = []
        for node in rest:
            end = derived(end, "then")
            then.append(_written(node, now_ms, end))
        messages = [(one.task, _carrying(one, call_id, flow)) for one, call_id, flow in _begun(first, root, then)]
        handle = TaskResult(runtime, lambda: last.task.parameters.result, task=last.task.name, id=end, message_id=None)
        return runtime, messages, handle


def chain(*parts: Signature[Any] | Group | Chain) -> Chain:
    """Calls one after the other. Chains in it are taken apart, so ``a | b | c`` is one chain of three."""
    nodes = tuple(node for part in parts for node in (part.nodes if isinstance(part, Chain) else (part,)))
    if not nodes:
        raise DefinitionError("a chain of nothing", code=ErrorCode.FLOW_INVALID)
    return Chain(nodes)


def group(*members: Signature[Any] | Iterable[Signature[Any]]) -> Group:
    """Calls at once: ``group(a.s(1), a.s(2))`` or ``group(a.s(n) for n in range(9))``."""
    flat = tuple(one for part in members for one in ((part,) if isinstance(part, Signature) else part))
    for one in flat:
        if not isinstance(one, Signature):
            raise DefinitionError(f"a group is of single calls, not of {one!r}", code=ErrorCode.FLOW_INVALID)
    if not flat:
        raise DefinitionError("a group of nothing", code=ErrorCode.FLOW_INVALID)
    return Group(flat)


def chord(members: Group | Iterable[Signature[Any]], body: Signature[Any] | Chain) -> Chain:
    """`body` after all of `members`, with the list of their results: ``group(...) | body``."""
    return chain(members if isinstance(members, Group) else group(*members), body)


def derived(call_id: str, place: str) -> str:
    """The id of the call at a place behind another one."""
    return f"call_{hashlib.sha256(f'{call_id} {place}'.encode()).hexdigest()[:32]}"


class Value(Protocol):
    """What a call has returned, or a group's calls."""

    def plain(self) -> Any:
        """As JSON. Raises ResultError for what is no JSON."""
        ...

    def typed(self) -> Any:
        """As Python has it. Raises QTasksError for what cannot be read."""
        ...

    def pickles(self) -> Pickles:
        """Of the application. Raises ConfigurationError."""
        ...


def followers(envelope: Envelope, call_id: str, value: Value) -> list[Outgoing]:
    """What follows a call that has returned `value`, or the group that it was the last of.

    Raises ValueError, TypeError or KeyError for a flow that is none, QTasksError for a value that cannot go on.
    """
    node, *rest = envelope.flow["then"]
    parent = envelope.flow.get("of", call_id)
    base = derived(parent, "then")
    if isinstance(node, list):
        more = {"of": base, "size": len(node), "then": rest}
        return [_outgoing(step, derived(base, str(place)), value, more, envelope) for place, step in enumerate(node)]
    return [_outgoing(node, base, value, {"then": rest} if rest else {}, envelope)]


def members_of(flow: Mapping[str, Any]) -> list[str]:
    """The ids of a group's calls."""
    return [derived(flow["of"], str(place)) for place in range(flow["size"])]


def abandoned(envelope: Envelope, call_id: str) -> list[tuple[str, str]]:
    """Task and id of every call that cannot follow any more."""
    parent = envelope.flow.get("of", call_id)
    left: list[tuple[str, str]] = []
    for node in envelope.flow.get("then", ()):
        parent = derived(parent, "then")
        if isinstance(node, list):
            left.extend((step["task"], derived(parent, str(place))) for place, step in enumerate(node))
        else:
            left.append((node["task"], parent))
    return left


def _outgoing(
    step: Mapping[str, Any], call_id: str, value: Value, flow: Mapping[str, Any], parent: Envelope
) -> Outgoing:
    options = wire.read(dict(step["options"]).items())
    envelope = Envelope(
        call_id,
        retries=step.get("retries"),
        timeout_ms=options.timeout_ms,
        expires_ms=step.get("expires_ms"),
        retry_delay=options.retry_delay if step.get("jitter") else None,
        jitter=step.get("jitter", 0.0),
        options=dict(wire.write(replace(options, delay_ms=None, not_before_s=None, deduplication_id=None))),
        flow=flow,
        carried=parent.carried,
        **_packed(step, call_id, value),
    )
    if step.get("asks"):
        # The limits of a key are for the request that the call goes on as.
        options = replace(options, flow_control=None)
    # A hex digest, for an id for deduplication has no colon; the call's own id does the rest after ten minutes.
    once = hashlib.sha256(call_id.encode()).hexdigest()
    return Outgoing(
        task=step["task"],
        call_id=call_id,
        body=b"",
        options=replace(options, deduplication_id=once, retries=step.get("retries")),
        queue=step.get("queue"),
        envelope=envelope,
    ).sealed()


def _packed(step: Mapping[str, Any], call_id: str, value: Value) -> argument_codec.Packed:
    """The arguments of a step, behind the value unless it does without."""
    before = not step.get("fixed")
    if (pickled := step.get("pickled")) is None:
        return {"args": [value.plain()] * before + list(step.get("args", ())), "kwargs": step.get("kwargs", {})}
    args, kwargs = value.pickles().load(pickled, Purpose.step(step["task"], call_id))
    given = ((value.typed(),) * before + args, kwargs)
    return {"pickled": value.pickles().dump(given, Purpose.arguments(step["task"], call_id))}


def _begun(
    first: Signature[Any] | Group, root: str, then: list[Any]
) -> list[tuple[Signature[Any], str, dict[str, Any]]]:
    """The calls that a flow begins with, their ids, and what follows them."""
    if isinstance(first, Signature):
        return [(first, root, {"then": then} if then else {})]
    more = {"of": root, "size": len(first.members), "then": then}
    return [(one, derived(root, str(place)), more) for place, one in enumerate(first.members)]


def _carrying(one: Signature[Any], call_id: str, flow: dict[str, Any]) -> Outgoing:
    message = one.task.message(one.args, one.kwargs, call_id)
    assert message.envelope is not None
    return replace(message, envelope=replace(message.envelope, flow=flow)).sealed()


def _written(node: Signature[Any] | Group, now_ms: int, call_id: str) -> Any:
    if isinstance(node, Signature):
        return node.step(now_ms, call_id)
    return [member.step(now_ms, derived(call_id, str(place))) for place, member in enumerate(node.members)]


def _runtime(members: Sequence[Signature[Any]]) -> Runtime:
    return members[0].task.runtime
