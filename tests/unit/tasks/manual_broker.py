"""A broker without a clock or a store: it keeps what an application publishes until a test delivers it, signed."""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import Any

from qtasks import QTasks
from qtasks.protocol import signing
from qtasks.protocol.messages import PublishOptions
from qtasks.protocol.wire import read
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.run.attempt import Delivery
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.testing.fakes.virtual_clock import TaskClock, VirtualClock
from tests.support.tasks import BASE_URL, KEYS, RecordingBroker


class SentMessage:
    """One message that the application has published."""

    def __init__(self, request: Request, message_id: str) -> None:
        self.url = re.split(r"/v2/(?:publish|enqueue/[^/]+)/", request.url)[1]
        self.task = request.url.rsplit("/", 1)[-1]
        self.body = request.body
        self.headers = dict(request.headers)
        self.options: PublishOptions = read(request.headers)
        self.message_id = message_id
        parts = request.url.partition("/v2/enqueue/")[2].split("/")
        self.queue: str | None = parts[0] or None

    @property
    def envelope(self) -> Any:
        return json.loads(self.body)


class ManualBroker:
    """The broker of the application `tasks`.

    `messages` contains what was published and not taken yet, oldest first. `clock` stands still until a test moves it.
    """

    def __init__(self, **overrides: Any) -> None:
        self.embedded = RecordingBroker(base_url=BASE_URL)
        self.embedded.transport.send = self._send  # type: ignore[method-assign]
        self.tasks = QTasks(embedded=self.embedded, **overrides)
        self.clock = VirtualClock(int(time.time()) * 1000)
        self.tasks.runtime.clock = TaskClock(self.clock)
        self.messages: list[SentMessage] = []
        self.refuses = ""
        """Batch items with this text in their body are refused."""
        self._ids = itertools.count(1)
        self._tokens = itertools.count(1)

    def take(self) -> SentMessage:
        """Remove and return the only message; it is an error if there are several or none."""
        (message,) = self.messages
        self.messages.clear()
        return message

    async def deliver(
        self, message: SentMessage | None = None, *, retried: int = 0, token: str | None = None
    ) -> DispatchResponse:
        """Deliver a message, by default the only one. `token` replaces the signature, to replay an earlier one."""
        delivery = self.delivery(message or self.take(), retried=retried, token=token)
        return await self.tasks.runtime.dispatcher().answer(delivery)

    def delivery(self, message: SentMessage, *, retried: int = 0, token: str | None = None) -> Delivery:
        """The signed delivery of a message, as the dispatcher receives it."""
        signed = token or signing.sign(
            KEYS.current,
            url=f"{BASE_URL}/{message.task}",
            body=message.body,
            now_s=self.clock.now_ms() // 1000,
            jti=f"jwt_{next(self._tokens)}",
        )
        return Delivery(
            task=message.task, body=message.body, signature=signed, message_id=message.message_id, retried=retried
        )

    def close(self) -> None:
        self.tasks.close()

    def _send(self, request: Request, timeout_s: float) -> Reply:
        self.embedded.transport.requests.append(request)
        if request.method == "DELETE":
            return self._cancel(request.url.rsplit("/", 1)[-1])
        if request.url.endswith("/v2/batch"):
            return _accepted([self._publish_item(item) for item in json.loads(request.body)])
        return _accepted(self._keep(SentMessage(request, self._new_id())))

    def _publish_item(self, item: Any) -> dict[str, str]:
        if self.refuses and self.refuses in item["body"]:
            return {"error": "refused"}
        url, body = f"/v2/publish/{item['destination']}", item["body"].encode()
        message = SentMessage(Request("POST", url, tuple(item["headers"].items()), body), self._new_id())
        message.queue = item["queue"]
        return self._keep(message)

    def _cancel(self, message_or_call_id: str) -> Reply:
        """Cancel a message that waits, by message id or call id, as our own broker does."""
        for message in self.messages:
            if message_or_call_id in (message.message_id, message.envelope["id"]):
                self.messages.remove(message)
                return _answer(200, {"cancelled": 1})
        return _answer(404, {"error": "not found, or already finished"})

    def _keep(self, message: SentMessage) -> dict[str, str]:
        self.messages.append(message)
        return {"messageId": message.message_id}

    def _new_id(self) -> str:
        return f"msg_{next(self._ids)}"


def _accepted(document: Any) -> Reply:
    return _answer(201, document)


def _answer(status: int, document: Any) -> Reply:
    return Reply(status, (("Content-Type", "application/json"),), json.dumps(document).encode())


def json_of(answer: DispatchResponse) -> Any:
    """The JSON in the body of a dispatch response."""
    return json.loads(answer.body)


async def run(broker: ManualBroker, *, twice: bool = False) -> int:
    """Deliver all messages and those that follow, each deduplication id once."""
    seen: set[str] = set()
    count = 0
    while broker.messages:
        message = broker.messages.pop(0)
        once = message.options.deduplication_id or message.message_id
        if once in seen:
            continue
        seen.add(once)
        count += 1
        for _ in range(2 if twice else 1):
            await broker.deliver(message)
    return count
