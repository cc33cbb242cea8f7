"""Code of the application's around every call, where it is sent and where it runs.

Sending is done by blocking code and by async code alike, so its middleware is a generator, which both can drive: it
gets the message, yields the one that is to be sent, and is resumed with the handle (or the exception) that came of it.
Running is async, so its middleware is what it is in Starlette: a coroutine function that awaits `call_next`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.tasks.results.task_result import TaskResult
    from qtasks.tasks.run.runner import Run

Sending = Generator[Outgoing, "TaskResult[Any]", None]
SendMiddleware = Callable[[Outgoing], Sending]
CallNext = Callable[["Run"], Awaitable[Any]]
RunMiddleware = Callable[["Run", CallNext], Awaitable[Any]]

S = TypeVar("S", bound=SendMiddleware)
M = TypeVar("M", bound=RunMiddleware)


class Middleware:
    """What an application puts around its calls; the first that was added is the outermost."""

    def __init__(self) -> None:
        self.sending: list[SendMiddleware] = []
        self.running: list[RunMiddleware] = []


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


def chain(middleware: Sequence[RunMiddleware], innermost: CallNext) -> CallNext:
    """`innermost` inside of all `middleware`."""
    call = innermost
    for one in reversed(middleware):
        call = _around(one, call)
    return call


def _around(one: RunMiddleware, call_next: CallNext) -> CallNext:
    async def call(run: Run) -> Any:
        return await one(run, call_next)

    return call
