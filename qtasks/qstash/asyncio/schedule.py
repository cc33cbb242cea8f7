"""The asynchronous counterpart of `qtasks.qstash.schedule`."""

from __future__ import annotations

import builtins
from typing import Any, Unpack

from qtasks.qstash import schedule
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.operations.options import ScheduleKeywords
from qtasks.qstash.operations.publishing import Body, as_json
from qtasks.qstash.schedule import Schedule


class AsyncScheduleApi:
    """As `ScheduleApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def create(
        self, *, destination: str, cron: str, body: Body = None, **options: Unpack[ScheduleKeywords]
    ) -> str:
        """As `ScheduleApi.create`."""
        return await self._http.run(schedule.create(destination, cron, body, options, repeating=self._http.repeats))

    async def create_json(
        self, *, destination: str, cron: str, body: Any = None, **options: Unpack[ScheduleKeywords]
    ) -> str:
        """As `ScheduleApi.create_json`."""
        text, arguments = as_json(body, options)
        return await self._http.run(schedule.create(destination, cron, text, arguments, repeating=self._http.repeats))

    async def get(self, schedule_id: str) -> Schedule:
        """As `ScheduleApi.get`."""
        return await self._http.run(schedule.get(schedule_id))

    async def list(self) -> builtins.list[Schedule]:
        """As `ScheduleApi.list`."""
        return await self._http.run(schedule.list_all())

    async def delete(self, schedule_id: str) -> None:
        """As `ScheduleApi.delete`."""
        await self._http.run(schedule.delete(schedule_id))

    async def pause(self, schedule_id: str) -> None:
        """As `ScheduleApi.pause`."""
        await self._http.run(schedule.pause(schedule_id))

    async def resume(self, schedule_id: str) -> None:
        """As `ScheduleApi.resume`."""
        await self._http.run(schedule.resume(schedule_id))
