"""The call that a test looks for: what fits it, and what to say when nothing does.

Arguments are those of the task, all or some of them; what concerns the delivery is said by ``task.using(...)``, so no
option can be taken for an argument of the same name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Final

from qtasks.errors import QTasksError
from qtasks.protocol import durations
from qtasks.protocol.messages import PublishOptions
from qtasks.tasks import options as call_options
from qtasks.tasks.encode.parameters import TaskParameters, Values
from qtasks.tasks.llm.llm_options import MODEL_OPTIONS
from qtasks.tasks.task import Task
from qtasks.testing.sent_call import Call, shown

_ALWAYS: Final = frozenset({"method", "content_type"})
"""What every call of a task says of its delivery."""
OF_MODELS: Final = frozenset({"model", *MODEL_OPTIONS})
"""Options that stand in the request to a language model."""
_LISTED: Final = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing about a call that is not as wanted."""

    name: str
    wanted: str
    found: str


class _Anything:
    """Stands for an argument that the test does not speak of."""


_ANYTHING: Final = _Anything()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a test says about a call."""

    task: Task[..., Any]
    arguments: Values = field(default_factory=dict)
    """By parameter name, as the test wrote them."""

    @classmethod
    def of(cls, task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Wanted:
        """A call of `task` with these arguments among others. Raises ArgumentsError for those that it does not have."""
        return cls(task, _some(task.parameters, tuple(args), kwargs))

    def differences(self, call: Call) -> list[Difference]:
        """What about `call`, which is one of the same task, is not as wanted."""
        found = call.arguments
        unlike = [
            Difference(name, shown(value), shown(found[name]) if name in found else "(not given)")
            for name, value in self.arguments.items()
            if name not in found or not self._is_like(name, value, found)
        ]
        return unlike + self._differences_of_options(call)

    def __str__(self) -> str:
        using = ", ".join(f"{name}={shown(value)}" for name, value in self.task.said.items())
        given = ", ".join(f"{name}={shown(value)}" for name, value in self.arguments.items())
        return f"{self.task.name}{f'.using({using})' if using else ''}({given})"

    def _is_like(self, name: str, wanted: Any, found: Values) -> bool:
        """Whether they are equal as they are, or come to the same on the way: ``"9.90"`` for ``Decimal("9.90")``."""
        with contextlib.suppress(Exception):  # whatever a class of the user's does when it is compared
            if wanted == found[name]:
                return True
        parameters = self.task.parameters
        with contextlib.suppress(QTasksError):
            mine = parameters.check({**found, name: wanted})
            return mine[name] == found[name] or parameters.to_json({name: mine[name]}) == parameters.to_json(
                {name: found[name]}
            )
        return False

    def _differences_of_options(self, call: Call) -> list[Difference]:
        if not self.task.said:
            return []
        how = call_options.delivery_options(self.task.name, self.task.said)
        unlike = [
            Difference(_named(name), _written(name, value), _written(name, getattr(call.options, name)))
            for name, value in _told(how.publish)
            if getattr(call.options, name) != value
        ]
        if how.queue is not None and how.queue != call.queue:
            unlike.append(Difference("queue", how.queue, str(call.queue)))
        asked = call.request or {}
        unlike += [
            Difference(name, shown(value), shown(asked.get(name, "-")))
            for name, value in self.task.said.items()
            if name in OF_MODELS and asked.get(name) != value
        ]
        if how.expires is not None:
            sent_ms = round(call.sent.timestamp() * 1000)
            until = (how.expires_ms(sent_ms) or 0) - sent_ms
            found = None if call.expires is None else round((call.expires - call.sent) / timedelta(milliseconds=1))
            if found != until:
                shown_found = "-" if found is None else durations.format(found)
                unlike.append(Difference("expires", durations.format(until), shown_found))
        return unlike


def _some(parameters: TaskParameters, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Values:
    """Arguments by name, as `TaskParameters.bind` finds them, though some may be left out."""
    named = {*parameters.positional[: len(args)], *kwargs}
    missing = [name for name in parameters.required if name not in named]
    by_position = [name for name in missing if name not in parameters.keywords]
    filled = parameters.bind(
        (*args, *(_ANYTHING for _ in by_position)),
        {**kwargs, **{name: _ANYTHING for name in missing if name in parameters.keywords}},
    )
    return {name: value for name, value in filled.items() if value is not _ANYTHING}


def _told(options: PublishOptions) -> list[tuple[str, Any]]:
    return [
        (one.name, value)
        for one in fields(PublishOptions)
        if one.name not in _ALWAYS and (value := getattr(options, one.name)) not in (None, ())
    ]


def _named(name: str) -> str:
    return name.removesuffix("_ms").removesuffix("_s")


def _written(name: str, value: Any) -> str:
    if value in (None, ()):
        return "-"
    return durations.format(value) if name.endswith("_ms") else shown(value)


def missing(wanted: Wanted, calls: Sequence[Call]) -> str:
    """Why no call of `calls` will do: the nearest of them, and how it differs."""
    same = [(index, call) for index, call in enumerate(calls, 1) if call.task == wanted.task.name]
    if not same:
        lines = [f"no call {wanted} was sent"]
        lines += [f"  sent        {call}" for call in calls[:_LISTED]] or ["  sent        nothing"]
        lines += [f"              and {len(calls) - _LISTED} more"] if len(calls) > _LISTED else []
        return "\n".join(lines)
    index, nearest = min(same, key=lambda one: _distance(wanted, one[1]))
    lines = [f"no call {wanted} was sent", f"  nearest     {nearest}   (number {index} of {len(calls)})"]
    for one in wanted.differences(nearest):
        lines += [f"  - {one.name}={one.wanted}", f"  + {one.name}={one.found}"]
    return "\n".join(lines)


def _distance(wanted: Wanted, call: Call) -> tuple[int, int]:
    """In how many things they differ, and in how many of these as calls, not in how they are delivered."""
    unlike = wanted.differences(call)
    return len(unlike), sum(one.name in wanted.arguments for one in unlike)


def unwanted(wanted: Wanted, found: Sequence[Call]) -> str:
    """Which calls there are that there should not be."""
    lines = [f"{len(found)} {'call' if len(found) == 1 else 'calls'} {wanted} sent, and none is wanted"]
    lines += [f"  sent        {call}   at {call.sent.isoformat()}" for call in found[:_LISTED]]
    lines += [f"              and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
    return "\n".join(lines)
