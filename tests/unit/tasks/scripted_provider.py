"""An application whose models are asked through the courier, and told of as our broker tells: by its own functions."""

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
from tests.unit.tasks.courier import Courier, Letter

JSON = (("Content-Type", "application/json"),)


def openai_says(text: str | None, *, finish: str = "stop", model: str = "gpt", **message: Any) -> Response:
    """An answer in the form of OpenAI, which cost 10 tokens in and 5 out."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return Response(
        status=200, headers=JSON, body=json.dumps({"model": model, "choices": [choice], "usage": usage}).encode()
    )


def refuses(status: int, message: str = "no") -> Response:
    """A refusal in the form that all providers have."""
    return Response(status=status, headers=JSON, body=json.dumps({"error": {"message": message}}).encode())


@dataclass(frozen=True)
class CallbackMessages:
    """The messages that tell of one attempt at a provider."""

    callback: Message
    failure: Message | None = None


@dataclass
class ScriptedProvider:
    """Asks nobody: what is published waits in `courier`, what a provider says is told by the test."""

    courier: Courier
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    def take_request(self) -> Letter:
        """The only request that waits to be made."""
        return self.courier.take()

    def callbacks_of(
        self, letter: Letter, said: Response | Failure, *, retried: int = 0, last: bool = False
    ) -> CallbackMessages:
        """What the broker makes of an attempt to send `letter`."""
        publish = message_builder.ValidPublish(
            account=1,
            endpoints=(DeliveryEndpoint(letter.url),),
            body=letter.body,
            options=letter.options,
            caller_ip="192.0.2.1",
        )
        now_ms = self.courier.clock.now_ms()
        message = message_builder.build_message(
            publish, publish.endpoints[0], message_id=letter.message_id, now_ms=now_ms
        )
        number = next(self._ids)
        made = message_builder.callbacks_of_attempt(
            replace(message, retried=retried),
            said,
            ids=(f"msg_callback_{number}", f"msg_failure_{number}"),
            dead_letter_id="1-0" if last else None,
            now_ms=now_ms,
        )
        return CallbackMessages(*made)

    async def deliver(
        self,
        message: Message,
        *,
        retried: int = 0,
        headers: Mapping[str, str] | None = None,
        url: str | None = None,
        signed: Message | None = None,
    ) -> Answer:
        """One delivery of a callback; `headers` are in place of its own, `url` and `signed` of what is signed."""
        of = signed or message
        token = signing.sign(
            KEYS.current,
            url=url or of.url,
            body=of.body,
            now_s=self.courier.clock.now_ms() // 1000,
            jti=f"jwt_desk_{next(self._ids)}",
        )
        lines = {
            "Upstash-Signature": token,
            "Upstash-Message-Id": message.id,
            "Upstash-Retried": str(retried),
            **(dict(message.headers) if headers is None else headers),
        }
        path = message.url.replace(BASE_URL, "/qtasks")
        return await request(self.courier.tasks.asgi_app(), path, message.body, headers=lines)

    async def answered(self, said: Response | Failure) -> Answer:
        """Make the request that waits, have it answered so, and deliver what tells of it."""
        return await self.deliver(self.callbacks_of(self.take_request(), said).callback)
