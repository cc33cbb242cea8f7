"""Settings of the HTTP layer, under the module name of the official package."""

from qtasks.qstash.conversation.credentials import BASE_URL
from qtasks.qstash.conversation.exchange import DEFAULT_RETRIES, RetryConfig, official_backoff
from qtasks.qstash.conversation.operation import HttpMethod
from qtasks.qstash.conversation.sync_driver import HttpClient

__all__ = ["BASE_URL", "DEFAULT_RETRY", "NO_RETRY", "HttpClient", "HttpMethod", "RetryConfig"]

DEFAULT_RETRY = RetryConfig(retries=DEFAULT_RETRIES, backoff=official_backoff)
"""How a client repeats its requests by default."""

NO_RETRY = RetryConfig(retries=0, backoff=lambda _: 0)
"""The meaning of `retry=False`: no retries."""
