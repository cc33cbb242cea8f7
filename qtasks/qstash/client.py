"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from qtasks.protocol.messages import PublishOptions
from qtasks.protocol.service_url import shown
from qtasks.qstash.chat import ChatApi
from qtasks.qstash.conversation import sync_driver
from qtasks.qstash.conversation.exchange import DEFAULT_TIMEOUT_S, Retry, RetryConfig
from qtasks.qstash.conversation.sync_driver import HttpClient
from qtasks.qstash.conversation.transport import SyncTransport
from qtasks.qstash.dlq import DlqApi
from qtasks.qstash.event import EventApi
from qtasks.qstash.flow_control_api import FlowControlApi
from qtasks.qstash.log import LogApi
from qtasks.qstash.message import MessageApi
from qtasks.qstash.operations import publishing
from qtasks.qstash.operations.publishing import BatchError, BatchResponse, EnqueueResponse, PublishResponse, RawMessage
from qtasks.qstash.queue import QueueApi
from qtasks.qstash.schedule import ScheduleApi
from qtasks.qstash.signing_key import SigningKeyApi
from qtasks.qstash.url_group import UrlGroupApi


class QStash:
    """A client of a QStash service: the hosted one, a broker of your own, or the embedded broker. Thread-safe.

    Args:
        token: The account's token; default `QSTASH_TOKEN`.
        retry: How the client repeats its own requests after a network error or an error of the service: a `Retry`,
            the official SDK's ``{"retries": 5, "backoff": milliseconds_of}``, or False for no retries. (How often the
            service repeats a delivery is an option of each message.)
        base_url: URL of the service; default `QSTASH_URL`, else the hosted service. If `QSTASH_REGION` is set, the
            variables of that region win (``EU_CENTRAL_1_QSTASH_URL``, ...).
        transport: Sends the requests; default httpx with a pool of connections. The client closes it.
        timeout_s: Seconds that one attempt may take.
        sleep: Function that waits between attempts; takes seconds.
        monotonic: Function that returns the time in seconds, which limits the retries.

    Raises ConfigurationError if there is no token. The URL is checked when it is used. Close the client, or use it as a
    context manager.
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        retry: RetryConfig | Retry | bool | None = None,
        base_url: str | None = None,
        transport: SyncTransport | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        sleep: Callable[[float], None] = sync_driver.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.http = HttpClient(
            token, retry, base_url, transport=transport, timeout_s=timeout_s, sleep=sleep, monotonic=monotonic
        )
        self.message = MessageApi(self.http)
        self.url_group = UrlGroupApi(self.http)
        self.queue = QueueApi(self.http)
        self.schedule = ScheduleApi(self.http)
        self.signing_key = SigningKeyApi(self.http)
        self.log = LogApi(self.http)
        self.event = EventApi(self.http)
        self.dlq = DlqApi(self.http)
        self.flow_control = FlowControlApi(self.http)
        self.chat = ChatApi(self.http)

    def publish_raw(self, destination: str, body: bytes, options: PublishOptions) -> PublishResponse:
        """Publish to one URL. For frameworks: `options` is the protocol's own value, not keyword arguments."""
        return self.http.run(publishing.publish_raw(destination, body, options, retry_id=self.http.new_retry_id()))

    def enqueue_raw(self, queue: str, destination: str, body: bytes, options: PublishOptions) -> EnqueueResponse:
        """As `publish_raw`, through a queue. A queue that does not exist is created."""
        return self.http.run(
            publishing.enqueue_raw(queue, destination, body, options, retry_id=self.http.new_retry_id())
        )

    def batch_raw(self, messages: Sequence[RawMessage]) -> list[BatchResponse | BatchError]:
        """Publish or enqueue many messages in one request. Returns one answer for each message, in order.

        A message that the service refuses gets a `BatchError`; the others are not affected.
        """
        return self.http.run(publishing.batch_raw(messages, new_retry_id=self.http.new_retry_id))

    def close(self) -> None:
        """Close the connections. Calling it again does nothing."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"QStash(base_url={shown(self.http.credentials.base_url)!r})"
