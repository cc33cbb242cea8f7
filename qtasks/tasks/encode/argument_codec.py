"""The arguments of a call, encoded in the form that the task's declaration says, and decoded.

The declaration decides at both ends; the message never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError
from qtasks.tasks.codec import JSON
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.encoding import CodecError, Content, Encoding
from qtasks.tasks.encode.encryption import is_sealed
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import TaskParameters, Values
from qtasks.tasks.encode.pickling import ForgedError, Purpose, is_pickle

_SHOW_VALUES = (ErrorCode.ARGUMENT_TYPE_WRONG, ErrorCode.ARGUMENT_NOT_JSON)
"""The codes of errors whose text shows a value."""

PositionalAndNamed = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and named arguments."""


class EncodedArguments(TypedDict, total=False):
    """The members of an envelope that carry arguments."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    pickled: str
    coded: str


@dataclass(frozen=True, slots=True)
class ArgumentCodec:
    """Encodes and decodes the arguments of one task."""

    parameters: TaskParameters
    names: tuple[str, ...]
    """The task's name, then its aliases: a call may have been made while the task had another name."""
    encoding: Encoding

    def encode(self, values: Values, positional: int, call_id: str, purpose: Purpose | None = None) -> EncodedArguments:
        """Encode checked arguments, the first `positional` of them by position.

        `purpose` is theirs if it is not to be the arguments of the call. Raises ArgumentsError for an argument that
        cannot be encoded, ConfigurationError if pickles are not allowed or a key is missing.
        """
        form = self.encoding.form
        if form.is_plain:
            args, kwargs = self.parameters.arrange(self.parameters.to_json(values), positional)
            return {"args": args, "kwargs": kwargs}
        plain = values if form.pickled else self.parameters.to_json(values)
        return self.arranged(self.parameters.arrange(plain, positional), purpose or self._of_call(call_id))

    def arranged(self, arguments: PositionalAndNamed, purpose: Purpose) -> EncodedArguments:
        """Encode arguments that are plain JSON values already, or any values if the task pickles them. As `encode`."""
        args, kwargs = arguments
        form = self.encoding.form
        if form.pickled:
            text = self._pickle((tuple(args), kwargs), purpose)
            return {"coded": text} if form.encrypts else {"pickled": text}
        if form.is_plain:
            return {"args": args, "kwargs": kwargs}
        try:
            return {"coded": self.encoding.write([args, kwargs], purpose)}
        except CodecError as error:
            raise ArgumentsError(
                f"{self.names[0]}: the arguments cannot be sent: {error.message}", fix=error.fix, code=error.code
            ) from error
        except ValueError as error:
            named = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
            raise self.parameters.not_json(*(envelopes.culprit(named) or ("", str(error)))) from None

    def decode(self, envelope: Envelope) -> Values:
        """The checked arguments of a call that was delivered.

        Raises ArgumentsError for arguments that do not fit the parameters; PayloadError for a form that the task does
        not declare, or that cannot be read (ForgedError among them); ConfigurationError.
        """
        form = self.encoding.form
        if form.is_plain and envelope.coded is None and envelope.pickled is None:
            return self.parameters.check(self.parameters.bind(envelope.args, envelope.kwargs), from_wire=True)
        content = self.opened(envelope)
        args, kwargs = content.value
        try:
            return self.parameters.check(self.parameters.bind(args, kwargs), from_wire=not content.is_pickled)
        except ArgumentsError as error:
            if not content.is_sealed or error.code not in _SHOW_VALUES:
                raise
            # The text goes to the broker and to the result store, and it shows the value.
            text = f"{self.names[0]}: an encrypted argument does not fit the parameters; it is not shown"
            raise error.reworded(text) from None

    def opened(self, envelope: Envelope) -> Content:
        """The positional and named arguments of a call that was delivered, unchecked. Raises as `decode`."""
        text = envelope.coded if envelope.coded is not None else envelope.pickled
        purposes = [Purpose.arguments(name, envelope.call_id or "") for name in self.names]
        if envelope.schedule is not None:
            purposes += [Purpose.schedule(name, envelope.schedule) for name in self.names]
        if text is None:
            self._check_plain(purposes[0])
            return Content((envelope.args, envelope.kwargs))
        return self.open(text, *purposes)

    def open(self, text: str, *purposes: Purpose) -> Content:
        """Positional and named arguments that were written for one of `purposes`. Raises as `decode`."""
        form = self.encoding.form
        if form.pickled and not is_sealed(text):
            self.encoding.check_sealing(purposes[0], is_sealed=False)
            return Content(self.encoding.pickles().load(text, *purposes), is_pickled=True)
        if is_pickle(text):
            raise ForgedError(
                f"{self.names[0]} takes its arguments as JSON, but the call contains a pickle, which was not read"
            )
        content = self.encoding.read(text, *purposes)
        if not content.is_pickled and not _are_arguments(content.value):
            raise CodecError(f"{self.names[0]}: what was encoded is not a list of positional and of named arguments")
        return content

    def _check_plain(self, purpose: Purpose) -> None:
        """Raise the error for arguments that arrived as plain JSON, if the declaration does not allow them."""
        if self.encoding.form.pickled:
            raise self._not_a_pickle()
        self.encoding.check_sealing(purpose, is_sealed=False)
        self.encoding.check_name(JSON, purpose)

    def _not_a_pickle(self) -> ForgedError:
        return ForgedError(
            f"{self.names[0]} takes its arguments as a pickle, but the call contains none: the task was not run"
        )

    def _of_call(self, call_id: str) -> Purpose:
        return Purpose.arguments(self.names[0], call_id)

    def _pickle(self, arguments: PositionalAndNamed, purpose: Purpose) -> str:
        """Pickle arguments. Raises ArgumentsError that names the one that cannot be pickled, ConfigurationError."""
        write = self.encoding.write_pickle
        try:
            return write(arguments, purpose)
        except ValueError as error:
            args, kwargs = arguments
            # In a step of a flow a result may be put before them, so a position does not tell the name.
            names = self.parameters.positional if purpose.what == "arguments" else ()
            places = [*names[: len(args)], *map(str, range(len(names), len(args)))]
            for name, value in [*zip(places, args, strict=True), *kwargs.items()]:
                try:
                    write(value, purpose)
                except ValueError as reason:
                    raise self.parameters.not_picklable(name, str(reason)) from None
            raise self.parameters.not_picklable("", str(error)) from None


def _are_arguments(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) and isinstance(value[1], dict)
