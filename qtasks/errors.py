"""Every error that qtasks raises, as one tree. Each branch says what the caller can do.

    QTasksError
      ConfigurationError       a setting is missing or contradicts another: set it
      DefinitionError          a task is declared in a way that cannot work: change the declaration
        CeleryNameError        a name of Celery is spelt otherwise here: read `fix` (also an AttributeError)
      ArgumentsError           a call does not fit its task: change the call (also a TypeError)
      PayloadError             the body of a message is not a readable envelope
      ResultError              a result cannot be stored or returned
        ResultTimeout          the call has not finished yet: wait longer (also a TimeoutError)
        ResultsDisabled        no result backend is configured: set one
        TaskFailed             the task failed for good: read `error`
        TaskCancelled          the call was cancelled and will not run: read `reason`
          TaskExpired          the call was still waiting when its `expires` had passed
      ModelError               a call to a language model failed
        ProviderError          the provider refused or did not answer: read `status` and `detail`
        OutputError            the answer does not fit the declared output: read `text`
      StoreError               the store of the broker failed: read the message
        StoreLocked            another process has the database open
        SchemaTooNew           a newer version of qtasks wrote the database
        StoreFull              there is no space left; nothing of the request was stored
      QStashError              a request to a QStash service failed
        InvalidCallError       arguments that cannot be sent: change the call (also a ValueError)
        BrokerUnreachable      no response: trying again may help
        ApiError               the service refused the request: read `status` and `detail`
          PartlyRefused        the service refused some calls of a batch: read `refused`
          RateLimitExceededError, DailyMessageLimitExceededError, ChatRateLimitExceededError
        SignatureError         a delivery cannot be trusted: read `reason`

Facts are attributes, not only text: `message`, `details` (what was tried, what was expected), `fix` (what to do) and
`code`, which is stable, can be searched for, and is explained by ``qtasks explain CODE``. `str(error)` is the message
and, below it, one aligned line for each of the details and the fix.
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
    order in which they are shown; a sequence of texts is shown as several lines with the same label. `fix` is the next
    thing to do, or None. `code` is the stable number of the situation, such as ``QT301``; one class can have several.
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
        """A copy of this error with another message, for example with the name of the task in front."""
        error = copy.copy(self)
        error.args = (message,)
        error.message = message
        return error


_OF_EXTRAS = {
    "broker": frozenset({"aiohttp", "apsw", "httptools", "orjson", "uvloop", "watchfiles", "yarl"}),
}
"""Modules of an extra, and of what it installs."""


def missing_extra(error: ImportError, subject: str) -> ConfigurationError | None:
    """The error for `subject`, which needs an extra that is not installed; None if another module is missing."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _OF_EXTRAS.items():
        if package in packages:
            return ConfigurationError(
                f"{subject} needs {package}, which is not installed",
                fix=f'pip install "qstash-tasks[{extra}]"',
                code=ErrorCode.PACKAGE_MISSING,
            )
    return None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A question to append to an error text, such as ``; did you mean 'retries'?``; or an empty text."""
    import difflib  # only errors need it

    nearest = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


class ConfigurationError(QTasksError):
    """A setting is missing, malformed, or contradicts another one."""

    code = ErrorCode.SETTING_INVALID


class DefinitionError(QTasksError):
    """A task is declared in a way that cannot work. Raised by the declaration."""

    code = ErrorCode.DECLARATION_INVALID


class CeleryNameError(DefinitionError, AttributeError):
    """The code uses a name of Celery, Dramatiq or RQ that does not exist here; `fix` is what to write instead."""

    code = ErrorCode.CELERY_NAME


class ArgumentsError(QTasksError, TypeError):
    """Arguments do not fit the task. The call raises it; the dispatcher answers 489 with the same text.

    `code` says which: QT151 missing, QT152 unexpected, QT153 wrong type, QT154 not JSON, QT155 too large.
    """

    code = ErrorCode.ARGUMENT_TYPE_WRONG


class PayloadError(QTasksError):
    """The body of a message is not an envelope that this version can read."""

    code = ErrorCode.PAYLOAD_INVALID


class ResultError(QTasksError):
    """A result cannot be stored or returned."""


class ResultTimeout(ResultError, TimeoutError):
    """The call did not finish within the timeout; it continues regardless."""

    code = ErrorCode.RESULT_TIMEOUT


class ResultsDisabled(ResultError):
    """An operation needs results, but no result backend is configured."""

    code = ErrorCode.RESULTS_DISABLED


class TaskFailed(ResultError):
    """The task failed for good. `error` is "TypeName: message" as the dispatcher recorded it."""

    code = ErrorCode.TASK_FAILED

    def __init__(self, message: str, *, error: str) -> None:
        super().__init__(message)
        self.error = error


class TaskCancelled(ResultError):
    """The call was cancelled by its caller or by the task itself. `reason` is the text that the task gave."""

    code = ErrorCode.CALL_CANCELLED

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TaskExpired(TaskCancelled):
    """The call was still waiting when its `expires` had passed, so it did not run."""

    code = ErrorCode.CALL_EXPIRED


class ModelError(QTasksError):
    """A call to a language model failed. Hooks get it in their event; it is not raised to the caller."""

    code = ErrorCode.MODEL_FAILED


class ProviderError(ModelError):
    """The provider of a model refused a request or did not answer it.

    `status` is the HTTP status, or 0 if there was no response; `detail` is the error text of the provider.
    """

    def __init__(self, message: str, *, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class OutputError(ModelError):
    """The answer of a model does not fit the declared output. `text` is the answer, or None if it was not text.

    `code`: QT421 it does not fit, QT422 the model refused, QT425 the response is not a chat completion.
    """

    code = ErrorCode.MODEL_OUTPUT_UNFIT

    def __init__(self, message: str, *, text: str | None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.text = text


class StoreError(QTasksError):
    """The store of the broker failed; nothing of the request was stored."""

    code = ErrorCode.STORE_FAILED


class StoreLocked(StoreError):
    """Another process has the database open; the message names that process."""

    code = ErrorCode.STORE_LOCKED


class StoreFull(StoreError):
    """There is no space left on the device, or a quota is used up."""

    code = ErrorCode.STORE_FULL


class SchemaTooNew(StoreError):
    """A newer version of qtasks wrote the database."""

    code = ErrorCode.STORE_TOO_NEW


class QStashError(QTasksError):
    """A request to a QStash service failed. The name is that of the official SDK."""

    code = ErrorCode.SERVICE_FAILED


class InvalidCallError(QStashError, ValueError):
    """The arguments of a call contradict each other or cannot be sent. Nothing was sent."""

    code = ErrorCode.REQUEST_INVALID


class BrokerUnreachable(QStashError):
    """There was no response: nothing listens, or the service did not answer in time. Trying again may help.

    `sent` is False if the request certainly did not reach the service, so that it had no effect.
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
    """The service answered with an error. `status` is the HTTP status, `detail` the error text of the service."""

    code = ErrorCode.REQUEST_REFUSED

    def __init__(self, message: str, *, status: int, detail: str, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.status = status
        self.detail = detail


class PartlyRefused(ApiError):
    """The broker accepted some calls of a batch and refused others. `refused` maps call ids to error texts."""

    code = ErrorCode.BATCH_PARTLY_REFUSED

    def __init__(self, message: str, *, refused: dict[str, str]) -> None:
        super().__init__(message, status=400, detail=next(iter(refused.values()), ""))
        self.refused = refused


class RateLimitExceededError(ApiError):
    """Too many requests in a short time. `limit`, `remaining` and `reset` are the values of its headers, or None."""

    code = ErrorCode.RATE_LIMIT_EXCEEDED

    def __init__(self, limit: str | None, remaining: str | None, reset: str | None, *, detail: str = "") -> None:
        text = f"Exceeded burst rate limit: Limit: {limit}, remaining: {remaining}, reset: {reset}"
        super().__init__(text, status=429, detail=detail)
        self.limit = limit
        self.remaining = remaining
        self.reset = reset


class DailyMessageLimitExceededError(ApiError):
    """The daily message limit of the account is used up. Attributes: see `RateLimitExceededError`."""

    code = ErrorCode.DAILY_LIMIT_EXCEEDED

    def __init__(self, limit: str | None, remaining: str | None, reset: str | None, *, detail: str = "") -> None:
        text = f"Exceeded daily message limit: Limit: {limit}, remaining: {remaining}, reset: {reset}"
        super().__init__(text, status=429, detail=detail)
        self.limit = limit
        self.remaining = remaining
        self.reset = reset


class ChatRateLimitExceededError(ApiError):
    """The limit of requests or tokens of the language model is used up. Values are those of the provider's headers."""

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

    Each reason has its own `code`, QT201 to QT208.
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
