"""Pickles, protected by a MAC that a broker cannot make.

Loading a pickle runs code. The signature of a delivery does not protect against that: the broker signs every message
that it accepts. So a pickle travels with a MAC, whose key only the processes of the application have, and which is
checked before anything of the pickle is read. The MAC also covers the purpose of the pickle (the arguments or the
result of one call of one task), so one pickle cannot replace another.

    pickle1:MAC.BODY        BODY = "Python's version/cloudpickle's version", a NUL, the pickle; both in base64url

No JSON document begins like this, so the text of a result shows whether it is a pickle or JSON.
"""

from __future__ import annotations

import base64
import hmac
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError

MARK = "pickle1:"
RESULT = "result"

_DOMAIN = b"qtasks/pickle/1"


class ForgedError(PayloadError):
    """The MAC of a pickle, or of what is encrypted, is not valid for this purpose; nothing was read."""

    code = ErrorCode.PICKLE_FORGED


@dataclass(frozen=True, slots=True)
class Purpose:
    """The purpose of a pickle, or of what is encrypted."""

    what: str
    task: str
    call_id: str

    @classmethod
    def arguments(cls, task: str, call_id: str) -> Purpose:
        """The arguments of a call."""
        return cls("arguments", task, call_id)

    @classmethod
    def step(cls, task: str, call_id: str) -> Purpose:
        """The arguments of a step of a flow, before the result of the call before it is added."""
        return cls("step", task, call_id)

    @classmethod
    def result(cls, task: str, call_id: str) -> Purpose:
        """The result of a call."""
        return cls(RESULT, task, call_id)

    @classmethod
    def schedule(cls, task: str, schedule_id: str) -> Purpose:
        """The arguments of every run of a schedule: its body is the same at every tick, and has no call id."""
        return cls("schedule", task, schedule_id)

    def framed(self) -> bytes:
        """The purpose as bytes that no other purpose has."""
        return b"".join(_framed(part.encode()) for part in (self.what, self.task, self.call_id))


class Pickles:
    """Writes and reads pickles. The first of `secrets` makes the MAC; a MAC made with any of them is valid."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = tuple(_derived(secret) for secret in secrets)

    def dump(self, value: Any, purpose: Purpose) -> str:
        """Pickle `value` as text. Raises ValueError if it cannot be pickled."""
        import cloudpickle  # type: ignore[import-untyped]

        try:
            data = cloudpickle.dumps(value)
        except Exception as error:  # the value's own methods may raise anything
            raise ValueError(f"{type(error).__name__}: {error}") from error
        body = f"{_versions()}\0".encode() + data
        return f"{MARK}{_text(_mac(self._keys[0], body, purpose))}.{_text(body)}"

    def load(self, text: str, *purposes: Purpose) -> Any:
        """Read a pickle that was made for one of `purposes`.

        Raises ForgedError, before anything is read, for a MAC that is not valid; PayloadError for a pickle of this
        application that cannot be read here.
        """
        versions, _, data = self._opened(text, purposes).partition(b"\0")
        if versions.decode() != _versions():
            raise PayloadError(
                f"the pickle was made by {_named(versions.decode())}; this is {_named(_versions())}",
                fix="run the same versions on both sides; a call that waits is tried again",
                code=ErrorCode.PICKLE_STALE,
            )
        try:
            return pickle.loads(data)  # noqa: S301 - the only place that loads one, after its MAC is checked
        except Exception as error:
            raise PayloadError(
                f"the pickle cannot be read here: {type(error).__name__}: {error}", code=ErrorCode.PICKLE_STALE
            ) from error

    def _opened(self, text: str, purposes: Sequence[Purpose]) -> bytes:
        """The body, if the MAC is valid."""
        mac_text, _, body_text = text.removeprefix(MARK).partition(".")
        try:
            mac, body = _bytes(mac_text), _bytes(body_text)
        except ValueError:
            mac, body = b"", b""
        # All are compared, also after a match: the time taken must not show which key or purpose matched.
        good = [hmac.compare_digest(mac, _mac(key, body, purpose)) for key in self._keys for purpose in purposes]
        if not text.startswith(MARK) or not any(good):
            purpose = purposes[0]
            raise ForgedError(
                f"the pickled {purpose.what} of {purpose.task} {purpose.call_id} was not read: "
                "its MAC was not made with QTASKS_SECRET_KEY",
                details={"likely": "QTASKS_SECRET_KEY differs where it was made, or the message was changed or copied"},
            )
        return body


def is_pickle(text: str) -> bool:
    """True if the text of a result is a pickle, False if it is JSON."""
    return text.startswith(MARK)


def _derived(secret: str) -> bytes:
    """A key for pickles only: HKDF-SHA256 (RFC 5869), one block long."""
    extracted = hmac.digest(_DOMAIN, secret.encode(), "sha256")
    return hmac.digest(extracted, b"mac\x01", "sha256")


def _mac(key: bytes, body: bytes, purpose: Purpose) -> bytes:
    return hmac.digest(key, purpose.framed() + _framed(body), "sha256")


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big") + part


@lru_cache(maxsize=1)
def _versions() -> str:
    """The versions that must match: code in a pickle depends on the minor versions of Python and of cloudpickle."""
    import importlib.metadata

    cloudpickle = ".".join(importlib.metadata.version("cloudpickle").split(".")[:2])
    return f"{sys.version_info.major}.{sys.version_info.minor}/{cloudpickle}"


def _named(versions: str) -> str:
    python, _, cloudpickle = versions.partition("/")
    return f"Python {python} with cloudpickle {cloudpickle}"


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, altchars=b"-_", validate=True)
