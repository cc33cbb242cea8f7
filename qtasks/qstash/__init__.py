"""A client of QStash: a drop-in for the official Python SDK, for the hosted service and for a broker of your own.

`from qtasks.qstash import QStash` instead of `from qstash import QStash` is all that changes.
"""

from qtasks.qstash.asyncio.client import AsyncQStash
from qtasks.qstash.client import QStash
from qtasks.qstash.exchange import Retry
from qtasks.qstash.receiver import Receiver
from qtasks.qstash.transport import AsyncTransport, Reply, Request, SyncTransport

__all__ = ["AsyncQStash", "AsyncTransport", "QStash", "Receiver", "Reply", "Request", "Retry", "SyncTransport"]
