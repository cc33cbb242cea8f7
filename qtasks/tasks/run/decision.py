"""What the end of an attempt means: pure decisions, from an exception to an answer, a state and a note."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, OutputError, QTasksError, ResultsDisabled
from qtasks.tasks.context import TaskContext
from qtasks.tasks.control import AttemptTimeout, Cancel, NonRetryable, RetryAfter
from qtasks.tasks.encode.pickling import ForgedError, shown
from qtasks.tasks.results.backend import ResultStatus
from qtasks.tasks.retries import RetryPolicy, jittered_ms
from qtasks.tasks.run import dispatch_response
from qtasks.tasks.run.dispatch_response import Outcome


class Kind(Enum):
    """How an attempt ended."""

    DONE = auto()
    RETRY = auto()
    """Another attempt follows."""
    FAILED = auto()
    """None does."""
    OVER = auto()
    """Called off or expired: no failure, no result."""
    PUT_OFF = auto()
    """The same call comes again, as a new message."""


_STATUS = {
    Kind.DONE: ResultStatus.SUCCEEDED,
    Kind.RETRY: ResultStatus.RETRYING,
    Kind.FAILED: ResultStatus.FAILED,
    Kind.PUT_OFF: ResultStatus.QUEUED,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to say to the broker, and what to keep of it."""

    kind: Kind
    answer: Outcome
    note: str = ""
    """"TypeName: message" of a failure, or why there is no result."""
    is_wish: bool = False
    """The task asked for this: nothing went wrong."""
    over: ResultStatus = ResultStatus.CANCELLED
    value: str | None = None
    """The result as it is kept."""
    how: str = ""
    """A word for how a call goes on that was put off."""

    @property
    def status(self) -> ResultStatus:
        """The state that is kept of the call."""
        return _STATUS.get(self.kind, self.over)


def done(value: str) -> Verdict:
    """The task returned; `value` is its result as it is kept."""
    return Verdict(Kind.DONE, dispatch_response.result(shown(value)), value=value)


def expired(expires_ms: int, now_ms: int) -> Verdict:
    """The call came after its time."""
    note = f"Expired: {(now_ms - expires_ms) / 1000:.3f} s after it was to be run at the latest"
    return Verdict(
        Kind.OVER, dispatch_response.ended("expired", note, ErrorCode.CALL_EXPIRED), note, True, ResultStatus.EXPIRED
    )


def cancelled(reason: str) -> Verdict:
    """The call was called off."""
    return Verdict(Kind.OVER, dispatch_response.ended("cancelled", reason, ErrorCode.CALL_CANCELLED), reason, True)


def put_off(reason: str, how: str) -> Verdict:
    """The call has been published again; `how` is a word for that."""
    return Verdict(Kind.PUT_OFF, dispatch_response.ended(how, reason, ErrorCode.CALL_SNOOZED), reason, True, how=how)


def model_failed(kind: Kind, note: str, code: str) -> Verdict:
    """A model was asked in vain, for good or for now. The broker knows: what it tells us of it has arrived."""
    return Verdict(kind, dispatch_response.ended("failed", note, code), note)


def skipped(reason: str) -> Verdict:
    """The call is left out, unrun."""
    return Verdict(
        Kind.OVER, dispatch_response.ended("skipped", reason, ErrorCode.RUN_SKIPPED), reason, True, how="skipped"
    )


def unguarded(context: TaskContext) -> Verdict:
    """The run is to be left out where another one is under way, and nobody can tell."""
    note = 'ResultsDisabled: overlap="skip" needs a place for results; set QTASKS_RESULTS where the tasks run'
    return _failed(context, dispatch_response.failure(note, ResultsDisabled.code), note)


def not_again(context: TaskContext, note: str, code: str) -> Verdict:
    """No attempt can succeed."""
    return _failed(context, dispatch_response.never(note, code), note)


def failure(context: TaskContext, note: str, code: str) -> Verdict:
    """Another attempt may succeed, after the message's own backoff."""
    return _failed(context, dispatch_response.failure(note, code), note)


def of_call(context: TaskContext, error: QTasksError, note: str) -> Verdict:
    """A call that cannot be run: never, where it is the call's own fault; else what is wrong may be mended."""
    meant = not_again if isinstance(error, (ArgumentsError, OutputError, ForgedError)) else failure
    return meant(context, note, error.code)


def later(context: TaskContext, note: str, code: str, *, after_ms: int) -> Verdict:
    """Another attempt may succeed, after a wait."""
    return _failed(context, dispatch_response.later(note, code, after_ms=after_ms), note)


def of_error(
    error: BaseException,
    note: str,
    context: TaskContext,
    policy: RetryPolicy | None,
    *,
    retry_delay: str | None,
    jitter: float,
    chance: float,
) -> Verdict:
    """What an exception of the task means. `note` is its text, fit to be shown; `chance`, from 0 to 1, is for jitter.

    Every exception that is not a wish counts, `asyncio.CancelledError` and `SystemExit` too: an ``except Exception``
    somewhere must not turn them into a success.
    """
    if isinstance(error, Cancel):
        return cancelled(str(error) or "the task found nothing to do")
    if isinstance(error, NonRetryable):
        return _failed(context, dispatch_response.never(note, ErrorCode.NON_RETRYABLE), note, is_wish=True)
    if isinstance(error, RetryAfter):
        return _failed(
            context,
            dispatch_response.later(note, ErrorCode.RETRY_REQUESTED, after_ms=error.delay_ms),
            note,
            is_wish=True,
        )
    if policy is not None and not policy.retries(error):
        return _failed(context, dispatch_response.never(note, ErrorCode.RETRY_POLICY_GAVE_UP), note)
    code = ErrorCode.ATTEMPT_TIMED_OUT if isinstance(error, AttemptTimeout) else ErrorCode.TASK_RAISED
    if retry_delay is None or not jitter:
        return _failed(context, dispatch_response.failure(note, code), note)
    after_ms = jittered_ms(retry_delay, context.retried, jitter, chance)
    return _failed(context, dispatch_response.failure(note, code, after_ms=after_ms), note)


def alone(error: BaseException) -> BaseException:
    """What was raised, out of the group that `asyncio.TaskGroup` put it in by itself: a wish is meant there as well."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def is_ours(error: BaseException) -> bool:
    """Whether an error's text says everything, so that a traceback adds nothing."""
    return isinstance(error, (NonRetryable, RetryAfter, QTasksError, AttemptTimeout))


def _failed(context: TaskContext, answer: Outcome, note: str, *, is_wish: bool = False) -> Verdict:
    final = answer.status == dispatch_response.NEVER or context.is_last_attempt
    kept = note if len(note) <= dispatch_response.MAX_ERROR else note[: dispatch_response.MAX_ERROR - 3] + "..."
    return Verdict(Kind.FAILED if final else Kind.RETRY, answer, kept, is_wish)
