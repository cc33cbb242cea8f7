"""Values as text in the form that their task declares: by a codec, as a pickle, encrypted or not.

    codec1:NAME.BODY        what a codec of this name made, in base64url
    pickle1:...             see `pickling`
    sealed1:...             see `encryption`; inside: the name of the codec (or json, or pickle), a NUL, what it made

The declaration decides which of them is read; the text only says which of them it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError
from qtasks.protocol import strict_json
from qtasks.tasks.codec import JSON, PICKLE, Codec, WireForm
from qtasks.tasks.encode.encryption import Encryption, is_sealed
from qtasks.tasks.encode.envelope import COMPACT
from qtasks.tasks.encode.keyring import Keyring
from qtasks.tasks.encode.pickling import RESULT, Pickles, Purpose, is_pickle

CODED = "codec1:"


class EncodingUnexpected(PayloadError):
    """A value has another form than its task declares; a process with another declaration can read it."""

    code = ErrorCode.ENCODING_UNEXPECTED


class CodecError(PayloadError):
    """A codec did not do what it has to."""

    code = ErrorCode.CODEC_FAILED


@dataclass(frozen=True, slots=True)
class Content:
    """What a text contained."""

    value: Any
    is_pickled: bool = False
    """True for a Python value; otherwise it is a plain JSON value."""
    is_sealed: bool = False


@dataclass(frozen=True, slots=True)
class Encoding:
    """Writes the values of one task as text, and reads them."""

    form: WireForm
    keyring: Callable[[], Keyring]
    """The keys of the task's application."""

    def pickles(self) -> Pickles:
        """What reads and writes pickles. Raises ConfigurationError if they are not allowed."""
        return self.keyring().pickles()

    def encryption(self) -> Encryption:
        """What encrypts. Raises ConfigurationError if there is no key."""
        return self.keyring().encryption()

    def write(self, plain: Any, purpose: Purpose) -> str:
        """A plain JSON value by the declared codec, encrypted if the declaration says so.

        Raises ValueError for a value that JSON cannot carry, CodecError for one that the codec does not carry.
        """
        codec = self.form.codec
        content = _json_bytes(plain, purpose) if codec is None else _encoded(codec, plain, purpose)
        if self.form.encrypts:
            return self._sealed(JSON if codec is None else codec.name, content, purpose)
        return content.decode() if codec is None else f"{CODED}{codec.name}.{_text(content)}"

    def write_pickle(self, value: Any, purpose: Purpose) -> str:
        """Any value as a pickle, encrypted if the declaration says so. Raises ValueError if it cannot be pickled."""
        text = self.pickles().dump(value, purpose)
        return self._sealed(PICKLE, text.encode(), purpose) if self.form.encrypts else text

    def read(self, text: str, *purposes: Purpose) -> Content:
        """Read what was written for one of `purposes`.

        Raises EncodingUnexpected for a form that the declaration does not allow, before anything is read; CodecError;
        ForgedError and PayloadError as `Pickles.load` and `Encryption.open`; ConfigurationError.
        """
        purpose = purposes[0]
        sealed = is_sealed(text)
        self.check_sealing(purpose, is_sealed=sealed)
        if sealed:
            name_bytes, _, content = self.encryption().open(text, *purposes).partition(b"\0")
            name = name_bytes.decode()
        else:
            name, content = _split(text)
        if name == PICKLE and (self.form.pickled or purpose.what == RESULT):
            return Content(self.pickles().load(content.decode(), *purposes), is_pickled=True, is_sealed=sealed)
        self.check_name(name, purpose)
        codec = self.form.codec_named(name)
        plain = _read_json(content, purpose) if codec is None else _decoded(codec, content, purpose)
        return Content(plain, is_sealed=sealed)

    def check_sealing(self, purpose: Purpose, *, is_sealed: bool) -> None:
        """Raise EncodingUnexpected if the declaration does not allow what is, or is not, encrypted."""
        if not self.form.accepts_encryption(is_sealed=is_sealed):
            word = "encrypted" if is_sealed else "unencrypted"
            raise self.unexpected(purpose, f"arrived {word}", f'accepts=["{word}"]')

    def check_name(self, name: str, purpose: Purpose) -> None:
        """Raise EncodingUnexpected if the declaration does not allow what was written under `name`."""
        # A result of a task with pickles is JSON wherever JSON can carry it.
        if not self.form.accepts_name(name) and not (purpose.what == RESULT and self.form.pickled and name == JSON):
            fix = 'accepts=["json"]' if name == JSON else f"accepts=[the codec {name[:32]}]"
            raise self.unexpected(purpose, f"arrived as {name[:32]}", fix)

    def unexpected(self, purpose: Purpose, how: str, accepting: str) -> EncodingUnexpected:
        """The error for a form that the declaration does not allow."""
        return EncodingUnexpected(
            f"the {purpose.what} of {purpose.task} {purpose.call_id} {how}, but the task declares: {self.form}",
            fix=f"declare the same at both ends; while calls of the other form are on their way, also {accepting}",
        )

    def fingerprint(self, content: bytes) -> bytes:
        """What identifies a value that is written differently each time; it shows nothing of a value to be encrypted.

        It also changes with the form, and with the key that encrypts.
        """
        content = f"{self.form}\0".encode() + content
        return self.encryption().hashed(content, newest=True).encode() if self.form.encrypts else content

    def digest(self, content: bytes) -> str:
        """The hash of arguments, by which calls are compared: of a task that encrypts, one that shows nothing."""
        return (
            self.encryption().hashed(content, newest=False)
            if self.form.encrypts
            else hashlib.sha256(content).hexdigest()
        )

    def _sealed(self, name: str, content: bytes, purpose: Purpose) -> str:
        return self.encryption().seal(name.encode() + b"\0" + content, purpose)


def shown(text: str) -> bytes:
    """A result as JSON that may be shown: of one that is not JSON only its size and hash."""
    if (name := hidden_form(text)) is None:
        return text.encode()
    body = text.rpartition(".")[2].encode()
    return json.dumps({name: {"bytes": len(body) * 3 // 4, "sha256": hashlib.sha256(body).hexdigest()}}).encode()


def hidden_form(text: str) -> str | None:
    """The word for the form of a result that is not JSON: ``pickle``, ``coded`` or ``encrypted``."""
    mark, separator, _ = text.partition(":")
    return {"pickle1": "pickle", "codec1": "coded", "sealed1": "encrypted"}.get(mark) if separator else None


def _split(text: str) -> tuple[str, bytes]:
    """The name under which a text that is not encrypted was written, and what was written."""
    if is_pickle(text):
        return PICKLE, text.encode()
    if not text.startswith(CODED):
        return JSON, text.encode()
    name, _, body = text.removeprefix(CODED).partition(".")
    try:
        return name, base64.b64decode(body, altchars=b"-_", validate=True)
    except ValueError:
        raise CodecError(f"what the codec {name[:32]!r} made arrived damaged: it is not base64") from None


def _encoded(codec: Codec, plain: Any, purpose: Purpose) -> bytes:
    text = _json_bytes(plain, purpose)
    if len(text) > codec.limit:
        raise CodecError(f"the codec {codec.name}: {len(text):,} bytes as JSON; its limit is {codec.limit:,}")
    before = _sorted(plain)  # before the user's function, which may change what it gets
    try:
        content: object = codec.encode(plain)
        if not isinstance(content, bytes):
            raise TypeError(f"it made a {type(content).__name__}; expected bytes")
        same = _sorted(codec.decode(content, codec.limit)) == before
    except Exception as error:  # the user's functions may raise anything
        raise CodecError(f"the codec {codec.name} failed: {type(error).__name__}: {error}") from error
    if not same:
        raise CodecError(
            f"the codec {codec.name} does not give back what it got: its functions must be the reverse of each other",
            fix="encode returns bytes; decode(those bytes, limit) returns an equal value, of the same JSON types",
        )
    return content


def _decoded(codec: Codec, content: bytes, purpose: Purpose) -> Any:
    what = f"the {purpose.what} of {purpose.task} {purpose.call_id}"
    try:
        text = COMPACT.encode(codec.decode(content, codec.limit)).encode()
    except Exception as error:  # as above
        raise CodecError(f"{what}: the codec {codec.name} cannot read it: {type(error).__name__}: {error}") from error
    if len(text) > codec.limit:
        raise CodecError(f"{what}: the codec {codec.name} made {len(text):,} bytes of it; its limit is {codec.limit:,}")
    return _read_json(text, purpose)


def _json_bytes(plain: Any, purpose: Purpose) -> bytes:
    """A plain JSON value as bytes. Raises ValueError for one that the other side would refuse."""
    try:
        text = COMPACT.encode(plain).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if purpose.what != RESULT:
        strict_json.loads(text, big_integers=True)
    return text


def _read_json(text: bytes, purpose: Purpose) -> Any:
    """Arguments have the limits that they have in an envelope; a result has those of any result."""
    try:
        return json.loads(text) if purpose.what == RESULT else strict_json.loads(text, big_integers=True)
    except ValueError as error:
        raise CodecError(f"the {purpose.what} of {purpose.task} {purpose.call_id}: {error}") from None


def _sorted(plain: Any) -> str:
    """A plain JSON value as one text, the same for every order of its members."""
    return json.dumps(plain, sort_keys=True, allow_nan=False)


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode("ascii")
