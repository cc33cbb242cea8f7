"""Results over HTTP: the state of a call for a page in a browser, as JSON and as server-sent events.

The application includes the router, and protects it in the same way as its pages. The stream is FastAPI's own: it
keeps quiet connections alive, and ends when the browser disconnects. It also ends after some minutes, when its server
stops, and after the last event. The browser then reconnects and sends the id of the last event that it received; it
gets what is new, or a 204 if there will be no more events.
"""

from __future__ import annotations

import asyncio
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
from qtasks.tasks.encode.encoding import shown
from qtasks.tasks.ports import Lifespan
from qtasks.tasks.progress import Progress
from qtasks.tasks.results.backend import ResultBackend, ResultRecord, ResultStatus, read_record
from qtasks.tasks.results.inquiry import Inquiries, Subject
from qtasks.tasks.results.waiting import states

STREAM_LIFE_S = 300.0
"""The longest time of one stream. The browser reconnects, with the permissions that it has by then."""

RECONNECT_MS = 2_000
"""How long a browser waits before it reconnects."""

FULL_AFTER_S = 5

CallId = Annotated[
    str,
    Path(
        pattern=f"^{envelope.ID.pattern}$",
        description="The `id` of the handle that `.delay()` returned. Everyone who knows it may read the state.",
    ),
]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="Of the last event that was seen; browsers send it again.")
]


class CallProgress(BaseModel):
    """The progress of a running call, in the unit that its task uses."""

    done: float
    total: float | None = Field(description="Null if it is not known.")
    note: str
    fraction: float | None = Field(description="From 0 to 1; null if the total is not known.")


class CallState(BaseModel):
    """The state of a call, and its result."""

    id: str
    task: str | None = Field(description="Null until the call has reported something.")
    status: ResultStatus = Field(
        description="`queued`: the call has not begun, or nothing is known of it. An id that neither the results nor "
        "the broker know is answered 404; the hosted service does not say whether it knows an id."
    )
    attempt: int = Field(description="1 in the first; 0 before it.")
    updated_at: datetime | None
    progress: CallProgress | None
    result: JsonValue = Field(
        description="What the task returned, once it has succeeded; size and hash of a result that JSON cannot carry."
    )
    error: str | None = Field(
        description="Why the last attempt failed, or why the call did not finish; null if errors are not shown."
    )

    @property
    def event_id(self) -> str:
        """An id that is equal for equal states."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


OpenResults = Callable[[], Awaitable[ResultBackend]]
"""Opens the result backend. Raises ResultsDisabled."""


class ResultsView:
    """Reads the results of one application, with at most `max_streams` open streams.

    `inquiries` are those of the application: what is overdue is asked about, as a handle does.
    """

    def __init__(
        self, results: OpenResults, inquiries: Callable[[], Inquiries], *, show_errors: bool, max_streams: int
    ) -> None:
        self._results = results
        self._inquiries = inquiries
        self._show_errors = show_errors
        self._max_streams = max_streams
        self._streams = 0

    async def state(self, call_id: CallId, response: Response) -> CallState:
        """The state of the call now, and its result if there is one. Answers 404 for an unknown call."""
        response.headers["Cache-Control"] = "no-store"
        record = await read_record(await self._results(), call_id)
        await self._check_known(call_id, record)
        return self._state_of(call_id, record)

    async def stream(self, call_id: CallId, last_event_id: LastEventId = None) -> AsyncIterator[ServerSentEvent]:
        """The state of a call as it changes. The data of each event is the whole state.

        After `status` and `progress` events follows one `result` event (the call has succeeded) or one `failed` event
        (its status says how), and then the stream ends.
        """
        yield ServerSentEvent(retry=RECONNECT_MS)
        over, before = _over(), None
        latest: ResultRecord | None = None

        def is_over() -> bool:
            # A call that is dead at the service is ended there, which changes its record.
            self._inquiries().ask_soon(_subject(call_id, latest), latest, lambda: None)
            return over()

        async for record in states(await self._results(), call_id, is_over):
            latest = record
            now = self._state_of(call_id, record)
            if now.event_id != last_event_id:
                yield ServerSentEvent(event=_event(now, before), id=now.event_id, raw_data=now.model_dump_json())
            before = now

    async def admit(self) -> AsyncIterator[None]:
        """Count one stream while it is open. Answers 503 if there are too many."""
        if self._streams >= self._max_streams:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many streams are open; read the state from time to time instead",
                {"Retry-After": str(FULL_AFTER_S)},
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def stop_reconnecting(self, call_id: CallId, last_event_id: LastEventId = None) -> None:
        """Answer 204 to an EventSource that reconnects after the final event, so that it stops.

        Answers 404 for an unknown call.
        """
        record = await read_record(await self._results(), call_id)
        await self._check_known(call_id, record)
        if last_event_id is None:
            return
        now = self._state_of(call_id, record)
        if now.status.is_final and now.event_id == last_event_id:
            raise HTTPException(HTTPStatus.NO_CONTENT)

    async def _check_known(self, call_id: str, record: ResultRecord | None) -> None:
        """Answer 404 for an id that neither the results nor the broker know; ask about a call that is overdue."""
        inquiries, subject = self._inquiries(), _subject(call_id, record)
        state = inquiries.known(subject, record)
        if inquiries.is_due(subject, record, at_once=True):
            state = await asyncio.to_thread(inquiries.state, subject, record, at_once=True)
        if record is None and state is not None and state.status is ResultStatus.UNKNOWN:
            raise HTTPException(HTTPStatus.NOT_FOUND, "neither the results nor the broker know a call with this id")

    def _state_of(self, call_id: str, record: ResultRecord | None) -> CallState:
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
    responses: dict[int | str, dict[str, Any]] = {
        HTTPStatus.NOT_FOUND: {"description": "Neither the results nor the broker know the call."},
        HTTPStatus.NO_CONTENT: {"description": "`Last-Event-ID` names the final event: there are no more."},
        HTTPStatus.SERVICE_UNAVAILABLE: {"description": "Too many open streams; `Retry-After` says when to try again."},
    }
    router.add_api_route(
        "/{call_id}/events",
        view.stream,
        methods=["GET"],
        summary="State and result of a call as they change",
        response_class=EventSourceResponse,
        dependencies=[Depends(view.admit), Depends(view.stop_reconnecting)],
        responses=responses,
    )
    return router


def _subject(call_id: str, record: ResultRecord | None) -> Subject:
    return Subject("" if record is None else record.task, call_id)


def _event(now: CallState, before: CallState | None) -> str:
    if now.status.is_final:
        return "result" if now.status is ResultStatus.SUCCEEDED else "failed"
    same = before is not None and (now.status, now.attempt) == (before.status, before.attempt)
    return "progress" if same and now.progress is not None else "status"


def _progress(record: ResultRecord) -> CallProgress | None:
    if record.progress is None:
        return None
    progress = Progress.from_json(record.progress)
    return CallProgress(done=progress.done, total=progress.total, note=progress.note, fraction=progress.fraction)


def _over() -> Callable[[], bool]:
    """Returns a function that is true once the stream that begins now must end: after its time, or with its server."""
    until_s = time.monotonic() + STREAM_LIFE_S
    server = serving_uvicorn()
    return lambda: time.monotonic() >= until_s or getattr(server, "should_exit", False) is True


def serving_uvicorn() -> object | None:
    """The uvicorn server of this process, or None.

    uvicorn waits for every response before it tells the application that it stops, so an endless stream would block the
    stop. Its attribute `should_exit` is true from the signal on, and its handler of SIGTERM is a method of the server.
    """
    return getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
