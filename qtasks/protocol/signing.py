"""The signature token of a delivery: made by the broker, checked by the receiver (docs/protocol.md 4.2).

A token is a JWT over the destination URL and the SHA-256 of the body, signed with HMAC-SHA256 under the account's
current key. PyJWT does the cryptography. This module adds checks that a general library leaves open: one algorithm,
one spelling of a token, no duplicate names, plain integer times, a short life. The signature is checked before any
JSON is read, so input from a sender without a key never reaches the JSON reader.

Time is an argument. Every refusal is a `SignatureError` whose `reason` is one of eight; the HTTP response is the same
for all of them, so that a sender without a key learns nothing from it.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, SignatureError
from qtasks.protocol import development, strict_json
from qtasks.protocol.messages import SigningKeys
from qtasks.protocol.targets import origin_of

ISSUER = "Upstash"
LIFETIME_S = 300
"""From `iat` to `exp`."""

BACKDATE_S = 5
"""How far `iat` lies before the moment of signing: the official Python receiver tolerates no clock behind ours."""

TOLERANCE_S = 30.0
MAX_LIFETIME_S = 15 * 60
MAX_TOKEN = 8 * 1024
"""Characters of a token. A URL of 4 KiB makes one of about 6 KiB, so the 4 KiB of other systems would be too few."""

MIN_KEY = 32
"""Characters of a signing key: ``sig_`` and 28 more, as the hosted service makes them."""

DEV_KEYS = frozenset(key for user in development.USERS for key in (user.keys.current, user.keys.next))
"""Keys of the four development users (docs/protocol.md 1.5): they are public, so their signature proves nothing."""

_COMPACT = json.JSONEncoder(separators=(",", ":"))
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})")
_DIGEST = re.compile(r"[A-Za-z0-9_-]{43}=?")
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
"""From base64url to what `binascii` reads."""
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
"""From what `binascii` writes to base64url."""
_LAST_CHARACTERS: Final = {2: "AQgw", 3: "AEIMQUYcgkosw048"}
"""Of canonical base64url, by its length modulo 4. Every other last character has bits that stand for nothing."""
_USUAL_HEADER = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"


class Reason(StrEnum):
    """Why a delivery is not trusted; `code` is the code of the error."""

    URL = "url"
    BODY = "body"
    KEY = "key"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    ISSUER = "issuer"
    MALFORMED = "malformed"
    KEYS_MISSING = "keys_missing"

    @property
    def code(self) -> ErrorCode:
        """The code of an error with this reason."""
        return _CODES[self]


_CODES = {
    Reason.URL: ErrorCode.SIGNATURE_URL_WRONG,
    Reason.BODY: ErrorCode.SIGNATURE_BODY_WRONG,
    Reason.KEY: ErrorCode.SIGNATURE_KEY_WRONG,
    Reason.EXPIRED: ErrorCode.SIGNATURE_EXPIRED,
    Reason.NOT_YET_VALID: ErrorCode.SIGNATURE_NOT_YET_VALID,
    Reason.ISSUER: ErrorCode.SIGNATURE_ISSUER_WRONG,
    Reason.MALFORMED: ErrorCode.SIGNATURE_MALFORMED,
    Reason.KEYS_MISSING: ErrorCode.SIGNING_KEYS_MISSING,
}


class Claims(NamedTuple):
    """The contents of a verified token. Times are Unix seconds; `key` names the key that signed it."""

    url: str
    issued_s: int
    expires_s: int
    jti: str
    body_hash: str
    """URL-safe base64 of the SHA-256 of the body, unpadded."""
    key: Literal["current", "next"]


def sign(key: str, *, url: str, body: bytes, now_s: int, jti: str) -> str:
    """Make the token of one attempt to deliver `body` to `url` at `now_s` (Unix seconds).

    `iat` lies 5 s in the past and `exp` 300 s after `iat`, so the token is good for 295 s: receivers may count on the
    protocol's life of exactly 300 s. `nbf` is 0, as the hosted service has it since 2024. `url` is signed verbatim.
    """
    issued_s = now_s - BACKDATE_S
    digest = _base64url(hashlib.sha256(body).digest()).decode()
    # Written out, because only two of the values can hold what JSON escapes.
    claims = (
        f'{{"aud":"","body":"{digest}","exp":{issued_s + LIFETIME_S},"iat":{issued_s},"iss":"{ISSUER}",'
        f'"jti":{_COMPACT.encode(jti)},"nbf":0,"sub":{_COMPACT.encode(url)}}}'
    )
    # The same as `jwt.encode`, which spends half of its time on reading the key and writing the constant header.
    signed = b".".join((_HEADER, _encode(claims.encode())))
    return b".".join((signed, _encode(_mac(key, signed)))).decode("ascii")


def verify(
    token: str,
    *,
    body: bytes,
    url: str | None,
    keys: SigningKeys,
    now_s: float,
    tolerance_s: float = TOLERANCE_S,
) -> Claims:
    """Check a token against the raw `body` and, unless it is None, the public `url` of this receiver.

    Both keys are tried, so deliveries stay valid during a rotation of the keys. `tolerance_s` extends the token's life
    at both ends, because clocks differ. Raises SignatureError with the most specific `reason`: a token with a valid
    signature is never refused because of its key.
    """
    header, payload, key = _open(token, keys)
    _check_header(header)
    raw = _read_object(payload, "payload")
    claims = _read_claims(raw, key)
    if claims.expires_s - claims.issued_s > MAX_LIFETIME_S:
        raise _refusal(Reason.MALFORMED, f"the token lives longer than {MAX_LIFETIME_S} s")
    _check_times(max(claims.issued_s, _seconds(raw, "nbf")), claims.expires_s, now_s, tolerance_s)
    _check_delivery(claims.url, claims.body_hash, url, body)
    return claims


def verify_leniently(
    token: str, *, body: bytes, url: str | None, keys: SigningKeys, now_s: float, tolerance_s: float
) -> None:
    """As `verify`, but with the claims that the official receiver asks for, and no others.

    So `jti` and `iat` may be absent, `jti` may be anything, a time may be any number or its digits as a text, and a
    token may live for ever. This is for `Receiver`, which is put in the official one's place; the dispatcher needs
    `jti` to know a replay, and a short life to forget it.
    """
    header, payload, _ = _open(token, keys)
    _check_header(header, lenient=True)
    claims = _read_object(payload, "payload")
    _check_issuer(claims)
    if claims.get("aud"):
        raise _refusal(Reason.MALFORMED, "the claim aud is not empty")
    starts_s = max(_whole_seconds(claims, name) for name in ("nbf", "iat") if name == "nbf" or name in claims)
    _check_times(starts_s, _whole_seconds(claims, "exp"), now_s, tolerance_s)
    signed_url, body_hash = claims.get("sub"), claims.get("body")
    if not isinstance(signed_url, str) or not isinstance(body_hash, str):
        raise _refusal(Reason.MALFORMED, f"the claim {'body' if isinstance(signed_url, str) else 'sub'} is not a text")
    _check_delivery(signed_url, body_hash.rstrip("="), url, body)


def _check_delivery(signed_url: str, body_hash: str, url: str | None, body: bytes) -> None:
    if url is not None and signed_url != url:
        raise _url_refusal(signed_url, url)
    actual = _encode(hashlib.sha256(body).digest())
    if not hmac.compare_digest(actual, body_hash.encode()):
        raise _refusal(
            Reason.BODY,
            f"the body is not the one that was signed ({len(body)} bytes received)",
            likely="a framework or proxy parsed the body and wrote it again, or the body was changed on the way",
            fix="verify the raw bytes of the request, before anything parses them",
        )


def check_keys(keys: SigningKeys, *, dev: bool = False) -> None:
    """Refuse, at start-up, keys that cannot protect anything. Raises ConfigurationError.

    Both keys must be given, have 32 characters or more, and outside development (`dev`) not be public ones.
    """
    names = (("QSTASH_CURRENT_SIGNING_KEY", keys.current), ("QSTASH_NEXT_SIGNING_KEY", keys.next))
    for name, key in names:
        if not key:
            raise ConfigurationError(f"{name} is not set: nothing could be verified", fix=f"set {name}")
        if len(key) < MIN_KEY:
            raise ConfigurationError(
                f"{name} has {len(key)} characters; a signing key has {MIN_KEY} or more",
                fix="copy the whole key, with its sig_ in front",
            )
        if not key.isascii() or not key.isprintable() or " " in key or key.startswith(("-----", "{")):
            raise ConfigurationError(f"{name} is not a signing key", fix="copy the text that starts with sig_")
        if key in DEV_KEYS and not dev:
            raise ConfigurationError(
                f"{name} is a published development key: every stranger could sign with it",
                fix="use the keys of your account, or run in development mode",
            )


def _open(token: str, keys: SigningKeys) -> tuple[str, str, Literal["current", "next"]]:
    """The header and payload segments of a token whose signature is valid, and the key that made it."""
    if not keys.current and not keys.next:
        raise _refusal(
            Reason.KEYS_MISSING,
            "no signing keys are configured, so no delivery can be trusted",
            fix="set QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY",
        )
    if len(token) > MAX_TOKEN:
        raise _refusal(Reason.MALFORMED, f"the token has {len(token)} characters, more than {MAX_TOKEN}")
    if (parts := _TOKEN.fullmatch(token)) is None:
        raise _refusal(
            Reason.MALFORMED,
            "the Upstash-Signature header is missing" if not token else "the token is not three parts of base64url",
            likely="the request does not come from QStash, or a proxy removed the header" if not token else None,
        )
    header, payload, signature_text = parts.groups()
    signature = _decode(signature_text)
    signed = token[: -len(signature_text) - 1].encode("ascii")
    # Both keys are always tried, so that the time taken does not reveal which one matched.
    by_current = bool(keys.current) and hmac.compare_digest(_mac(keys.current, signed), signature)
    by_next = bool(keys.next) and hmac.compare_digest(_mac(keys.next, signed), signature)
    if by_current:
        return header, payload, "current"
    if by_next:
        return header, payload, "next"
    raise _refusal(
        Reason.KEY,
        "neither the current nor the next signing key made this signature",
        likely="the keys were rotated twice since this process started, or belong to another account or region",
        fix="compare QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY with the broker's",
    )


def _mac(key: str, signed: bytes) -> bytes:
    # A copy of what OpenSSL has prepared: with `hmac.digest` it looks the algorithm up again in each call, which takes
    # twice as long, and PyJWT's way to the same bytes builds two hash objects in Python.
    mac = _begun(key).copy()
    mac.update(signed)
    return mac.digest()


@lru_cache(maxsize=64)
def _begun(key: str) -> hmac.HMAC:
    # Imported with the first key: it takes 80 ms where `cryptography` is installed, and a process that only sends calls
    # has no key.
    import jwt
    from jwt.algorithms import HMACAlgorithm

    try:
        return hmac.new(HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key), digestmod="sha256")
    except jwt.InvalidKeyError as error:
        raise SignatureError(
            f"signature rejected: a configured signing key cannot be used: {error}",
            reason=Reason.KEYS_MISSING,
            code=Reason.KEYS_MISSING.code,
        ) from error


def _base64url(raw: bytes) -> bytes:
    """`raw` as base64url, as `base64.urlsafe_b64encode` in less than half of its time."""
    return binascii.b2a_base64(raw, newline=False).translate(_URL_SAFE)


def _encode(raw: bytes) -> bytes:
    """`raw` as unpadded base64url."""
    return _base64url(raw).rstrip(b"=")


_HEADER = _encode(b'{"alg":"HS256","typ":"JWT"}')


def _decode(segment: str) -> bytes:
    """Bytes of unpadded base64url in its one canonical spelling; `segment` has no other characters than base64url's."""
    if (rest := len(segment) % 4) == 1:
        raise _refusal(Reason.MALFORMED, "a part of the token is not base64url")
    if rest and segment[-1] not in _LAST_CHARACTERS[rest]:
        raise _refusal(Reason.MALFORMED, "a part of the token is not spelt canonically")
    return binascii.a2b_base64(segment.encode("ascii").translate(_STANDARD) + b"=" * (-rest % 4))


def _read_object(segment: str, name: str) -> dict[str, object]:
    try:
        value = strict_json.loads(_decode(segment))
    except ValueError as error:
        raise _refusal(Reason.MALFORMED, f"the {name} of the token is {error}") from None
    if not isinstance(value, dict):
        raise _refusal(Reason.MALFORMED, f"the {name} of the token is not a JSON object")
    return value


def _check_header(segment: str, *, lenient: bool = False) -> None:
    if segment == _USUAL_HEADER:
        return
    header = _read_object(segment, "header")
    if header.get("alg") != "HS256":
        raise _refusal(Reason.MALFORMED, "the token is not signed with HS256")
    if "typ" in header and header["typ"] != "JWT" and not lenient:
        raise _refusal(Reason.MALFORMED, "the token is not of type JWT")
    # `crit` and `b64` change what the signature covers. Other fields (kid, jku ...) mean nothing here.
    if extensions := {"crit", "b64"} & header.keys():
        raise _refusal(Reason.MALFORMED, f"the token asks for extensions ({', '.join(sorted(extensions))})")


def _read_claims(claims: dict[str, object], key: Literal["current", "next"]) -> Claims:
    _check_issuer(claims)
    if claims.get("aud", "") != "":
        raise _refusal(Reason.MALFORMED, "the claim aud is not empty")
    body_hash = _text(claims, "body")
    if _DIGEST.fullmatch(body_hash) is None:
        raise _refusal(Reason.MALFORMED, "the claim body is not a SHA-256 in base64url")
    return Claims(
        url=_text(claims, "sub"),
        issued_s=_seconds(claims, "iat"),
        expires_s=_seconds(claims, "exp"),
        jti=_text(claims, "jti"),
        body_hash=body_hash.rstrip("="),
        key=key,
    )


def _check_issuer(claims: dict[str, object]) -> None:
    if (issuer := claims.get("iss")) != ISSUER:
        raise _refusal(Reason.ISSUER, f"issued by {issuer!r:.64}, not by {ISSUER!r}")


def _text(claims: dict[str, object], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise _refusal(Reason.MALFORMED, f"the claim {name} is not a text")
    return value


def _seconds(claims: dict[str, object], name: str) -> int:
    value = claims.get(name)
    if type(value) is not int or value < 0:  # a bool is an int to isinstance
        raise _refusal(Reason.MALFORMED, f"the claim {name} is not a time in whole seconds")
    return value


def _whole_seconds(claims: dict[str, object], name: str) -> int:
    """A time as the official receiver reads it: cut to whole seconds."""
    value = claims.get(name)
    try:
        if isinstance(value, int | float | str):
            return int(value)
    except ValueError:
        pass
    raise _refusal(Reason.MALFORMED, f"the claim {name} is not a time in seconds")


def _check_times(starts_s: int, expires_s: int, now_s: float, tolerance_s: float) -> None:
    if starts_s > now_s + tolerance_s:
        raise _refusal(
            Reason.NOT_YET_VALID,
            f"valid only in {starts_s - math.floor(now_s)} s",
            likely="the clock of this machine is behind the broker's",
            fix="synchronise the clocks (NTP), or allow a larger tolerance",
        )
    if expires_s <= now_s - tolerance_s:
        raise _refusal(
            Reason.EXPIRED,
            f"expired {math.ceil(now_s) - expires_s} s ago",
            likely="an old request was sent again, or the clock of this machine is ahead of the broker's",
            fix="synchronise the clocks (NTP)",
        )


def _url_refusal(signed: str, received: str) -> SignatureError:
    return _refusal(
        Reason.URL,
        "the signed URL does not match this server's URL",
        details={
            "signed for": _shown(signed),
            "received": f"{_shown(received)}   ({_difference(signed, received)})",
        },
        likely="TLS ends at a proxy, a prefix is added or removed on the way, or the public URL is set wrongly",
        fix=f"set QTASKS_BASE_URL so that it begins {_shown(origin_of(signed))}",
    )


def _shown(url: str) -> str:
    """A URL for a log: no user name, no values of the query, no control characters, no great length."""
    url = re.sub(r"(?<=//)[^/?#@]*@", "***@", url)
    url = re.sub(r"=[^&#]*", "=***", url)
    return url[:300].encode("unicode_escape").decode("ascii")


def _difference(signed: str, received: str) -> str:
    """The first part in which two URLs differ, in words."""
    pattern = re.compile(r"(?P<scheme>[^:/?#]*)(?:://)?(?P<host>[^/?#]*)(?P<path>[^?]*)(?P<query>.*)", re.DOTALL)
    ours, theirs = pattern.match(signed), pattern.match(received)
    assert ours is not None, "every part of the pattern is optional"
    assert theirs is not None, "every part of the pattern is optional"
    part = next(name for name in ("scheme", "host", "path", "query") if ours[name] != theirs[name])
    if part == "path" and ours["path"].rstrip("/") == theirs["path"].rstrip("/"):
        return "trailing slash differs"
    return f"{part} differs"


def _refusal(
    reason: Reason,
    sentence: str,
    *,
    details: Mapping[str, str] | None = None,
    likely: str | None = None,
    fix: str | None = None,
) -> SignatureError:
    return SignatureError(
        f"signature rejected: {sentence}",
        reason=reason,
        code=reason.code,
        details={**(details or {}), **({"likely": likely} if likely else {})},
        fix=fix,
    )
