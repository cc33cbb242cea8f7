"""Functions of the application that are called when an attempt ends: of one task, or of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qtasks.tasks.context import TaskContext
from qtasks.tasks.definition import Definition, put


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """How an attempt ended: the argument of every hook."""

    context: TaskContext
    """The delivery: task, call id, attempt and so on."""
    arguments: Mapping[str, Any] = field(repr=False)
    """The arguments by parameter name, as the task received them; empty if they did not fit its parameters."""
    error: BaseException | None = None
    """The exception; None after a success."""
    reason: str = ""
    """"TypeName: message" of the failure."""
    value: Any = None
    """The return value of the task, after a success."""


Hook = Callable[[TaskEvent], Any]
H = TypeVar("H", bound=Hook)


class Hooks:
    """The hooks of one task, or of an application for all of its tasks. Each method is a decorator.

    A hook is a ``def`` (run in a thread) or an ``async def`` and takes one `TaskEvent`. It runs when the end is
    recorded, so that a hook cannot cause a finished task to run again, and before the broker gets the response. The
    handle of a failed call shows the failure after the failure hooks. A caller in the same process who waits for a
    result gets it after the success hooks, but does not wait for them longer than a second. If the process dies before
    the response, the call is delivered again. With a result store, failure hooks are called then, once more if the
    process died between them and the record of the failure, and other hooks may not be called; without one, hooks may
    be called twice. An exception of a hook is logged and changes nothing. A hook that is defined once more, because its
    module or its cell of a notebook is run again, replaces the earlier one.
    """

    def __init__(self) -> None:
        self.success: list[Hook] = []
        self.retry: list[Hook] = []
        self.failure: list[Hook] = []

    def __bool__(self) -> bool:
        """True if there is any hook."""
        return bool(self.success or self.retry or self.failure)

    def on_success(self, hook: H) -> H:
        """Call `hook` after every call that succeeded."""
        put(self.success, hook)
        return hook

    def on_retry(self, hook: H) -> H:
        """Call `hook` after every failed attempt that another attempt follows."""
        put(self.retry, hook)
        return hook

    def on_failure(self, hook: H) -> H:
        """Call `hook` once when a call has failed for good: after its last attempt, not after each.

        If no process saw the last attempt end (it died, or was away), the broker reports the end, and the hook is
        called with empty `arguments`.
        """
        put(self.failure, hook)
        return hook

    def keep(self, earlier: Hooks, task: Definition) -> None:
        """Take the hooks of the `earlier` definition of a task, which `task` replaces.

        Those of the same file or cell are not taken: it is run once more, and declares them again.
        """
        for hooks, others in (
            (self.success, earlier.success),
            (self.retry, earlier.retry),
            (self.failure, earlier.failure),
        ):
            hooks[:0] = [hook for hook in others if not task.is_beside(hook)]
