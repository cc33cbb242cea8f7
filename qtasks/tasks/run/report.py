"""What is said of an attempt: its error in words, and one line in the log."""

from __future__ import annotations

import logging
from types import TracebackType

from qtasks.tasks.context import TaskContext
from qtasks.tasks.run import decision
from qtasks.tasks.run.decision import Kind, Verdict

log = logging.getLogger("qtasks.dispatch")

_MACHINERY = frozenset({"qtasks", "fastapi", "starlette", "anyio", "asyncio", "concurrent", "contextlib"})
"""Packages whose frames stand between the dispatcher and the user's function."""


def report(context: TaskContext, ended: Verdict, error: BaseException | None, spent_s: float) -> None:
    """One line in the log for every end of an attempt."""
    if ended.kind is Kind.DONE:
        log.info("%s done in %.1f ms", context.task, spent_s * 1000, extra=facts(context, "done"))
        return
    if ended.kind in (Kind.OVER, Kind.PUT_OFF):
        action = ended.how or ended.status.value
        # Runs that take longer than the time between them may not be what was meant.
        level = logging.WARNING if action == "skipped" else logging.INFO
        log.log(level, "%s %s: %s", context.task, action, ended.note, extra=facts(context, action))
        return
    final = ended.kind is Kind.FAILED
    log.log(
        logging.ERROR if final else logging.INFO if ended.is_wish else logging.WARNING,
        "%s failed on attempt %d of %d: %s",
        context.task,
        context.attempt,
        context.retries + 1,
        ended.note,
        exc_info=None if error is None or decision.is_ours(error) else _of_user(error),
        extra=facts(context, "failed" if final else "retry"),
    )


def text_of(error: BaseException) -> str:
    """An error as ``TypeName: message``, whatever the message does."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _of_user(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """An exception to be logged from the first frame that is not machinery around the task."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] in _MACHINERY:
        trace = trace.tb_next
    return type(error), error, trace or error.__traceback__


def facts(context: TaskContext, action: str) -> dict[str, object]:
    """What a log record says of the delivery it is about."""
    return {
        "action": action,
        "task": context.task,
        "call_id": context.call_id,
        "message_id": context.message_id,
        "attempt": context.attempt,
    }
