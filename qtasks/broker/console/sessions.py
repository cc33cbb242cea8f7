"""The sessions of the people who have signed in, in memory only: a restart of the broker ends all of them.

A session begins with a token and lives no longer than the token. Its id is kept as a digest. An id is always made
here, never taken from a request, so that a stranger cannot choose the session of another person.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from qtasks.broker.api.auth import Tokens
from qtasks.broker.store.verbs.accounts import token_digest
from qtasks.clock import Clock
from qtasks.randomness import Random

LIFE_S: Final = 12 * 60 * 60
MOST: Final = 1000
"""Sessions at the same time; the oldest ends for a new one."""
TRIES: Final = 10
"""Wrong tokens that one address may send within `TRIES_S` seconds."""
TRIES_S: Final = 60
_ADDRESSES: Final = 4096
"""Addresses whose wrong tokens are counted at the same time."""


@dataclass(frozen=True, slots=True)
class Session:
    """A person who has signed in."""

    token_digest: bytes
    csrf: str
    """What every request that changes something brings along: a page of another origin cannot know it."""
    until_ms: int
    """In the clock's `elapsed_ms`."""


def secret(random: Random) -> str:
    """A new text of 256 random bits for a cookie or a header."""
    return base64.urlsafe_b64encode(random.token(32)).decode("ascii").rstrip("=")


class Sessions:
    """The sessions of one broker."""

    def __init__(self, tokens: Tokens, clock: Clock, random: Random) -> None:
        self._tokens = tokens
        self._clock = clock
        self._random = random
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, token: str) -> tuple[str, Session]:
        """A new session of the owner of `token`, which is valid, and its id."""
        session_id = secret(self._random)
        session = Session(token_digest(token), secret(self._random), self._clock.elapsed_ms() + LIFE_S * 1000)
        self._sessions[_digest(session_id)] = session
        while len(self._sessions) > MOST:
            self._sessions.popitem(last=False)
        return session_id, session

    async def get(self, session_id: str) -> Session | None:
        """The session with that id; None if there is none, or if it or its token has ended."""
        key = _digest(session_id)
        if (session := self._sessions.get(key)) is None:
            return None
        if self._clock.elapsed_ms() >= session.until_ms or await self._tokens.owner_of(session.token_digest) is None:
            self._sessions.pop(key, None)
            return None
        return session if key in self._sessions else None  # it may have ended meanwhile

    def end(self, session_id: str) -> None:
        """End a session. Does nothing if there is none with that id."""
        self._sessions.pop(_digest(session_id), None)


def _digest(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).digest()


class WrongTokens:
    """Counts the wrong tokens that each address has sent within the last minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def wait_s(self, address: str) -> int:
        """Seconds that `address` must wait before its next try; 0 if it may try now."""
        began_s, count = self._counts.get(address, (0.0, 0))
        if count < TRIES:
            return 0
        return max(0, round(began_s + TRIES_S - self._clock.monotonic() + 0.5))

    def add(self, address: str) -> None:
        """Count one wrong token of `address`."""
        now_s = self._clock.monotonic()
        began_s, count = self._counts.get(address, (now_s, 0))
        if now_s - began_s >= TRIES_S:
            began_s, count = now_s, 0
        self._counts[address] = began_s, count + 1
        while len(self._counts) > _ADDRESSES:
            self._counts.popitem(last=False)
