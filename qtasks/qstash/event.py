"""The log, under its name in the 2.x API of the official package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtasks.qstash import log
from qtasks.qstash.log import Log as Event
from qtasks.qstash.log import LogFilter as EventFilter
from qtasks.qstash.log import LogState as EventState

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient

__all__ = ["Event", "EventApi", "EventFilter", "EventState", "ListEventsResponse"]


@dataclass
class ListEventsResponse:
    """One page of the log."""

    cursor: str | None
    """Pass it as `cursor` to get the next page; None on the last page."""
    events: list[Event]
    """The log entries, newest first."""

    @classmethod
    def of(cls, page: log.ListLogsResponse) -> ListEventsResponse:
        """The same page, with the field names of the 2.x API."""
        return cls(cursor=page.cursor, events=page.logs)


class EventApi:
    """As `LogApi`, with the names of the 2.x API."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def list(
        self,
        *,
        cursor: str | None = None,
        count: int | None = None,
        filter: EventFilter | None = None,  # noqa: A002 - the official SDK's name
    ) -> ListEventsResponse:
        """As `LogApi.list`."""
        return ListEventsResponse.of(self._http.run(log.list_page(cursor, count, filter)))
