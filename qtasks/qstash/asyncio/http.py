"""The asynchronous counterpart of `qtasks.qstash.http`."""

from qtasks.qstash.conversation.async_driver import AsyncHttpClient

__all__ = ["AsyncHttpClient"]
