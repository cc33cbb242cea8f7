"""A client of QStash, for the hosted service and for a broker of your own. It replaces the official Python SDK.

To switch, replace `from qstash import QStash` by `from qtasks.qstash import QStash`; nothing else changes.
"""

from qtasks.qstash.asyncio.client import AsyncQStash
from qtasks.qstash.client import QStash
from qtasks.qstash.conversation.exchange import Retry
from qtasks.qstash.conversation.transport import AsyncTransport, Reply, Request, SyncTransport
from qtasks.qstash.receiver import Receiver

__all__ = ["AsyncQStash", "AsyncTransport", "QStash", "Receiver", "Reply", "Request", "Retry", "SyncTransport"]
