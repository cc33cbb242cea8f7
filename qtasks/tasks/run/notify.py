"""Calls the hooks of an attempt that has ended."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Sequence

from qtasks.tasks.hooks import Hook, Hooks
from qtasks.tasks.run.attempt import Attempt
from qtasks.tasks.run.decision import Decision, DecisionKind
from qtasks.tasks.run.outside import comes_from_outside, running_task
from qtasks.tasks.run.thread_pool import ThreadPool

log = logging.getLogger("qtasks.hooks")


async def notify(hooks: Sequence[Hooks], attempt: Attempt, decision: Decision, threads: ThreadPool) -> None:
    """Call the hooks for this end of an attempt, one after the other: ``async def`` here, ``def`` in a thread.

    An exception of a hook is logged and changes nothing.
    """
    due = _hooks_for(hooks, decision.kind)
    if not due:
        return
    event, running = attempt.event(decision), running_task()
    for hook in due:
        is_async = inspect.iscoroutinefunction(hook)
        try:
            if is_async:
                await hook(event)
            else:
                value = await threads.run(lambda hook=hook: hook(event))  # type: ignore[misc]  # bound now, not later
                if isinstance(value, Awaitable):
                    await value
        except BaseException as error:
            if comes_from_outside(error, running, in_thread=not is_async):
                raise
            fields = {"action": "hook_failed", "task": event.context.task, "call_id": event.context.call_id}
            log.exception("a hook of %s failed", event.context.task, extra=fields)


def _hooks_for(hooks: Sequence[Hooks], kind: DecisionKind) -> list[Hook]:
    if kind is DecisionKind.SUCCEEDED:
        return [hook for owner in hooks for hook in owner.success]
    if kind is DecisionKind.RETRY:
        return [hook for owner in hooks for hook in owner.retry]
    if kind is DecisionKind.FAILED:
        return [hook for owner in hooks for hook in owner.failure]
    return []
