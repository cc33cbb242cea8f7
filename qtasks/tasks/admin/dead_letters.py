"""`QTasks.dlq`: search, look at, retry and delete the dead letters of the service."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Unpack

from qtasks.tasks.admin import actions
from qtasks.tasks.admin.filter_words import FilterOptions, written
from qtasks.tasks.admin.searches import MAX_PAGE, ListRequest
from qtasks.tasks.admin.searches import dead_letters as search
from qtasks.tasks.admin.service_access import ServiceAccess
from qtasks.tasks.admin.summaries import DeadLetterPage, DeadLetterSummary

if TYPE_CHECKING:
    from qtasks.qstash.dlq import DlqMessage


class DeadLetters(ServiceAccess):
    """The messages that failed for good. Methods whose name begins with ``a`` do not block the event loop.

    Filters and errors are those of `Messages`: ``tasks.dlq.retry_all(task="charge")`` tries all of one task again.
    """

    def list(
        self, text: str = "", *, count: int = 50, cursor: str | None = None, **options: Unpack[FilterOptions]
    ) -> DeadLetterPage:
        """At most `count` (1 to 100) dead letters that match, from `cursor` on, newest first.

        A service that does not know that order begins with the oldest.
        """
        return self._run(search(self._request(written(text, options), count, cursor)))

    async def alist(
        self, text: str = "", *, count: int = 50, cursor: str | None = None, **options: Unpack[FilterOptions]
    ) -> DeadLetterPage:
        """As `list`."""
        return await self._arun(search(await self._arequest(written(text, options), count, cursor)))

    def iterate(self, text: str = "", **options: Unpack[FilterOptions]) -> Iterator[DeadLetterSummary]:
        """All dead letters that match; pages are read as they are needed."""
        request: ListRequest | None = self._request(written(text, options), MAX_PAGE, None)
        while request is not None:
            page = self._run(search(request))
            yield from page.dead_letters
            request = self._following(request, page.cursor)

    async def aiterate(self, text: str = "", **options: Unpack[FilterOptions]) -> AsyncIterator[DeadLetterSummary]:
        """As `iterate`."""
        request: ListRequest | None = await self._arequest(written(text, options), MAX_PAGE, None)
        while request is not None:
            page = await self._arun(search(request))
            for letter in page.dead_letters:
                yield letter
            request = self._following(request, page.cursor)

    def get(self, dlq_id: str) -> DlqMessage:
        """A dead letter with its body and the last response. Raises ApiError (404)."""
        return self._run(actions.get_dead_letter(dlq_id))

    async def aget(self, dlq_id: str) -> DlqMessage:
        """As `get`."""
        return await self._arun(actions.get_dead_letter(dlq_id))

    def retry(self, *dlq_ids: str) -> builtins.list[str]:
        """Publish dead letters again, which removes them, and return the new message ids. Unknown ids are skipped."""
        return self._run(actions.retry_dead_letters(dlq_ids))

    async def aretry(self, *dlq_ids: str) -> builtins.list[str]:
        """As `retry`."""
        return await self._arun(actions.retry_dead_letters(dlq_ids))

    def retry_all(self, text: str = "", **options: Unpack[FilterOptions]) -> builtins.list[str]:
        """As `retry`, for all dead letters that match; without a filter for all there are.

        The list is read first, so a message that fails again meanwhile is not published a second time.
        """
        return self.retry(*[letter.dlq_id for letter in self.iterate(text, **options)])

    async def aretry_all(self, text: str = "", **options: Unpack[FilterOptions]) -> builtins.list[str]:
        """As `retry_all`."""
        return await self.aretry(*[letter.dlq_id async for letter in self.aiterate(text, **options)])

    def delete(self, *dlq_ids: str) -> int:
        """Delete dead letters, and return how many were there."""
        return self._run(actions.delete_dead_letters(dlq_ids))

    async def adelete(self, *dlq_ids: str) -> int:
        """As `delete`."""
        return await self._arun(actions.delete_dead_letters(dlq_ids))
