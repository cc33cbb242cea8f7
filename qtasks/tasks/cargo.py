"""The arguments of a call on their way: as JSON, or as a pickle where the task says so.

Which of the two is the task's to say, at both ends, and never the message's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from qtasks.tasks.arguments import Values
from qtasks.tasks.payload import Envelope
from qtasks.tasks.pickling import ForgedError, Purpose

if TYPE_CHECKING:
    from qtasks.tasks.task import Task

Given = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and named arguments."""


class Packed(TypedDict, total=False):
    """The members of an envelope that carry arguments."""

    args: list[Any]
    kwargs: dict[str, Any]
    pickled: str


def packed(task: Task[..., Any], checked: Values, positional: int, call_id: str | None) -> Packed:
    """Checked arguments, the first `positional` of them by position. Raises ArgumentsError, ConfigurationError."""
    if not task.delivery.pickled:
        args, kwargs = task.plan.arrange(task.plan.to_json(checked), positional)
        return {"args": args, "kwargs": kwargs}
    args, kwargs = task.plan.arrange(checked, positional)
    return {"pickled": pickle(task, (tuple(args), kwargs), Purpose.arguments(task.name, call_id))}


def unpacked(task: Task[..., Any], envelope: Envelope) -> Values:
    """The checked arguments of a call that has come.

    Raises ArgumentsError for what does not fit; for a pickle PayloadError, ForgedError among them, and
    ConfigurationError.
    """
    if not task.delivery.pickled:
        if envelope.pickled is not None:
            raise ForgedError(f"{task.name} takes its arguments as JSON, and a pickle came: it was not read")
        return task.plan.check(task.plan.bind(envelope.args, envelope.kwargs), from_wire=True)
    if envelope.pickled is None:
        raise ForgedError(f"{task.name} takes its arguments as a pickle, and none came: nothing was run")
    args, kwargs = task.engine.pickles().load(envelope.pickled, *_purposes(task, envelope.call_id))
    return task.plan.check(task.plan.bind(args, kwargs))


def named(task: Task[..., Any], envelope: Envelope, call_id: str | None) -> Envelope:
    """The same call under another id, or (a schedule's) under none that its body says. Raises ForgedError."""
    if envelope.pickled is None or envelope.call_id == call_id:
        return replace(envelope, call_id=call_id)
    purpose = Purpose.arguments(task.name, call_id)
    moved = task.engine.pickles().moved(envelope.pickled, purpose, *_purposes(task, envelope.call_id))
    return replace(envelope, call_id=call_id, pickled=moved)


def _purposes(task: Task[..., Any], call_id: str | None) -> list[Purpose]:
    """What a call of the task may have been pickled for: it may have had other names."""
    return [Purpose.arguments(name, call_id) for name in (task.name, *task.aliases)]


def pickle(task: Task[..., Any], given: Given, purpose: Purpose) -> str:
    """Arguments as a pickle. Raises ArgumentsError naming the one that cannot be, ConfigurationError."""
    pickles = task.engine.pickles()
    try:
        return pickles.dump(given, purpose)
    except ValueError as error:
        args, kwargs = given
        for name, value in [*((str(place), value) for place, value in enumerate(args)), *kwargs.items()]:
            try:
                pickles.dump(value, purpose)
            except ValueError as reason:
                raise task.plan.not_picklable(name, str(reason)) from None
        raise task.plan.not_picklable("", str(error)) from None
