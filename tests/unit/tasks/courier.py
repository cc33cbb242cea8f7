"""An application whose published messages are kept here and delivered when a test says so, signed as by a broker."""

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
from qtasks.tasks.run.dispatch_response import Outcome
from qtasks.tasks.run.dispatcher import Delivery
from qtasks.testing.fakes.virtual_clock import TaskClock, VirtualClock
from tests.support.tasks import BASE_URL, KEYS, ScriptedHome


class Letter:
    """One published message."""

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


class Courier:
    """Holds `tasks`; `letters` is what was published and not yet taken. Time is that of `clock`, which stands still."""

    def __init__(self, **overrides: Any) -> None:
        self.home = ScriptedHome(base_url=BASE_URL)
        self.home.transport.send = self._send  # type: ignore[method-assign]
        self.tasks = QTasks(embedded=self.home, **overrides)
        self.clock = VirtualClock(int(time.time()) * 1000)
        self.tasks.runtime.clock = TaskClock(self.clock)
        self.letters: list[Letter] = []
        self.refuses = ""
        """Batch items with this text in their body are refused."""
        self._ids = itertools.count(1)
        self._tokens = itertools.count(1)

    def take(self) -> Letter:
        """The oldest message, which must be the only one."""
        (letter,) = self.letters
        self.letters.clear()
        return letter

    async def deliver(self, letter: Letter | None = None, *, retried: int = 0, token: str | None = None) -> Outcome:
        """One attempt; `token` is the signature of an earlier one, sent again."""
        message = letter or self.take()
        return await self.tasks.runtime.dispatcher().answer(self.delivery(message, retried=retried, token=token))

    def delivery(self, letter: Letter, *, retried: int = 0, token: str | None = None) -> Delivery:
        signed = token or signing.sign(
            KEYS.current,
            url=f"{BASE_URL}/{letter.task}",
            body=letter.body,
            now_s=self.clock.now_ms() // 1000,
            jti=f"jwt_{next(self._tokens)}",
        )
        return Delivery(
            task=letter.task, body=letter.body, signature=signed, message_id=letter.message_id, retried=retried
        )

    def close(self) -> None:
        self.tasks.close()

    def _send(self, request: Request, timeout_s: float) -> Reply:
        self.home.transport.requests.append(request)
        if request.url.endswith("/v2/batch"):
            return _accepted([self._batched(item) for item in json.loads(request.body)])
        return _accepted(self._kept(Letter(request, self._new_id())))

    def _batched(self, item: Any) -> dict[str, str]:
        if self.refuses and self.refuses in item["body"]:
            return {"error": "refused"}
        url, body = f"/v2/publish/{item['destination']}", item["body"].encode()
        letter = Letter(Request("POST", url, tuple(item["headers"].items()), body), self._new_id())
        letter.queue = item["queue"]
        return self._kept(letter)

    def _kept(self, letter: Letter) -> dict[str, str]:
        self.letters.append(letter)
        return {"messageId": letter.message_id}

    def _new_id(self) -> str:
        return f"msg_{next(self._ids)}"


def _accepted(document: Any) -> Reply:
    return Reply(201, (("Content-Type", "application/json"),), json.dumps(document).encode())


def said(answer: Outcome) -> Any:
    """The JSON of an answer."""
    return json.loads(answer.body)
