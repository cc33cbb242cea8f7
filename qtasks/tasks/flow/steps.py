"""How a flow travels with its calls, and which calls follow a call.

A call carries the steps after it in its envelope, as JSON under `flow`:

    {"then": [step, [step, step], step]}                      what follows: a list inside is a group
    {"of": "call_...", "size": 2, "then": [step]}             the same, in a call of a group

The id of a following call is a hash of its parent's id and its place, so the caller knows the id of the last call when
it starts the flow, and a delivery that arrives twice continues under the same ids, which the broker deduplicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from qtasks.protocol import wire
from qtasks.tasks.encode.argument_codec import EncodedArguments
from qtasks.tasks.encode.envelope import Envelope, derived_call_id
from qtasks.tasks.encode.pickling import Pickles, Purpose
from qtasks.tasks.send.outgoing import Outgoing, once


class PreviousResult(Protocol):
    """The result of the call before a step, or the results of a group."""

    def plain(self) -> Any:
        """The result as a JSON value. Raises ResultError if JSON cannot carry it."""
        ...

    def typed(self) -> Any:
        """The result as a Python value. Raises QTasksError if it cannot be read."""
        ...

    def pickles(self) -> Pickles:
        """The application's pickles. Raises ConfigurationError."""
        ...


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
    immutable: bool = False
    """True if the result of the call before it is not an argument."""
    is_llm: bool = False
    """True for a step whose function builds a request for a language model."""
    queue: str | None = None
    retries: int | None = None
    expires_ms: int | None = None
    jitter: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The step as a JSON object. `from_json` reverses it."""
        document = {
            "task": self.task,
            "args": list(self.args),
            "kwargs": dict(self.kwargs),
            "pickled": self.pickled,
            "fixed": self.immutable,
            "asks": self.is_llm,
            "queue": self.queue,
            "options": dict(self.options),
            "retries": self.retries,
            "expires_ms": self.expires_ms,
            "jitter": self.jitter,
        }
        # A missing member is None or False; a 0 has a meaning.
        return {name: value for name, value in document.items() if value is not None and value is not False}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Step:
        """Read a step. Raises KeyError or TypeError for a value that is not one."""
        return cls(
            task=document["task"],
            options=document["options"],
            args=document.get("args", ()),
            kwargs=document.get("kwargs", {}),
            pickled=document.get("pickled"),
            immutable=bool(document.get("fixed")),
            is_llm=bool(document.get("asks")),
            queue=document.get("queue"),
            retries=document.get("retries"),
            expires_ms=document.get("expires_ms"),
            jitter=document.get("jitter", 0.0),
        )

    def message(self, call_id: str, previous: PreviousResult, flow: Mapping[str, Any], parent: Envelope) -> Outgoing:
        """The call of the step, now that the call before it has returned `previous`; `flow` is what follows it."""
        options = wire.read(dict(self.options).items())
        envelope = Envelope(
            call_id,
            retries=self.retries,
            timeout_ms=options.timeout_ms,
            expires_ms=self.expires_ms,
            retry_delay=options.retry_delay if self.jitter else None,
            jitter=self.jitter,
            options=dict(wire.write(replace(options, delay_ms=None, not_before_s=None, deduplication_id=None))),
            flow=flow,
            carried=parent.carried,
            **self._arguments(call_id, previous),
        )
        if self.is_llm:
            # The limits of the flow-control key apply to the model request that follows this call.
            options = replace(options, flow_control=None)
        return Outgoing(
            task=self.task,
            call_id=call_id,
            # The broker deduplicates for ten minutes; after that the id of the call prevents a second run.
            options=replace(options, deduplication_id=once(call_id), retries=self.retries),
            queue=self.queue,
            envelope=envelope,
        ).encoded()

    def _arguments(self, call_id: str, previous: PreviousResult) -> EncodedArguments:
        """The step's arguments, with the previous result first unless the step is immutable."""
        if self.pickled is None:
            before = [] if self.immutable else [previous.plain()]
            return {"args": [*before, *self.args], "kwargs": dict(self.kwargs)}
        args, kwargs = previous.pickles().load(self.pickled, Purpose.step(self.task, call_id))
        if not self.immutable:
            args = (previous.typed(), *args)
        return {"pickled": previous.pickles().dump((args, kwargs), Purpose.arguments(self.task, call_id))}


def derived(call_id: str, place: str) -> str:
    """The id of the call at `place` after the call `call_id`."""
    return derived_call_id(f"{call_id} {place}")


def following(then: Sequence[Any]) -> dict[str, Any]:
    """The `flow` of a call that `then` follows, steps and groups as JSON."""
    return {"then": list(then)} if then else {}


def in_group(group_id: str, size: int, then: Sequence[Any]) -> dict[str, Any]:
    """The `flow` of each of the `size` calls of a group that `then` follows."""
    return {"of": group_id, "size": size, "then": list(then)}


def followers(envelope: Envelope, call_id: str, previous: PreviousResult) -> list[Outgoing]:
    """The calls that follow a call that returned `previous`, or the group whose last call it was.

    Raises ValueError, TypeError or KeyError for a malformed flow, QTasksError for a result that cannot be passed on.
    """
    node, *rest = envelope.flow["then"]
    first = derived(envelope.flow.get("of", call_id), "then")
    if not isinstance(node, list):
        return [Step.from_json(node).message(first, previous, following(rest), envelope)]
    flow = in_group(first, len(node), rest)
    return [
        Step.from_json(member).message(derived(first, str(place)), previous, flow, envelope)
        for place, member in enumerate(node)
    ]


def members_of(flow: Mapping[str, Any]) -> list[str]:
    """The ids of the calls of a group."""
    return [derived(flow["of"], str(place)) for place in range(flow["size"])]


def abandoned(envelope: Envelope, call_id: str) -> list[tuple[str, str]]:
    """The task and the id of every call that will not be sent because this one failed."""
    parent = envelope.flow.get("of", call_id)
    calls: list[tuple[str, str]] = []
    for node in envelope.flow.get("then", ()):
        parent = derived(parent, "then")
        if isinstance(node, list):
            calls.extend((member["task"], derived(parent, str(place))) for place, member in enumerate(node))
        else:
            calls.append((node["task"], parent))
    return calls
