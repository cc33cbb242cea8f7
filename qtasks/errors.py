"""Every error qtasks raises, as one tree; a branch answers "what can the caller do?".

    QTasksError
      ConfigurationError       a setting is missing or contradicts another: set it
      DefinitionError          a task is declared in a way that cannot work: change the declaration
      ArgumentsError           a call does not fit its task: change the call (also a TypeError)
      PayloadError             a message body is not an envelope we can read
      ResultError
        ResultTimeout          not finished yet: wait longer (also a TimeoutError)
        ResultsDisabled        no result backend is configured: name one
        TaskFailed             the task itself failed for good: read `error`
        TaskCancelled          the call was called off: nobody will run it
          TaskExpired          it was still waiting when its time was over
      ModelError               a language model did not do its part
        ProviderError          its provider refused, or did not answer: `status` and `detail`
        OutputError            it answered what does not fit: `text` is what it said
      StoreError               the broker's store refuses: see the sentence
        StoreLocked            another process holds the file
        SchemaTooNew           written by a newer program
        StoreFull              no space left: nothing of the request was stored
      QStashError              a conversation with a QStash service failed
        InvalidCallError       arguments that cannot be sent: change the call (also a ValueError)
        BrokerUnreachable      no reply: repeating may help
        ApiError               the service refused: `status` and `detail`
          PartlyRefused        some calls of a batch: `refused` says which
          RateLimitExceededError, DailyMessageLimitExceededError, ChatRateLimitExceededError
        SignatureError         a delivery cannot be trusted: `reason` says why

Facts are attributes, not only text: `message`, `details` (what was tried, what was expected), `fix` (what to do) and
`code`, which is stable and can be searched for. `str(error)` shows all but the code, one aligned line a fact.
"""

from __future__ import annotations

import copy
import copyreg
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias

from qtasks.error_codes import ErrorCode

Details: TypeAlias = Mapping[str, str | Sequence[str]]
"""Facts of an error by their label, such as ``tried``."""
_COLUMN = 12
"""Characters from the start of a label to the start of its text, at least."""


class QTasksError(Exception):
    """Base of every error of this package.

    `message` is one sentence. `details` are further facts by their label, such as ``tried`` or ``expected``, in the
    order in which they are shown; a sequence of texts is shown as several lines with that label. `fix` is the next
    thing to do, or None. `code` names the situation for good (``QT301``), more finely than the class where a class has
    several.
    """

    code: str = ErrorCode.UNSPECIFIED

    def __init__(
        self,
        message: str,
        *,
        details: Details | None = None,
        fix: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.fix = fix
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{textwrap.indent(self.hint, '  ')}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling and copying skip __init__, whose parameters differ from class to class.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    @property
    def hint(self) -> str | None:
        """`details` and `fix` as the lines under the message, or None if there are none."""
        details = {**self.details, **({} if self.fix is None else {"fix": self.fix})}
        width = max([_COLUMN, *(len(label) + 1 for label in details)])
        lines = [
            f"{label:<{width}}" + text.replace("\n", "\n" + " " * width)
            for label, value in details.items()
            for text in ([value] if isinstance(value, str) else value)
        ]
        return "\n".join(lines) or None

    def reworded(self, message: str) -> Self:
        """A copy of this error with another message: what an outer layer adds, such as the name of the task."""
        error = copy.copy(self)
        error.args = (message,)
        error.message = message
        return error


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A question to append to an error text, such as ``; did you mean 'retries'?``; empty if no candidate is near."""
    import difflib  # only errors need it

    nearest = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


class ConfigurationError(QTasksError):
    """A setting is missing, malformed, or contradicts another one."""

    code = ErrorCode.SETTING_INVALID


class DefinitionError(QTasksError):
    """A task is declared in a way that cannot work; raised where it is declared."""

    code = ErrorCode.DECLARATION_INVALID


class ArgumentsError(QTasksError, TypeError):
    """Arguments do not fit the task: raised by the call, answered 489 by the dispatcher with the same words.

    `code` says which: QT151 missing, QT152 unexpected, QT153 wrong type, QT154 not JSON, QT155 too large.
    """

    code = ErrorCode.ARGUMENT_TYPE_WRONG


class PayloadError(QTasksError):
    """A message body is not an envelope this version can read."""

    code = ErrorCode.PAYLOAD_INVALID


class ResultError(QTasksError):
    """A result cannot be handed out."""


class ResultTimeout(ResultError, TimeoutError):
    """The task has not finished within the time given; it goes on regardless."""

    code = ErrorCode.RESULT_TIMEOUT


class ResultsDisabled(ResultError):
    """Results were asked for, but no result backend is configured."""

    code = ErrorCode.RESULTS_DISABLED


class TaskFailed(ResultError):
    """The task failed for good. `error` is "TypeName: message" as the dispatcher saw it."""

    code = ErrorCode.TASK_FAILED

    def __init__(self, message: str, *, error: str) -> None:
        super().__init__(message)
        self.error = error


class TaskCancelled(ResultError):
    """The call was called off, by its caller or by the task itself. `reason` says why, in the task's own words."""

    code = ErrorCode.CALL_CANCELLED

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TaskExpired(TaskCancelled):
    """The call was still waiting when its `expires` had passed, and was not run."""

    code = ErrorCode.CALL_EXPIRED


class ModelError(QTasksError):
    """A language model did not do its part in a call. Hooks find it in their event; nobody has to catch it."""

    code = ErrorCode.MODEL_FAILED


class ProviderError(ModelError):
    """The provider of a model refused a request, or did not answer it.

    `status` is the HTTP status, 0 when no answer came; `detail` has the provider's own words.
    """

    def __init__(self, message: str, *, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class OutputError(ModelError):
    """What a model answered does not fit the declared output. `text` is what it said; None when that was no text.

    `code`: QT421 it does not fit, QT422 the model refused, QT425 it is no chat completion at all.
    """

    code = ErrorCode.MODEL_OUTPUT_UNFIT

    def __init__(self, message: str, *, text: str | None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.text = text


class StoreError(QTasksError):
    """The broker's store cannot do what was asked; nothing of the request was stored."""

    code = ErrorCode.STORE_FAILED


class StoreLocked(StoreError):
    """Another process holds the database; the message names it."""

    code = ErrorCode.STORE_LOCKED


class StoreFull(StoreError):
    """No space is left on the device, or a quota is used up."""

    code = ErrorCode.STORE_FULL


class SchemaTooNew(StoreError):
    """The database was written by a newer version of this program."""

    code = ErrorCode.STORE_TOO_NEW


class QStashError(QTasksError):
    """A conversation with a QStash service failed (the name the official SDK uses)."""

    code = ErrorCode.QSTASH_FAILED


class InvalidCallError(QStashError, ValueError):
    """The arguments of a call contradict each other or cannot be sent. Nothing was sent."""

    code = ErrorCode.REQUEST_INVALID


class BrokerUnreachable(QStashError):
    """No reply at all: nothing listens, or it did not answer in time. Repeating may help.

    `sent` is False when the request surely never reached the service, so that nothing can have come of it.
    """

    code = ErrorCode.BROKER_UNREACHABLE

    def __init__(
        self,
        message: str,
        *,
        sent: bool = True,
        details: Details | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message, details=details, fix=fix)
        self.sent = sent


class ApiError(QStashError):
    """The service answered with an error. `status` is the HTTP status, `detail` the service's own words."""

    code = ErrorCode.REQUEST_REFUSED

    def __init__(self, message: str, *, status: int, detail: str, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.status = status
        self.detail = detail


class PartlyRefused(ApiError):
    """The broker took some calls of a batch and refused others: `refused` has its words by call id."""

    code = ErrorCode.BATCH_PARTLY_REFUSED

    def __init__(self, message: str, *, refused: dict[str, str]) -> None:
        super().__init__(message, status=400, detail=next(iter(refused.values()), ""))
        self.refused = refused


class RateLimitExceededError(ApiError):
    """Too many requests at the moment. `limit`, `remaining` and `reset` are the service's header values, or None."""

    code = ErrorCode.RATE_LIMIT_EXCEEDED

    def __init__(self, limit: str | None, remaining: str | None, reset: str | None, *, detail: str = "") -> None:
        text = f"Exceeded burst rate limit: Limit: {limit}, remaining: {remaining}, reset: {reset}"
        super().__init__(text, status=429, detail=detail)
        self.limit = limit
        self.remaining = remaining
        self.reset = reset


class DailyMessageLimitExceededError(ApiError):
    """The account's messages of the day are used up. Attributes as of `RateLimitExceededError`."""

    code = ErrorCode.DAILY_LIMIT_EXCEEDED

    def __init__(self, limit: str | None, remaining: str | None, reset: str | None, *, detail: str = "") -> None:
        text = f"Exceeded daily message limit: Limit: {limit}, remaining: {remaining}, reset: {reset}"
        super().__init__(text, status=429, detail=detail)
        self.limit = limit
        self.remaining = remaining
        self.reset = reset


class ChatRateLimitExceededError(ApiError):
    """The language model's requests or tokens are used up for now. Values as the provider's headers have them."""

    code = ErrorCode.CHAT_LIMIT_EXCEEDED

    def __init__(
        self,
        limit_requests: str | None,
        limit_tokens: str | None,
        remaining_requests: str | None,
        remaining_tokens: str | None,
        reset_requests: str | None,
        reset_tokens: str | None,
        *,
        detail: str = "",
    ) -> None:
        text = (
            "Exceeded chat rate limit: "
            f"Request limit: {limit_requests}, remaining: {remaining_requests}, reset: {reset_requests}; "
            f"token limit: {limit_tokens}, remaining: {remaining_tokens}, reset: {reset_tokens}"
        )
        super().__init__(text, status=429, detail=detail)
        self.limit_requests = limit_requests
        self.limit_tokens = limit_tokens
        self.remaining_requests = remaining_requests
        self.remaining_tokens = remaining_tokens
        self.reset_requests = reset_requests
        self.reset_tokens = reset_tokens


class SignatureError(QStashError):
    """A request does not prove that it comes from the broker. `reason` is one of `protocol.signing.Reason`.

    `code` differs by reason: QT201 to QT208.
    """

    code = ErrorCode.SIGNATURE_KEY_WRONG

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        code: str = ErrorCode.SIGNATURE_KEY_WRONG,
        details: Details | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message, details=details, fix=fix, code=code)
        self.reason = reason
