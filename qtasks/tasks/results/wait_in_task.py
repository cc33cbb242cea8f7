"""Waiting for a result inside a running task: it is allowed, and holds the place of that task meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError
from qtasks.tasks.context import current_context

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

log = logging.getLogger("qtasks.result")

_warned: set[tuple[str, str]] = set()
"""The pairs of waiting and awaited tasks that this process has logged."""


class DeadlockCheck(Protocol):
    """The part of the application's runtime that knows of other runs."""

    def is_deadlocked(self) -> bool:
        """True if all threads for tasks wait for calls here that wait for a thread."""
        ...


class WaitInTask:
    """A wait for calls of `task`; outside of tasks it does nothing.

    It ends when one of the calls has ended. `check` is called on every turn of the wait.
    """

    def __init__(self, runtime: DeadlockCheck, task: str, call_ids: Iterable[str]) -> None:
        self._runtime = runtime
        self._task = task
        self._call_ids = frozenset(call_ids)
        self._context = current_context()

    def __enter__(self) -> Self:
        if self._context is not None:
            self._context.link.waits.append(self._call_ids)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context is not None:
            self._context.link.waits.remove(self._call_ids)

    def check(self) -> None:
        """Log once that a task waits inside another. Raises ResultError if the wait cannot end."""
        if self._context is None:
            return
        waiting = self._context.task
        if (waiting, self._task) not in _warned:
            _warned.add((waiting, self._task))
            text = "%s waits for a result of %s inside a task and holds its place meanwhile: use a chain or a chord"
            log.warning(text, waiting, self._task, extra={"action": "wait_in_task", "task": waiting})
        if self._runtime.is_deadlocked():
            raise ResultError(
                f"{waiting} waits for a result of {self._task} that cannot come: every thread for tasks waits for "
                "the result of a call that waits for a thread",
                fix="use a chain or a chord; or make one of them an async def, or raise QTASKS_THREADS",
                code=ErrorCode.WAIT_DEADLOCKED,
            )
