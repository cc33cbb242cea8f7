"""Authentication by token. Tokens are stored and compared only as digests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final
from urllib.parse import unquote_plus

from qtasks.broker.api.api_request import ApiRequest, HttpError
from qtasks.broker.core.operator_changes import UNKNOWN, Actor
from qtasks.broker.core.values import StoredToken
from qtasks.broker.store.verbs.accounts import token_digest
from qtasks.clock import Clock
from qtasks.errors import StoreError

_MAX_TOKEN: Final = 4096
STALE_S: Final = 1.0
"""Seconds that a revoked token may still be accepted. After this time, a request reads the store's tokens again."""
NOTED_S: Final = 60.0
"""Seconds. The last use of a token is stored at most this often."""
_SOONEST_S: Final = 0.1
"""Seconds. An unknown token triggers another read of the store's tokens, at most once in this time."""


class TokenScope(IntEnum):
    """The permissions of a token. A higher scope includes the lower ones."""

    METADATA = 0
    """Opens the console, which then shows no payload, and ``/metrics``; no endpoint of the API."""
    READ = 1
    PUBLISH = 2


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller of an API request."""

    account: int
    scope: TokenScope
    is_by_query: bool = False
    """True if the token was in the query: in a URL that other services and the logs of proxies contain."""
    actor: Actor = field(default=UNKNOWN, compare=False)
    """By the name of the token."""


class Tokens:
    """The valid tokens: the configured ones, and those in the store, which another process may add and revoke.

    Lookup is by SHA-256, so neither the time of a comparison nor a dump of these objects reveals a token.
    """

    def __init__(
        self,
        clock: Clock,
        stored: Callable[[], Awaitable[list[StoredToken]]],
        note_use: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        self._clock = clock
        self._read = stored
        self._note_use = note_use
        self._noted_s: dict[bytes, float] = {}
        self._noting: set[asyncio.Task[None]] = set()
        self._configured: dict[bytes, Principal] = {}
        self._stored: dict[bytes, Principal] = {}
        self._read_s = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def add(self, token: str, principal: Principal) -> None:
        """Accept `token` from now on."""
        self._configured[token_digest(token)] = principal

    async def authenticate(self, request: ApiRequest) -> Principal:
        """The caller of `request`. HttpError 401, with the same text for every reason."""
        if (token := _token_in_header(request)) is not None:
            principal = await self.owner(token)
        elif (token := _token_in_query(request)) is not None and (principal := await self.owner(token)) is not None:
            principal = replace(principal, is_by_query=True)
        else:
            principal = None
        if principal is None:
            raise HttpError(401, "unauthorized: missing or invalid token", (("WWW-Authenticate", "Bearer"),))
        return principal

    async def owner(self, token: str) -> Principal | None:
        """The owner of a token; None for a token that is not valid."""
        return await self.owner_of(token_digest(token)) if 0 < len(token) <= _MAX_TOKEN else None

    async def owner_of(self, digest: bytes) -> Principal | None:
        """The owner of the token with that digest; None if it is not valid, or not valid any more."""
        if (principal := self._configured.get(digest)) is not None:
            return principal
        await self._refresh(_SOONEST_S if digest not in self._stored else STALE_S)
        if (principal := self._stored.get(digest)) is not None and self._note_use is not None:
            self._note(digest, self._note_use)
        return principal

    def _note(self, digest: bytes, note_use: Callable[[bytes], Awaitable[None]]) -> None:
        """Store that a token is in use, at most once in `NOTED_S`; no request waits for it."""
        now_s = self._clock.monotonic()
        if now_s - self._noted_s.get(digest, float("-inf")) < NOTED_S:
            return
        self._noted_s[digest] = now_s

        async def note() -> None:
            with contextlib.suppress(StoreError):
                await note_use(digest)

        noting = asyncio.create_task(note())
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)

    async def _refresh(self, older_than_s: float) -> None:
        """Read the store's tokens again if the last read is older. Concurrent requests wait for the same read."""
        if self._reading is None and self._clock.monotonic() - self._read_s >= older_than_s:
            self._reading = asyncio.create_task(self._read_all())
        if self._reading is not None:
            await asyncio.shield(self._reading)

    async def _read_all(self) -> None:
        try:
            began_s = self._clock.monotonic()
            rows = await self._read()
            self._stored = {row.digest: Principal(row.account, _scope(row), actor=Actor(row.name)) for row in rows}
            self._read_s = began_s
        finally:
            self._reading = None


def _scope(token: StoredToken) -> TokenScope:
    if token.without_payloads:
        return TokenScope.METADATA
    return TokenScope.READ if token.read_only else TokenScope.PUBLISH


def _token_in_header(request: ApiRequest) -> str | None:
    """The token in the `Authorization` header, empty if it cannot be read; None without such a header."""
    authorizations = [value for name, value in request.headers if name.lower() == "authorization"]
    if not authorizations:
        return None
    scheme, _, token = authorizations[0].strip().partition(" ")
    return token.strip() if len(authorizations) == 1 and scheme.lower() == "bearer" else ""


def digest_in_header(request: ApiRequest) -> bytes:
    """The digest of the token in the `Authorization` header of a request."""
    return token_digest(_token_in_header(request) or "")


def _token_in_query(request: ApiRequest) -> str | None:
    """The token in the query: a publish URL that is registered with a webhook provider carries it there."""
    for part in request.query.split("&"):
        name, _, value = part.partition("=")
        if unquote_plus(name).lower() == "qstash_token":
            _refuse_pages(request)
            return unquote_plus(value)
    return None


def _refuse_pages(request: ApiRequest) -> None:
    """Refuse a token in the query from a web page: any page may post to any URL, and the development tokens are public.

    A page that sends the token in a header must ask for permission first (a CORS preflight), which it never gets.
    """
    site = request.header("sec-fetch-site")
    if site in ("cross-site", "same-site") or (site is None and request.header("origin") is not None):
        raise HttpError(403, "qstash_token in the query is for webhooks; from a web page it is refused")
