"""Who looks at the console: by session, by bearer token, or without a sign-in where that was allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from qtasks.broker.api.api_request import ApiRequest, HttpError, read_json
from qtasks.broker.api.auth import Principal, Tokens, TokenScope, digest_in_header
from qtasks.broker.console import same_origin
from qtasks.broker.console.console_context import Role, Viewer
from qtasks.broker.console.sessions import LIFE_S, Session, Sessions, WrongTokens, secret
from qtasks.broker.core.operator_changes import CONSOLE, Actor
from qtasks.clock import Clock
from qtasks.protocol.messages import Headers
from qtasks.randomness import Random

ROLES: Final = {
    TokenScope.PUBLISH: Role.OPERATOR,
    TokenScope.READ: Role.VIEWER,
    TokenScope.METADATA: Role.METADATA,
}
SCOPES: Final = {role: scope for scope, role in ROLES.items()}
USER_HEADER: Final = "Qtasks-Console-User"
"""Sent by a console in another process: who its user is, percent-encoded; may be empty."""
_COOKIE: Final = "qtasks_session"
_COOKIES_TRIED: Final = 4
"""Cookies of that name that are looked up at most: one of another folder or domain may stand before the right one."""
_LARGEST_SIGN_IN: Final = 16 * 1024
"""Bytes of the body of a sign-in at most."""
_LONGEST: Final = 100
"""Characters of a session id, and of the name of a user, at most."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """A person or a program that may look at the console."""

    viewer: Viewer
    csrf: str | None
    """What its requests that change something must bring along; None for a bearer token, which no page can send."""
    token_digest: bytes | None = None
    """None: without a token."""
    session_id: str | None = None

    @property
    def principal(self) -> Principal:
        """The same for the API."""
        return Principal(self.viewer.account, SCOPES[self.viewer.role], actor=self.viewer.actor)


class Access:
    """Decides who looks. Without `open_to`, everyone needs a token; with it, those without one get this viewer."""

    def __init__(self, tokens: Tokens, clock: Clock, random: Random, open_to: Viewer | None = None) -> None:
        self._tokens = tokens
        self._open_to = open_to
        self._open_csrf = secret(random)
        self._sessions = Sessions(tokens, clock, random)
        self._wrong = WrongTokens(clock)

    async def visitor(self, request: ApiRequest) -> Visitor | None:
        """Who sent `request`; None for a stranger. HttpError 401 for a bearer token that is not valid."""
        if request.header("authorization") is not None:
            principal = await self._tokens.authenticate(request)
            return Visitor(_viewer(principal, _sender(principal, request)), None, digest_in_header(request))
        for session_id in _session_ids(request):
            if (session := await self._sessions.get(session_id)) is not None:
                return await self._of_session(session, session_id)
        return None if self._open_to is None else Visitor(self._open_to, self._open_csrf)

    async def _of_session(self, session: Session, session_id: str) -> Visitor | None:
        principal = await self._tokens.owner_of(session.token_digest)
        if principal is None:
            return None
        return Visitor(_person(principal), session.csrf, session.token_digest, session_id)

    async def is_valid(self, visitor: Visitor) -> bool:
        """True until the session of the visitor ends, or its token is revoked."""
        if visitor.session_id is not None:
            return await self._sessions.get(visitor.session_id) is not None
        return visitor.token_digest is None or await self._tokens.owner_of(visitor.token_digest) is not None

    async def sign_in(self, request: ApiRequest) -> tuple[Visitor, Headers]:
        """Exchange the token in the body for a session; the visitor and the cookie. HttpError 401, or 429 after many.

        A right token is always accepted: behind a proxy, all visitors have the address of one who sends wrong ones.
        A session that the request brings along ends.
        """
        address = request.client_ip
        token = await _token_in(request)
        principal = await self._tokens.owner(token.strip()) if isinstance(token, str) else None
        if principal is None or not isinstance(token, str):
            if (wait_s := self._wrong.wait_s(address)) > 0:
                raise HttpError(429, f"too many wrong tokens: try again in {wait_s} s", (("Retry-After", str(wait_s)),))
            self._wrong.add(address)
            raise HttpError(401, "this is not a token of this broker")
        self.sign_out(request)
        session_id, session = self._sessions.begin(token.strip())
        visitor = Visitor(_person(principal), session.csrf, session.token_digest, session_id)
        return visitor, (_cookie(request, session_id, LIFE_S),)

    def sign_out(self, request: ApiRequest) -> Headers:
        """End the session of a request; the header that removes its cookie."""
        for session_id in _session_ids(request):
            self._sessions.end(session_id)
        return (_cookie(request, "", 0),)


def _viewer(principal: Principal, actor: Actor) -> Viewer:
    return Viewer(principal.account, ROLES[principal.scope], actor)


def _person(principal: Principal) -> Viewer:
    """The person who has signed in with the token of `principal`."""
    return _viewer(principal, Actor(principal.actor.name, CONSOLE))


def _sender(principal: Principal, request: ApiRequest) -> Actor:
    """Who sends a request with a token: a program, or the console of another process, which may name its user."""
    if (name := request.header(USER_HEADER.lower())) is None:
        return principal.actor
    user = unquote(name, errors="replace").replace("\x00", "\ufffd")[:_LONGEST]
    return Actor(f"{user} ({principal.actor.name})" if user else principal.actor.name, CONSOLE)


async def _token_in(request: ApiRequest) -> object:
    """What the body of a sign-in, which a stranger may send, says the token is. HttpError 400 and 413."""
    value = await read_json(await request.read_body(_LARGEST_SIGN_IN))
    if not isinstance(value, dict):
        raise HttpError(400, "expected a JSON object")
    return value.get("token")


def _cookie_name(request: ApiRequest) -> str:
    """The name of the cookie: browsers do not keep the servers on several ports of one host apart."""
    _, _, port = (request.header("host") or "").rpartition(":")
    return f"{_COOKIE}_{port}" if port.isascii() and port.isdigit() else _COOKIE


def _session_ids(request: ApiRequest) -> list[str]:
    name = _cookie_name(request)
    pairs = (
        pair.strip().partition("=")
        for line, value in request.headers
        if line.lower() == "cookie"
        for pair in value.split(";")
    )
    values = [value for key, _, value in pairs if key == name and 0 < len(value) <= _LONGEST]
    return values[:_COOKIES_TRIED]


def _cookie(request: ApiRequest, value: str, age_s: int) -> tuple[str, str]:
    """The header for a cookie of this folder: without a path, browsers keep it to ``console/api``, wherever that is."""
    secure = "; Secure" if same_origin.is_https(request) else ""
    return "Set-Cookie", f"{_cookie_name(request)}={value}; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}"
