"""What the errors of an attempt mean: each becomes a `Failure` with a stable code, a sentence, and the blame.

The blame decides whether the attempt counts (docs/protocol.md 4.7):

* `interrupted`: the connection was refused, or ended before the head of a response. A response that breaks off in its
  body is not an interruption: its status has arrived, so the endpoint has answered;
* silence until a deadline is an ordinary failure, also while connecting;
* not `attempted`: this machine lacks something (descriptors, memory, ports, threads), or no name server answers.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from dataclasses import replace
from typing import Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError

from qtasks.broker.ports import Failure
from qtasks.broker.transport.resolver import DestinationBlockedError, is_unanswered
from qtasks.broker.transport.response import UnansweredError, UnusableError

_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
"""This machine has no descriptor, no memory, or no free port for a connection."""
_UNREACHABLE: Final = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})
"""The network says that there is no way to the endpoint."""
_SEVERAL: Final = "Multiple exceptions"
"""The beginning of aiohttp's error for a name whose addresses fail for different reasons; it lists them."""
_NAME_DIFFERS: Final = frozenset({62, 63, 64})
"""OpenSSL's verify codes for a certificate of another host, mail address or IP address."""
_EXPIRED: Final = 10
_NOT_YET_VALID: Final = 9
_NO_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's verify codes for a certificate of an authority that this machine does not trust."""
_NO_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
)
"""OpenSSL's reasons for an answer that is no TLS at all."""
_TLS_RECORD: Final = re.compile(r"\\x1[56]\\x03")
"""The beginning of a TLS alert or handshake, as aiohttp quotes it in place of a status line."""
_ODD: Final = re.compile(r"[^ -~]")


def timed_out(place: str, span_s: float, *, responding: bool) -> Failure:
    """The endpoint was silent, or its response was not complete, until the deadline of the attempt."""
    span = f"within {span_s:g}s (Upstash-Timeout)"
    return Failure(
        "timeout",
        f"the response from {place} was not complete {span}" if responding else f"no answer from {place} {span}",
    )


def unanswered_lookup(place: str, span_s: float) -> Failure:
    """No name server answered before the deadline of the attempt."""
    return _lookup_failure(
        f"no answer from the name server within {span_s:g}s (Upstash-Timeout)", place, attempted=False
    )


def failure_of(error: Exception, place: str, *, sent: bool, secure: bool = False) -> Failure:
    """The failure that an exception stands for.

    `sent`: the whole request was on its way before. `secure`: the request was one over TLS.
    """
    if (tls_error := _tls_error(error)) is not None:
        return Failure("tls", f"no TLS connection to {place}: {_tls_reason(tls_error)}")
    match error:
        case aiohttp.ClientConnectorError():
            return _not_connected(error, place, secure=secure)
        case UnansweredError():
            failure = _unanswered(error.__cause__, place, sent=sent)
            return _with_doubt(failure) if error.closed_at_once and not secure else failure
        case HttpProcessingError() if not secure and _TLS_RECORD.search(error.message):
            return Failure("bad_response", f"{place} speaks TLS: its URL begins with https://")
        case aiohttp.ClientPayloadError():
            return _broken_body(error, place)
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return Failure("bad_response", f"unusable response from {place}: {shown(error.message)}")
        case UnusableError():
            return Failure("bad_response", f"unusable response from {place}: {error}")
        case OSError():
            return _unanswered(error, place, sent=sent)
        case MemoryError():
            return Failure("connection_lost", f"no memory left for the attempt at {place}", attempted=sent)
    # aiohttp raises ValueError for a request that it refuses. Other errors should not happen and are worth a retry.
    code = "unsendable" if isinstance(error, ValueError) else "connection_lost"
    return Failure(code, f"the attempt at {place} failed: {type(error).__name__}: {shown(str(error))}")


def shown(text: str) -> str:
    """`text` as one line for a log. It may contain bytes from the endpoint."""
    return _ODD.sub("?", " ".join(text.split()).removesuffix(" ^"))[:200]


def _unanswered(cause: BaseException | None, place: str, *, sent: bool) -> Failure:
    reason = f"connection lost: {place} closed it without a response"
    if isinstance(cause, OSError):
        reason = f"connection to {place} lost: {_reason(cause)}"
    return Failure("connection_lost", reason, interrupted=True, mid_run=sent)


def _with_doubt(failure: Failure) -> Failure:
    """A server may have ended a new connection because it expects TLS: the log names that possibility."""
    return replace(failure, error=f"{failure.error} (as a server does that expects https)")


def _not_connected(failed: aiohttp.ClientConnectorError, place: str, *, secure: bool) -> Failure:
    error = failed.os_error
    if isinstance(error, DestinationBlockedError):
        return Failure("destination_blocked", str(error), final=True)
    if isinstance(failed, aiohttp.ClientConnectorDNSError):
        return _lookup_failure(_reason(error), place, attempted=not is_unanswered(error))
    if error.errno == errno.ECONNREFUSED:
        return Failure("connection_refused", f"connection refused: nothing listens on {place}", interrupted=True)
    if error.errno == errno.ETIMEDOUT:
        return Failure("timeout", f"no connection to {place}: {_reason(error)}")
    reason = f"no connection to {place}: {_reason(error)}"
    if secure and isinstance(error, ConnectionError):
        reason = f"no TLS connection to {place}: it ended the connection in the middle of the handshake"
    return Failure(
        "connection_lost",
        reason,
        attempted=not _is_shortage(error, place),
        interrupted=error.errno in _UNREACHABLE or isinstance(error, ConnectionError),
    )


def _lookup_failure(reason: str, place: str, *, attempted: bool) -> Failure:
    return Failure("dns", f"cannot resolve {place.rpartition(':')[0]}: {reason}", attempted=attempted)


def _is_shortage(error: OSError, place: str) -> bool:
    # For an IPv6 address, EADDRNOTAVAIL may also mean that this machine has no IPv6, which no waiting helps.
    return error.errno in _SHORTAGE and not (error.errno == errno.EADDRNOTAVAIL and place.startswith("["))


def _broken_body(error: aiohttp.ClientPayloadError, place: str) -> Failure:
    cause = error.__cause__
    if isinstance(cause, HttpProcessingError):
        if not isinstance(cause, PayloadEncodingError):
            return Failure("bad_response", f"unusable response from {place}: {shown(cause.message)}")
        return Failure("connection_lost", f"the response from {place} ended early: {shown(cause.message)}")
    return Failure("connection_lost", f"the response from {place} ended early: {shown(str(error))}")


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The error of the ssl module that caused `error`; its errno is 1, which is another error's to the system."""
    innermost = None
    while error is not None:
        if isinstance(error, ssl.SSLError):  # aiohttp's own are ones as well, without any details
            innermost = error
        error = error.__cause__
    return innermost


def _tls_reason(error: ssl.SSLError) -> str:
    reason = getattr(error, "reason", None) or ""
    words = shown(reason.replace("_", " ").lower() or str(error))
    if reason in _NO_TLS:
        return f"it does not speak TLS ({words}); does its URL begin with http://?"
    code, message = getattr(error, "verify_code", 0), shown(getattr(error, "verify_message", "")).rstrip(".")
    if not message:
        return words
    if code in _NAME_DIFFERS:
        return f"its certificate is for another name: {message}"
    if code == _EXPIRED:
        return "its certificate has expired"
    if code == _NOT_YET_VALID:
        return "its certificate is not valid yet; or the clock of this machine is wrong"
    authority = "; SSL_CERT_FILE can name the file of its authority" if code in _NO_AUTHORITY else ""
    return f"its certificate is not trusted: {message}{authority}"


def _reason(error: OSError) -> str:
    """Why there is no connection. asyncio's text for it names the address, which publishers must not learn."""
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    text = shown(error.strerror or str(error) or type(error).__name__)
    return "its addresses fail for several reasons" if text.startswith(_SEVERAL) else text
