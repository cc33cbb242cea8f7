"""`QTasks.messages`: search, look at, cancel and retry the messages of the service, of other programs, too."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Unpack

from qtasks.tasks.admin import actions
from qtasks.tasks.admin.filter_words import FilterOptions, written
from qtasks.tasks.admin.searches import MAX_PAGE, ListRequest
from qtasks.tasks.admin.searches import messages as search
from qtasks.tasks.admin.service_access import ServiceAccess
from qtasks.tasks.admin.summaries import MessagePage, MessageSummary

if TYPE_CHECKING:
    from qtasks.qstash.message import Message


class Messages(ServiceAccess):
    """The messages of the service. Methods whose name begins with ``a`` do not block the event loop.

    `text` is a filter such as ``"task:charge status:failed after:2h"`` (docs/console.md); keyword arguments are words
    of it. A broker of ours searches itself. On other services the log is read and compared here, as far as the service
    keeps it. Errors are those of the client: ApiError, BrokerUnreachable; InvalidCallError for a filter that cannot be
    read.
    """

    def list(
        self, text: str = "", *, count: int = 50, cursor: str | None = None, **options: Unpack[FilterOptions]
    ) -> MessagePage:
        """At most `count` (1 to 100) messages that match, newest first, from `cursor` on."""
        return self._run(search(self._request(written(text, options), count, cursor)))

    async def alist(
        self, text: str = "", *, count: int = 50, cursor: str | None = None, **options: Unpack[FilterOptions]
    ) -> MessagePage:
        """As `list`."""
        return await self._arun(search(await self._arequest(written(text, options), count, cursor)))

    def iterate(self, text: str = "", **options: Unpack[FilterOptions]) -> Iterator[MessageSummary]:
        """All messages that match, newest first; pages are read as they are needed."""
        request: ListRequest | None = self._request(written(text, options), MAX_PAGE, None)
        while request is not None:
            page = self._run(search(request))
            yield from page.messages
            request = self._following(request, page.cursor)

    async def aiterate(self, text: str = "", **options: Unpack[FilterOptions]) -> AsyncIterator[MessageSummary]:
        """As `iterate`."""
        request: ListRequest | None = await self._arequest(written(text, options), MAX_PAGE, None)
        while request is not None:
            page = await self._arun(search(request))
            for message in page.messages:
                yield message
            request = self._following(request, page.cursor)

    def get(self, message_id: str) -> Message:
        """A message by its id or, on a broker of ours, by the id of its call. Raises ApiError (404)."""
        return self._run(actions.get_message(message_id))

    async def aget(self, message_id: str) -> Message:
        """As `get`."""
        return await self._arun(actions.get_message(message_id))

    def cancel(self, *message_ids: str) -> int:
        """Cancel messages, and return how many were. Those that have ended are not counted."""
        return self._run(actions.cancel(message_ids))

    async def acancel(self, *message_ids: str) -> int:
        """As `cancel`."""
        return await self._arun(actions.cancel(message_ids))

    def retry(self, *message_ids: str) -> builtins.list[str]:
        """Publish messages again that failed for good, and return their new ids.

        Raises ApiError: 404 for a message that is unknown, 409 for one that has not failed. Those before it were sent.
        """
        return self._run(actions.retry_messages(message_ids))

    async def aretry(self, *message_ids: str) -> builtins.list[str]:
        """As `retry`."""
        return await self._arun(actions.retry_messages(message_ids))
