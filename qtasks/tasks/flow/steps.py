"""How a flow travels with its calls, and which calls follow a call.

A call carries the steps after it in its envelope, as JSON under `flow`, in the form of `tasks.results.flow_shape`:

    {"then": [step, [step, [step, step]], step]}              what follows the call in its sequence
    {"of": "call_...", "size": 2, "then": [step]}             the same, in a call that ends a member of a group
    {"of": "call_...", "ends": [0, 1], "then": [step]}        the same; the second member ends one call after its first
    {"of": ..., "collect": "successes", "then": [step]}       the same; the flow goes on with the members that worked
    {"then": [step], "group": {"of": ..., "then": [...]}}     the sequence is a member of `group`, which may have a
                                                              `group` around it, too

What follows a failure of the call stands beside it: ``"else": [{"takes": 2, "step": step}]``, a list of calls and how
many of the failed call's id and error each takes before its own arguments.

The outermost object may also have an `id`, that of the flow's record (see `tasks.results.flow_plan`), and `after`, the
task whose result is the first argument of the call.

The id of a following call is a hash of its parent's id and its place, so the caller knows the id of the last call when
it starts the flow, and a delivery that arrives twice continues under the same ids, which the broker deduplicates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, ResultError
from qtasks.protocol import wire
from qtasks.protocol.labels.argument_labels import labels_of
from qtasks.tasks.encode.argument_codec import EncodedArguments
from qtasks.tasks.encode.envelope import COMPACT, Envelope, derived_call_id
from qtasks.tasks.encode.pickling import Purpose
from qtasks.tasks.flow.step_arguments import KnownTasks, PreviousResult, check_secrecy, first_argument, python_value
from qtasks.tasks.results.flow_shape import (
    SUCCESSES,
    collects_successes,
    empty_value,
    has_calls,
    members_of,
    sequence_of,
    with_members,
)
from qtasks.tasks.send.outgoing import Outgoing, once

Flow = Mapping[str, Any]
"""What follows a call: the `flow` of its envelope."""
MakeLeaf = Callable[[Any, str], Any]
"""Makes a leaf of a sequence from another leaf and the id of its call."""

_COLLECT = "collect"

_LEVELS = 8
"""How deep the arguments of a step may be nested as they are; deeper ones travel as a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A call of a flow that is not sent yet."""

    task: str
    options: Mapping[str, str]
    """How it is published, as header lines."""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    pickled: str | None = None
    """The arguments, in place of `args` and `kwargs`, if the task pickles them."""
    coded: str | None = None
    """The same, if the task encrypts them or has a codec."""
    immutable: bool = False
    """True if the result of the call before it is not an argument."""
    is_llm: bool = False
    """True for a step whose function builds a request for a language model."""
    queue: str | None = None
    retries: int | None = None
    expires_ms: int | None = None
    jitter: float = 0.0
    searchable: Mapping[str, int | None] = field(default_factory=dict)
    """The parameters by whose values the call is found, each with its position."""

    def to_json(self) -> dict[str, Any]:
        """The step as a JSON object. `from_json` reverses it."""
        args, kwargs = list(self.args), dict(self.kwargs)
        # Around the arguments there are the levels of the flow, and JSON may have only so many.
        is_deep = _is_deeper([args, kwargs], _LEVELS)
        document = {
            "task": self.task,
            "args": None if is_deep else args,
            "kwargs": None if is_deep else kwargs,
            "packed": COMPACT.encode([args, kwargs]) if is_deep else None,
            "pickled": self.pickled,
            "coded": self.coded,
            "fixed": self.immutable,
            "asks": self.is_llm,
            "queue": self.queue,
            "options": dict(self.options),
            "retries": self.retries,
            "expires_ms": self.expires_ms,
            "jitter": self.jitter,
            "search": dict(self.searchable) or None,
        }
        # A missing member is None or False; a 0 has a meaning.
        return {name: value for name, value in document.items() if value is not None and value is not False}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Step:
        """Read a step. Raises KeyError, TypeError or ValueError for a value that is not one."""
        args, kwargs = document.get("args", ()), document.get("kwargs", {})
        if "packed" in document:
            args, kwargs = json.loads(document["packed"])
        return cls(
            task=document["task"],
            options=document["options"],
            args=args,
            kwargs=kwargs,
            pickled=document.get("pickled"),
            coded=document.get("coded"),
            immutable=bool(document.get("fixed")),
            is_llm=bool(document.get("asks")),
            queue=document.get("queue"),
            retries=document.get("retries"),
            expires_ms=document.get("expires_ms"),
            jitter=document.get("jitter", 0.0),
            searchable=document.get("search", {}),
        )

    def message(
        self, call_id: str, previous: PreviousResult, flow: Mapping[str, Any], parent: Envelope, tasks_here: KnownTasks
    ) -> Outgoing:
        """The call of the step, now that the call before it has returned `previous`; `flow` is what follows it.

        Raises QTasksError for a result that cannot be passed on.
        """
        options = wire.read(dict(self.options).items())
        envelope = Envelope(
            call_id,
            retries=self.retries,
            timeout_ms=options.timeout_ms,
            expires_ms=self.expires_ms,
            retry_delay=options.retry_delay if self.jitter else None,
            jitter=self.jitter,
            options=dict(wire.write(replace(options, delay_ms=None, not_before_s=None, deduplication_id=None))),
            flow=flow if self.immutable else {**flow, "after": previous.source},
            carried=parent.carried,
            **self._arguments(call_id, previous, tasks_here),
        )
        if self.is_llm:
            # The limits of the flow-control key apply to the model request that follows this call.
            options = replace(options, flow_control=None)
        message = Outgoing(
            task=self.task,
            call_id=call_id,
            # The broker deduplicates for ten minutes; after that the id of the call prevents a second run.
            options=replace(options, deduplication_id=once(call_id), retries=self.retries),
            queue=self.queue,
            envelope=envelope,
            argument_labels=labels_of(self.searchable, envelope.args, envelope.kwargs),
        )
        try:
            return message.encoded()
        except ValueError as error:
            raise ResultError(
                f"the result of {previous.source} cannot be an argument of {self.task}: {error}",
                code=ErrorCode.RESULT_NOT_SERIALIZABLE,
            ) from error

    def _arguments(self, call_id: str, previous: PreviousResult, tasks_here: KnownTasks) -> EncodedArguments:
        """The step's arguments, with the previous result first unless the step is immutable."""
        codec = tasks_here.codec(self.task)
        if not self.immutable:
            check_secrecy(previous, codec)
        text = self.pickled if self.coded is None else self.coded
        if text is None:
            before = [] if self.immutable else [first_argument(previous, codec)]
            return {"args": [*before, *self.args], "kwargs": dict(self.kwargs)}
        if codec is None:
            raise ConfigurationError(
                f"{self.task} is not a task of this application, so its encoded arguments cannot be completed",
                fix="declare the task where the tasks before it run",
            )
        content = codec.open(text, Purpose.step(self.task, call_id))
        args, kwargs = content.value
        if not self.immutable:
            first = python_value(previous) if content.is_pickled else first_argument(previous, codec)
            args = [first, *args]
        return codec.arranged((args, kwargs), Purpose.arguments(self.task, call_id))


def derived(call_id: str, place: str) -> str:
    """The id of the call at `place` after the call `call_id`."""
    return derived_call_id(f"{call_id} {place}")


def last_of(first_id: str, count: int) -> str:
    """The id of the last of `count` calls or groups in sequence."""
    for _ in range(count - 1):
        first_id = derived(first_id, "then")
    return first_id


def placed(sequence: Sequence[Any], first_id: str, *, first: MakeLeaf, later: MakeLeaf) -> list[Any]:
    """The sequence with other leaves: ``first(leaf, id)`` for the calls that start it, else ``later(leaf, id)``."""
    nodes: list[Any] = []
    node_id, make = first_id, first
    for node in sequence:
        if (members := members_of(node)) is None:
            nodes.append(make(node, node_id))
        else:
            changed = [
                placed(member, member_id, first=make, later=later)
                if isinstance(member, list)
                else make(member, member_id)
                for member, member_id in _with_ids(members, node_id)
            ]
            nodes.append(with_members(node, changed))
        node_id, make = derived(node_id, "then"), later
    return nodes


def starting(sequence: Sequence[Any], first_id: str, around: Flow) -> Iterator[tuple[Any, str, Flow]]:
    """The calls that start a sequence, each with its id and its `flow`; `around` is the group around it, or empty."""
    node, *then = sequence
    if (members := members_of(node)) is None:
        yield node, first_id, _following(then, around)
        return
    group = _group(first_id, node, then, around) if then or around else {}  # nothing waits for its members
    for member, member_id in _with_ids(members, first_id):
        yield from starting(sequence_of(member), member_id, group)


def collected(plan: Sequence[Any], steps: Sequence[Any], first_id: str, around: Flow = {}) -> list[Any]:  # noqa: B006
    """The plan of a flow in which the groups that go on with what worked say how, as `flow`.

    `steps` is the same sequence with steps. Where only the broker saw the end of a member, nothing else knows what
    follows the group.
    """
    nodes: list[Any] = []
    node_id = first_id
    for place, (node, same_node) in enumerate(zip(plan, steps, strict=True)):
        if (members := members_of(node)) is None:
            nodes.append(node)
        else:
            flow = _group(node_id, same_node, steps[place + 1 :], around)
            pairs = zip(_with_ids(members, node_id), members_of(same_node) or (), strict=True)
            changed = [
                collected(member, same_member, member_id, flow) if isinstance(member, list) else member
                for (member, member_id), same_member in pairs
            ]
            nodes.append(with_members(node, changed, flow=flow))
        node_id = derived(node_id, "then")
    return nodes


def followers(
    envelope: Envelope, flow: Flow, parent_id: str, previous: PreviousResult, tasks_here: KnownTasks
) -> list[Outgoing]:
    """The calls that `flow` has next, after the call or group `parent_id` that returned `previous`.

    Raises ValueError, TypeError or KeyError for a malformed flow, QTasksError for a result that cannot be passed on.
    """
    first_id = derived(parent_id, "then")
    return [
        Step.from_json(step).message(
            call_id, previous, identified(flow_of_call, envelope.flow.get("id")), envelope, tasks_here
        )
        for step, call_id, flow_of_call in starting(flow["then"], first_id, flow.get("group", {}))
    ]


def identified(flow: Flow, flow_id: str | None) -> Flow:
    """The `flow` of a call, with the id of the flow's record if there is one."""
    return flow if flow_id is None else {"id": flow_id, **flow}


def collecting(flow: Flow) -> Flow:
    """The innermost group around a call that goes on with what worked, by the `flow` of the call; empty without one."""
    while flow and _COLLECT not in flow:
        flow = flow.get("group", {})
    return flow


@dataclass(frozen=True, slots=True)
class GroupEnds:
    """Where the members of a group end: each in a call, by its id, in a group or in an empty group."""

    members: Sequence[str | GroupEnds | EmptyEnd]
    collects_successes: bool


@dataclass(frozen=True, slots=True)
class EmptyEnd:
    """The end of a member whose last group is empty: `value` is its result once `after` has succeeded."""

    after: str | GroupEnds | EmptyEnd
    value: list[Any]


def ends_of(group: Flow) -> GroupEnds:
    """Where the members of a group end, by the `flow` of a call that ends one."""
    shapes = group["ends"] if "ends" in group else [0] * group["size"]
    return _group_ends(group["of"], shapes, group.get(_COLLECT))


def abandoned(flow: Flow, call_id: str) -> list[tuple[str, str]]:
    """The task and the id of every call that will not be sent because the call `call_id` failed."""
    calls: list[tuple[str, str]] = []

    def add(step: Mapping[str, Any], step_id: str) -> None:
        calls.append((step["task"], step_id))

    while flow and _COLLECT not in flow:
        parent_id = flow.get("of", call_id)
        placed(flow.get("then", ()), derived(parent_id, "then"), first=add, later=add)
        flow = flow.get("group", {})
    return calls


def after_group(group: Flow) -> list[tuple[str, str]]:
    """The task and the id of every call that will not be sent because nothing can follow a group."""
    return abandoned({name: value for name, value in group.items() if name != _COLLECT}, group["of"])


def _is_deeper(value: object, levels: int) -> bool:
    """True if lists and objects are nested deeper than `levels` in a JSON value."""
    if not isinstance(value, (list, dict)):
        return False
    return levels < 0 or any(
        _is_deeper(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _with_ids(members: Sequence[Any], group_id: str) -> Iterator[tuple[Any, str]]:
    """The members of a group, each with the id of its first call or group."""
    return ((member, derived(group_id, str(place))) for place, member in enumerate(members))


def _following(then: Sequence[Any], around: Flow) -> dict[str, Any]:
    """The `flow` of a call that `then` follows, in a sequence that is a member of the group `around`, or empty."""
    if not has_calls(then):
        return dict(around)
    return {"then": list(then), "group": around} if around else {"then": list(then)}


def _group(group_id: str, group: Any, then: Sequence[Any], around: Flow) -> dict[str, Any]:
    """The `flow` of a call that ends a member of a group."""
    shapes = [_shape(sequence_of(member)) for member in members_of(group) or ()]
    return {
        "of": group_id,
        **({"ends": shapes} if any(shapes) else {"size": len(shapes)}),
        **({_COLLECT: SUCCESSES} if collects_successes(group) else {}),
        "then": list(then) if has_calls(then) else [],
        **({"group": around} if around else {}),
    }


def _shape(sequence: Sequence[Any]) -> Any:
    """Where a member ends: how many calls or groups after its first, and for a group in which calls of it.

    For an empty group after calls: its value, and where the calls end.
    """
    *before, last = sequence
    if (members := members_of(last)) is None:
        return len(before)
    if before and not has_calls([last]):
        return {"after": _shape(before), "value": empty_value(last)}
    shapes = [_shape(sequence_of(member)) for member in members]
    return [len(before), shapes, SUCCESSES] if collects_successes(last) else [len(before), shapes]


def _end(first_id: str, shape: Any) -> str | GroupEnds | EmptyEnd:
    """The reverse of `_shape`, for a member whose first call or group has the id `first_id`."""
    if isinstance(shape, dict):
        return EmptyEnd(_end(first_id, shape["after"]), shape["value"])
    if not isinstance(shape, list):
        return last_of(first_id, shape + 1)
    later, inner, *collect = shape
    return _group_ends(last_of(first_id, later + 1), inner, *collect)


def _group_ends(group_id: str, shapes: Sequence[Any], collect: str | None = None) -> GroupEnds:
    ends = [_end(derived(group_id, str(place)), shape) for place, shape in enumerate(shapes)]
    return GroupEnds(ends, collect == SUCCESSES)
