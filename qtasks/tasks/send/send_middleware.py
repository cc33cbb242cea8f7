"""The application's generators around each call that is sent.

Blocking code and async code both send calls, so the middleware is a generator, which both can drive. It receives the
message, yields the message to send, and resumes with the handle on the call, or with the exception that prevented it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.send.outgoing import Outgoing

Sending = Generator[Outgoing, TaskResult[Any], None]
SendMiddleware = Callable[[Outgoing], Sending]

S = TypeVar("S", bound=SendMiddleware)


class EnteredMiddleware:
    """The middleware around one call, entered: `message` is what the innermost one yielded."""

    def __init__(self, middleware: Sequence[SendMiddleware], message: Outgoing) -> None:
        self._open: list[Sending] = []
        self.message = message
        try:
            for make in middleware:
                layer = make(self.message)
                self.message = next(layer)
                self._open.append(layer)
        except StopIteration:
            error = RuntimeError(f"the middleware {make!r} did not yield the message it is to send")
            self.fail(error)
            raise error from None
        except BaseException as error:
            self.fail(error)
            raise

    def succeed(self, result: TaskResult[Any]) -> None:
        """Resume the middleware, innermost first: the message was sent."""
        while self._open:
            _resume(self._open.pop(), result)

    def fail(self, error: BaseException) -> None:
        """Throw `error`, which prevented the call, into the middleware, innermost first. The caller then raises it."""
        while self._open:
            try:
                self._open.pop().throw(error)
            except StopIteration:
                continue
            except BaseException as other:
                if other is not error:
                    other.__context__ = error
                    raise


def _resume(layer: Sending, result: TaskResult[Any]) -> None:
    try:
        layer.send(result)
    except StopIteration:
        return
    layer.close()
    raise RuntimeError(f"the middleware {layer!r} yielded twice; a message is sent once")
