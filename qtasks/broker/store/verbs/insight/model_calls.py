"""Messages to language models: which there are, their prompts and answers. They are read when a page shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import apsw

from qtasks.broker.core.observed import completions
from qtasks.broker.core.observed.completions import ChatAnswer, ChatQuestion
from qtasks.broker.core.observed.message_filter import ConsoleFilter
from qtasks.broker.core.observed.statuses import Status
from qtasks.broker.store.verbs import stored
from qtasks.broker.store.verbs.insight import candidates
from qtasks.broker.store.verbs.rows import fetch, first
from qtasks.protocol.messages import Message

PAGE_BYTES: Final = 16 * 1024 * 1024
"""Bytes of requests and answers that one page reads, about."""
_CALLBACKS: Final = 5
"""Callbacks of a call in which its answer is looked for, the latest."""

_DESTINATIONS: Final = (
    "SELECT id FROM insight_destinations WHERE account = ? AND (url LIKE '%/chat/completions'"
    " OR url LIKE 'https://api.anthropic.com/%' OR (url LIKE '%/v1/messages' AND is_task = 1)) LIMIT ?"
)
"""By the paths of the APIs of OpenAI, which most providers have, and of Anthropic. `LLM_URL` is among them."""
_LATEST_CALLBACKS: Final = "SELECT seq FROM messages WHERE parent = ? ORDER BY seq DESC LIMIT ?"
"""Uses the index ``messages_by_parent``."""
_INDEXED: Final = "SELECT status, started_ms FROM insight_messages WHERE seq = ?"
_FINISHED: Final = "SELECT created_ms, finished_ms FROM messages WHERE seq = ?"


class ModelCall(NamedTuple):
    """A message to a language model. Times are the broker's, in Unix milliseconds."""

    seq: int
    provider: str
    status: Status | None
    created_ms: int
    duration_ms: int | None
    """Of the attempt that delivered it."""
    is_redacted: bool
    """True if its publisher has hidden what it contains: nothing of it is read then."""
    question: ChatQuestion
    answer: ChatAnswer | None
    """None: there is none, or only its receiver knows it."""
    callback: int | None
    """`seq` of the callback that carried the answer, or of the latest one."""
    size: int
    """Bytes that were read."""


class ModelCalls(NamedTuple):
    """One page of calls."""

    calls: list[ModelCall]
    below: int | None
    """Go on with the messages below this `seq`; None: there are no more."""


def has_any(db: apsw.Connection, account: int) -> bool:
    """True if a message to a language model is known, or figures of one."""
    return bool(_destinations(db, account, 1))


def page(
    db: apsw.Connection, account: int, *, below: int | None, count: int, since_ms: int | None = None
) -> ModelCalls:
    """The newest calls, below a `seq`, that were published since a time: at most `count`, and `PAGE_BYTES` of them."""
    calls: list[ModelCall] = []
    size = 0
    for seq in _seqs(db, account, ConsoleFilter(after_ms=since_ms), below):
        if len(calls) >= count or size >= PAGE_BYTES:
            return ModelCalls(calls, calls[-1].seq)
        if (call := call_at(db, seq)) is not None and (since_ms is None or call.created_ms >= since_ms):
            calls.append(call)
            size += call.size
    return ModelCalls(calls, None)


def call_at(db: apsw.Connection, seq: int) -> ModelCall | None:
    """The call that is message `seq`; None if it has been removed."""
    kept, times = stored.one(db, seq), first(db, _FINISHED, (seq,))
    if kept is None or times is None:
        return None
    message = kept.unpacked()
    status, started_ms = first(db, _INDEXED, (seq,)) or (None, None)
    created_ms, finished_ms = times
    is_delivered = status == Status.DELIVERED and None not in (started_ms, finished_ms)
    is_redacted = message.damaged or (message.options.redact is not None and message.options.redact.body)
    callback, answer, size = _answer(db, seq, is_call=message.options.call_id is not None, is_redacted=is_redacted)
    return ModelCall(
        seq,
        completions.provider_of(message.url),
        None if status is None else Status(status),
        created_ms,
        finished_ms - started_ms if is_delivered else None,
        is_redacted,
        ChatQuestion() if is_redacted else completions.read_question(message.body),
        answer,
        callback,
        size + len(message.body),
    )


def _answer(
    db: apsw.Connection, seq: int, *, is_call: bool, is_redacted: bool
) -> tuple[int | None, ChatAnswer | None, int]:
    """The callback with the answer, the answer, and how many bytes were read for it.

    The framework redacts each callback of a model whose request has a key, for the sake of the key: what its publisher
    has said about the body of the request counts. Elsewhere a redacted callback hides the answer, except its numbers.
    """
    callbacks = [child for (child,) in fetch(db, _LATEST_CALLBACKS, (seq, _CALLBACKS))]
    size = 0
    for child in callbacks if not is_redacted else ():
        kept = stored.one(db, child)
        if kept is None or (message := kept.unpacked()).damaged:
            continue
        size += len(message.body)
        if (answer := completions.read_callback(message.body)) is not None:
            return child, _shown(answer, message, is_call=is_call), size
    return callbacks[0] if callbacks else None, None, size


def _shown(answer: ChatAnswer, callback: Message, *, is_call: bool) -> ChatAnswer:
    redact = callback.options.redact
    if is_call or redact is None or not redact.body:
        return answer
    return ChatAnswer(answer.model, answer.prompt_tokens, answer.completion_tokens)


def _seqs(db: apsw.Connection, account: int, criteria: ConsoleFilter, below: int | None) -> Iterator[int]:
    """The messages to language models, newest first."""
    numbers = _destinations(db, account, candidates.MAX_LINES)
    return candidates.of_destinations(db, account, numbers, candidates.Bounds(db, criteria, below))


def _destinations(db: apsw.Connection, account: int, most: int) -> Sequence[int]:
    return [number for (number,) in fetch(db, _DESTINATIONS, (account, most))]
