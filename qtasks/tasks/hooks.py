"""Functions that are told how attempts end: of one task, or of all of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qtasks.tasks.context import TaskContext
from qtasks.tasks.run.decision import Kind, Verdict

log = logging.getLogger("qtasks.hooks")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """How an attempt ended, for hooks."""

    context: TaskContext
    """The delivery: task, call id, attempt and so on."""
    arguments: Mapping[str, Any] = field(repr=False)
    """By parameter name, as the task got them; empty when they did not fit."""
    error: BaseException | None = None
    """What was raised; None after a success."""
    reason: str = ""
    """"TypeName: message" of the failure."""
    value: Any = None
    """What the task returned, after a success."""


Hook = Callable[[TaskEvent], Any]
H = TypeVar("H", bound=Hook)


class Hooks:
    """What a task, or an application for all of its tasks, wants to be told. Each is a decorator.

    A hook is a ``def`` (run in a thread) or an ``async def``, and gets a `TaskEvent`. It runs after the result is kept,
    for a task that is done must not run again because of a hook, and before the broker hears of the end. A process that
    dies between the two leaves it untold where results are kept, and tells it twice where they are not. What a hook
    raises is logged and changes nothing.
    """

    def __init__(self) -> None:
        self.by_kind: dict[Kind, list[Hook]] = {Kind.DONE: [], Kind.RETRY: [], Kind.FAILED: []}

    def on_success(self, hook: H) -> H:
        """Have `hook` told of every result."""
        self.by_kind[Kind.DONE].append(hook)
        return hook

    def on_retry(self, hook: H) -> H:
        """Have `hook` told of every failed attempt that another one follows."""
        self.by_kind[Kind.RETRY].append(hook)
        return hook

    def on_failure(self, hook: H) -> H:
        """Have `hook` told of a call that has failed for good, once: after its last attempt, not after each.

        A call whose last attempt never reached an end here (the process died, the broker gave it up) is found in the
        dead letters alone.
        """
        self.by_kind[Kind.FAILED].append(hook)
        return hook


async def tell(
    hooks: Sequence[Hooks], ended: Verdict, event: TaskEvent, aside: Callable[[Callable[[], Any]], Awaitable[Any]]
) -> None:
    """Call what waits for this end, one after the other; `aside` runs a ``def`` in a thread."""
    for hook in [hook for one in hooks for hook in one.by_kind.get(ended.kind, ())]:
        try:
            if inspect.iscoroutinefunction(hook):
                await hook(event)
            else:
                value = await aside(lambda hook=hook: hook(event))  # type: ignore[misc]  # bound now, not when it runs
                if isinstance(value, Awaitable):
                    await value
        except Exception:
            facts = {"action": "hook_failed", "task": event.context.task, "call_id": event.context.call_id}
            log.exception("a hook of %s failed", event.context.task, extra=facts)
