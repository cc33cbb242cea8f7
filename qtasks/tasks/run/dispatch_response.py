"""The fixed table of answers: what the dispatcher says to the broker, and what the broker then does.

200  the result                        delivered; so are `Snooze`, `Cancel`, a call that has expired and a run that is
                                       skipped: the body says which
500  an ordinary exception             tried again with backoff (or, for jitter, `Retry-After`), then a dead letter
503  + Retry-After                     tried again then: draining, an unknown task, `RetryAfter`
489  + Upstash-NonRetryable-Error      a dead letter at once: `NonRetryable`, an error that its policy gives up on,
                                       wrong arguments, an unusable result
401  a request that proves nothing     (the reason stands only in our log)
405, 413, 415                          not a delivery at all
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from qtasks.error_codes import ErrorCode

MAX_ERROR = 2048
"""Characters of an error that go on the wire; dead letters keep them."""

NEVER = 489
"""With its header, the answer after which the broker does not try again (docs/protocol.md 4.3)."""

Lines = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer: status, JSON body, and header lines beyond the content type."""

    status: int
    body: bytes
    headers: Lines = ()


def result(value: bytes) -> Outcome:
    """The task is done; `value` is its result as JSON."""
    return Outcome(200, value)


def ended(how: str, reason: str, code: str) -> Outcome:
    """The message is done without a result of the task: it was put off, called off, or came too late."""
    return Outcome(200, _body(reason, code, name=how))


def known() -> Outcome:
    """The broker has told of a failure; to fail that message as well would only have it told once more."""
    return ended("failed", "this is known", ErrorCode.FAILURE_RECORDED)


def failure(error: str, code: str, *, after_ms: int | None = None) -> Outcome:
    """The attempt failed; another may succeed, in `after_ms` or when the message's own backoff says."""
    return Outcome(500, _body(error, code), () if after_ms is None else _retry_after(after_ms))


def later(error: str, code: str, *, after_ms: int) -> Outcome:
    """Not now; come back in `after_ms`."""
    return Outcome(503, _body(error, code), _retry_after(after_ms))


def never(error: str, code: str) -> Outcome:
    """No attempt can succeed."""
    return Outcome(NEVER, _body(error, code), (("Upstash-NonRetryable-Error", "true"),))


def refusal(status: int, error: str, *headers: tuple[str, str]) -> Outcome:
    """Not a delivery that could be trusted or read: nothing ran."""
    return Outcome(status, _body(error, None), headers)


def _retry_after(after_ms: int) -> Lines:
    return (("Retry-After", f"{after_ms}ms" if after_ms % 1000 else str(after_ms // 1000)),)


def _body(error: str, code: str | None, *, name: str = "error") -> bytes:
    text = error if len(error) <= MAX_ERROR else error[: MAX_ERROR - 3] + "..."
    document = {name: text} if code is None else {name: text, "code": code}
    # Escaped: a message may hold half of a surrogate pair, which has no UTF-8.
    return json.dumps(document, separators=(",", ":")).encode()
