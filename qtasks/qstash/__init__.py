"""A client of QStash: a drop-in for the official Python SDK, for the hosted service and for a broker of your own.

`from qtasks.qstash import QStash` instead of `from qstash import QStash` is all that changes.
"""

from qtasks.qstash.asyncio.client import AsyncQStash
from qtasks.qstash.client import QStash
from qtasks.qstash.conversation.exchange import Retry
from qtasks.qstash.conversation.transport import AsyncTransport, Reply, Request, SyncTransport
from qtasks.qstash.receiver import Receiver

__all__ = ["AsyncQStash", "AsyncTransport", "QStash", "Receiver", "Reply", "Request", "Retry", "SyncTransport"]
