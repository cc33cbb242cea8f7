"""Pickles, under a MAC that no broker can make.

Whoever has a pickle loaded runs code. The signature of a delivery does not help against that: the broker makes it, for
everybody who may publish. So a pickle travels under a MAC whose key only the application's own processes have, and that
is checked before anything of the pickle is read. The MAC covers what the pickle is for, the arguments or the result of
one call of one task, so that none can be put in the place of another.

    pickle1:MAC.BODY        BODY = "Python's version/cloudpickle's version", a NUL, the pickle; both in base64url

No JSON document begins like this, so a result that is a pickle is told from one that is JSON by its text.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.metadata
import json
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError

MARK = "pickle1:"

_DOMAIN = b"qtasks/pickle/1"


class ForgedError(PayloadError):
    """A pickle that nobody with our key has made for this purpose; nothing of it was read."""

    code = ErrorCode.PICKLE_FORGED


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a pickle is for."""

    what: str
    task: str
    call_id: str

    @classmethod
    def arguments(cls, task: str, call_id: str) -> Purpose:
        """Of a call."""
        return cls("arguments", task, call_id)

    @classmethod
    def step(cls, task: str, call_id: str) -> Purpose:
        """Of a call in a flow, to which the result of the one before it may come."""
        return cls("step", task, call_id)

    @classmethod
    def result(cls, task: str, call_id: str) -> Purpose:
        """Of a call."""
        return cls("result", task, call_id)


class Pickles:
    """Makes and reads pickles. Of several `secrets` the first makes the MAC, and each is good for reading."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = tuple(_derived(secret) for secret in secrets)

    def dump(self, value: Any, purpose: Purpose) -> str:
        """`value` as text. Raises ValueError for what cannot be pickled."""
        import cloudpickle  # type: ignore[import-untyped]

        try:
            data = cloudpickle.dumps(value)
        except Exception as error:  # whatever the value's own methods raise
            raise ValueError(f"{type(error).__name__}: {error}") from error
        body = f"{_versions()}\0".encode() + data
        return f"{MARK}{_text(_mac(self._keys[0], body, purpose))}.{_text(body)}"

    def load(self, text: str, *purposes: Purpose) -> Any:
        """What was pickled for one of `purposes`.

        Raises ForgedError before anything of it is read, PayloadError for a pickle of ours that cannot be read here.
        """
        versions, _, data = self._opened(text, purposes).partition(b"\0")
        if versions.decode() != _versions():
            raise PayloadError(
                f"the pickle was made by {_named(versions.decode())}; this is {_named(_versions())}",
                fix="run the same versions on both sides; a call that waits is tried again",
                code=ErrorCode.PICKLE_STALE,
            )
        try:
            return pickle.loads(data)  # noqa: S301 - the only one there is, and the MAC is good
        except Exception as error:
            raise PayloadError(
                f"the pickle cannot be read here: {type(error).__name__}: {error}", code=ErrorCode.PICKLE_STALE
            ) from error

    def _opened(self, text: str, purposes: Sequence[Purpose]) -> bytes:
        """The body, if the MAC is good."""
        mac_text, _, body_text = text.removeprefix(MARK).partition(".")
        try:
            mac, body = _bytes(mac_text), _bytes(body_text)
        except ValueError:
            mac, body = b"", b""
        # All are tried whatever the first says: the time taken must not tell which was meant.
        good = [hmac.compare_digest(mac, _mac(key, body, purpose)) for key in self._keys for purpose in purposes]
        if not text.startswith(MARK) or not any(good):
            this = purposes[0]
            raise ForgedError(
                f"the pickled {this.what} of {this.task} {this.call_id} was not read: no key of ours made its MAC",
                details={"likely": "QTASKS_SECRET_KEY differs where it was made, or the message was changed or copied"},
            )
        return body


def is_pickle(text: str) -> bool:
    """Whether a result is a pickle, and not JSON."""
    return text.startswith(MARK)


def shown(text: str) -> bytes:
    """A result as JSON for everybody: of a pickle only how large it is, and its hash."""
    if not is_pickle(text):
        return text.encode()
    body = text.rpartition(".")[2].encode()
    return json.dumps({"pickle": {"bytes": len(body) * 3 // 4, "sha256": hashlib.sha256(body).hexdigest()}}).encode()


def _derived(secret: str) -> bytes:
    """A key for nothing but this: HKDF-SHA256 (RFC 5869), one block long."""
    extracted = hmac.digest(_DOMAIN, secret.encode(), "sha256")
    return hmac.digest(extracted, b"mac\x01", "sha256")


def _mac(key: bytes, body: bytes, purpose: Purpose) -> bytes:
    parts = (purpose.what.encode(), purpose.task.encode(), purpose.call_id.encode(), body)
    return hmac.digest(key, b"".join(len(part).to_bytes(8, "big") + part for part in parts), "sha256")


@lru_cache(maxsize=1)
def _versions() -> str:
    """Code in a pickle is for one minor version of Python and, where cloudpickle put it there, of cloudpickle."""
    mine = ".".join(importlib.metadata.version("cloudpickle").split(".")[:2])
    return f"{sys.version_info.major}.{sys.version_info.minor}/{mine}"


def _named(versions: str) -> str:
    python, _, mine = versions.partition("/")
    return f"Python {python} with cloudpickle {mine}"


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, altchars=b"-_", validate=True)
