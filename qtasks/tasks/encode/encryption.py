"""Encryption of arguments and results, with keys that a broker does not have.

Each value is encrypted with AES-256-GCM under a key of its own, made of the secret and 16 random bytes, and with a
random nonce: no number of values wears a secret out. Its purpose (the arguments or the result of one call of one task)
is authenticated with it, so the value of one call cannot take the place of another's.

    sealed1:KEY.BODY        KEY identifies the secret; BODY = 16 bytes of salt, 12 of nonce, the ciphertext; base64url

No JSON document begins like this, so the text of a result shows that it is encrypted.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError
from qtasks.tasks.encode.pickling import ForgedError, Purpose

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEALED = "sealed1:"

_DOMAIN = b"qtasks/encryption/1"
_SALT, _NONCE, _TAG = 16, 12, 16


class KeyUnknownError(PayloadError):
    """The key with which a value was encrypted is not here; a process with the key can read it."""

    code = ErrorCode.ENCRYPTION_KEY_UNKNOWN


class SealBrokenError(ForgedError):
    """What is encrypted is not valid for this purpose; nothing of it was read."""

    code = ErrorCode.ENCRYPTION_FORGED


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    main: bytes = field(repr=False)
    hashing: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: str) -> _Key:
        """The keys that are made of a secret: HKDF-SHA256 (RFC 5869), one block each."""
        extracted = hmac.digest(_DOMAIN, secret.encode(), "sha256")
        name, main, hashing = (
            hmac.digest(extracted, info + b"\x01", "sha256") for info in (b"id", b"encryption", b"hash")
        )
        return cls(_text(name[:6]), main, hashing)


class Encryption:
    """Encrypts and decrypts. The first of `secrets` encrypts; what was encrypted with any of them is decrypted."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = tuple(_Key.of(secret) for secret in secrets)
        self._by_id = {key.id: key for key in self._keys}

    def seal(self, content: bytes, purpose: Purpose) -> str:
        """Encrypt `content` as text."""
        key = self._keys[0]
        salt, nonce = secrets.token_bytes(_SALT), secrets.token_bytes(_NONCE)
        ciphertext: bytes = _cipher(key, salt).encrypt(nonce, content, _associated(key, purpose))
        return f"{SEALED}{key.id}.{_text(salt + nonce + ciphertext)}"

    def open(self, text: str, *purposes: Purpose) -> bytes:
        """Decrypt what was encrypted for one of `purposes`. Raises KeyUnknownError, SealBrokenError."""
        from cryptography.exceptions import InvalidTag

        purpose = purposes[0]
        what = f"the encrypted {purpose.what} of {purpose.task} {purpose.call_id}"
        key_id, _, body_text = text.removeprefix(SEALED).partition(".")
        if (key := self._by_id.get(key_id)) is None:
            raise KeyUnknownError(
                f"{what} cannot be read: no key in QTASKS_SECRET_KEY has the id {key_id[:16]!r}",
                details={"keys here": ", ".join(self._by_id)},
                fix="set the same QTASKS_SECRET_KEY in every process; to change it, keep the old one: new,old",
            )
        try:
            body = base64.b64decode(body_text, altchars=b"-_", validate=True)
        except ValueError:
            body = b""
        # Bits of the last character may be unused: only the text that `seal` writes is read.
        if len(body) >= _SALT + _NONCE + _TAG and _text(body) == body_text:
            cipher = _cipher(key, body[:_SALT])
            for each in purposes:
                try:
                    content: bytes = cipher.decrypt(
                        body[_SALT : _SALT + _NONCE], body[_SALT + _NONCE :], _associated(key, each)
                    )
                except InvalidTag:
                    continue
                return content
        raise SealBrokenError(
            f"{what} was not read: it was changed, or encrypted for another call",
            details={"likely": "the message or the result was changed or copied"},
        )

    def hashed(self, content: bytes, *, newest: bool) -> str:
        """A hash that shows nothing of `content` to those without the key.

        The oldest key makes it, so that it stays the same while a new key is added; with `newest`, the one that
        encrypts.
        """
        return hmac.digest(self._keys[0 if newest else -1].hashing, content, "sha256").hex()


def is_sealed(text: str) -> bool:
    """True if a text is an encrypted value."""
    return text.startswith(SEALED)


def _cipher(key: _Key, salt: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hmac.digest(key.main, salt, "sha256"))


def _associated(key: _Key, purpose: Purpose) -> bytes:
    return f"{SEALED}{key.id}.".encode() + purpose.framed()


def _text(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).decode("ascii")
