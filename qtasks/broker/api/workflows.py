"""The workflow endpoints of the wire (docs/protocol.md 2.14), which are not served."""

from __future__ import annotations

from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError


async def refuse(context: ApiContext, account: int, request: ApiRequest, *rest: str) -> ApiResponse:
    """501, so that no client waits for a workflow that never runs."""
    raise HttpError(501, "workflows are not served by this broker; the rest of the QStash API is")
