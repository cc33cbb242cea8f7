"""Results over HTTP: what a page in a browser may know of a call, as JSON and as server-sent events.

Nothing of it is served unless an application includes the router, behind whatever it protects its pages with. A stream
is FastAPI's own: it keeps quiet connections alive, and ends when the browser goes away. It also ends by itself after
some minutes, with its server, and behind the last news there can be; a browser then asks again, tells what it has seen,
and hears either what is new or, by a 204, that there is nothing more to come.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field, JsonValue

from qtasks.tasks.encode import envelope
from qtasks.tasks.encode.pickling import shown
from qtasks.tasks.ports import Lifespan
from qtasks.tasks.progress import Progress
from qtasks.tasks.results.backend import ResultBackend, ResultRecord, ResultStatus, read_record
from qtasks.tasks.results.waiting import states

STREAM_LIFE_S = 300.0
"""Then a stream ends, and whoever still looks on asks again: with what it may see by then."""

RECONNECT_MS = 2_000
"""How long a browser waits before it asks again."""

FULL_AFTER_S = 5

CallId = Annotated[
    str,
    Path(
        pattern=f"^{envelope.ID.pattern}$",
        description="The `id` of the handle that `.delay()` returned. Whoever knows it may ask.",
    ),
]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="Of the last event that was seen; browsers send it again.")
]


class CallProgress(BaseModel):
    """How far a running call has come, in whatever unit its task counts."""

    done: float
    total: float | None = Field(description="Null where nobody knows.")
    note: str
    fraction: float | None = Field(description="From 0 to 1; null where the total is not known.")


class CallState(BaseModel):
    """Where a call stands, and what came of it."""

    id: str
    task: str | None = Field(description="Null until something has been heard of the call.")
    status: ResultStatus = Field(
        description="`queued`: nothing has been heard of it, because it has not begun, has never been made, or ended "
        "so long ago that its result is no longer kept."
    )
    attempt: int = Field(description="1 in the first; 0 before it.")
    updated_at: datetime | None
    progress: CallProgress | None
    result: JsonValue = Field(
        description="What the task returned, once it has succeeded; of one that JSON cannot carry its size and hash."
    )
    error: str | None = Field(
        description="Why the last attempt failed, or the call was not run to its end; null where errors are not shown."
    )

    @property
    def event_id(self) -> str:
        """The same for the same state."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


Open = Callable[[], Awaitable[ResultBackend]]
"""Opens the place of the results. Raises ResultsDisabled."""


class ResultsView:
    """Looks into the results of one application, at most `max_streams` of them that last."""

    def __init__(self, results: Open, *, show_errors: bool, max_streams: int) -> None:
        self._results = results
        self._show_errors = show_errors
        self._max_streams = max_streams
        self._streams = 0

    async def state(self, call_id: CallId, response: Response) -> CallState:
        """Where the call stands now, and its result if there is one."""
        response.headers["Cache-Control"] = "no-store"
        return self._seen(call_id, await read_record(await self._results(), call_id))

    async def stream(self, call_id: CallId, last_event_id: LastEventId = None) -> AsyncIterator[ServerSentEvent]:
        """The state of a call as it changes, each event with the whole of it as data.

        There are `status` and `progress` events, then one of `result` (it has succeeded) or `failed` (its status says
        how), and then the end.
        """
        yield ServerSentEvent(retry=RECONNECT_MS)
        over, before = _over(), None
        async for record in states(await self._results(), call_id, over):
            now = self._seen(call_id, record)
            if now.event_id != last_event_id:
                yield ServerSentEvent(event=_event(now, before), id=now.event_id, raw_data=now.model_dump_json())
            before = now

    async def admit(self) -> AsyncIterator[None]:
        """A place for one stream, as long as it lasts."""
        if self._streams >= self._max_streams:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many streams are open; ask for the state instead, now and then",
                {"Retry-After": str(FULL_AFTER_S)},
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def not_seen_to_its_end(self, call_id: CallId, last_event_id: LastEventId = None) -> None:
        """Have a browser that comes back for more, when there is none, come back no more."""
        if last_event_id is None:
            return
        now = self._seen(call_id, await read_record(await self._results(), call_id))
        if now.status.is_final and now.event_id == last_event_id:
            raise HTTPException(HTTPStatus.NO_CONTENT)

    def _seen(self, call_id: str, record: ResultRecord | None) -> CallState:
        if record is None:
            return CallState(
                id=call_id, task=None, status=ResultStatus.QUEUED, attempt=0,
                updated_at=None, progress=None, result=None, error=None,
            )  # fmt: skip
        return CallState(
            id=record.call_id,
            task=record.task,
            status=record.status,
            attempt=record.attempt,
            updated_at=datetime.fromtimestamp(record.updated_ms / 1000, UTC),
            progress=_progress(record),
            result=None if record.value is None else json.loads(shown(record.value)),
            error=record.error if self._show_errors else None,
        )


def results_router(view: ResultsView, lifespan: Lifespan) -> APIRouter:
    """The router to include."""
    router = APIRouter(lifespan=lifespan)
    router.add_api_route("/{call_id}", view.state, methods=["GET"], summary="State and result of a call")
    more: dict[int | str, dict[str, Any]] = {
        HTTPStatus.NO_CONTENT: {"description": "`Last-Event-ID` names the end: there is nothing more to come."},
        HTTPStatus.SERVICE_UNAVAILABLE: {"description": "As many streams are open as may be; `Retry-After` says more."},
    }
    router.add_api_route(
        "/{call_id}/events",
        view.stream,
        methods=["GET"],
        summary="State and result of a call as they change",
        response_class=EventSourceResponse,
        dependencies=[Depends(view.admit), Depends(view.not_seen_to_its_end)],
        responses=more,
    )
    return router


def _event(now: CallState, before: CallState | None) -> str:
    if now.status.is_final:
        return "result" if now.status is ResultStatus.SUCCEEDED else "failed"
    same = before is not None and (now.status, now.attempt) == (before.status, before.attempt)
    return "progress" if same and now.progress is not None else "status"


def _progress(record: ResultRecord) -> CallProgress | None:
    if record.progress is None:
        return None
    known = Progress.from_json(record.progress)
    return CallProgress(done=known.done, total=known.total, note=known.note, fraction=known.fraction)


def _over() -> Callable[[], bool]:
    """Whether a stream that begins now has to end: it has lasted long enough, or its server has been told to stop.

    uvicorn waits for every answer before it tells an application that it stops; but its handler of signals knows.
    """
    until_s = time.monotonic() + STREAM_LIFE_S
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return lambda: time.monotonic() >= until_s or getattr(server, "should_exit", False) is True
