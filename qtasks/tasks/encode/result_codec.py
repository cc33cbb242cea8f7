"""A result as text, in the form that its task declares, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError
from qtasks.masking import is_secret_name
from qtasks.protocol.messages import MAX_BODY
from qtasks.tasks.encode.encoding import CodecError, Encoding
from qtasks.tasks.encode.envelope import COMPACT, culprit
from qtasks.tasks.encode.parameters import TaskParameters
from qtasks.tasks.encode.pickling import Purpose
from qtasks.tasks.encode.shown_values import path_of, shown
from qtasks.tasks.encode.typed_json import NotPortable, TypedJson

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ResultForm(Generic[R]):
    """Reads the stored results of one task."""

    json: TypedJson[R] | None
    """None: JSON cannot carry values of the type."""
    encoding: Encoding

    def load(self, text: str, purpose: Purpose) -> R:
        """A stored result in its declared type. Raises ResultError; PayloadError, ConfigurationError as `Encoding`."""
        content = self.encoding.read(text, purpose)
        if content.is_pickled:
            value: R = content.value
            return value
        if self.json is None:
            raise ResultError(
                f"{purpose.task}: the stored result is JSON, but values of its declared type cannot be read from JSON",
                code=ErrorCode.RESULT_UNREADABLE,
            )
        try:
            return self.json.read(content.value)
        except ValidationError as error:
            raise ResultError(
                f"{purpose.task}: the stored result does not fit the declared type: {error.errors()[0]['msg']}",
                details={"likely": "the task's return annotation was changed since it ran"},
                code=ErrorCode.RESULT_UNREADABLE,
            ) from error


def dump(parameters: TaskParameters, value: Any, encoding: Encoding, purpose: Purpose) -> str:
    """Encode the result of a call as text: as JSON by the task's return annotation if that is possible.

    The result of a task whose arguments are pickled may be a pickle. Raises ResultError (QT406, QT441) that says what
    does not fit, ConfigurationError.
    """
    try:
        return _dumped(parameters, value, encoding, purpose)
    except ResultError as error:
        if not encoding.form.encrypts:
            raise
        # The text goes to the broker and to the result store, and it may show the value.
        reason = f"cannot be sent as {parameters.result_name}; it is to be encrypted, so the reason is not shown"
        raise _refusal(parameters, value, reason, fix="call the function here, and compare", code=error.code) from None


def _dumped(parameters: TaskParameters, value: Any, encoding: Encoding, purpose: Purpose) -> str:
    try:
        text = _json(parameters, value, encoding, purpose)
    except ResultError:
        if parameters.loose_result is None:
            raise
        text = _pickle(parameters, value, encoding, purpose)
    if (size := len(text.encode())) > MAX_BODY:
        reason = f"makes a text of {size:,} bytes; {MAX_BODY:,} are allowed"
        raise _refusal(parameters, value, reason, fix="store the data and return its key")
    return text


def _json(parameters: TaskParameters, value: Any, encoding: Encoding, purpose: Purpose) -> str:
    if (form := parameters.result) is None:
        raise ResultError(f"{parameters.result_name} cannot be written as JSON", code=ErrorCode.RESULT_NOT_SERIALIZABLE)
    plain: Any = None
    try:
        plain = form.write(form.check(value))
        if not encoding.form.is_plain:
            text = encoding.write(plain, purpose)
        elif plain is None or type(plain) is int:  # usual results, for which the encoder takes ten times as long
            return "null" if plain is None else str(plain)
        else:
            text = COMPACT.encode(plain)
        text.encode()  # half of a surrogate pair has no UTF-8
        return text
    except ValidationError as error:
        raise _misfit(parameters, value, error) from None
    except NotPortable as error:
        raise _not_json(parameters, value, error.path, error.reason, fix=error.fix) from None
    except CodecError as error:
        raise _refusal(parameters, value, f"cannot be sent: {error.message}", fix=error.fix, code=error.code) from error
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        path, reason = culprit({"": plain}) or ("", str(error))
        raise _not_json(parameters, value, path, reason) from None


def _pickle(parameters: TaskParameters, value: Any, encoding: Encoding, purpose: Purpose) -> str:
    assert parameters.loose_result is not None
    try:
        checked = parameters.loose_result.validate_python({"result": value})["result"]
    except ValidationError as error:
        raise _misfit(parameters, value, error) from None
    try:
        return encoding.write_pickle(checked, purpose)
    except ValueError as error:
        raise _refusal(parameters, value, f"cannot be pickled: {error}") from None


def _misfit(parameters: TaskParameters, value: Any, error: ValidationError) -> ResultError:
    first = error.errors(include_url=False)[0]
    path = path_of(first["loc"], value)
    place = f" at {path!r}" if path else ""
    reason = first["msg"]
    if first["type"] == "invalid-json-value" and not is_secret_name(path):  # the value is the reason
        reason = f"{shown(first['input'])} would not arrive as it is"
    return _refusal(parameters, value, f"does not fit {parameters.result_name}{place}: {reason}")


def _not_json(parameters: TaskParameters, value: Any, path: str, reason: str, *, fix: str | None = None) -> ResultError:
    place = f" at {path.removeprefix('.')!r}" if path else ""
    return _refusal(parameters, value, f"cannot be written as JSON{place}: {reason}", fix=fix)


def _refusal(
    parameters: TaskParameters,
    value: Any,
    reason: str,
    *,
    fix: str | None = None,
    code: str = ErrorCode.RESULT_NOT_SERIALIZABLE,
) -> ResultError:
    return ResultError(f"the {type(value).__name__} returned by {parameters.task} {reason}", fix=fix, code=code)
