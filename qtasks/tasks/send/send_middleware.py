"""The application's generators around each call that is sent.

Blocking code and async code both send calls, so the middleware is a generator, which both can drive. It receives the
message, yields the message to send, and resumes with the handle on the call, or with the exception that prevented it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.tasks.results.task_result import TaskResult

Sending = Generator[Outgoing, "TaskResult[Any]", None]
SendMiddleware = Callable[[Outgoing], Sending]

S = TypeVar("S", bound=SendMiddleware)


class Passage:
    """One message on its way out through the middleware."""

    def __init__(self, middleware: Sequence[SendMiddleware], message: Outgoing) -> None:
        self._open: list[Sending] = []
        self.message = message
        try:
            for one in middleware:
                passing = one(self.message)
                self.message = next(passing)
                self._open.append(passing)
        except StopIteration:
            error = RuntimeError(f"the middleware {one!r} did not yield the message it is to send")
            self.fail(error)
            raise error from None
        except BaseException as error:
            self.fail(error)
            raise
        if middleware:
            self.message = self.message.sealed()

    def leave(self, result: TaskResult[Any]) -> None:
        """Resume the middleware, innermost first: the message was sent."""
        while self._open:
            _resume(self._open.pop(), lambda passing: passing.send(result))

    def fail(self, error: BaseException) -> None:
        """Tell the middleware, innermost first, why nothing was sent. The error goes on, whatever it does."""
        while self._open:
            try:
                self._open.pop().throw(error)
            except StopIteration:
                continue
            except BaseException as other:
                if other is not error:
                    other.__context__ = error
                    raise


def _resume(passing: Sending, step: Callable[[Sending], object]) -> None:
    try:
        step(passing)
    except StopIteration:
        return
    passing.close()
    raise RuntimeError(f"the middleware {passing!r} yielded twice; a message is sent once")
