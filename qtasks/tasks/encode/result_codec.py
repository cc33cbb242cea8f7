"""A result as text, JSON or a pickle, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError
from qtasks.protocol.messages import MAX_BODY
from qtasks.tasks.encode.envelope import COMPACT
from qtasks.tasks.encode.parameters import TaskParameters
from qtasks.tasks.encode.pickling import Pickles, Purpose, is_pickle
from qtasks.tasks.encode.typed_json import NotPortable, TypedJson

R = TypeVar("R")


def dump(parameters: TaskParameters, value: Any, pickled: Callable[[Any], str]) -> str:
    """Encode the result of a call as text: as JSON by the task's return annotation if that is possible.

    The result of a task whose arguments are pickled may be a pickle. Raises ResultError (QT406) that says what does not
    fit. `pickled` makes the pickle of a value and raises ValueError; it is called only if the result has to be one.
    """
    try:
        text = _json(parameters, value)
    except ResultError:
        if parameters.loose_result is None:
            raise
        text = _pickle(parameters, value, pickled)
    if (size := len(text.encode())) > MAX_BODY:
        reason = f"makes a text of {size:,} bytes; {MAX_BODY:,} are allowed"
        raise _refusal(parameters, value, reason, fix="store the data and return its key")
    return text


def load(form: TypedJson[R] | None, text: str, pickles: Callable[[], Pickles], purpose: Purpose) -> R:
    """A stored result in its declared type. Raises ResultError, PayloadError for a pickle that cannot be read.

    `pickles` is called only if the result is a pickle.
    """
    if is_pickle(text):
        value: R = pickles().load(text, purpose)
        return value
    try:
        if form is None:
            raise ResultError(
                f"{purpose.task}: the stored result is JSON, but values of its declared type cannot be read from JSON",
                code=ErrorCode.RESULT_UNREADABLE,
            )
        return form.read(json.loads(text))
    except ValidationError as error:
        raise ResultError(
            f"{purpose.task}: the stored result does not fit the declared type: {error.errors()[0]['msg']}",
            details={"likely": "the task's return annotation was changed since it ran"},
            code=ErrorCode.RESULT_UNREADABLE,
        ) from error


def _json(parameters: TaskParameters, value: Any) -> str:
    if (form := parameters.result) is None:
        raise ResultError(f"{parameters.result_name} cannot be written as JSON", code=ErrorCode.RESULT_NOT_SERIALIZABLE)
    try:
        text = COMPACT.encode(form.write(form.check(value)))
        text.encode()  # half of a surrogate pair has no UTF-8
        return text
    except ValidationError as error:
        raise _misfit(parameters, value, error) from None
    except NotPortable as error:
        place = f" at {error.path!r}" if error.path else ""
        raise _refusal(parameters, value, f"cannot be written as JSON{place}: {error.reason}", fix=error.fix) from None
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise _refusal(parameters, value, f"cannot be written as JSON: {error}") from None


def _pickle(parameters: TaskParameters, value: Any, pickled: Callable[[Any], str]) -> str:
    assert parameters.loose_result is not None
    try:
        checked = parameters.loose_result.validate_python({"result": value})["result"]
    except ValidationError as error:
        raise _misfit(parameters, value, error) from None
    try:
        return pickled(checked)
    except ValueError as error:
        raise _refusal(parameters, value, f"cannot be pickled: {error}") from None


def _misfit(parameters: TaskParameters, value: Any, error: ValidationError) -> ResultError:
    reason = error.errors(include_url=False)[0]["msg"]
    return _refusal(parameters, value, f"does not fit {parameters.result_name}: {reason}")


def _refusal(parameters: TaskParameters, value: Any, reason: str, *, fix: str | None = None) -> ResultError:
    text = f"the {type(value).__name__} returned by {parameters.task} {reason}"
    return ResultError(text, fix=fix, code=ErrorCode.RESULT_NOT_SERIALIZABLE)
