"""`Codec`, and the form in which the arguments and results of a task travel, as declarations say it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.lazy import lazy_property
from qtasks.protocol.messages import MAX_BODY

MAX_DECODED = 16 * MAX_BODY
"""The default `limit` of a codec, in bytes."""

JSON, PICKLE = "json", "pickle"
ENCRYPTED, UNENCRYPTED = "encrypted", "unencrypted"
_WORDS = (JSON, ENCRYPTED, UNENCRYPTED)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


@dataclass(frozen=True, slots=True)
class Codec:
    """How plain JSON values become bytes, and bytes become the values again: compression, msgpack and the like.

    The types stay those of the annotations: `encode` gets what would otherwise be written as JSON (None, bool, int,
    float, str, list, dict with texts as keys), and ``decode(encode(value), limit)`` has to be equal to it, which is
    checked at each call. `decode` gets bytes from outside: it must not make more than `limit` bytes of them, and raises
    any exception for bytes that it cannot read.
    """

    name: str
    """Travels with each value: 1 to 32 letters, digits, ``_`` or ``-``. Give a new name if the bytes get a new form."""
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes, int], Any]
    limit: int = MAX_DECODED
    """How many bytes the arguments of a call, or its result, may have as JSON; 16 MiB by default. What is sent has the
    limits of every message: 1 MiB, counted as it is sent."""

    def __post_init__(self) -> None:
        if _NAME.fullmatch(str(self.name)) is None or self.name in (*_WORDS, PICKLE):
            raise DefinitionError(
                f"{self.name!r} is not a valid name for a codec: 1 to 32 letters, digits, _ or -, and none of "
                f"{', '.join((*_WORDS, PICKLE))}",
                code=ErrorCode.OPTION_INVALID,
            )
        if not all(map(callable, (self.encode, self.decode))):
            raise DefinitionError(
                f"the codec {self.name} lacks a function",
                fix="Codec(name, encode, decode)",
                code=ErrorCode.OPTION_INVALID,
            )
        if type(self.limit) is not int or self.limit < 1:
            raise DefinitionError(
                f"the codec {self.name}: limit={self.limit!r} is not a number of bytes", code=ErrorCode.OPTION_INVALID
            )


@dataclass(frozen=True, kw_only=True)
class WireForm:
    """The form in which the values of a task travel. None: the declaration does not say it, so the application does."""

    serializer: str | None = None
    codec: Codec | None = None
    encrypts: bool | None = None
    accepts: tuple[Any, ...] | None = None
    """What is read beside the declared form: `Codec` values and the words json, encrypted and unencrypted."""

    def over(self, default: WireForm) -> WireForm:
        """This form, with what it does not say taken from `default`, that of the application."""
        return replace(
            self,
            codec=default.codec if self.codec is None and self.serializer is None else self.codec,
            encrypts=default.encrypts if self.encrypts is None else self.encrypts,
            accepts=default.accepts if self.accepts is None else self.accepts,
        )

    @lazy_property
    def is_plain(self) -> bool:
        """True if values are written as JSON that the broker can read."""
        return self.codec is None and not self.encrypts and self.serializer != PICKLE

    def check_searchable(self, task: str) -> None:
        """Refuse the option `search` of a task whose arguments the broker cannot read. Raises DefinitionError."""
        if not self.is_plain:
            raise _error(
                task,
                f"`search` shows arguments as they are, and those of this task travel otherwise: {self}",
                fix='leave out `search`, or set what identifies a call: .using(label="...")',
            )

    @property
    def pickled(self) -> bool:
        """True if arguments travel as a pickle."""
        return self.serializer == PICKLE

    @property
    def name(self) -> str:
        """The name that travels with what is written: of the codec, or json or pickle."""
        return PICKLE if self.pickled else JSON if self.codec is None else self.codec.name

    @property
    def needs_key(self) -> bool:
        """True if a key is needed to write or to read."""
        return bool(self.encrypts) or ENCRYPTED in (self.accepts or ())

    def accepts_encryption(self, *, is_sealed: bool) -> bool:
        """True if what is encrypted, or what is not, is read."""
        return is_sealed == bool(self.encrypts) or (ENCRYPTED if is_sealed else UNENCRYPTED) in (self.accepts or ())

    def codec_named(self, name: str) -> Codec | None:
        """The codec of this name, if it is the declared one or an accepted one."""
        codecs = (self.codec, *(codec for codec in self.accepts or () if isinstance(codec, Codec)))
        return next((codec for codec in codecs if codec is not None and codec.name == name), None)

    def accepts_name(self, name: str) -> bool:
        """True if values written under `name` are read."""
        return name == self.name or name in (self.accepts or ()) or self.codec_named(name) is not None

    def __str__(self) -> str:
        return f"{self.name}, encrypted" if self.encrypts else self.name


AS_JSON = WireForm()
"""The form of values whose declaration, and whose application, say nothing."""


def wire_form(
    owner: str,
    *,
    serializer: object = None,
    codec: object = None,
    encrypt: object = None,
    accepts: object = None,
) -> WireForm:
    """The form that the options of `owner`, a task or an application, declare. Raises DefinitionError."""
    if serializer not in (None, JSON, PICKLE):
        raise _error(owner, f'serializer={serializer!r}: expected "json" or "pickle"')
    if codec is not None and not isinstance(codec, Codec):
        raise _error(owner, f"codec={codec!r}: expected a Codec", fix="codec=Codec(name, encode, decode)")
    if codec is not None and serializer is not None:
        raise _error(owner, "a codec and a serializer contradict each other", fix="give one of them")
    if encrypt not in (None, True, False):
        raise _error(owner, f"encrypt={encrypt!r}: expected True or False")
    form = WireForm(
        serializer=str(serializer) if serializer is not None else None,
        codec=codec,
        encrypts=None if encrypt is None else bool(encrypt),
        accepts=_accepted(owner, accepts, is_pickled=serializer == PICKLE),
    )
    if form.pickled:
        _require(owner, "cloudpickle", "its arguments travel as a pickle", extra="pickle")
    if form.needs_key:
        _require(owner, "cryptography", "what it sends is encrypted", extra="crypto")
    return form


def _accepted(owner: str, accepts: object, *, is_pickled: bool) -> tuple[Any, ...] | None:
    if accepts is None:
        return None
    words = (ENCRYPTED, UNENCRYPTED) if is_pickled else _WORDS
    if isinstance(accepts, str) or not isinstance(accepts, Sequence):
        raise _error(owner, f"accepts={accepts!r}: expected a list of codecs and words", fix='accepts=["json"]')
    for each in accepts:
        if each not in words and (is_pickled or not isinstance(each, Codec)):
            expected = ", ".join(words) if is_pickled else f"a Codec, or one of {', '.join(words)}"
            raise _error(owner, f"accepts={accepts!r}: {each!r} is not one of those that can be read: {expected}")
    return tuple(accepts)


def _require(owner: str, package: str, why: str, *, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise DefinitionError(
            f"{owner}: {why}, and {package} is not installed",
            fix=f'pip install "qstash-tasks[{extra}]"',
            code=ErrorCode.PACKAGE_MISSING,
        )


def _error(owner: str, text: str, *, fix: str | None = None) -> DefinitionError:
    return DefinitionError(f"{owner}: {text}", fix=fix, code=ErrorCode.OPTION_INVALID)
