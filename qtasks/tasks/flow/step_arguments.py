"""The arguments of a step: checked and encoded when the flow starts, exactly as `.delay()` would do it.

The first argument of a step is the result of the call before it, unless the step is immutable. That value is not there
yet, so its place is bound and not checked. When it is there, it is read by the type that the call before returns and
written by the type of the argument: what `.delay()` would make of the value itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, ConfigurationError, PayloadError, QTasksError, ResultError
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.argument_codec import ArgumentCodec, EncodedArguments
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import TaskParameters, Values
from qtasks.tasks.encode.pickling import Purpose

_TO_COME = "the result of the call before"
"""Holds the place of the first argument while the arguments are bound."""


class PreviousResult(Protocol):
    """The result of the call before a step, or the results of a group."""

    @property
    def source(self) -> str:
        """Whose result it is, for errors: the name of the task, or of those of the group."""
        ...

    @property
    def is_encrypted(self) -> bool:
        """True if it, or a part of it, is stored encrypted."""
        ...

    def plain(self) -> Any:
        """The result as a JSON value. Raises ResultError if JSON cannot carry it."""
        ...

    def typed(self) -> Any:
        """The result as a Python value.

        Raises ResultError if its type is not known here, or does not fit it; PayloadError for a pickle that cannot be
        read.
        """
        ...


class KnownTasks(Protocol):
    """What a dispatcher knows of the tasks of a flow."""

    def codec(self, task: str) -> ArgumentCodec | None:
        """Encodes the arguments of a task; None for one that this dispatcher does not have."""
        ...


def encoded(
    task: BaseTask[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, immutable: bool, call_id: str
) -> EncodedArguments:
    """The arguments of a step with this id, without the result that comes first unless it is `immutable`.

    Raises ArgumentsError as `Task.delay` for arguments that do not fit the parameters, or that cannot be encoded.
    """
    parameters = task.parameters
    values = parameters.bind(args, kwargs) if immutable else _bound(parameters, args, kwargs)
    checked = parameters.check(values)
    purpose = Purpose.step(task.name, call_id)
    if task.encoding.form.pickled:
        return task.codec.arranged(_arranged(parameters, checked, len(args), immutable=immutable), purpose)
    plain_args, plain_kwargs = _arranged(parameters, parameters.to_json(checked), len(args), immutable=immutable)
    _refuse_unreadable(parameters, plain_args, plain_kwargs, immutable=immutable)
    return task.codec.arranged((list(plain_args), plain_kwargs), purpose)


def check_secrecy(previous: PreviousResult, codec: ArgumentCodec | None) -> None:
    """Raise ResultError if a call with this `codec` would carry a result in the open that is encrypted."""
    if previous.is_encrypted and (codec is None or not codec.encoding.form.encrypts):
        raise ResultError(
            f"the result of {previous.source} is encrypted; the next task of the flow would carry it unencrypted",
            fix="declare the next task with encrypt=True too, or use .si(), which does not take the result",
            code=ErrorCode.ENCODING_UNEXPECTED,
        )


def first_argument(previous: PreviousResult, codec: ArgumentCodec | None) -> Any:
    """The result of the call before as the JSON value of the first argument of a task with this `codec`.

    A value that does not fit the parameter is passed on as it is recorded, as for a task that is not known here: the
    code that runs the call may be another version, and it decides. Raises ResultError, PayloadError.
    """
    name = None if codec is None else _first(codec.parameters)
    if codec is None or name is None:
        return previous.plain()
    is_spread = name == codec.parameters.spread
    try:
        value = previous.typed()
        values = codec.parameters.check({name: [value] if is_spread else value})
        plain = codec.parameters.to_json(values)[name]
    except (PayloadError, ConfigurationError):
        raise
    except Exception:  # validators are code of the application: they may raise anything
        return previous.plain()
    return plain[0] if is_spread else plain


def python_value(previous: PreviousResult) -> Any:
    """The result of the call before as a Python value; as JSON if its type is not known here."""
    try:
        return previous.typed()
    except (PayloadError, ConfigurationError):
        raise
    except Exception:  # as in `first_argument`
        return previous.plain()


def named_source(envelope: Envelope, error: QTasksError) -> QTasksError:
    """`error`; if it is about the arguments of a step, with the name of the call whose result comes first."""
    if isinstance(error, ArgumentsError) and (source := envelope.flow.get("after")):
        return error.reworded(f"{error.message}; the first argument is the result of {source}, the call before it")
    return error


def _first(parameters: TaskParameters) -> str | None:
    """The parameter that gets the first argument."""
    return parameters.positional[0] if parameters.positional else parameters.spread


def _bound(parameters: TaskParameters, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Values:
    """The arguments by name, without the one that is still to come."""
    try:
        values = parameters.bind((_TO_COME, *args), kwargs)
    except ArgumentsError as error:
        error.details = {**error.details, "flow": "its first argument is the result of the call before it"}
        error.fix = error.fix or ".si(...) takes these arguments alone"
        raise
    name = _first(parameters)
    assert name is not None
    if name == parameters.spread:
        values[name] = values[name][1:]
    else:
        del values[name]
    return values


def _arranged(
    parameters: TaskParameters, values: Values, count: int, *, immutable: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The values as positional arguments, `count` of them, and named ones."""
    name = None if immutable else _first(parameters)
    if name is None:
        args, kwargs = parameters.arrange(values, count)
        return tuple(args), kwargs
    before = [_TO_COME, *values.get(name, ())] if name == parameters.spread else _TO_COME
    args, kwargs = parameters.arrange({**values, name: before}, count + 1)
    return tuple(args[1:]), kwargs


def _refuse_unreadable(
    parameters: TaskParameters, args: Sequence[Any], kwargs: Mapping[str, Any], *, immutable: bool
) -> None:
    """Raise ArgumentsError for a value that the receiver of an envelope refuses."""
    try:
        envelopes.encode(Envelope(None, args, kwargs))
    except ValueError as error:
        names = parameters.positional if immutable else parameters.positional[1:]
        places = [*names[: len(args)], *(f"{parameters.spread}[{at}]" for at in range(max(0, len(args) - len(names))))]
        refused = envelopes.culprit({**dict(zip(places, args, strict=True)), **kwargs})
        raise parameters.not_json(*(refused or ("", str(error)))) from None
