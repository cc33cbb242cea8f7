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

Facts are attributes, not only text. `code` is stable and can be searched for; `hint` says what to do.
"""

from __future__ import annotations


class QTasksError(Exception):
    """Base of every error of this package.

    `code` names the situation for good (``QT301``), more finely than the class where a class has several; `hint` is
    the next thing to do, or None.
    """

    code: str = "QT000"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class ConfigurationError(QTasksError):
    """A setting is missing, malformed, or contradicts another one."""

    code = "QT208"


class DefinitionError(QTasksError):
    """A task is declared in a way that cannot work; raised where it is declared."""

    code = "QT101"


class ArgumentsError(QTasksError, TypeError):
    """Arguments do not fit the task: raised by the call, answered 489 by the dispatcher with the same words.

    `code`: QT151 missing, QT152 unexpected, QT153 wrong type, QT154 not JSON, QT155 too large.
    """

    code = "QT153"


class PayloadError(QTasksError):
    """A message body is not an envelope this version can read."""

    code = "QT402"


class ResultError(QTasksError):
    """A result cannot be handed out."""


class ResultTimeout(ResultError, TimeoutError):
    """The task has not finished within the time given; it goes on regardless."""

    code = "QT404"


class ResultsDisabled(ResultError):
    """Results were asked for, but no result backend is configured."""

    code = "QT209"


class TaskFailed(ResultError):
    """The task failed for good. `error` is "TypeName: message" as the dispatcher saw it."""

    code = "QT405"

    def __init__(self, message: str, *, error: str) -> None:
        super().__init__(message)
        self.error = error


class TaskCancelled(ResultError):
    """The call was called off, by its caller or by the task itself. `reason` says why, in the task's own words."""

    code = "QT411"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TaskExpired(TaskCancelled):
    """The call was still waiting when its `expires` had passed, and was not run."""

    code = "QT412"


class ModelError(QTasksError):
    """A language model did not do its part in a call. Hooks find it in their event; nobody has to catch it."""

    code = "QT420"


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

    code = "QT421"

    def __init__(self, message: str, *, text: str | None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.text = text


class StoreError(QTasksError):
    """The broker's store cannot do what was asked; nothing of the request was stored."""

    code = "QT500"


class StoreLocked(StoreError):
    """Another process holds the database; the message names it."""

    code = "QT501"


class StoreFull(StoreError):
    """No space is left on the device, or a quota is used up."""

    code = "QT502"


class SchemaTooNew(StoreError):
    """The database was written by a newer version of this program."""

    code = "QT503"


class QStashError(QTasksError):
    """A conversation with a QStash service failed (the name the official SDK uses)."""

    code = "QT300"


class InvalidCallError(QStashError, ValueError):
    """The arguments of a call contradict each other or cannot be sent. Nothing was sent."""

    code = "QT307"


class BrokerUnreachable(QStashError):
    """No reply at all: nothing listens, or it did not answer in time. Repeating may help.

    `sent` is False when the request surely never reached the service, so that nothing can have come of it.
    """

    code = "QT301"

    def __init__(self, message: str, *, sent: bool = True, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.sent = sent


class ApiError(QStashError):
    """The service answered with an error. `status` is the HTTP status, `detail` the service's own words."""

    code = "QT302"

    def __init__(self, message: str, *, status: int, detail: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.detail = detail


class PartlyRefused(ApiError):
    """The broker took some calls of a batch and refused others: `refused` has its words by call id."""

    code = "QT304"

    def __init__(self, message: str, *, refused: dict[str, str]) -> None:
        super().__init__(message, status=400, detail=next(iter(refused.values()), ""))
        self.refused = refused


class RateLimitExceededError(ApiError):
    """Too many requests at the moment. `limit`, `remaining` and `reset` are the service's header values, or None."""

    code = "QT303"

    def __init__(self, limit: str | None, remaining: str | None, reset: str | None, *, detail: str = "") -> None:
        text = f"Exceeded burst rate limit: Limit: {limit}, remaining: {remaining}, reset: {reset}"
        super().__init__(text, status=429, detail=detail)
        self.limit = limit
        self.remaining = remaining
        self.reset = reset


class DailyMessageLimitExceededError(ApiError):
    """The account's messages of the day are used up. Attributes as of `RateLimitExceededError`."""

    code = "QT308"

    def __init__(self, limit: str | None, remaining: str | None, reset: str | None, *, detail: str = "") -> None:
        text = f"Exceeded daily message limit: Limit: {limit}, remaining: {remaining}, reset: {reset}"
        super().__init__(text, status=429, detail=detail)
        self.limit = limit
        self.remaining = remaining
        self.reset = reset


class ChatRateLimitExceededError(ApiError):
    """The language model's requests or tokens are used up for now. Values as the provider's headers have them."""

    code = "QT309"

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

    code = "QT203"

    def __init__(self, message: str, *, reason: str, code: str = "QT203", hint: str | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.reason = reason
