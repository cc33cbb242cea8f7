"""The arguments of a call, encoded as JSON, or as a pickle where the task's declaration says so.

The declaration decides at both ends; the message never does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import TaskParameters, Values
from qtasks.tasks.encode.pickling import ForgedError, Pickles, Purpose

PositionalAndNamed = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and named arguments."""


class EncodedArguments(TypedDict, total=False):
    """The members of an envelope that carry arguments."""

    args: list[Any]
    kwargs: dict[str, Any]
    pickled: str


@dataclass(frozen=True, slots=True)
class ArgumentCodec:
    """Encodes and decodes the arguments of one task."""

    parameters: TaskParameters
    names: tuple[str, ...]
    """The task's name, then its aliases: a call may have been made while the task had another name."""
    pickles: Callable[[], Pickles] | None
    """Opens what reads and writes pickles; None for a task whose arguments travel as JSON."""

    def encode(self, values: Values, positional: int, call_id: str) -> EncodedArguments:
        """Encode checked arguments, the first `positional` of them by position.

        Raises ArgumentsError for an argument that cannot be encoded, ConfigurationError if pickles are not allowed.
        """
        if self.pickles is None:
            args, kwargs = self.parameters.arrange(self.parameters.to_json(values), positional)
            return {"args": args, "kwargs": kwargs}
        args, kwargs = self.parameters.arrange(values, positional)
        return {"pickled": self.pickle((tuple(args), kwargs), Purpose.arguments(self.names[0], call_id))}

    def decode(self, envelope: Envelope) -> Values:
        """The checked arguments of a call that was delivered.

        Raises ArgumentsError for arguments that do not fit the parameters; for a pickle also PayloadError (ForgedError
        among them) and ConfigurationError.
        """
        task = self.names[0]
        if self.pickles is None:
            if envelope.pickled is not None:
                raise ForgedError(
                    f"{task} takes its arguments as JSON, but the call contains a pickle, which was not read"
                )
            return self.parameters.check(self.parameters.bind(envelope.args, envelope.kwargs), from_wire=True)
        if envelope.pickled is None:
            raise ForgedError(
                f"{task} takes its arguments as a pickle, but the call contains none: the task was not run"
            )
        purposes = [Purpose.arguments(name, envelope.call_id or "") for name in self.names]
        args, kwargs = self.pickles().load(envelope.pickled, *purposes)
        return self.parameters.check(self.parameters.bind(args, kwargs))

    def pickle(self, arguments: PositionalAndNamed, purpose: Purpose) -> str:
        """Pickle arguments. Raises ArgumentsError that names the one that cannot be pickled, ConfigurationError."""
        assert self.pickles is not None
        pickles = self.pickles()
        try:
            return pickles.dump(arguments, purpose)
        except ValueError as error:
            args, kwargs = arguments
            # In a step of a flow a result may be put before them, so a position does not tell the name.
            names = self.parameters.positional if purpose.what == "arguments" else ()
            places = [*names[: len(args)], *map(str, range(len(names), len(args)))]
            for name, value in [*zip(places, args, strict=True), *kwargs.items()]:
                try:
                    pickles.dump(value, purpose)
                except ValueError as reason:
                    raise self.parameters.not_picklable(name, str(reason)) from None
            raise self.parameters.not_picklable("", str(error)) from None
