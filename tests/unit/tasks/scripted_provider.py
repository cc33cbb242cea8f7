"""A provider of language models whose answers a test scripts; the broker's own functions make the callbacks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qtasks.broker.core import message_builder
from qtasks.broker.core.values import DeliveryEndpoint
from qtasks.broker.ports import Failure
from qtasks.protocol import signing
from qtasks.protocol.messages import Message, Response
from tests.support.tasks import BASE_URL, KEYS, Answer, request
from tests.unit.tasks.manual_broker import ManualBroker, SentMessage

JSON = (("Content-Type", "application/json"),)


def openai_says(text: str | None, *, finish: str = "stop", model: str = "gpt", **message: Any) -> Response:
    """A completion in the form of OpenAI; its usage is 10 prompt tokens and 5 completion tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return Response(
        status=200, headers=JSON, body=json.dumps({"model": model, "choices": [choice], "usage": usage}).encode()
    )


def refuses(status: int, message: str = "no") -> Response:
    """An error response in the form that all providers have."""
    return Response(status=status, headers=JSON, body=json.dumps({"error": {"message": message}}).encode())


@dataclass(frozen=True)
class CallbackMessages:
    """The callback and, after the last attempt, the failure callback of one request to a provider."""

    callback: Message
    failure: Message | None = None


@dataclass
class ScriptedProvider:
    """The provider behind the application of `broker`. No request leaves the process: the test answers it."""

    broker: ManualBroker
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    def take_request(self) -> SentMessage:
        """Remove and return the only request that waits to be sent to the provider."""
        return self.broker.take()

    def callbacks_of(
        self, request: SentMessage, answer: Response | Failure, *, retried: int = 0, last: bool = False
    ) -> CallbackMessages:
        """The messages that the broker makes when an attempt to send `request` ends with `answer`."""
        publish = message_builder.ValidPublish(
            account=1,
            endpoints=(DeliveryEndpoint(request.url),),
            body=request.body,
            options=request.options,
            caller_ip="192.0.2.1",
        )
        now_ms = self.broker.clock.now_ms()
        message = message_builder.build_message(
            publish, publish.endpoints[0], message_id=request.message_id, now_ms=now_ms
        )
        number = next(self._ids)
        messages = message_builder.callbacks_of_attempt(
            replace(message, retried=retried),
            answer,
            ids=(f"msg_callback_{number}", f"msg_failure_{number}"),
            dead_letter_id="1-0" if last else None,
            now_ms=now_ms,
        )
        return CallbackMessages(*messages)

    async def deliver(
        self,
        message: Message,
        *,
        retried: int = 0,
        headers: Mapping[str, str] | None = None,
        url: str | None = None,
        signed: Message | None = None,
    ) -> Answer:
        """Deliver a callback. `headers` replaces its own; `url` and `signed` replace what is signed."""
        signed = signed or message
        token = signing.sign(
            KEYS.current,
            url=url or signed.url,
            body=signed.body,
            now_s=self.broker.clock.now_ms() // 1000,
            jti=f"jwt_provider_{next(self._ids)}",
        )
        lines = {
            "Upstash-Signature": token,
            "Upstash-Message-Id": message.id,
            "Upstash-Retried": str(retried),
            **(dict(message.headers) if headers is None else headers),
        }
        path = message.url.replace(BASE_URL, "/qtasks")
        return await request(self.broker.tasks.asgi_app(), path, message.body, headers=lines)

    async def answered(self, answer: Response | Failure) -> Answer:
        """Answer the only request that waits, and deliver its callback; the dispatcher's answer to that."""
        return await self.deliver(self.callbacks_of(self.take_request(), answer).callback)
