"""The asynchronous twin of `qtasks.qstash.http`."""

from qtasks.qstash.aio import AsyncHttpClient

__all__ = ["AsyncHttpClient"]
