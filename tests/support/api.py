"""A complete broker in memory that a test drives step by step: a virtual clock, scripted endpoints, no sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError
from qtasks.broker.api.auth import Principal, TokenScope
from qtasks.broker.broker import Broker
from qtasks.broker.events import MessageEvent
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.settings import DEV_CREDENTIALS, BrokerSettings
from qtasks.protocol.messages import Response
from tests.support.broker import ScriptedTransport, SeededRandom, VirtualClock

HOOK = "http://127.0.0.1:8000/hook"
READ_ONLY = "read-only-token"


class Answered:
    """A reply of the API, read to its end."""

    def __init__(self, reply: ApiResponse) -> None:
        self.status = reply.status
        self.headers = {name.lower(): value for name, value in reply.headers}
        self.body = reply.body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        error = self.json["error"]
        text = error["message"] if isinstance(error, dict) else error  # the chat endpoint words it as OpenAI does
        assert isinstance(text, str)
        return text


class Service:
    """The broker's API and its loops, one step at a time."""

    def __init__(self, broker: Broker, clock: VirtualClock, transport: ScriptedTransport) -> None:
        self.broker = broker
        self.clock = clock
        self.transport = transport
        self.user = 0
        self.events: list[MessageEvent] = []
        broker.watchers.add(self.events.append)
        broker.tokens.add(READ_ONLY, Principal(broker.accounts[DEV_CREDENTIALS[0].name], TokenScope.READ))

    @classmethod
    async def open(cls, path: str = ":memory:", clock: VirtualClock | None = None, **settings: Any) -> Service:
        clock = clock or VirtualClock()
        transport = ScriptedTransport()
        broker = await Broker.open(
            BrokerSettings(path=path, **settings), transport=transport, clock=clock, random=SeededRandom()
        )
        return cls(broker, clock, transport)

    async def close(self) -> None:
        await self.broker.stop()

    def answer(self, *outcomes: Response | Failure | int) -> None:
        """Answer deliveries with `outcomes` in order (an int is a status), the last one again and again."""
        queue = [Response(status=outcome) if isinstance(outcome, int) else outcome for outcome in outcomes]
        self.transport.answer = lambda request: queue.pop(0) if len(queue) > 1 else queue[0]

    async def call(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | str = b"",
        *,
        json_body: Any = None,
        token: str | None = None,
    ) -> Answered:
        content = json.dumps(json_body).encode() if json_body is not None else body
        content = content.encode() if isinstance(content, str) else content
        path, _, query = target.partition("?")

        async def read(limit: int) -> bytes:
            if len(content) > limit:
                raise HttpError(413, f"message too large: {len(content)} > {limit}")
            return content

        lines = {"Authorization": f"Bearer {token or DEV_CREDENTIALS[self.user].token}", **(headers or {})}
        reply = await self.broker.api.handle(ApiRequest(method, path, query, tuple(lines.items()), "203.0.113.7", read))
        return Answered(await reply.whole())

    async def get(self, target: str) -> Any:
        answered = await self.call("GET", target)
        assert answered.status == 200, answered.body
        return answered.json

    async def post(self, target: str, headers: Mapping[str, str] | None = None, body: bytes | str = b"") -> Any:
        answered = await self.call("POST", target, headers, body)
        assert 200 <= answered.status < 300, answered.body
        return answered.json

    async def publish(self, url: str = HOOK, body: bytes | str = b"", **headers: str) -> str:
        """Publish a message and return its id; `headers` are `Upstash-` headers without the prefix."""
        lines = {f"Upstash-{name.replace('_', '-')}": value for name, value in headers.items()}
        message_id = (await self.post(f"/v2/publish/{url}", lines, body))["messageId"]
        assert isinstance(message_id, str)
        return message_id

    async def run(self) -> list[DeliveryRequest]:
        """Fire schedules and deliver messages until nothing more is due; the requests that were sent."""
        before = len(self.transport.sent)
        while await self.broker.scheduler.run_once() + await self.broker.deliverer.run_once():
            pass
        return self.transport.sent[before:]

    async def states(self, message_id: str) -> list[str]:
        page = await self.get(f"/v2/events?messageId={message_id}&order=earliestFirst")
        return [entry["state"] for entry in page["events"]]


def header(request: DeliveryRequest, name: str) -> str | None:
    return next((value for line, value in request.headers if line.lower() == name.lower()), None)
