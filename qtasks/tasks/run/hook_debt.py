"""Failure hooks that are still to be called: a process may die after it has recorded a failure and before its hooks.

A lock in the results says that they are owed. It is taken before the record is written and ended after the hooks; the
next delivery of the message, or the report of its end, finds it and calls them. Its owner is the message.
"""

from __future__ import annotations

from qtasks.tasks.context import TaskContext
from qtasks.tasks.results.backend import Lock
from qtasks.tasks.results.writer import ResultWriter

OWED_MS = 24 * 60 * 60 * 1000
"""After this time hooks are not called any more."""

_READER = "reader"


async def owe(writer: ResultWriter, context: TaskContext, now_ms: int) -> Lock:
    """Record that the failure hooks of a call are to be called; returns the lock, which the caller ends after them."""
    debt = Lock(_key(context), context.message_id, now_ms + OWED_MS)
    await writer.lock([debt], None, now_ms=now_ms)
    return debt


async def owed(writer: ResultWriter, context: TaskContext, now_ms: int) -> Lock | None:
    """The lock of failure hooks that were not called for this message; None if there is none."""
    state = await writer.lock([Lock(_key(context), _READER, now_ms + 1)], None, now_ms=now_ms)
    lock = None if state is None else state.locks[0]
    return None if lock is None or lock.owner != context.message_id else lock


def _key(context: TaskContext) -> str:
    return f"hooks:{context.call_id}"
