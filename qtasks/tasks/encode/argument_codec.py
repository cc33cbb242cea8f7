"""The arguments of a call on their way: as JSON, or as a pickle where the task says so.

Which of the two is the task's to say, at both ends, and never the message's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import Values
from qtasks.tasks.encode.pickling import ForgedError, Purpose

if TYPE_CHECKING:
    from qtasks.tasks.task import Task

Given = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and named arguments."""


class Packed(TypedDict, total=False):
    """The members of an envelope that carry arguments."""

    args: list[Any]
    kwargs: dict[str, Any]
    pickled: str


def packed(task: Task[..., Any], checked: Values, positional: int, call_id: str) -> Packed:
    """Checked arguments, the first `positional` of them by position. Raises ArgumentsError, ConfigurationError."""
    if not task.delivery_options.pickled:
        args, kwargs = task.parameters.arrange(task.parameters.to_json(checked), positional)
        return {"args": args, "kwargs": kwargs}
    args, kwargs = task.parameters.arrange(checked, positional)
    return {"pickled": pickle(task, (tuple(args), kwargs), Purpose.arguments(task.name, call_id))}


def unpacked(task: Task[..., Any], envelope: Envelope) -> Values:
    """The checked arguments of a call that has come.

    Raises ArgumentsError for what does not fit; for a pickle PayloadError, ForgedError among them, and
    ConfigurationError.
    """
    if not task.delivery_options.pickled:
        if envelope.pickled is not None:
            raise ForgedError(f"{task.name} takes its arguments as JSON, and a pickle came: it was not read")
        return task.parameters.check(task.parameters.bind(envelope.args, envelope.kwargs), from_wire=True)
    if envelope.pickled is None:
        raise ForgedError(f"{task.name} takes its arguments as a pickle, and none came: nothing was run")
    # It may have had other names when the call was made.
    purposes = [Purpose.arguments(name, envelope.call_id or "") for name in (task.name, *task.aliases)]
    args, kwargs = task.runtime.pickles().load(envelope.pickled, *purposes)
    return task.parameters.check(task.parameters.bind(args, kwargs))


def pickle(task: Task[..., Any], given: Given, purpose: Purpose) -> str:
    """Arguments as a pickle. Raises ArgumentsError naming the one that cannot be, ConfigurationError."""
    pickles = task.runtime.pickles()
    try:
        return pickles.dump(given, purpose)
    except ValueError as error:
        args, kwargs = given
        # In a flow something may come before them, so that a place is no name.
        known = task.parameters.positional if purpose.what == "arguments" else ()
        places = [*known[: len(args)], *map(str, range(len(known), len(args)))]
        for name, value in [*zip(places, args, strict=True), *kwargs.items()]:
            try:
                pickles.dump(value, purpose)
            except ValueError as reason:
                raise task.parameters.not_picklable(name, str(reason)) from None
        raise task.parameters.not_picklable("", str(error)) from None
