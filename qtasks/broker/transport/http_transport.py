"""One HTTP attempt over a real network: a `DeliveryRequest` in, a `Response` or a `Failure` out.

The endpoint belongs to a third party. It may be slow, broken or hostile, and must not cost more than its own attempt:

* one deadline covers the whole attempt; within it, name lookup, connecting and TLS share `CONNECT_TIMEOUT_S`;
* the response body is read raw (never inflated) up to a limit, the header up to another. A longer response is cut and
  its connection closed; so is every connection on which anything irregular was seen;
* a request on a kept connection that the endpoint closes at that moment is sent once more, on a fresh connection;
* no redirects, no cookies, no proxies from the environment, no credentials files: only the given request is sent;
* host names are resolved here, at most a second before connecting, and the destination policy checks every address. The
  connection goes to a checked address even if the name resolves to another one a moment later.

aiohttp connects and keeps connections. `http_exchange` speaks HTTP on them; aiohttp itself does so only for a response
that is read as it arrives. It is configured to change nothing: it receives the URL in parts, with path and query as one
opaque text (a URL parser would drop a lone ``?`` and resolve dots), and it adds no header of its own.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar
from urllib.parse import unquote_to_bytes

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from qtasks.broker.ports import DeliveryRequest, Failure, ResponseStream, Stopwatch
from qtasks.broker.transport.addresses import literal
from qtasks.broker.transport.attempt_failures import failure_of, timed_out, unanswered_lookup
from qtasks.broker.transport.destination import parse
from qtasks.broker.transport.destination_policy import DestinationPolicy, Rules
from qtasks.broker.transport.http_exchange import PlainExchange
from qtasks.broker.transport.http_stream import stream_of
from qtasks.broker.transport.resolver import CheckedResolver, Resolve, SystemResolver, check, lookup_cut
from qtasks.broker.transport.response import (
    MAX_HEADER_LINE,
    READ_BUFFER,
    BoundedResponse,
    UnansweredError,
)
from qtasks.counted_log import CountedLog
from qtasks.protocol.headers import PER_CONNECTION, WireError, canonical_name
from qtasks.protocol.messages import MAX_BODY, Response
from qtasks.rare_timers import Deadline

T = TypeVar("T", covariant=True)
Lines = list[tuple[str, str]]


class Exchange(Protocol[T]):
    """One request and what is read of its response; `run` may be called again, on another connection."""

    @property
    def sent(self) -> bool:
        """The whole request has been handed to the connection."""

    @property
    def responding(self) -> bool:
        """The head of the response has arrived."""

    async def run(self, session: aiohttp.ClientSession) -> T:
        """Send the request, and read the response. Raises the errors that `attempt_failures.failure_of` knows."""


log = logging.getLogger("qtasks.broker")

CONNECT_TIMEOUT_S = 5.0
"""Limit for opening a connection, seconds: name lookup, TCP and TLS together. The attempt's deadline may be shorter."""

KEEP_ALIVE_S = 1.5
"""Seconds that an idle connection is kept. Servers close theirs after 2 to 5 s (gunicorn 2, uvicorn and Node 5);
a request sent at that moment is lost and has to be sent again."""

_NOT_FORWARDED = PER_CONNECTION | {"Accept-Encoding"}
"""Headers that describe a connection, not the message. A message's own values are dropped (RFC 9110, 7.6.1)."""

_NO_DEFAULTS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class _AllowedDestination:
    """A parsed URL that the destination policy allows, in the form that aiohttp takes."""

    url: URL
    target: str
    """Path and query as they are sent."""
    authority: str
    place: str
    """``host:port`` for error texts, which never show a URL's path, query or credentials."""
    authorization: str | None
    limited: Rules
    """The rules of the policy that count for this path and method, in addition to those that always do."""


class HttpTransport:
    """Attempts over HTTP/1.1 and TLS, on connections that are kept for `KEEP_ALIVE_S`.

    Args:
        policy: Which addresses may be dialled.
        max_response: Most bytes of a response body that are read; a longer body is cut and marked as truncated.
        per_host: Most connections to one host and port; None: any number. A request that waits for one spends its own
            deadline, so the caller should not have more requests to a host. Connections to all hosts together are not
            limited: a request to a healthy host would wait for those that others leave unanswered.
        resolve: Name lookup; the system's by default.
        tls: How certificates are verified; the system's trust store by default.
    """

    def __init__(
        self,
        policy: DestinationPolicy,
        *,
        max_response: int = MAX_BODY,
        per_host: int | None = None,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._max_response = max_response
        self._per_host = per_host
        self._resolve = resolve or SystemResolver()
        self._tls = tls
        self._refusals = CountedLog(log)
        self._sessions: dict[tuple[bool, Rules], aiohttp.ClientSession] = {}
        """Sessions that keep connections (False), and those that open each anew (True), by the rules that count.

        A connection that a limited rule allows is for requests within its limits only."""
        self._closed = False
        # The policy never changes, so its decision on a URL can be cached; a busy dispatcher is a single entry.
        self._destination = lru_cache(maxsize=1024)(self._examine)
        self._dialled = lru_cache(maxsize=1024)(_dialled)

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """Send `request` and read the response within `request.timeout_ms`. Raises nothing but CancelledError."""
        return await self._attempt(
            request,
            lambda destination, lines: PlainExchange(
                request.method,
                destination.target,
                lines,
                request.body,
                dialled=self._dialled(destination.url),
                limit=self._max_response,
                stopwatch=request.stopwatch,
            ),
        )

    async def open(self, request: DeliveryRequest) -> ResponseStream | Failure:
        """See `StreamingTransport.open`."""
        return await self._attempt(request, lambda destination, lines: _Exchange(request, destination, lines))

    async def _attempt(
        self, request: DeliveryRequest, exchange_of: Callable[[_AllowedDestination, Lines], Exchange[T]]
    ) -> T | Failure:
        destination = self._destination(request.url, request.method)
        if isinstance(destination, Failure):
            return destination
        lines = _lines_for(destination, request)
        if isinstance(lines, Failure):
            return lines
        if self._closed:
            reason = f"not sent to {destination.place}: the broker is stopping"
            return Failure("connection_lost", reason, attempted=False)
        lookup_cut.set(False)
        exchange, running = exchange_of(destination, lines), asyncio.current_task()
        request.stopwatch.begin()
        assert running is not None, "an attempt is made in an asyncio task"
        deadline = Deadline(request.timeout_ms / 1000, running)
        try:
            outcome = await self._run(exchange, destination.limited)
        except BaseException as error:
            is_late = deadline.has_caused(error)
            if is_late or isinstance(error, TimeoutError):
                if lookup_cut.get():
                    return unanswered_lookup(destination.place, request.timeout_ms / 1000)
                if not is_late:
                    return Failure("timeout", f"no connection to {destination.place} within {CONNECT_TIMEOUT_S:g}s")
                return timed_out(destination.place, request.timeout_ms / 1000, responding=exchange.responding)
            if not isinstance(error, Exception):
                raise
            # The contract of `Transport`: every error is one failed attempt.
            return failure_of(error, destination.place, sent=exchange.sent, secure=destination.url.scheme == "https")
        deadline.has_caused(None)
        return outcome

    async def _run(self, exchange: Exchange[T], limited: Rules) -> T:
        try:
            return await exchange.run(self._open_session(limited))
        except UnansweredError as error:
            if not error.closed_at_reuse or self._closed:
                raise
        return await exchange.run(self._open_session(limited, fresh=True))

    async def close(self) -> None:
        """Close every connection and start no more attempts. Idempotent."""
        self._closed = True
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    def _examine(self, url: str, method: str) -> _AllowedDestination | Failure:
        try:
            parts = parse(url)
        except WireError as error:
            return Failure("unsendable", str(error), final=True)
        limited = self._policy.limited_rules(parts, method)
        if literal(parts.host) is not None and (
            refusal := check(self._policy, parts.host, parts.host, parts.port, limited)
        ):
            return Failure("destination_blocked", refusal, final=True)
        host = f"[{parts.host}]" if ":" in parts.host else parts.host
        return _AllowedDestination(
            # Built from parts, with path and query in place of the path, so that nothing is parsed or encoded again.
            url=URL.build(scheme=parts.scheme, host=host, port=parts.port, path=parts.target, encoded=True),
            target=parts.target,
            authority=parts.authority,
            place=f"{host}:{parts.port}",
            authorization=_basic(parts.userinfo) if parts.userinfo else None,
            limited=limited,
        )

    def _open_session(self, limited: Rules, *, fresh: bool = False) -> aiohttp.ClientSession:
        """The session for an exchange; with `fresh` the one whose connections serve a single request."""
        if (session := self._sessions.get((fresh, limited))) is None:
            session = self._sessions[fresh, limited] = self._new_session(limited, fresh=fresh)
        return session

    def _new_session(self, limited: Rules, *, fresh: bool) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(self._policy, self._resolve, self._refusals, limited),
                use_dns_cache=False,
                ssl=self._tls or True,
                limit=0,  # none
                limit_per_host=self._per_host or 0,
                force_close=fresh,
                keepalive_timeout=None if fresh else KEEP_ALIVE_S,
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S),
            response_class=BoundedResponse,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NO_DEFAULTS,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BUFFER,
            max_line_size=MAX_HEADER_LINE,
            max_field_size=MAX_HEADER_LINE,
        )


def _dialled(url: URL) -> aiohttp.ClientRequest:
    """What aiohttp's connector takes to connect to the origin of `url`."""
    return aiohttp.ClientRequest("GET", url, loop=asyncio.get_running_loop())


class _TrackedPayload(aiohttp.Payload):
    """A body that knows whether it was sent."""

    sent = False
    """All of it has been handed to the connection."""
    stopwatch: Stopwatch | None = None
    """It notes that there is a connection: aiohttp writes the body once it has one."""

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if self.stopwatch is not None:
            self.stopwatch.connect()
        await super().write_with_length(writer, content_length)
        self.sent = True


class _Body(_TrackedPayload, aiohttp.BytesPayload):
    pass


class _LargeBody(_TrackedPayload, aiohttp.BytesIOPayload):
    pass


class _Exchange:
    """One request to aiohttp, and the head of its response; `run` may be called again, on another connection."""

    def __init__(
        self,
        request: DeliveryRequest,
        destination: _AllowedDestination,
        lines: Lines,
    ) -> None:
        self._request = request
        self._destination = destination
        self._headers = CIMultiDict(lines)
        self._payload: _TrackedPayload | None = None
        self.responding = False
        """The head of the response has arrived."""

    @property
    def sent(self) -> bool:
        """The whole body, if there is one, has been handed to the connection."""
        return self._payload is None or self._payload.sent

    async def run(self, session: aiohttp.ClientSession) -> ResponseStream:
        """See `Exchange.run`. The response is returned before its body is complete."""
        if (payload := _payload(self._request.body)) is not None:
            payload.stopwatch = self._request.stopwatch
        self._payload = payload
        response = await session.request(
            self._request.method,
            self._destination.url,
            headers=self._headers,
            data=self._payload,
            allow_redirects=False,
        )
        assert isinstance(response, BoundedResponse)
        self.responding = True
        return await stream_of(response, self._destination.place)


def _payload(body: bytes) -> _TrackedPayload | None:
    # A callback may be larger than any published body; aiohttp takes a large body only in pieces.
    if len(body) > MAX_BODY:
        return _LargeBody(io.BytesIO(body))
    return _Body(body) if body else None


def _basic(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    return "Basic " + base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode()


def _lines_for(destination: _AllowedDestination, request: DeliveryRequest) -> Lines | Failure:
    """The header lines in the order in which they are sent, without `Content-Length`, which comes at the end."""
    # CONNECT opens a tunnel and has another form of request line.
    if request.method == "CONNECT" or not _TOKEN.fullmatch(request.method):
        return _unsendable(f"{request.method[:40]!r} is not a method of a request to an endpoint")
    lines = [("Host", destination.authority)]
    for spelling, value in request.headers:
        if (name := _name(spelling)) is None:
            return _unsendable(f"{spelling[:40]!r} is not a header name")
        if not value.isprintable() and _CONTROL.search(value):  # most values need no search
            return _unsendable(f"the value of header {name} contains a control character")
        if name not in _NOT_FORWARDED:
            lines.append((name, value))
    if destination.authorization is not None and all(name != "Authorization" for name, _ in lines):
        lines.append(("Authorization", destination.authorization))
    lines.append(("Accept-Encoding", "identity"))
    return lines


@lru_cache(maxsize=1024)
def _name(spelling: str) -> str | None:
    """The canonical spelling of a header name; None if `spelling` is not a valid one.

    With two spellings of one name, aiohttp would let the second line replace the first.
    """
    return canonical_name(spelling) if _TOKEN.fullmatch(spelling) else None


def _unsendable(reason: str) -> Failure:
    return Failure("unsendable", f"cannot be sent: {reason}", final=True)
