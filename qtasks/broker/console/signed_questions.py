"""Questions of the console to the dispatchers that an account's messages go to (docs/protocol.md 5.17, 5.18).

A question is signed with the account's keys, and is sent under the same destination policy as a delivery. The answer
comes from the network: who reads it refuses what is not of the right form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, NamedTuple, TypeVar

from qtasks.broker import ids
from qtasks.broker.core.bundle_items import USER_AGENT
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.clock import Clock
from qtasks.protocol import signing
from qtasks.protocol.dispatcher_questions import TIMEOUT_MS
from qtasks.randomness import Random

A = TypeVar("A")

MAX_OPEN: Final = 100
"""Questions that may be open at the same time."""


class Refusal(NamedTuple):
    """Why there is no answer, a sentence."""

    text: str


class DispatcherQuestions:
    """Asks dispatchers."""

    def __init__(self, transport: Transport, keys: KeyRing, clock: Clock, random: Random) -> None:
        self.clock = clock
        self._transport = transport
        self._keys = keys
        self._random = random
        self._open = 0
        self.announced: dict[int, list[str]] = {}
        """Where applications were started beside this broker, by account."""

    def announce(self, account: int, prefix: str) -> None:
        """An application is started at `prefix`: it is known before the first message for it."""
        if prefix not in (announced := self.announced.setdefault(account, [])):
            announced.append(prefix)

    async def ask(self, account: int, prefix: str, name: str, body: bytes = b"") -> bytes | Refusal:
        """What the dispatcher at `prefix`, which ends with a slash, answers at `name`."""
        if self._open >= MAX_OPEN:
            return Refusal("too many questions to applications are open: try again")
        self._open += 1
        try:
            return await self._ask(account, prefix + name, body)
        finally:
            self._open -= 1

    async def _ask(self, account: int, url: str, body: bytes) -> bytes | Refusal:
        keys = await self._keys.of(account)
        now_s = (self.clock.now_ms() + self.clock.offset_ms()) // 1000
        signature = signing.sign(keys.current, url=url, body=body, now_s=now_s, jti=ids.jwt_id(self._random))
        headers = (("User-Agent", USER_AGENT), ("Upstash-Signature", signature))
        outcome = await self._transport.send(DeliveryRequest(url, "POST", headers, body, TIMEOUT_MS))
        if isinstance(outcome, Failure):
            return Refusal(outcome.error)
        if outcome.status != 200:
            reason = _REASONS.get(outcome.status, "perhaps another program listens there")
            return Refusal(f"it answered {outcome.status}: {reason}")
        return Refusal("its answer is too large") if outcome.truncated else outcome.body


_REASONS: Final = {
    401: "it does not have the signing keys of this account",
    404: "no dispatcher serves this prefix",
    489: "its version of the package does not know this question",
    503: "it cannot answer now, or its version of the package does not know this question",
}


class KeptAnswers(Generic[A]):
    """Answers that are used again for some seconds, also those that are errors; equal questions are asked once."""

    def __init__(self, clock: Clock, fresh_s: float) -> None:
        self._clock = clock
        self._fresh_s = fresh_s
        self._tasks: dict[Hashable, tuple[float, asyncio.Task[A]]] = {}

    def get(self, key: Hashable, ask: Callable[[], Awaitable[A]]) -> asyncio.Task[A]:
        """The answer to the question `key`, which may still be on its way."""
        now_s = self._clock.monotonic()
        self._tasks = {
            each: kept for each, kept in self._tasks.items() if now_s - kept[0] < self._fresh_s or not kept[1].done()
        }
        if (kept := self._tasks.get(key)) is not None:
            return kept[1]
        task = asyncio.ensure_future(ask())
        assert isinstance(task, asyncio.Task)
        self._tasks[key] = now_s, task
        return task
