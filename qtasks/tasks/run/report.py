"""One line in the log for every end of an attempt."""

from __future__ import annotations

import logging
from asyncio import Future
from types import TracebackType
from typing import Any

from qtasks.errors import QTasksError
from qtasks.tasks.context import TaskContext
from qtasks.tasks.control import AttemptTimeout, NonRetryable, RetryAfter
from qtasks.tasks.run.attempt import Attempt
from qtasks.tasks.run.decision import NEVER, Decision, DecisionKind
from qtasks.tasks.run.thread_pool import Raised

log = logging.getLogger("qtasks.dispatch")

_FRAMEWORK_PACKAGES = frozenset({"qtasks", "fastapi", "starlette", "anyio", "asyncio", "concurrent", "contextlib"})
"""Packages whose frames are between the dispatcher and the user's function."""


def report(attempt: Attempt, decision: Decision, spent_s: float) -> None:
    """Log how an attempt ended, after `spent_s` of its run."""
    context = attempt.context
    if decision.kind is DecisionKind.SUCCEEDED:
        if not log.isEnabledFor(logging.INFO):
            return
        log.info("%s done in %.1f ms", context.task, spent_s * 1000, extra=log_fields(context, "done"))
        return
    if decision.kind is DecisionKind.INTERRUPTED:
        log.warning("%s interrupted: %s", context.task, decision.note, extra=log_fields(context, "interrupted"))
        return
    if decision.kind in (DecisionKind.DISCARDED, DecisionKind.REPUBLISHED):
        action = decision.action or decision.status.value
        # A run that takes longer than the time between two runs may be a mistake.
        level = logging.WARNING if action == "skipped" else logging.INFO
        log.log(level, "%s %s: %s", context.task, action, decision.note, extra=log_fields(context, action))
        return
    is_final = decision.kind is DecisionKind.FAILED
    log.log(
        logging.ERROR if is_final else logging.INFO if decision.is_requested else logging.WARNING,
        "%s failed on attempt %d of %d%s: %s",
        context.task,
        context.attempt,
        context.retries + 1,
        ", not retried, kept as a dead letter" if decision.response.status == NEVER else "",
        decision.note,
        exc_info=_traceback_of(attempt.error),
        extra=log_fields(context, "failed" if is_final else "retry"),
    )


def report_overrun(attempt: Attempt, ended: Future[Any]) -> None:
    """Log that a function has ended after its attempt; `ended` has what it returned or raised."""
    context = attempt.context
    outcome = None if ended.cancelled() else ended.result()
    what = f"what it raised ({type(outcome.error).__name__})" if isinstance(outcome, Raised) else "its result"
    late_s, fields = -context.time_left_s, log_fields(context, "overrun")
    log.warning("%s ended %.1f s after its time was up; %s is dropped", context.task, late_s, what, extra=fields)


def log_fields(context: TaskContext, action: str) -> dict[str, object]:
    """The fields of a log record about a delivery."""
    return {
        "action": action,
        "task": context.task,
        "call_id": context.call_id,
        "message_id": context.message_id,
        "attempt": context.attempt,
    }


def _traceback_of(
    error: BaseException | None,
) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    """The exception to log, from the first frame of the user's code; None if its text says everything."""
    if error is None or isinstance(error, (NonRetryable, RetryAfter, QTasksError, AttemptTimeout)):
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] in _FRAMEWORK_PACKAGES:
        trace = trace.tb_next
    return type(error), error, trace or error.__traceback__
