"""A result as text, JSON or a pickle, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError
from qtasks.protocol.messages import MAX_BODY
from qtasks.tasks.encode.annotations import WIRE
from qtasks.tasks.encode.pickling import Pickles, Purpose, is_pickle

if TYPE_CHECKING:
    from qtasks.tasks.task import Task

R = TypeVar("R")

_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dump(task: Task[..., Any], value: Any, call_id: str) -> str:
    """The result of a call as text, JSON by the task's return annotation where that can be.

    A task whose arguments are pickled may have its result pickled as well. Raises ResultError (QT406) saying what does
    not fit.
    """
    try:
        text = _json(task, value)
    except ResultError:
        if task.parameters.loose_result is None:
            raise
        text = _pickle(task, value, call_id)
    if (size := len(text.encode())) > MAX_BODY:
        raise ResultError(
            f"the {_shown(task, value)} makes a text of {size:,} bytes; {MAX_BODY:,} are allowed",
            fix="store the data and return its key",
            code=ErrorCode.RESULT_NOT_SERIALIZABLE,
        )
    return text


def load(adapter: TypeAdapter[R] | None, text: str, pickles: Callable[[], Pickles], purpose: Purpose) -> R:
    """A stored result in its declared type. Raises ResultError, PayloadError for a pickle that cannot be read.

    `pickles` is asked for them when the result is one.
    """
    if is_pickle(text):
        value: R = pickles().load(text, purpose)
        return value
    try:
        if adapter is None:
            raise ResultError(
                f"{purpose.task}: the stored result is JSON, which its declared type has no form in",
                code=ErrorCode.RESULT_UNREADABLE,
            )
        return adapter.validate_python(json.loads(text), context=WIRE, by_name=True, by_alias=True)
    except ValidationError as error:
        raise ResultError(
            f"{purpose.task}: the stored result does not fit the declared type: {error.errors()[0]['msg']}",
            details={"likely": "the task's return annotation was changed since it ran"},
            code=ErrorCode.RESULT_UNREADABLE,
        ) from error


def _json(task: Task[..., Any], value: Any) -> str:
    if (adapter := task.parameters.result) is None:
        raise ResultError(f"{task.parameters.result_name} has no form in JSON", code=ErrorCode.RESULT_NOT_SERIALIZABLE)
    try:
        checked = adapter.validate_python(value)
        plain = adapter.dump_python(checked, mode="json", round_trip=True, by_alias=False)
        text = _COMPACT.encode(plain)
        text.encode()  # half of a surrogate pair has no UTF-8
        return text
    except ValidationError as error:
        raise _misfit(task, value, error) from None
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise ResultError(
            f"the {_shown(task, value)} cannot be written as JSON: {error}", code=ErrorCode.RESULT_NOT_SERIALIZABLE
        ) from None


def _pickle(task: Task[..., Any], value: Any, call_id: str) -> str:
    assert task.parameters.loose_result is not None
    try:
        checked = task.parameters.loose_result.validate_python({"result": value})["result"]
    except ValidationError as error:
        raise _misfit(task, value, error) from None
    try:
        return task.runtime.pickles().dump(checked, Purpose.result(task.name, call_id))
    except ValueError as error:
        raise ResultError(
            f"the {_shown(task, value)} cannot be pickled: {error}", code=ErrorCode.RESULT_NOT_SERIALIZABLE
        ) from None


def _misfit(task: Task[..., Any], value: Any, error: ValidationError) -> ResultError:
    reason = error.errors(include_url=False)[0]["msg"]
    return ResultError(
        f"the {_shown(task, value)} does not fit {task.parameters.result_name}: {reason}",
        code=ErrorCode.RESULT_NOT_SERIALIZABLE,
    )


def _shown(task: Task[..., Any], value: Any) -> str:
    return f"{type(value).__name__} returned by {task.name}"
