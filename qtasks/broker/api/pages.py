"""A list, or one page of it, as a response. A large one is a stream: neither memory nor the loop holds all of it.

Each slice of a page is read and encoded on a reader's thread, when the client has taken the slice before it. The first
one is read before the response begins, so an error in it has an error status. A later error breaks the connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import apsw
import orjson

from qtasks.broker.api.api_request import ApiResponse, HttpError
from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs.reads.queries import PAGE_BYTES, BadCursorError
from qtasks.protocol.views import Json

T = TypeVar("T")

SLICE_ITEMS: Final = 100
"""Items of one slice at most."""
SLICE_BYTES: Final = 256 * 1024
"""Bytes of messages and responses after which a slice takes no further item."""


@dataclass(frozen=True, slots=True)
class PageSlice:
    """Consecutive items of a page: their JSON, separated by commas, and the cursor of the next slice, if there is one.

    `begin` is the cursor that the slice was read with.
    """

    json: bytes
    count: int
    begin: str | None
    next_cursor: str | None


ReadSlice = Callable[[apsw.Connection, str | None, int], PageSlice]
"""Reads a slice after a cursor, of at most as many items, on a connection."""


def page_slice(items: Iterable[Json], *, begin: str | None, next_cursor: str | None) -> PageSlice:
    """The slice of `items`."""
    encoded = [orjson.dumps(item) for item in items]
    return PageSlice(b",".join(encoded), len(encoded), begin, next_cursor)


async def page_response(
    store: Store, read: ReadSlice, names: Sequence[str], *, cursor: str | None, count: int
) -> ApiResponse:
    """The page of up to `count` items after `cursor`: an object with the list under each of `names`, and the cursor.

    HttpError 400 for an invalid cursor.
    """
    try:
        first = await store.read_long(read, cursor, count)
    except BadCursorError as error:
        raise HttpError(400, str(error)) from None
    pieces = _page(store, read, names, count, first)
    if first.next_cursor is None or first.count >= count:  # the whole page
        return ApiResponse(200, b"".join([piece async for piece in pieces]))
    return ApiResponse(200, stream=pieces)


async def _page(
    store: Store, read: ReadSlice, names: Sequence[str], count: int, first: PageSlice
) -> AsyncIterator[bytes]:
    """The JSON of a page in pieces. The slices after the first are read again for each further name.

    It holds the first slice, whose place is not known by a cursor, and one other.
    """
    bounds = [(first.begin, first.count)]
    yield b'{"%s":[%s' % (names[0].encode(), first.json)
    size, rest, cursor = len(first.json), count - first.count, first.next_cursor
    while cursor is not None and rest > 0 and size < PAGE_BYTES:
        last = await store.read_long(read, cursor, rest)
        bounds.append((last.begin, last.count))
        size, rest, cursor = size + len(last.json), rest - last.count, last.next_cursor
        if last.json:
            yield b","
            yield last.json
    for name in names[1:]:
        yield b'],"%s":[%s' % (name.encode(), first.json)
        for begin, items in bounds[1:]:
            again = await store.read_long(read, begin, items)
            if again.json:
                yield b","
                yield again.json
    yield b"]}" if cursor is None else b'],"cursor":%s}' % orjson.dumps(cursor)


async def array_response(
    store: Store, keys: Sequence[T], view: Callable[[apsw.Connection, T], Json | None]
) -> ApiResponse:
    """An array with the view of each of `keys`, without those whose view is None: they have gone meanwhile."""
    first, done = await store.read_long(_views, view, keys[:SLICE_ITEMS])
    pieces = _array(store, keys, view, first, done)
    if done == len(keys):
        return ApiResponse(200, b"".join([piece async for piece in pieces]))
    return ApiResponse(200, stream=pieces)


async def _array(
    store: Store, keys: Sequence[T], view: Callable[[apsw.Connection, T], Json | None], first: bytes, done: int
) -> AsyncIterator[bytes]:
    yield b"[" + first
    is_empty = not first
    while done < len(keys):
        piece, count = await store.read_long(_views, view, keys[done : done + SLICE_ITEMS])
        done += count
        if piece:
            yield piece if is_empty else b"," + piece
            is_empty = False
    yield b"]"


def _views(
    db: apsw.Connection, view: Callable[[apsw.Connection, T], Json | None], keys: Sequence[T]
) -> tuple[bytes, int]:
    """The views of the first of `keys`, separated by commas, and how many keys these are."""
    encoded: list[bytes] = []
    size = done = 0
    for key in keys:
        done += 1
        if (item := view(db, key)) is not None:
            encoded.append(orjson.dumps(item))
            size += len(encoded[-1])
        if size >= SLICE_BYTES:
            break
    return b",".join(encoded), done
