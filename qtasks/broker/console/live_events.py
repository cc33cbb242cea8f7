"""What happens at the broker, as server-sent events (docs/console.md).

How it works. One watcher of the broker serves all streams, and there is none while no stream is open. An event becomes
bytes at once, so that no stream keeps a message and its body. Each stream holds at most `PER_SECOND` events that its
client has not taken; the others are only counted. A stream sends what has gathered at most `1000 / PAUSE_MS` times a
second, so a burst is one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import orjson

from qtasks.broker.api.api_request import ApiResponse, HttpError
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.message_targets import is_report, task_of
from qtasks.broker.console.table_rows import HIDDEN
from qtasks.broker.console.views import overview
from qtasks.broker.core.observed import error_texts
from qtasks.broker.core.observed.shown_urls import without_secrets
from qtasks.broker.events import MessageEvent
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import totals
from qtasks.protocol.messages import Response, State

MOST_STREAMS: Final = 100
PER_SECOND: Final = 50
PAUSE_MS: Final = 200
"""Between two writes of a stream."""
NOW_MS: Final = 1_000
"""Between two looks at the counts."""
COMMENT_MS: Final = 15_000
"""A quiet stream sends a comment so often: a proxy would end a connection on which nothing moves."""
_READ_BYTES: Final = 4_096
"""Bytes of an answer in which its error is looked for."""
_FIRST: Final = b"retry: 2000\n\n"
_COMMENT: Final = b": still here\n\n"
_HEADERS: Final = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),
)

IsValid = Callable[[], Awaitable[bool]]


class LiveEvents:
    """The streams of one broker."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._streams: list[_Stream] = []
        self._latest_counts: dict[int, tuple[int, dict[str, int]]] = {}
        self._closing = asyncio.Event()

    def open(self, viewer: Viewer, is_valid: IsValid, *, with_reports: bool = False) -> ApiResponse:
        """A new stream for `viewer`, which ends when `is_valid` is false. HttpError 503 if too many are open.

        `with_reports`: also the events of the reports that the framework sends itself.
        """
        if self._closing.is_set() or len(self._streams) >= MOST_STREAMS:
            raise HttpError(503, "too many pages listen to events", (("Retry-After", "10"),))
        return ApiResponse(200, headers=_HEADERS, stream=self._run(_Stream(viewer, with_reports), is_valid))

    def close(self) -> None:
        """End all streams."""
        self._closing.set()
        for stream in self._streams:
            stream.wake.set()

    async def _run(self, stream: _Stream, is_valid: IsValid) -> AsyncIterator[bytes]:
        if self._closing.is_set() or len(self._streams) >= MOST_STREAMS:  # others were opened in the same moment
            return
        self._add(stream)
        try:
            yield _FIRST
            while not self._closing.is_set():
                piece = await self._next(stream)
                if self._closing.is_set() or not await is_valid():
                    return
                yield piece
                await self._pause()
        finally:
            self._remove(stream)

    async def _next(self, stream: _Stream) -> bytes:
        """What the client gets next; waits for it."""
        clock = self._context.clock
        quiet_until_ms = clock.now_ms() + COMMENT_MS
        while not self._closing.is_set():
            until_ms = min(quiet_until_ms, stream.look_at_ms) if stream.is_dirty else quiet_until_ms
            if not stream.pending and not stream.skipped:
                await clock.wait(stream.wake.wait(), until_ms)
            stream.wake.clear()
            pieces = stream.take()
            if stream.is_dirty and clock.now_ms() >= stream.look_at_ms:
                pieces.append(await self._counts(stream))
            if any(pieces):
                return b"".join(pieces)
            if clock.now_ms() >= quiet_until_ms:
                return _COMMENT
        return b""

    async def _counts(self, stream: _Stream) -> bytes:
        """The counts of the overview, if they have changed."""
        stream.is_dirty = False
        stream.look_at_ms = self._context.clock.now_ms() + NOW_MS
        counts = await self._counted(stream.viewer.account)
        if counts == stream.counts:
            return b""
        stream.counts = counts
        return _event("now", counts)

    async def _counted(self, account: int) -> dict[str, int]:
        """The counts of an account; streams that ask in the same moment get the same."""
        clock = self._context.clock
        counted_ms, counts = self._latest_counts.get(account, (None, {}))
        if counted_ms is None or clock.now_ms() - counted_ms >= NOW_MS // 2:
            await Indexer(self._context.store, clock).catch_up()
            now_ms = clock.now_ms()
            counts = overview.counts_json(await self._context.store.read(totals.sums_now, account, now_ms=now_ms))
            self._latest_counts[account] = now_ms, counts
        return counts

    async def _pause(self) -> None:
        clock = self._context.clock
        await clock.wait(self._closing.wait(), clock.now_ms() + PAUSE_MS)

    def _add(self, stream: _Stream) -> None:
        if not self._streams:
            self._context.api.watchers.add(self._notice)
        self._streams.append(stream)

    def _remove(self, stream: _Stream) -> None:
        self._streams.remove(stream)
        if not self._streams:
            self._context.api.watchers.remove(self._notice)

    def _notice(self, event: MessageEvent) -> None:
        """Called with every event of the broker."""
        now_ms, message = self._context.clock.now_ms(), event.message
        of_report = is_report(task_of(message.url, message.options))
        encoded: dict[bool, bytes] = {}
        for stream in self._streams:
            if stream.viewer.account != message.account:
                continue
            stream.is_dirty = True
            if of_report and not stream.with_reports:
                pass
            elif stream.has_room(now_ms):
                shows_error = stream.viewer.sees_payloads
                if shows_error not in encoded:
                    encoded[shows_error] = _event("message", event_json(event, shows_error=shows_error))
                stream.pending.append(encoded[shows_error])
            else:
                stream.skipped += 1
            stream.wake.set()


class _Stream:
    """One client, and what it gets next."""

    def __init__(self, viewer: Viewer, with_reports: bool) -> None:
        self.viewer = viewer
        self.with_reports = with_reports
        self.wake = asyncio.Event()
        self.pending: list[bytes] = []
        self.skipped = 0
        self.counts: dict[str, int] | None = None
        """The counts that it got last."""
        self.is_dirty = True
        """The counts may have changed since."""
        self.look_at_ms = 0
        """When they are looked at again, if so."""
        self._second_ms = 0
        self._in_second = 0

    def has_room(self, now_ms: int) -> bool:
        """True if the client may get another event now; it then counts as one of this second."""
        if now_ms - self._second_ms >= 1_000:
            self._second_ms, self._in_second = now_ms, 0
        if self._in_second >= PER_SECOND or len(self.pending) >= PER_SECOND:
            return False
        self._in_second += 1
        return True

    def take(self) -> list[bytes]:
        """What has gathered, as bytes to send."""
        pieces, self.pending = self.pending, []
        if self.skipped:
            pieces.append(_event("skipped", {"count": self.skipped}))
            self.skipped = 0
        return pieces


def _event(name: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


def event_json(event: MessageEvent, *, shows_error: bool) -> dict[str, object]:
    """An event as a page gets it. Without `shows_error`, the text of an error is hidden."""
    message = event.message
    task = task_of(message.url, message.options)
    error = event.error
    if error is not None:
        error = _error(event, is_task=task is not None) if shows_error else HIDDEN
    return {
        "timeMs": event.time_ms,
        "state": event.state,
        "status": _status(event),
        "messageId": message.id,
        "task": task,
        "destination": without_secrets(message.url),
        "error": error,
        "durationMs": event.duration_ms,
        "nextMs": event.next_delivery_ms,
    }


def _error(event: MessageEvent, *, is_task: bool) -> str:
    """What an attempt failed with: a dispatcher's answer says more than its status."""
    body = event.outcome.body[:_READ_BYTES] if isinstance(event.outcome, Response) else None
    return error_texts.text_of(event.error, body, is_task=is_task)


_STATUSES: Final = {
    State.ACTIVE: "running",
    State.RETRY: "retrying",
    State.ERROR: "retrying",
    State.CANCEL_REQUESTED: "running",
    State.DELIVERED: "delivered",
    State.FAILED: "failed",
    State.CANCELED: "canceled",
}


def _status(event: MessageEvent) -> str:
    if event.state is State.CREATED:
        return "waiting" if event.next_delivery_ms is None else "scheduled"
    return _STATUSES[event.state]
