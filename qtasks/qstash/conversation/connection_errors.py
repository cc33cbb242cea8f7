"""Why there was no answer, in the words of the layer that knows: the system, TLS, or what answered instead."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from qtasks.causes import cause_chain

_AUTHORITY = "set SSL_CERT_FILE to a file with the certificates of that authority"
_HOST = "write a host name that the certificate is for"
_CERTIFICATES = {
    9: ("is not valid yet", "check the clock of this machine"),
    10: ("has expired", "the service needs a new certificate"),
    18: ("is signed by itself, and not trusted on this machine", "set SSL_CERT_FILE to a file with that certificate"),
    19: ("is signed by an authority that is not trusted on this machine", _AUTHORITY),
    20: ("is signed by an authority that is not trusted on this machine", _AUTHORITY),
    21: ("is signed by an authority that is not trusted on this machine", _AUTHORITY),
    62: ("is for another host name", _HOST),
    64: ("is for another address", _HOST),
}
"""By the number of OpenSSL: what is wrong with a certificate, and what to do."""

_NOT_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
)
"""OpenSSL's names for bytes that are no TLS."""

_NOT_HTTP = frozenset({"illegal request line", "illegal status line"})
"""What h11 says of an answer whose first bytes are no HTTP; of those of TLS, too."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request has no answer, and what to do if that is known."""

    why: str
    fix: str | None = None
    is_surely_unheard: bool = False
    """True if the other side cannot have understood the request."""


NOT_HTTP = Explanation(
    "it does not speak http there", "write https:// in QSTASH_URL, or the port for http", is_surely_unheard=True
)


def explained(error: BaseException) -> Explanation:
    """Explain an error of a connection. httpx itself often says only "connect failed"."""
    for cause in cause_chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _of_certificate(cause)
        if isinstance(cause, ssl.SSLError):
            return _of_tls(cause)
        if isinstance(cause, OSError) and cause.strerror:
            # asyncio adds its own text to the error number. Name resolution has negative numbers and useful texts.
            text = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
            return Explanation(text[:1].lower() + text[1:])
    text = str(error) or type(error).__name__
    if any(text.startswith(words) for words in _NOT_HTTP):
        return NOT_HTTP
    return Explanation(text)


def _of_certificate(error: ssl.SSLCertVerificationError) -> Explanation:
    what, fix = _CERTIFICATES.get(error.verify_code, ("is not accepted", None))
    return Explanation(f"its certificate {what} ({error.verify_message})", fix, is_surely_unheard=True)


def _of_tls(error: ssl.SSLError) -> Explanation:
    reason = error.reason or ""
    if reason in _NOT_TLS:
        fix = "write http:// in QSTASH_URL, or the port for https"
        return Explanation("it does not speak https there", fix, is_surely_unheard=True)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Explanation("it closed the connection during TLS; does it speak https there?")
    return Explanation(f"TLS failed: {reason.replace('_', ' ').lower() or error}")
