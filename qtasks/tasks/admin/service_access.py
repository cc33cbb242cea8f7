"""How `QTasks.messages` and `QTasks.dlq` reach the service: by the publisher of the application."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TypeVar

from qtasks.tasks.admin.searches import ListRequest
from qtasks.tasks.admin.service_steps import Steps, arun_steps, run_steps
from qtasks.tasks.send.runtime_port import Runtime

T = TypeVar("T")


class ServiceAccess:
    """Runs the steps of an operation, in sync and in async code."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def _run(self, steps: Steps[T]) -> T:
        return run_steps(steps, self._runtime.publisher().run)

    async def _arun(self, steps: Steps[T]) -> T:
        return await arun_steps(steps, (await self._runtime.apublisher()).arun)

    def _request(self, text: str, count: int, cursor: str | None) -> ListRequest:
        is_hosted = self._runtime.settings().is_hosted
        return ListRequest(text, count, cursor, self._runtime.now_ms(), asks_console=not is_hosted)

    async def _arequest(self, text: str, count: int, cursor: str | None) -> ListRequest:
        return await asyncio.to_thread(self._request, text, count, cursor)

    @staticmethod
    def _following(request: ListRequest, cursor: str | None) -> ListRequest | None:
        """The request for the next page; None behind the last one."""
        return None if cursor is None else replace(request, cursor=cursor)
