"""Settings of the HTTP layer, under the module name of the official package."""

from qtasks.qstash.calls import HttpMethod
from qtasks.qstash.credentials import BASE_URL
from qtasks.qstash.exchange import DEFAULT_RETRIES, RetryConfig, official_backoff
from qtasks.qstash.sync import HttpClient

__all__ = ["BASE_URL", "DEFAULT_RETRY", "NO_RETRY", "HttpClient", "HttpMethod", "RetryConfig"]

DEFAULT_RETRY = RetryConfig(retries=DEFAULT_RETRIES, backoff=official_backoff)
"""What a client does when nothing is said."""

NO_RETRY = RetryConfig(retries=0, backoff=lambda _: 0)
"""What `retry=False` means."""
