"""The options of a message as headers: `option_table` is used for reading and for writing (docs/protocol.md 3).

`write` is what a client sends, `read` what the broker understands; a callback's options use the same rows under
``Upstash-Callback-`` and ``Upstash-Failure-Callback-``. Destinations are in `targets`, header lines in `headers`. This
module exports all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Any, NamedTuple

from qtasks.protocol.headers import (
    BROKER_OWNED,
    PER_CONNECTION,
    WireError,
    canonical_name,
    check_forwarded,
    is_name,
)
from qtasks.protocol.messages import FlowControl, Headers, PublishOptions, changed
from qtasks.protocol.option_table import (
    FIELDS,
    MAX_LIMIT,
    MAX_NOT_BEFORE_S,
    MAX_PERIOD_MS,
    MAX_TEXT,
    OPTION_NAMES,
    OWN_HEADERS,
    Field,
    OverLimitError,
    read_limits,
    read_url,
    write_limits,
)
from qtasks.protocol.targets import (
    INVALID_SCHEME,
    Target,
    before_query,
    check_name,
    check_url,
    destination_kind,
    host_of,
    split_target,
)

__all__ = [
    "FIELDS",
    "INVALID_SCHEME",
    "MAX_LIMIT",
    "MAX_NOT_BEFORE_S",
    "MAX_PERIOD_MS",
    "MAX_TEXT",
    "OPTION_NAMES",
    "Field",
    "SplitLines",
    "Target",
    "WireError",
    "canonical_name",
    "check_name",
    "check_url",
    "delivery_headers",
    "destination_kind",
    "host_of",
    "read",
    "read_shared",
    "split",
    "split_target",
    "with_own",
    "write",
]

MAX_LINES = 256
"""Largest number of header lines of one request or batch item."""

CALLBACK_DEPTH = 2
"""A callback may have a failure callback of its own; more has no use and would recurse as deep as a header is long."""

_SHORT_SET = 2048
"""Characters of the option lines of one message whose reading is kept, at most."""

_BLANKS = " \t"
"""What may stand around a value without being a part of it."""

_TOP = "Upstash-"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def write(options: PublishOptions) -> Headers:
    """The header lines for `options`; absent options have no line. `read` turns the lines back into equal options."""
    return tuple(_lines(options, _TOP))


def read(
    headers: Iterable[tuple[str, str]],
    query: Iterable[tuple[str, str]] = (),
    defaults: Iterable[tuple[str, str]] = (),
) -> PublishOptions:
    """Options of a publish from its header lines, the ``upstash-*`` parameters of its query, and its group's defaults.

    A name found in the headers hides the same name in the query, and either hides the default. Other headers are
    ignored, unless ``Upstash-Header-Forward`` asks for all. Raises WireError for the first value that cannot be used.
    """
    lines = headers if isinstance(headers, tuple) else tuple(headers)
    if not (query or defaults):
        parts = split(tuple([name for name, _ in lines]), [value for _, value in lines])
        if parts is not None:
            return with_own(read_shared(parts.shared), parts.own)
    return _read_all(lines, query, defaults)


class SplitLines(NamedTuple):
    """The lines of a message that say something about its options, names in canonical form."""

    shared: Headers
    """Those that the messages of a task have in common. Of a URL they have what is before its query."""
    own: Mapping[str, str]
    """Those with an id of the message or of its call: ids, and whole URLs; and labels, which may name arguments."""


def split(names: tuple[str, ...], values: Sequence[str]) -> SplitLines | None:
    """Separate what the messages of a task have in common, so that it is read and judged once for all of them.

    None where only all lines together have a meaning: headers of the request are forwarded, or a line is given twice.
    Raises WireError as `read`.
    """
    if len(names) > MAX_LINES:
        raise _too_many(len(names))
    layout = _kept_layout(names) if sum(map(len, names)) <= _SHORT_SET else _layout(names)
    if layout is None:
        return None
    shared = [values[place] for place in layout.options]
    own = {name: values[place] for name, place in layout.ids}
    for name, place in layout.urls:
        url = values[place]
        if (base := before_query(url)) is not None:
            own[name] = url
        shared.append(base or url)
    return SplitLines(tuple(zip(layout.shared, shared, strict=True)), own)


def read_shared(lines: Headers) -> PublishOptions:
    """The options in `SplitLines.shared`. Raises WireError as `read`."""
    size = sum([len(name) + len(value) for name, value in lines])
    return _kept_options(lines) if size <= _SHORT_SET else _options(lines)


def with_own(options: PublishOptions, own: Mapping[str, str]) -> PublishOptions:
    """The options of one message: those of `SplitLines.shared`, and its own ones. Raises WireError as `read`."""
    if not own:
        return options
    changes: dict[str, object] = {}
    for name, value in own.items():
        row = _OF_ONE[name]
        # Of a URL `split` has checked the query, and reading the shared lines has checked the rest.
        changes[row.name] = value.strip(_BLANKS) if row.read is read_url else _read_field(row, name, [value])
    return changed(options, **changes)


def _read_all(lines: Headers, query: Iterable[tuple[str, str]], defaults: Iterable[tuple[str, str]]) -> PublishOptions:
    """`read`, also for headers that are merged with others, or forwarded as they are."""
    request = tuple([(canonical_name(name), value) for name, value in lines])
    merged = _merge(_merge(request, query), defaults)
    if len(merged) > MAX_LINES:
        raise _too_many(len(merged))
    options = [(name, value) for name, value in merged if _place(name) is not _Part.OTHER]
    return PublishOptions(**_read(options, _TOP, CALLBACK_DEPTH, request))


def _too_many(count: int) -> WireError:
    return WireError(f"too many headers: {count} > {MAX_LINES}", status=431)


def delivery_headers(options: PublishOptions) -> Headers:
    """Headers for the destination, without the broker's own; a forwarded ``Content-Type`` replaces the plain one."""
    if not options.forward:
        return () if options.content_type is None else (("Content-Type", options.content_type),)
    if options.content_type is None or any(name == "Content-Type" for name, _ in options.forward):
        return options.forward
    return (("Content-Type", options.content_type), *options.forward)


def _merge(first: Headers, second: Iterable[tuple[str, str]]) -> Headers:
    if not second:
        return first
    names = {name for name, _ in first}
    canonical = ((canonical_name(name), value) for name, value in second)
    return first + tuple((name, value) for name, value in canonical if name not in names)


class _Part(Enum):
    """What a header line says."""

    OTHER = auto()
    """Nothing about options."""
    ID = auto()
    """An option that may be different for each message of a task."""
    URL = auto()
    """A URL with a query that may be different for each message of a task."""
    OF_ALL = auto()
    """That the headers of the request itself are forwarded."""
    OPTION = auto()
    """Another option."""


_OWN = {"call_id", "deduplication_id", "labels"}
_OF_ONE = {row.header: row for row in FIELDS if row.read is read_url or row.name in _OWN}
_PARTS = {
    "Content-Type": _Part.OPTION,
    **dict.fromkeys(OWN_HEADERS, _Part.OPTION),
    **{header: _Part.URL if row.read is read_url else _Part.ID for header, row in _OF_ONE.items()},
    "Upstash-Header-Forward": _Part.OF_ALL,
}


def _place(name: str) -> _Part:
    """What a line with this canonical name says."""
    if (part := _PARTS.get(name)) is not None:
        return part
    if name[: len(_TOP)].lower() != _TOP.lower():
        return _Part.OTHER
    if not is_name(name):  # only a batch item, being JSON, can carry one
        raise WireError(f"invalid header name {name[:64]!r}")
    return _Part.OPTION


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the lines are that say something about options, for lines with certain names."""

    shared: tuple[str, ...]
    """The names of `options` and of `urls`, canonical."""
    options: tuple[int, ...]
    ids: tuple[tuple[str, int], ...]
    urls: tuple[tuple[str, int], ...]


def _layout(names: tuple[str, ...]) -> _Layout | None:
    """None for lines that `split` does not separate."""
    places: dict[_Part, list[tuple[str, int]]] = {part: [] for part in _Part}
    for place, spelling in enumerate(names):
        name = canonical_name(spelling)
        places[_place(name)].append((name, place))
    ids, urls = places[_Part.ID], places[_Part.URL]
    if places[_Part.OF_ALL] or any(len({name for name, _ in own}) < len(own) for own in (ids, urls)):
        return None
    options = places[_Part.OPTION]
    shared = tuple(name for name, _ in (*options, *urls))
    return _Layout(shared, tuple(place for _, place in options), tuple(ids), tuple(urls))


_kept_layout = lru_cache(maxsize=512)(_layout)
"""The messages of a task have lines with the same names."""


def _options(lines: Headers) -> PublishOptions:
    return PublishOptions(**_read(lines, _TOP, CALLBACK_DEPTH, ()))


_kept_options = lru_cache(maxsize=512)(_options)
"""The messages of a task have equal lines, apart from those with their ids: these are read once for all of them."""


def _lines(options: PublishOptions, prefix: str) -> Iterator[tuple[str, str]]:
    attributes = options.__dict__
    for header, row in _rows(prefix).items():
        if (value := attributes[row.name]) is not None and (text := row.write(value)):
            yield header, text
    for name, value in options.forward:
        yield f"{prefix}Forward-{name}", value
    if options.flow_control is not None:
        yield f"{prefix}Flow-Control-Key", options.flow_control.key
        yield f"{prefix}Flow-Control-Value", write_limits(options.flow_control)
    if options.callback is not None and options.callback_options is not None:
        yield from _lines(options.callback_options, f"{prefix}Callback-")
    if options.failure_callback is not None and options.failure_callback_options is not None:
        yield from _lines(options.failure_callback_options, f"{prefix}Failure-Callback-")


def _named(header: str, prefix: str) -> str:
    return header if prefix == _TOP else prefix + header.removeprefix(_TOP)


def _read(lines: Sequence[tuple[str, str]], prefix: str, depth: int, request: Headers) -> dict[str, Any]:
    """Options under `prefix`, by attribute.

    `depth` is how many levels of callbacks may follow, `request` what may be forwarded.
    """
    values: dict[str, list[str]] = {}
    for name, value in lines:
        values.setdefault(name, []).append(value)
    options: dict[str, Any] = {}
    for header, row in _rows(prefix).items():
        if texts := values.get(header):
            options[row.name] = _read_field(row, header, texts)
    forward = prefix + "Forward-"
    chosen = [(canonical_name(name[len(forward) :]), value) for name, value in lines if name.startswith(forward)]
    if options.get("forward_all"):
        chosen += _rest(request, {name for name, _ in chosen})
    options["forward"] = check_forwarded(chosen)
    options["flow_control"] = _read_flow_control(values, prefix)
    for kind in ("callback", "failure_callback"):
        if options.get(kind) is not None:
            nested = f"{prefix}{'Failure-' * (kind == 'failure_callback')}Callback-"
            options[f"{kind}_options"] = _read_nested(lines, nested, depth)
    return options


@lru_cache
def _rows(prefix: str) -> Mapping[str, Field]:
    """The rows that mean something under `prefix`, by the header's name there."""
    return {_named(row.header, prefix): row for row in FIELDS if row.nested or prefix == _TOP}


def _read_nested(lines: Sequence[tuple[str, str]], prefix: str, depth: int) -> PublishOptions | None:
    own = [(name, value) for name, value in lines if name.startswith(prefix)]
    if not own:
        return None
    if depth == 0:
        raise WireError(f"{own[0][0][:64]}: callbacks of callbacks nest too deeply")
    options = PublishOptions(**_read(own, prefix, depth - 1, ()))
    return None if options == PublishOptions() else options


def _read_field(row: Field, header: str, texts: list[str]) -> object:
    text = _checked(header, [",".join(texts)] if row.listed else texts)
    try:
        return row.read(text)
    except WireError:
        raise
    except ValueError as error:
        status = 412 if isinstance(error, OverLimitError) else 400
        raise WireError(f"{header}: {error}; expected {row.form}", status=status) from None


def _checked(header: str, texts: list[str]) -> str:
    """The one value of a header, without blanks around it."""
    if len(texts) > 1 and len(set(texts)) > 1:
        raise WireError(f"{header} is given {len(texts)} times, with different values")
    if _CONTROL.search(texts[0]):
        raise WireError(f"{header} contains a control character")
    return texts[0].strip(_BLANKS)


def _rest(request: Headers, taken: set[str]) -> list[tuple[str, str]]:
    """Lines of the publish request itself that ``Upstash-Header-Forward: true`` sends on."""
    named = {
        canonical_name(item.strip()) for name, value in request if name == "Connection" for item in value.split(",")
    }
    skipped = taken | named | PER_CONNECTION | BROKER_OWNED | OWN_HEADERS | {"Authorization", "Content-Type"}
    return [(name, value) for name, value in request if name not in skipped and not name.startswith(_TOP)]


def _read_flow_control(values: dict[str, list[str]], prefix: str) -> FlowControl | None:
    names = (f"{prefix}Flow-Control-Key", f"{prefix}Flow-Control-Value")
    present = [(name, values[name]) for name in names if name in values]
    if not present:
        return None
    if len(present) == 1:
        raise WireError(f"{names[0]} and {names[1]} belong together: only {present[0][0]} is given")
    key, limits = (_checked(name, value) for name, value in present)
    if not 1 <= len(key) <= MAX_TEXT:
        raise WireError(f"{names[0]} must have 1 to {MAX_TEXT} characters, not {len(key)}")
    return read_limits(key, limits)
