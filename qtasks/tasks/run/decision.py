"""What the end of an attempt means: one table, from what happened to the response, the recorded state and a note. Pure.

The responses to the broker, and what it then does:

200  the result                       the message is delivered; the same for `Snooze`, `Cancel`, an expired call
                                      and a skipped run: the body says which
500  an ordinary exception            retried with backoff (with jitter: after `Retry-After`), then a dead letter
503  + Retry-After                    retried after that time: an unknown task, an argument that the task does not
                                      take (a newer deployment may know both), `RetryAfter`
503  + Qtasks-Interrupted             the same, and it ends no attempt: the process is draining, or the call runs
                                      elsewhere
489  + Upstash-NonRetryable-Error     a dead letter at once: `NonRetryable`, an error that the retry policy gives up
                                      on, arguments that are missing or do not fit, a result that cannot be written
401  an invalid signature             (the reason is only in our log)
405, 413, 415                         not a delivery at all
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum, StrEnum, auto
from http import HTTPStatus
from typing import NamedTuple

from qtasks.causes import cause_chain
from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, OutputError, QTasksError, ResultsDisabled
from qtasks.protocol.headers import INTERRUPTED_HEADER
from qtasks.tasks.context import TaskContext
from qtasks.tasks.control import AttemptTimeout, Cancel, NonRetryable, RetryAfter
from qtasks.tasks.encode.encoding import shown
from qtasks.tasks.encode.pickling import ForgedError
from qtasks.tasks.results.backend import ResultStatus
from qtasks.tasks.retries import RetryPolicy, jittered_ms

MAX_ERROR = 2048
"""Characters of an error that are sent to the broker, which stores them with dead letters, and that are recorded."""

NEVER = 489
"""With its header: the status after which the broker does not retry (docs/protocol.md 4.3)."""

DRAIN_AFTER_MS = 5_000
"""How long the broker waits before it repeats a delivery to a process that is shutting down."""

BUSY_AFTER_MS = 200
"""How long the broker waits before it repeats a delivery for which there was no room."""

NEWER_AFTER_MS = 10_000
"""The first wait for a newer deployment."""

NEWER_AFTER_MOST_MS = 60 * 60 * 1000
"""The longest wait for a newer deployment."""

DUPLICATE_HEADER = ("Qtasks-Duplicate", "true")
"""On a response to a call that has ended before this delivery of it arrived."""

HeaderLines = tuple[tuple[str, str], ...]


class Interruption(StrEnum):
    """Why a delivery ends no attempt, as its response says it."""

    DRAINING = "draining"
    RUNNING_ELSEWHERE = "running elsewhere"
    BUSY = "busy"


class DispatchResponse(NamedTuple):
    """What the dispatcher responds to the broker: status, JSON body, and header lines (without the content type)."""

    status: int
    body: bytes
    headers: HeaderLines = ()

    @classmethod
    def of_result(cls, value: bytes) -> DispatchResponse:
        """The task has succeeded; `value` is its result as JSON."""
        return cls(200, value)

    @classmethod
    def without_result(cls, action: str, reason: str, code: str) -> DispatchResponse:
        """The message is done without a result: its call was republished, cancelled, skipped or has expired."""
        return cls(200, _body(reason, code, name=action))

    @classmethod
    def repeated(cls, *, after_ms: int) -> DispatchResponse:
        """The same signed request arrived before. It counts: a client that repeats every request ends its retries."""
        return cls.later("this request was received before", ErrorCode.REQUEST_REPEATED, after_ms=after_ms)

    @classmethod
    def running_elsewhere(cls, *, after_ms: int) -> DispatchResponse:
        """Another delivery of the call runs; this one ends no attempt."""
        note = "this call is running elsewhere"
        return cls.interrupted(
            Interruption.RUNNING_ELSEWHERE, note, ErrorCode.CALL_RUNNING_ELSEWHERE, after_ms=after_ms
        )

    @classmethod
    def acknowledgement(cls) -> DispatchResponse:
        """Acknowledge the callback of a failure; an error would only make the broker send the callback again."""
        return cls.without_result("failed", "this failure is recorded", ErrorCode.FAILURE_RECORDED)

    @classmethod
    def failure(cls, error: str, code: str, *, after_ms: int | None = None) -> DispatchResponse:
        """The attempt has failed; retry after `after_ms`, or after the message's own backoff."""
        return cls(500, _body(error, code), () if after_ms is None else _retry_after(after_ms))

    @classmethod
    def later(cls, error: str, code: str, *, after_ms: int) -> DispatchResponse:
        """Not now; retry after `after_ms`."""
        return cls(503, _body(error, code), _retry_after(after_ms))

    @classmethod
    def interrupted(cls, interruption: Interruption, error: str, code: str, *, after_ms: int) -> DispatchResponse:
        """The delivery ends no attempt: the same one is made again after `after_ms`."""
        response = cls.later(error, code, after_ms=after_ms)
        return response.with_header(INTERRUPTED_HEADER, interruption)

    @classmethod
    def draining(cls) -> DispatchResponse:
        """The process ends; the next delivery should find another one."""
        note = "this process is shutting down"
        return cls.interrupted(Interruption.DRAINING, note, ErrorCode.DISPATCHER_DRAINING, after_ms=DRAIN_AFTER_MS)

    @classmethod
    def busy(cls) -> DispatchResponse:
        """A delivery of a bundle for which there is no room: nothing has run, and it is made again soon."""
        text = "the dispatcher runs as many tasks as it can: try again"
        return cls.refusal(503, text, *_retry_after(BUSY_AFTER_MS), (INTERRUPTED_HEADER, Interruption.BUSY))

    @classmethod
    def never(cls, error: str, code: str) -> DispatchResponse:
        """No attempt can succeed: do not retry."""
        return cls(NEVER, _body(error, code), (("Upstash-NonRetryable-Error", "true"),))

    @classmethod
    def refusal(cls, status: int, error: str, *headers: tuple[str, str]) -> DispatchResponse:
        """The request is not a delivery that can be trusted or read; nothing ran."""
        return cls(status, _body(error, None), headers)

    @property
    def is_interrupted(self) -> bool:
        """True if the delivery ends no attempt."""
        return bool(self.headers) and any(name == INTERRUPTED_HEADER for name, _ in self.headers)

    def unless_acknowledged(self, *, after_ms: int) -> DispatchResponse:
        """This response to a failed call, whose end is then reported; in place of an acknowledgement, a retry later."""
        if self.status != HTTPStatus.OK:
            return self
        return self.later("what follows the failure cannot be sent", ErrorCode.BROKER_UNREACHABLE, after_ms=after_ms)

    def raised_at(self, places: Sequence[str]) -> DispatchResponse:
        """The same response to a failure; `places` are lines such as ``tasks.py:31 in charge``, the innermost last."""
        return self._replace(
            body=self.body[:-1] + b',"at":' + json.dumps(places, separators=(",", ":")).encode() + b"}"
        )

    def with_header(self, name: str, value: str) -> DispatchResponse:
        """The same response with one more header line."""
        return self._replace(headers=(*self.headers, (name, value)))


class DecisionKind(Enum):
    """How an attempt ended."""

    SUCCEEDED = auto()
    RETRY = auto()
    """It failed; another attempt follows."""
    FAILED = auto()
    """It failed; no attempt follows."""
    DISCARDED = auto()
    """Cancelled, expired or skipped: neither a failure nor a result."""
    REPUBLISHED = auto()
    """The same call continues as a new message."""
    INTERRUPTED = auto()
    """The process ended first. The same attempt is made again, as if this one had not begun."""
    DUPLICATE = auto()
    """Another delivery of the call runs it or has ended it. Nothing is recorded or reported for this one."""


class Decision(NamedTuple):
    """What the end of an attempt means: what to respond to the broker, and what to record of the call."""

    kind: DecisionKind
    response: DispatchResponse
    status: ResultStatus
    """The state to record."""
    note: str = ""
    """"TypeName: message" of a failure, or why there is no result."""
    is_requested: bool = False
    """True if the task asked for this end: nothing went wrong."""
    result: str | None = None
    """The result as text, in the form that the task declares."""
    action: str = ""
    """The word for this end in the log, where the status is not specific enough."""
    owes_hooks: bool = False
    """True for a duplicate of a failure whose process died before it had called the failure hooks."""

    @classmethod
    def succeeded(cls, result: str) -> Decision:
        """The task returned; `result` is its value as text."""
        return cls(
            kind=DecisionKind.SUCCEEDED,
            response=DispatchResponse.of_result(shown(result)),
            status=ResultStatus.SUCCEEDED,
            result=result,
        )

    @classmethod
    def expired(cls, expires_ms: int, now_ms: int) -> Decision:
        """The delivery arrived after the call's last moment to run."""
        note = f"Expired: {(now_ms - expires_ms) / 1000:.3f} s after its last moment to run"
        return cls._discarded("expired", note, ErrorCode.CALL_EXPIRED, ResultStatus.EXPIRED)

    @classmethod
    def cancelled(cls, reason: str) -> Decision:
        """The call was cancelled."""
        return cls._discarded("cancelled", reason, ErrorCode.CALL_CANCELLED, ResultStatus.CANCELLED)

    @classmethod
    def skipped(cls, reason: str) -> Decision:
        """The call is not run."""
        discarded = cls._discarded("skipped", reason, ErrorCode.RUN_SKIPPED, ResultStatus.CANCELLED)
        return discarded._replace(action="skipped")

    @classmethod
    def republished(cls, reason: str, action: str) -> Decision:
        """The call was published again; `action` is the word for it: snoozed, asked, repaired."""
        return cls(
            kind=DecisionKind.REPUBLISHED,
            response=DispatchResponse.without_result(action, reason, ErrorCode.CALL_SNOOZED),
            status=ResultStatus.QUEUED,
            note=reason,
            is_requested=True,
            action=action,
        )

    @classmethod
    def interrupted(cls) -> Decision:
        """The process ends before the run does."""
        note = "the process that ran it was stopped; it runs again"
        return cls(
            kind=DecisionKind.INTERRUPTED, response=DispatchResponse.draining(), status=ResultStatus.QUEUED, note=note
        )

    @classmethod
    def duplicate(
        cls,
        response: DispatchResponse,
        *,
        status: ResultStatus = ResultStatus.QUEUED,
        result: str | None = None,
        note: str = "",
        owes_hooks: bool = False,
    ) -> Decision:
        """Another delivery of the call runs it or has ended it: `status`, `result` and `note` are the recorded ones."""
        return cls(
            kind=DecisionKind.DUPLICATE,
            response=response,
            status=status,
            result=result,
            note=note,
            owes_hooks=owes_hooks,
        )

    @classmethod
    def never(cls, context: TaskContext, note: str, code: str) -> Decision:
        """No attempt can succeed."""
        return cls._failed(context, DispatchResponse.never(note, code), note)

    @classmethod
    def later(cls, context: TaskContext, note: str, code: str, *, after_ms: int) -> Decision:
        """Another attempt may succeed, after a wait."""
        return cls._failed(context, DispatchResponse.later(note, code, after_ms=after_ms), note)

    @classmethod
    def without_overlap_check(cls, context: TaskContext) -> Decision:
        """The run must be skipped while another one is running, and no result backend can tell whether one is."""
        note = 'ResultsDisabled: overlap="skip" needs a result backend; set QTASKS_RESULTS where the tasks run'
        return cls._failed(context, DispatchResponse.failure(note, ResultsDisabled.code), note)

    @classmethod
    def of_unfit_call(cls, context: TaskContext, error: QTasksError) -> Decision:
        """A call that cannot run: no retry if the call itself is at fault; otherwise the cause may be repaired.

        An argument that this version of the task does not take is one of a newer version: while a deployment goes on,
        another process may take it. An argument that is missing or has a wrong type never becomes valid.
        """
        note = error_text(error)
        if error.code == ErrorCode.ARGUMENT_UNEXPECTED:
            return cls.later(context, note, error.code, after_ms=newer_after_ms(context.retried))
        respond = (
            DispatchResponse.never
            if isinstance(error, (ArgumentsError, OutputError, ForgedError))
            else DispatchResponse.failure
        )
        return cls._failed(context, respond(note, error.code), note)

    @classmethod
    def of_model_failure(cls, note: str, code: str, *, is_final: bool) -> Decision:
        """A request to a model failed, for good or for now. The broker knows: its callback has arrived."""
        return cls(
            kind=DecisionKind.FAILED if is_final else DecisionKind.RETRY,
            response=DispatchResponse.without_result("failed", note, code),
            status=ResultStatus.FAILED if is_final else ResultStatus.RETRYING,
            note=note,
        )

    @classmethod
    def of_reported_failure(cls, note: str, *, notifies: bool) -> Decision:
        """The broker reports that the call has failed for good; `notifies` is false if its hooks were called."""
        return cls(
            kind=DecisionKind.FAILED if notifies else DecisionKind.DISCARDED,
            response=DispatchResponse.acknowledgement(),
            status=ResultStatus.FAILED,
            note=_shortened(note),
        )

    @classmethod
    def of_exception(
        cls,
        error: BaseException,
        note: str,
        context: TaskContext,
        policy: RetryPolicy | None,
        *,
        retry_delay: str | None,
        jitter: float,
        fraction: float,
    ) -> Decision:
        """What an exception of the task means. `note` is its text without secrets; `fraction`, 0 to 1, is for jitter.

        Every exception that is not a request of the task counts as a failure, also one that is no `Exception`: the
        panic of a Rust extension, `SystemExit`, `asyncio.CancelledError`.
        """
        if isinstance(error, Cancel):
            return cls.cancelled(str(error) or "the task cancelled it")
        if isinstance(error, NonRetryable):
            return cls._failed(context, DispatchResponse.never(note, ErrorCode.NON_RETRYABLE), note, is_requested=True)
        if isinstance(error, RetryAfter):
            response = DispatchResponse.later(note, ErrorCode.RETRY_REQUESTED, after_ms=error.delay_ms)
            return cls._failed(context, response, note, is_requested=True)
        if policy is not None and not policy.retries(error):
            return cls.never(context, note, ErrorCode.RETRY_POLICY_GAVE_UP)
        code = ErrorCode.ATTEMPT_TIMED_OUT if isinstance(error, AttemptTimeout) else ErrorCode.TASK_RAISED
        after_ms = None
        if retry_delay is not None and jitter:
            after_ms = jittered_ms(retry_delay, context.retried, jitter, fraction)
        return cls._failed(context, DispatchResponse.failure(note, code, after_ms=after_ms), note)

    def raised_at(self, places: Sequence[str]) -> Decision:
        """The same, and the answer to the broker says where in the user's code the failure was raised."""
        if self.kind not in (DecisionKind.RETRY, DecisionKind.FAILED) or not places:
            return self
        return self._replace(response=self.response.raised_at(places))

    @classmethod
    def _failed(
        cls, context: TaskContext, response: DispatchResponse, note: str, *, is_requested: bool = False
    ) -> Decision:
        is_final = response.status == NEVER or context.is_last_attempt
        return cls(
            kind=DecisionKind.FAILED if is_final else DecisionKind.RETRY,
            response=response,
            status=ResultStatus.FAILED if is_final else ResultStatus.RETRYING,
            note=_shortened(note),
            is_requested=is_requested,
        )

    @classmethod
    def _discarded(cls, action: str, reason: str, code: str, status: ResultStatus) -> Decision:
        return cls(
            kind=DecisionKind.DISCARDED,
            response=DispatchResponse.without_result(action, reason, code),
            status=status,
            note=reason,
            is_requested=True,
        )


def newer_after_ms(retried: int) -> int:
    """How long a call waits that only a newer deployment may know how to run: four times as long each time."""
    wait_ms: int = NEWER_AFTER_MS * 4 ** min(retried, 10)
    return min(wait_ms, NEWER_AFTER_MOST_MS)


def unwrapped(error: BaseException) -> BaseException:
    """The exception itself, out of the groups that `asyncio.TaskGroup` wraps around a single one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def is_interpreter_shutdown(error: BaseException) -> bool:
    """True if the cause of an error is that Python shuts down: it starts no threads and no calls in pools any more."""
    return any(isinstance(cause, RuntimeError) and "interpreter shutdown" in str(cause) for cause in cause_chain(error))


def error_text(error: BaseException) -> str:
    """An error as ``TypeName: message``, also if its message cannot be made."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _retry_after(after_ms: int) -> HeaderLines:
    return (("Retry-After", f"{after_ms}ms" if after_ms % 1000 else str(after_ms // 1000)),)


def _body(error: str, code: str | None, *, name: str = "error") -> bytes:
    text = _shortened(error)
    document = {name: text} if code is None else {name: text, "code": code}
    # Escaped: a message may hold half of a surrogate pair, which has no UTF-8.
    return json.dumps(document, separators=(",", ":")).encode()


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 3] + "..."
