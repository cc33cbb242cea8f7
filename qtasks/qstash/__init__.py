"""A client of QStash, for the hosted service and for a broker of your own. It replaces the official Python SDK.

To switch, replace `from qstash import QStash` by `from qtasks.qstash import QStash`; nothing else changes. Each name is
loaded on first use: a program that needs one module of this package does not load all.
"""

from __future__ import annotations

# Type checkers treat this name as true; `typing` is not imported for it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from qtasks.qstash.asyncio.client import AsyncQStash as AsyncQStash
    from qtasks.qstash.client import QStash as QStash
    from qtasks.qstash.conversation.exchange import Retry as Retry
    from qtasks.qstash.conversation.transport import AsyncTransport as AsyncTransport
    from qtasks.qstash.conversation.transport import Reply as Reply
    from qtasks.qstash.conversation.transport import Request as Request
    from qtasks.qstash.conversation.transport import SyncTransport as SyncTransport
    from qtasks.qstash.receiver import Receiver as Receiver

__all__ = ["AsyncQStash", "AsyncTransport", "QStash", "Receiver", "Reply", "Request", "Retry", "SyncTransport"]

_MODULES = {
    "AsyncQStash": "asyncio.client",
    "AsyncTransport": "conversation.transport",
    "QStash": "client",
    "Receiver": "receiver",
    "Reply": "conversation.transport",
    "Request": "conversation.transport",
    "Retry": "conversation.exchange",
    "SyncTransport": "conversation.transport",
}
"""The module of each public name, below this package."""


def __getattr__(name: str) -> object:
    if (module := _MODULES.get(name)) is None:
        raise AttributeError(f"module 'qtasks.qstash' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"qtasks.qstash.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
