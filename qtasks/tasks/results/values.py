"""A result as JSON, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from qtasks.errors import ResultError
from qtasks.protocol.messages import MAX_BODY
from qtasks.tasks.annotations import WIRE

if TYPE_CHECKING:
    from qtasks.tasks.task import Task

R = TypeVar("R")

BAD_RESULT = "QT406"


def dump(task: Task[..., Any], value: Any) -> bytes:
    """A result as JSON, by the task's return annotation. Raises ResultError (QT406) saying what does not fit."""
    adapter = task.plan.result
    shown = f"{type(value).__name__} returned by {task.name}"
    try:
        checked = adapter.validate_python(value)
        plain = adapter.dump_python(checked, mode="json", round_trip=True, by_alias=False)
        body = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValidationError as error:
        raise ResultError(
            f"the {shown} does not fit {task.plan.result_name}: {error.errors(include_url=False)[0]['msg']}",
            code=BAD_RESULT,
        ) from None
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise ResultError(f"the {shown} cannot be written as JSON: {error}", code=BAD_RESULT) from None
    if len(body) > MAX_BODY:
        raise ResultError(
            f"the {shown} makes {len(body):,} bytes of JSON; {MAX_BODY:,} are allowed",
            hint="fix         store the data and return its key",
            code=BAD_RESULT,
        )
    return body


def load(adapter: TypeAdapter[R], text: str) -> R:
    """A stored result in its declared type. Raises ValidationError."""
    return adapter.validate_python(json.loads(text), context=WIRE, by_name=True, by_alias=True)
