"""Reads the rows of a database from its pages, without SQLite, which refuses a table as soon as one page is damaged.

The format is that of https://sqlite.org/fileformat2.html, sections 1.5 to 2.3. What cannot be read is skipped and
noted; nothing here raises an error for a damage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

Value: TypeAlias = int | float | str | bytes | None
Row: TypeAlias = tuple[int | None, tuple[Value, ...]]
"""The row id (None in a table without) and the stored values, in the order of the record."""

PAGE_SIZE: Final = 4096
"""Bytes of a page; no database of qtasks has another size."""
_HEADER: Final = 100
"""Bytes before the content of page 1."""
_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
_KINDS: Final = frozenset({_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF})
_INTEGER_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_MAX_DEPTH: Final = 40


class _Unreadable(Exception):
    """A page or a cell makes no sense."""


class PageFile:
    """The pages of a database file, newer images of some of them in front."""

    def __init__(self, path: Path, newer: Mapping[int, bytes] | None = None) -> None:
        self._file = path.open("rb", buffering=0)
        size = -(-self._file.seek(0, 2) // PAGE_SIZE)
        # A damaged frame may claim to be of any page; those that are new are the next ones.
        newer = newer or {}
        self._newer = {number: image for number, image in newer.items() if number <= size + len(newer)}
        self.count = max([size, *self._newer])
        """The number of the last page; pages are counted from 1."""

    def page(self, number: int) -> bytes:
        """The content of a page; empty if there is no such page, or if the disk cannot read it."""
        if (image := self._newer.get(number)) is not None:
            return image
        if not 0 < number <= self.count:
            return b""
        try:
            self._file.seek((number - 1) * PAGE_SIZE)
            return self._file.read(PAGE_SIZE)
        except OSError:
            return b""

    def close(self) -> None:
        """Close the file. Not while this process has the database open in SQLite: that would drop its locks."""
        self._file.close()


@dataclass
class TableReader:
    """Reads tables page by page, and notes which pages it has seen and which make no sense."""

    pages: PageFile
    seen: set[int] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)

    def roots(self) -> dict[str, int]:
        """The root page of each table and index, by its name; without those whose definition cannot be read."""
        roots: dict[str, int] = {}
        for _, values in self.rows(1):
            match values:
                case ("table" | "index", str(name), _, int(root), *_):
                    roots[name] = root
        return roots

    def rows(self, root: int, depth: int = 0) -> Iterator[Row]:
        """All rows of the table below page `root` that can be read."""
        if root in self.seen or depth > _MAX_DEPTH:
            return
        self.seen.add(root)
        content = self.pages.page(root)
        start = _HEADER if root == 1 else 0
        if len(content) != PAGE_SIZE or content[start] not in _KINDS:
            self.unreadable.add(root)
            return
        kind = content[start]
        for cell in self._cells(root, content, start):
            at = cell
            if kind in (_INDEX_INTERIOR, _TABLE_INTERIOR):
                yield from self.rows(_uint32(content, at), depth + 1)
                at += 4
            if kind != _TABLE_INTERIOR and (row := self._row(root, content, at, kind)) is not None:
                yield row
        if kind in (_INDEX_INTERIOR, _TABLE_INTERIOR):
            yield from self.rows(_uint32(content, start + 8), depth + 1)

    def last_row(self, root: int) -> Row | None:
        """The last row of the table below page `root`; None if its page cannot be read, or is empty."""
        content = self.pages.page(root)
        for _ in range(_MAX_DEPTH):
            if len(content) != PAGE_SIZE or content[0] != _TABLE_INTERIOR:
                break
            content = self.pages.page(_uint32(content, 8))
        rows = list(self.page_rows(root, content))
        return rows[-1] if rows else None

    def page_rows(self, number: int, content: bytes) -> Iterator[Row]:
        """The rows on one page of any table or index; `content` is its image."""
        if len(content) == PAGE_SIZE and content[0] in _KINDS - {_TABLE_INTERIOR}:
            for cell in self._cells(number, content, 0):
                at = cell + 4 if content[0] == _INDEX_INTERIOR else cell
                if (row := self._row(number, content, at, content[0])) is not None:
                    yield row

    def free_pages(self) -> set[int]:
        """The pages that hold nothing; without those whose list cannot be read."""
        free: set[int] = set()
        header = self.pages.page(1)
        trunk = _uint32(header, 32) if len(header) == PAGE_SIZE else 0
        while trunk and trunk not in free and len(content := self.pages.page(trunk)) == PAGE_SIZE:
            free.add(trunk)
            count = min(_uint32(content, 4), PAGE_SIZE // 4 - 2)
            free.update(struct.unpack_from(f">{count}I", content, 8))
            trunk = _uint32(content, 0)
        return free

    def _cells(self, number: int, content: bytes, start: int) -> list[int]:
        """Where the cells of a page begin."""
        interior = content[start] in (_INDEX_INTERIOR, _TABLE_INTERIOR)
        first = start + (12 if interior else 8)
        count = int.from_bytes(content[start + 3 : start + 5], "big")
        if first + 2 * count > PAGE_SIZE:
            self.unreadable.add(number)
            return []
        cells = struct.unpack_from(f">{count}H", content, first)
        sound = [cell for cell in cells if first + 2 * count <= cell < PAGE_SIZE - 4]
        if len(sound) != count:
            self.unreadable.add(number)
        return sound

    def _row(self, number: int, content: bytes, at: int, kind: int) -> Row | None:
        try:
            size, at = _varint(content, at)
            row_id: int | None = None
            if kind == _TABLE_LEAF:
                row_id, at = _varint(content, at)
            return row_id, _values(self._payload(content, at, size, kind))
        except (_Unreadable, IndexError, struct.error, UnicodeDecodeError):
            self.unreadable.add(number)
            return None

    def _payload(self, content: bytes, at: int, size: int, kind: int) -> bytes:
        """The record of a cell, with what is on overflow pages."""
        least = (PAGE_SIZE - 12) * 32 // 255 - 23
        most = PAGE_SIZE - 35 if kind == _TABLE_LEAF else (PAGE_SIZE - 12) * 64 // 255 - 23
        if size <= most:
            return _exactly(content[at : at + size], size)
        local = least + (size - least) % (PAGE_SIZE - 4)
        local = local if local <= most else least
        parts, rest = [_exactly(content[at : at + local], local)], size - local
        next_page = _uint32(content, at + local)
        while rest:
            page = self.pages.page(next_page)
            if len(page) != PAGE_SIZE or next_page in self.seen:
                raise _Unreadable
            self.seen.add(next_page)
            parts.append(page[4 : 4 + min(rest, PAGE_SIZE - 4)])
            rest -= len(parts[-1])
            next_page = _uint32(page, 0)
        return b"".join(parts)


def _values(record: bytes) -> tuple[Value, ...]:
    end, at = _varint(record, 0)
    kinds: list[int] = []
    while at < end:
        kind, at = _varint(record, at)
        kinds.append(kind)
    if at != end:
        raise _Unreadable
    values: list[Value] = []
    for kind in kinds:
        value, at = _value(record, at, kind)
        values.append(value)
    return tuple(values)


def _value(record: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind == 7:
        return struct.unpack_from(">d", record, at)[0], at + 8
    if kind in _INTEGER_BYTES:
        end = at + _INTEGER_BYTES[kind]
        return int.from_bytes(_exactly(record[at:end], end - at), "big", signed=True), end
    if kind < 12:
        raise _Unreadable
    size = (kind - 12) // 2
    content = _exactly(record[at : at + size], size)
    return (content.decode() if kind % 2 else content), at + size


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise _Unreadable
    return content


def _uint32(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "big")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer at `at`, signed, and where it ends."""
    value = 0
    for place in range(at, at + 8):
        value = value << 7 | content[place] & 0x7F
        if content[place] < 0x80:
            return value, place + 1
    value = value << 8 | content[at + 8]
    return (value - (1 << 64) if value >> 63 else value), at + 9
