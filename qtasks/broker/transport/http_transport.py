"""One HTTP attempt over a real network: a `DeliveryRequest` in, a `Response` or the reason why there is none out.

The endpoint is somebody else's, may be slow, broken or hostile, and must not cost more than its own attempt:

* one deadline lies around all of it; within it, name lookup, connecting and TLS together have `CONNECT_TIMEOUT_S`;
* the answer is read raw (never inflated) up to a cap, its header up to another; what is longer is cut and the
  connection closed; so is every connection on which anything odd was seen;
* no redirects, cookies, proxies from the environment or credentials files: nothing leaves but what was asked for;
* names are resolved here, when dialling, and every address is put to the destination policy; the connection goes to
  an address that was checked, whatever the name answers a moment later.

aiohttp does the protocol. It is told to leave everything alone: the URL is handed over in parts, its path and query as
one opaque text (a URL parser would drop a lone ``?`` and resolve dots), and no header is added on its own account.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import re
import ssl
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError
from multidict import CIMultiDict
from yarl import URL

from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.transport import destination_policy
from qtasks.broker.transport.addresses import literal
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.resolver import CheckedResolver, DestinationBlockedError, Resolve, SystemResolver, check
from qtasks.broker.transport.response import (
    MAX_HEADER_LINE,
    READ_BUFFER,
    BoundedResponse,
    UnansweredError,
    UnusableError,
)
from qtasks.protocol.headers import PER_CONNECTION, WireError, canonical_name
from qtasks.protocol.messages import MAX_BODY, Response

CONNECT_TIMEOUT_S = 5.0
"""Longest way to a connection, seconds: name lookup, TCP and TLS; the attempt's deadline may be shorter."""

KEEP_ALIVE_S = 1.5
"""How long an idle connection is kept. Servers drop idle ones after 2 to 5 s (gunicorn 2, uvicorn and Node 5), and a
request that meets the closing door is lost: it would cost the message a retry."""

_OURS = PER_CONNECTION | {"Accept-Encoding"}
"""Headers that describe our connection, not the message; left out if given (RFC 9110, 7.6.1)."""

_NO_DEFAULTS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ODD = re.compile(r"[^ -~]")


@dataclass(frozen=True, slots=True)
class _AllowedDestination:
    """What a URL comes to once it is taken apart and allowed."""

    url: URL
    authority: str
    place: str
    """``host:port`` for people; a URL's path, query and credentials stay out of error texts."""
    authorization: str | None


class HttpTransport:
    """Attempts over HTTP/1.1 and TLS, on connections that are kept for `KEEP_ALIVE_S`.

    Args:
        policy: Which addresses may be dialled.
        max_response: Most bytes of an answer's body that are read; a longer one is cut and marked so.
        connections: Most connections open at a time. An attempt that waits for one spends its own deadline, so the
            caller should not start more attempts than this.
        per_host: Most connections to one host and port.
        resolve: Name lookup; the system's by default.
        tls: How certificates are verified; the system's trust store by default.
    """

    def __init__(
        self,
        policy: DestinationPolicy,
        *,
        max_response: int = MAX_BODY,
        connections: int = 256,
        per_host: int = 64,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._max_response = max_response
        self._connections = connections
        self._per_host = per_host
        self._resolve = resolve
        self._tls = tls
        self._system: SystemResolver | None = None
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        # The policy never changes, so neither does its verdict on a URL; a busy dispatcher is a single entry.
        self._endpoint = lru_cache(maxsize=1024)(self._examine)

    async def send(self, request: DeliveryRequest) -> Response | Failure:
        """Send `request` and read the answer, all within `request.timeout_ms`. Never raises but for cancellation."""
        endpoint = self._endpoint(request.url)
        if isinstance(endpoint, Failure):
            return endpoint
        headers = _headers_for(endpoint, request)
        if isinstance(headers, Failure):
            return headers
        if self._closed:
            return Failure("connection_lost", f"not sent to {endpoint.place}: the broker is stopping")
        answering = False
        try:
            async with asyncio.timeout(request.timeout_ms / 1000) as deadline:
                answer = await self._open_session().request(
                    request.method,
                    endpoint.url,
                    headers=headers,
                    data=_payload(request.body),
                    allow_redirects=False,
                )
                assert isinstance(answer, BoundedResponse)
                answering = True
                return await answer.take(self._max_response)
        except TimeoutError:
            return _too_late(endpoint.place, request.timeout_ms, answering=answering, in_all=deadline.expired())
        except Exception as error:
            # The port's promise: whatever it was, it is one failed attempt.
            return _failure(error, endpoint.place)

    async def close(self) -> None:
        """Close every connection and start no more attempts. Idempotent."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self._system is not None:
            self._system.close()

    def _examine(self, url: str) -> _AllowedDestination | Failure:
        try:
            found = destination_policy.parse(url)
        except WireError as error:
            return Failure("unsendable", str(error), final=True)
        if literal(found.host) is not None and (refusal := check(self._policy, found.host, found.host, found.port)):
            return Failure("destination_blocked", refusal, final=True)
        host = f"[{found.host}]" if ":" in found.host else found.host
        return _AllowedDestination(
            # Built from parts, the target in the place of the path, nothing is parsed or re-encoded again.
            url=URL.build(scheme=found.scheme, host=host, port=found.port, path=found.target, encoded=True),
            authority=found.authority,
            place=f"{host}:{found.port}",
            authorization=_basic(found.userinfo) if found.userinfo else None,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            if self._resolve is None:
                self._resolve = self._system = SystemResolver()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=CheckedResolver(self._policy, self._resolve),
                    use_dns_cache=False,
                    ssl=self._tls or True,
                    limit=self._connections,
                    limit_per_host=self._per_host,
                    keepalive_timeout=KEEP_ALIVE_S,
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
        return self._session


def _payload(body: bytes) -> aiohttp.Payload | None:
    # Callbacks may be larger than any published body; aiohttp wants those in pieces.
    if len(body) > MAX_BODY:
        return aiohttp.BytesIOPayload(io.BytesIO(body))
    return aiohttp.BytesPayload(body) if body else None


def _basic(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    return "Basic " + base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode()


def _headers_for(endpoint: _AllowedDestination, request: DeliveryRequest) -> CIMultiDict[str] | Failure:
    """The header lines in the order they are sent; `Content-Length` follows at the end."""
    # CONNECT asks for a tunnel and has another form of request line.
    if request.method == "CONNECT" or not _TOKEN.fullmatch(request.method):
        return _unsendable(f"{request.method[:40]!r} is not a method of a request to an endpoint")
    headers = CIMultiDict({"Host": endpoint.authority})
    for given, value in request.headers:
        if (name := _name(given)) is None:
            return _unsendable(f"{given[:40]!r} is not a header name")
        if _CONTROL.search(value):
            return _unsendable(f"the value of header {name} contains a control character")
        if name not in _OURS:
            headers.add(name, value)
    if endpoint.authorization is not None and "Authorization" not in headers:
        headers.add("Authorization", endpoint.authorization)
    headers.add("Accept-Encoding", "identity")
    return headers


@lru_cache(maxsize=1024)
def _name(given: str) -> str | None:
    """The one spelling of a header's name (aiohttp takes a second one for a replacement); None if it is no name."""
    return canonical_name(given) if _TOKEN.fullmatch(given) else None


def _unsendable(reason: str) -> Failure:
    return Failure("unsendable", f"cannot be sent: {reason}", final=True)


def _too_late(place: str, timeout_ms: int, *, answering: bool, in_all: bool) -> Failure:
    if not in_all:
        return Failure("timeout", f"no connection to {place} within {CONNECT_TIMEOUT_S:g}s")
    span = f"within {timeout_ms / 1000:g}s (Upstash-Timeout)"
    return Failure(
        "timeout", f"the answer of {place} was not complete {span}" if answering else f"no answer from {place} {span}"
    )


def _failure(error: Exception, place: str) -> Failure:
    """What an exception says about the attempt, in a stable code and a sentence."""
    match error:
        case aiohttp.ClientConnectorError():
            return _not_connected(error, place)
        case UnansweredError():
            return _unanswered(error.__cause__, place)
        case aiohttp.ClientPayloadError():
            return _broken_body(error, place)
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return Failure("bad_response", f"unusable answer of {place}: {_shown(error.message)}")
        case UnusableError():
            return Failure("bad_response", f"unusable answer of {place}: {error}")
        case OSError():
            return Failure("connection_lost", f"connection to {place} lost: {_reason(error)}")
    # What aiohttp does not like about the request is a ValueError; the rest should not happen, and is worth a retry.
    code = "unsendable" if isinstance(error, ValueError) else "connection_lost"
    return Failure(code, f"attempt at {place} broke off: {type(error).__name__}: {_shown(str(error))}")


def _unanswered(cause: BaseException | None, place: str) -> Failure:
    if isinstance(cause, OSError):
        return Failure("connection_lost", f"connection to {place} lost: {_reason(cause)}")
    return Failure("connection_lost", f"connection lost: {place} closed it without an answer")


def _not_connected(failed: aiohttp.ClientConnectorError, place: str) -> Failure:
    if isinstance(failed, aiohttp.ClientSSLError):
        return Failure("tls", f"no TLS connection to {place}: {_tls_reason(failed)}")
    error = failed.os_error
    if isinstance(error, DestinationBlockedError):
        return Failure("destination_blocked", str(error), final=True)
    if isinstance(failed, aiohttp.ClientConnectorDNSError):
        return Failure("dns", f"cannot resolve {place.rpartition(':')[0]}: {_reason(error)}")
    if error.errno == errno.ECONNREFUSED:
        return Failure("connection_refused", f"connection refused: nothing listens on {place}")
    if error.errno == errno.ETIMEDOUT:
        return Failure("timeout", f"no connection to {place}: {_reason(error)}")
    return Failure("connection_lost", f"no connection to {place}: {_reason(error)}")


def _broken_body(error: aiohttp.ClientPayloadError, place: str) -> Failure:
    cause = error.__cause__
    if isinstance(cause, HttpProcessingError):
        if not isinstance(cause, PayloadEncodingError):
            return Failure("bad_response", f"unusable answer of {place}: {_shown(cause.message)}")
        return Failure("connection_lost", f"the answer of {place} broke off: {_shown(cause.message)}")
    return Failure("connection_lost", f"the answer of {place} broke off: {_shown(str(error))}")


def _tls_reason(error: aiohttp.ClientSSLError) -> str:
    cause = error.__cause__
    reason = str(getattr(cause, "reason", "") or "").replace("_", " ").lower()  # WRONG_VERSION_NUMBER and the like
    return _shown(getattr(cause, "verify_message", "") or reason or str(cause or error))


def _reason(error: OSError) -> str:
    return _shown(error.strerror or str(error) or type(error).__name__)


def _shown(text: str) -> str:
    """Text that may hold an endpoint's bytes, fit for one line of a log."""
    return _ODD.sub("?", " ".join(text.split()).removesuffix(" ^"))[:200]
