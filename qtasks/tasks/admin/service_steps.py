"""What is done with several requests, as a generator that yields them: written once, run by sync and async code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from qtasks.errors import ApiError, QTasksError

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation

T = TypeVar("T")

Steps: TypeAlias = Generator["Operation[Any]", Any, T]
"""Yields operations, receives the value of each, and returns its own value."""

_NO_SUCH_PATH: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)


def run_steps(steps: Steps[T], run: Callable[[Operation[Any]], Any]) -> T:
    """Run the operations with `run`, and return the value of the steps. An error of an operation is raised in them."""
    try:
        operation = next(steps)
        while True:
            try:
                value = run(operation)
            except QTasksError as error:
                operation = steps.throw(error)
            else:
                operation = steps.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


async def arun_steps(steps: Steps[T], run: Callable[[Operation[Any]], Awaitable[Any]]) -> T:
    """As `run_steps`, without blocking the event loop."""
    try:
        operation = next(steps)
        while True:
            try:
                value = await run(operation)
            except QTasksError as error:
                operation = steps.throw(error)
            else:
                operation = steps.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


def just(operation: Operation[T]) -> Steps[T]:
    """The steps of one operation."""
    value: T = yield operation
    return value


def lacks_path(error: ApiError) -> bool:
    """True if the service has no such path, or answers it with something else than JSON."""
    return error.status in _NO_SUCH_PATH or HTTPStatus.OK <= error.status < HTTPStatus.BAD_REQUEST
