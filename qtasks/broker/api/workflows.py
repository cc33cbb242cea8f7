"""The workflow endpoints of the wire (docs/protocol.md 2.14), which are not served."""

from __future__ import annotations

from qtasks.broker.api.call import Call, Refusal, Reply
from qtasks.broker.api.context import Context


async def refuse(context: Context, account: int, call: Call, *rest: str) -> Reply:
    """501: said plainly, so that nobody waits for a workflow that never runs."""
    raise Refusal(501, "workflows are not served by this broker; the rest of the QStash API is")
