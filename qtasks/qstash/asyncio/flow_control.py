"""The asynchronous counterpart of `qtasks.qstash.flow_control_api`."""

from __future__ import annotations

import builtins

from qtasks.qstash import flow_control_api
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.flow_control_api import (
    FlowControlInfo,
    GlobalParallelismInfo,
    PinFlowControlOptions,
    UnpinFlowControlOptions,
)


class AsyncFlowControlApi:
    """As `FlowControlApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def get(self, flow_control_key: str) -> FlowControlInfo:
        """As `FlowControlApi.get`."""
        return await self._http.run(flow_control_api.get(flow_control_key))

    async def list(self, *, search: str | None = None) -> builtins.list[FlowControlInfo]:
        """As `FlowControlApi.list`."""
        return await self._http.run(flow_control_api.list_all(search))

    async def get_global_parallelism(self) -> GlobalParallelismInfo:
        """As `FlowControlApi.get_global_parallelism`."""
        return await self._http.run(flow_control_api.get_global_parallelism())

    async def pause(self, flow_control_key: str) -> None:
        """As `FlowControlApi.pause`."""
        await self._http.run(flow_control_api.pause(flow_control_key))

    async def resume(self, flow_control_key: str) -> None:
        """As `FlowControlApi.resume`."""
        await self._http.run(flow_control_api.resume(flow_control_key))

    async def pin(self, flow_control_key: str, options: PinFlowControlOptions) -> None:
        """As `FlowControlApi.pin`."""
        await self._http.run(flow_control_api.pin(flow_control_key, options))

    async def unpin(self, flow_control_key: str, options: UnpinFlowControlOptions) -> None:
        """As `FlowControlApi.unpin`."""
        await self._http.run(flow_control_api.unpin(flow_control_key, options))

    async def reset_rate(self, flow_control_key: str) -> None:
        """As `FlowControlApi.reset_rate`."""
        await self._http.run(flow_control_api.reset_rate(flow_control_key))

    async def reset(self, flow_control_key: str) -> None:
        """As `FlowControlApi.reset`."""
        await self._http.run(flow_control_api.reset(flow_control_key))
