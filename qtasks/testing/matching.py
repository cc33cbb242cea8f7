"""Matching of calls in assertions: which calls match, and the error text if none does.

A test gives all or some arguments of the task. Delivery options are given by ``task.using(...)``, so an option cannot
be mistaken for an argument of the same name.
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
"""Delivery options that every call of a task has."""
OF_MODELS: Final = frozenset({"model", *MODEL_OPTIONS})
"""Options that are part of the request to a language model."""
_LISTED: Final = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """One property of a call that differs from the expected one."""

    name: str
    expected: str
    actual: str


class _Anything:
    """Placeholder for an argument that the test does not state."""


_ANYTHING: Final = _Anything()


@dataclass(frozen=True, slots=True)
class CallMatcher:
    """The task, arguments and options that a test expects of a call."""

    task: Task[..., Any]
    arguments: Values = field(default_factory=dict)
    """By parameter name, as the test wrote them."""

    @classmethod
    def of(cls, task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallMatcher:
        """Match calls of `task` with at least these arguments. Raises ArgumentsError for unknown arguments."""
        return cls(task, _some(task.parameters, tuple(args), kwargs))

    def differences(self, call: Call) -> list[Difference]:
        """How `call`, a call of the same task, differs from the expected one."""
        arguments = call.arguments
        differences = [
            Difference(name, shown(value), shown(arguments[name]) if name in arguments else "(not given)")
            for name, value in self.arguments.items()
            if name not in arguments or not self._is_like(name, value, arguments)
        ]
        return differences + self._differences_of_options(call)

    def __str__(self) -> str:
        using = ", ".join(f"{name}={shown(value)}" for name, value in self.task.own_options.items())
        arguments = ", ".join(f"{name}={shown(value)}" for name, value in self.arguments.items())
        return f"{self.task.name}{f'.using({using})' if using else ''}({arguments})"

    def _is_like(self, name: str, expected: Any, actual: Values) -> bool:
        """True if two values are equal, or equal once encoded: ``"9.90"`` matches ``Decimal("9.90")``."""
        with contextlib.suppress(Exception):  # comparison runs code of the user's classes
            if expected == actual[name]:
                return True
        parameters = self.task.parameters
        with contextlib.suppress(QTasksError):
            checked = parameters.check({**actual, name: expected})
            return checked[name] == actual[name] or parameters.to_json({name: checked[name]}) == parameters.to_json(
                {name: actual[name]}
            )
        return False

    def _differences_of_options(self, call: Call) -> list[Difference]:
        if not self.task.own_options:
            return []
        options = call_options.delivery_options(self.task.name, self.task.own_options)
        differences = [
            Difference(_named(name), _written(name, value), _written(name, getattr(call.options, name)))
            for name, value in _given_options(options.publish)
            if getattr(call.options, name) != value
        ]
        if options.queue is not None and options.queue != call.queue:
            differences.append(Difference("queue", options.queue, str(call.queue)))
        asked = call.request or {}
        differences += [
            Difference(name, shown(value), shown(asked.get(name, "-")))
            for name, value in self.task.own_options.items()
            if name in OF_MODELS and asked.get(name) != value
        ]
        if options.expires is not None:
            sent_ms = round(call.sent.timestamp() * 1000)
            until = (options.expires_ms(sent_ms) or 0) - sent_ms
            actual = None if call.expires is None else round((call.expires - call.sent) / timedelta(milliseconds=1))
            if actual != until:
                shown_found = "-" if actual is None else durations.format(actual)
                differences.append(Difference("expires", durations.format(until), shown_found))
        return differences


def _some(parameters: TaskParameters, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Values:
    """Arguments by name, as `TaskParameters.bind` returns them; some may be missing."""
    named = {*parameters.positional[: len(args)], *kwargs}
    missing = [name for name in parameters.required if name not in named]
    by_position = [name for name in missing if name not in parameters.keywords]
    filled = parameters.bind(
        (*args, *(_ANYTHING for _ in by_position)),
        {**kwargs, **{name: _ANYTHING for name in missing if name in parameters.keywords}},
    )
    return {name: value for name, value in filled.items() if value is not _ANYTHING}


def _given_options(options: PublishOptions) -> list[tuple[str, Any]]:
    return [
        (option.name, value)
        for option in fields(PublishOptions)
        if option.name not in _ALWAYS and (value := getattr(options, option.name)) not in (None, ())
    ]


def _named(name: str) -> str:
    return name.removesuffix("_ms").removesuffix("_s")


def _written(name: str, value: Any) -> str:
    if value in (None, ()):
        return "-"
    return durations.format(value) if name.endswith("_ms") else shown(value)


def missing(matcher: CallMatcher, calls: Sequence[Call]) -> str:
    """The error text if no call matches: the nearest of `calls`, and how it differs."""
    same = [(index, call) for index, call in enumerate(calls, 1) if call.task == matcher.task.name]
    if not same:
        lines = [f"no call {matcher} was sent"]
        lines += [f"  sent        {call}" for call in calls[:_LISTED]] or ["  sent        nothing"]
        lines += [f"              and {len(calls) - _LISTED} more"] if len(calls) > _LISTED else []
        return "\n".join(lines)
    index, nearest = min(same, key=lambda each: _distance(matcher, each[1]))
    lines = [f"no call {matcher} was sent", f"  nearest     {nearest}   (number {index} of {len(calls)})"]
    for each in matcher.differences(nearest):
        lines += [f"  - {each.name}={each.expected}", f"  + {each.name}={each.actual}"]
    return "\n".join(lines)


def _distance(matcher: CallMatcher, call: Call) -> tuple[int, int]:
    """The number of differences, and how many of them are arguments rather than delivery options."""
    differences = matcher.differences(call)
    return len(differences), sum(difference.name in matcher.arguments for difference in differences)


def unexpected(matcher: CallMatcher, calls: Sequence[Call]) -> str:
    """The error text for calls that should not exist."""
    lines = [f"{len(calls)} {'call' if len(calls) == 1 else 'calls'} {matcher} sent, but none is expected"]
    lines += [f"  sent        {call}   at {call.sent.isoformat()}" for call in calls[:_LISTED]]
    lines += [f"              and {len(calls) - _LISTED} more"] if len(calls) > _LISTED else []
    return "\n".join(lines)
