"""The manifests of the dispatchers that an account's messages go to: what their tasks and schedules are.

A manifest is asked for with a request that is signed with the account's keys, at the prefix that its messages have, and
under the same destination policy as a delivery. It comes from the network: what is not of the right form is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from qtasks.broker import ids
from qtasks.broker.core.bundle_items import USER_AGENT
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.ports import DeliveryRequest, Failure, Transport
from qtasks.clock import Clock
from qtasks.protocol import manifest, signing, strict_json
from qtasks.protocol.messages import Response
from qtasks.randomness import Random

FRESH_S: Final = 15.0
"""Seconds for which an answer is used again, also one that is an error."""
MAX_PREFIXES: Final = 50
"""Dispatchers that are asked at most, those that were used last."""


class ManifestAnswer(NamedTuple):
    """What a prefix answered."""

    prefix: str
    """The URL before the names of its tasks, with a slash at its end."""
    manifest: bytes | None
    """The manifest, JSON of the right form, as the dispatcher wrote it."""
    error: str | None
    """Why there is no manifest, a sentence."""
    time_ms: int
    """When it answered, in the broker's time."""


class Manifests:
    """Asks for manifests, and keeps each answer for a while."""

    def __init__(self, transport: Transport, keys: KeyRing, clock: Clock, random: Random) -> None:
        self._transport = transport
        self._keys = keys
        self._clock = clock
        self._random = random
        self._answers: dict[tuple[int, str], tuple[float, asyncio.Task[ManifestAnswer]]] = {}

    async def of(self, account: int, prefixes: Sequence[str]) -> list[ManifestAnswer]:
        """The answers of `prefixes`, of the first `MAX_PREFIXES` of them, asked at the same time."""
        asked = [self._asked(account, prefix) for prefix in prefixes[:MAX_PREFIXES]]
        return [await asyncio.shield(task) for task in asked]

    def _asked(self, account: int, prefix: str) -> asyncio.Task[ManifestAnswer]:
        now_s = self._clock.monotonic()
        self._answers = {key: kept for key, kept in self._answers.items() if now_s - kept[0] < FRESH_S}
        if (kept := self._answers.get((account, prefix))) is not None:
            return kept[1]
        task = asyncio.create_task(self._ask(account, prefix), name="qtasks-manifest")
        self._answers[account, prefix] = now_s, task
        return task

    async def _ask(self, account: int, prefix: str) -> ManifestAnswer:
        keys = await self._keys.of(account)
        url, now_ms = prefix + manifest.NAME, self._clock.now_ms()
        jti = ids.jwt_id(self._random)
        now_s = (now_ms + self._clock.offset_ms()) // 1000
        signature = signing.sign(keys.current, url=url, body=b"", now_s=now_s, jti=jti)
        headers = (("User-Agent", USER_AGENT), ("Upstash-Signature", signature))
        outcome = await self._transport.send(DeliveryRequest(url, "POST", headers, b"", manifest.TIMEOUT_MS))
        answer = _read(outcome)
        if isinstance(answer, str):
            return ManifestAnswer(prefix, None, answer, now_ms)
        return ManifestAnswer(prefix, answer, None, now_ms)


def _read(outcome: Response | Failure) -> bytes | str:
    """The manifest in an answer, or a sentence that says why it is not one."""
    if isinstance(outcome, Failure):
        return outcome.error
    if outcome.status != 200:
        return f"it answered {outcome.status}: {_NOT_OURS.get(outcome.status, 'perhaps another program listens there')}"
    if outcome.truncated:
        return "its manifest is too large"
    try:
        content = strict_json.loads(outcome.body, big_integers=True)
    except ValueError as error:
        return f"its manifest is not JSON: {error}"
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), list):
        return "its answer is not a manifest"
    if content.get("v") != manifest.VERSION:
        return f"its manifest has version {content.get('v')!r:.20}; this broker reads version {manifest.VERSION}"
    return outcome.body


_NOT_OURS: Final = {
    401: "it does not have the signing keys of this account",
    404: "no dispatcher serves this prefix",
    489: "its version of the package has no manifest",
}
