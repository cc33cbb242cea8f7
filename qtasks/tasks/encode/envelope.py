"""The body of a task's message: a JSON envelope around the arguments.

    {"v": 1, "id": "call_...", "args": [2], "kwargs": {"b": 3}, "retries": 3}

The caller makes `id`, which identifies the call permanently; the body of a schedule has no id. `retries` is the number
of attempts that may follow the first, so a task can tell its last attempt. The other members appear only if they are
set: `timeout_ms`, `expires_ms`, `retry_delay` with `jitter`, `snoozed`, `schedule` with `overlap`, and `options`, the
header lines of a call whose options differ from its task's, needed when it is published again. The signature covers the
body and the URL, so nothing that matters for safety travels in a header.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError
from qtasks.protocol import expressions, strict_json
from qtasks.randomness import ordered_id

VERSION, CODED_VERSION = 1, 2
"""The second is that of envelopes with `coded`: a process that does not know this member must not run the call."""

MAX_NESTING = strict_json.MAX_DEPTH - 2
"""How deep an argument may be nested: the envelope itself has two of the levels that JSON may have."""

_TOO_MANY_DIGITS = 10**strict_json.MAX_DIGITS
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
SKIP = "skip"
_ID_LENGTH = 128
COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
"""Writes compact JSON; refuses NaN and infinity."""

ID = re.compile(r"[!-~]{1,128}")
"""The form of a call id that the caller chooses."""


MADE_ID = re.compile(r"call_[0-9a-f]{32}")
"""The form of a call id that this package has made: no two calls have the same."""


class UnknownVersionError(PayloadError):
    """The envelope was made by a newer version; a newer dispatcher may be able to read it."""

    code = ErrorCode.ENVELOPE_TOO_NEW


class TamperedError(PayloadError):
    """A part of a signed request does not match what the signature covers."""


class Envelope(NamedTuple):
    """One call as it is sent. Arguments are plain JSON values."""

    call_id: str | None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = _NOTHING
    retries: int | None = None
    timeout_ms: int | None = None
    """The limit for one attempt; None: the protocol's default."""
    expires_ms: int | None = None
    """Unix time in milliseconds after which the call must not run."""
    retry_delay: str | None = None
    """The retry delay to which `jitter` is applied."""
    jitter: float = 0.0
    snoozed: int = 0
    """How often `Snooze` has postponed the call."""
    options: Mapping[str, str] = _NOTHING
    """Header lines with which the call is published again, if they differ from its task's."""
    unique: str | None = None
    """The unique key that the call locks until it has ended."""
    flow: Mapping[str, Any] = _NOTHING
    """What follows the call; see `tasks.flow.steps`."""
    carried: Mapping[str, str] = _NOTHING
    """What middleware added to the call, such as a trace."""
    schedule: str | None = None
    """The id of the schedule that started the call."""
    overlap: str | None = None
    """``skip``: the call must not run while another run of `schedule` is in progress."""
    pickled: str | None = None
    """Positional and named arguments in place of `args` and `kwargs`; see `tasks.encode.pickling`."""
    coded: str | None = None
    """The same, by a codec or encrypted; see `tasks.encode.encoding`."""

    @property
    def exclusive_schedule(self) -> str | None:
        """The schedule that must not have another run in progress, or None."""
        return self.schedule if self.overlap == SKIP else None


_EXTRAS: Mapping[str, Callable[[Any], bool]] = {
    "timeout_ms": lambda value: type(value) is int and value > 0,
    "expires_ms": lambda value: type(value) is int and value >= 0,
    "retry_delay": lambda value: isinstance(value, str) and _is_expression(value),
    "jitter": lambda value: type(value) in (int, float) and 0 <= value <= 1,
    "snoozed": lambda value: type(value) is int and value >= 0,
    "options": lambda value: _are_texts(value),
    "unique": lambda value: isinstance(value, str),
    "flow": lambda value: isinstance(value, dict),
    "carried": lambda value: _are_texts(value),
    "schedule": lambda value: isinstance(value, str) and ID.fullmatch(value) is not None,
    "overlap": lambda value: value == SKIP,
    "pickled": lambda value: isinstance(value, str),
    "coded": lambda value: isinstance(value, str),
}
"""The members that appear only if they are set, each with its validation."""


def new_call_id() -> str:
    """A new call id: ``call_`` and an ordered id."""
    return f"call_{ordered_id()}"


def call_id_of_message(message_id: str) -> str:
    """The id of a call whose body has no id (a schedule's): the same for every attempt of one message."""
    return derived_call_id(message_id)


def derived_call_id(text: str) -> str:
    """The call id that belongs to a text: always the same one."""
    return f"call_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def encode(envelope: Envelope) -> bytes:
    """Encode an envelope as compact UTF-8 JSON. Raises ValueError for what `decode` would refuse; see `culprit`."""
    document: dict[str, Any] = {"v": VERSION if envelope.coded is None else CODED_VERSION}
    if envelope.call_id is not None:
        document["id"] = envelope.call_id
    document["args"] = list(envelope.args)
    document["kwargs"] = dict(envelope.kwargs)
    if envelope.retries is not None:
        document["retries"] = envelope.retries
    for name in _EXTRAS:
        if value := getattr(envelope, name):
            document[name] = dict(value) if isinstance(value, Mapping) else value
    try:
        body = COMPACT.encode(document).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if b"\\u0000" in body or body.count(b"[") + body.count(b"{") > strict_json.MAX_DEPTH:
        strict_json.loads(body, big_integers=True)
    return body


def decode(body: bytes) -> Envelope:
    """Decode an envelope; unknown members are ignored. Raises PayloadError, UnknownVersionError for a later format."""
    try:
        document = strict_json.loads(body, big_integers=True)
    except ValueError as error:
        raise PayloadError(f"the body is not a task's envelope: {error}") from None
    if not isinstance(document, dict):
        raise PayloadError("the body is not a task's envelope: not a JSON object")
    version = document.get("v")
    if type(version) is not int:
        raise PayloadError('the body is not a task\'s envelope: no version ("v")')
    if version not in (VERSION, CODED_VERSION):
        raise UnknownVersionError(
            f"the envelope has version {version}; this dispatcher reads versions {VERSION} and {CODED_VERSION}"
        )
    call_id, args, kwargs = document.get("id"), document.get("args", []), document.get("kwargs", {})
    retries = document.get("retries")
    if not (call_id is None or (isinstance(call_id, str) and 0 < len(call_id) <= _ID_LENGTH)):
        raise PayloadError("the envelope's id is not a short text")
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise PayloadError("the envelope's args are not a list or its kwargs not an object")
    if not (retries is None or (type(retries) is int and retries >= 0)):
        raise PayloadError("the envelope's retries are not a number")
    extras = {name: value for name, value in document.items() if name in _EXTRAS and value is not None}
    for name, value in extras.items():
        if not _EXTRAS[name](value):
            raise PayloadError(f"the envelope's {name} is not valid")
    return Envelope(call_id, args, kwargs, retries, **extras)


def _are_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_expression(text: str) -> bool:
    try:
        expressions.parse(text)
    except ValueError:
        return False
    return True


def culprit(values: Mapping[str, object]) -> tuple[str, str] | None:
    """The path of the first value that `encode` refuses, and the reason; None if it refuses none of them."""
    refusals = (_refused(value, name, 1) for name, value in values.items())
    return next((refusal for refusal in refusals if refusal is not None), None)


def _refused(value: object, path: str, depth: int) -> tuple[str, str] | None:
    reason: str | None = None
    inner: list[tuple[str, object]] = []
    if isinstance(value, str):
        reason = _refused_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        reason = f"{value} is not a JSON number"
    elif type(value) is int and abs(value) >= _TOO_MANY_DIGITS:
        reason = f"an integer of more than {strict_json.MAX_DIGITS} digits"
    elif isinstance(value, (dict, list, tuple)) and depth > MAX_NESTING:
        reason = f"nested deeper than {MAX_NESTING} levels"
    elif isinstance(value, dict):
        inner = [(f"{path}.{key}", item) for key, item in value.items()]
        reason = next((bad for key in value if (bad := _refused_key(key))), None)
    elif isinstance(value, (list, tuple)):
        inner = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    elif value is not None and not isinstance(value, (bool, int, float)):
        reason = f"a {type(value).__name__} is not a JSON value"
    if reason is not None:
        return path, reason
    refusals = (_refused(item, where, depth + 1) for where, item in inner)
    return next((refusal for refusal in refusals if refusal is not None), None)


def _refused_key(key: object) -> str | None:
    if isinstance(key, str):
        return _refused_text(key)
    return None if key is None or isinstance(key, (bool, int, float)) else f"a {type(key).__name__} is not a JSON key"


def _refused_text(text: str) -> str | None:
    if "\0" in text:
        return "a text with a NUL character"
    return None if text.isascii() or _encodes(text) else "a text with half of a surrogate pair"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
