"""Power cuts: a VFS that records every write and sync, and images of a disk after a power cut at any of these steps.

A real disk keeps what was synced. Of the unsynced writes, any sectors may have reached it, in any order.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

import apsw

SECTOR = 512
_names = itertools.count()


@dataclass(frozen=True)
class Write:
    file: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    file: str
    size: int


@dataclass(frozen=True)
class Sync:
    file: str


@dataclass(frozen=True)
class Delete:
    """A deletion takes effect at once: SQLite has synced the folder, or does not rely on the deletion."""

    file: str


@dataclass(frozen=True)
class Acknowledged:
    """The moment when a caller received the answer that `value` is stored."""

    value: str


Step = Write | Truncate | Sync | Delete | Acknowledged


@dataclass
class Tape:
    steps: list[Step] = field(default_factory=list)

    def acknowledge(self, value: str) -> None:
        self.steps.append(Acknowledged(value))

    def cut(self, position: int, folder: Path, chance: random.Random) -> tuple[Path, list[str]]:
        """Write the disk after a power cut at step `position`; the database file and the acknowledged values."""
        files, unsynced, acknowledged = self._replay(position)
        for changes in unsynced.values():
            for change in changes:
                for piece in _sectors(change):
                    if chance.random() < 0.5:
                        _apply(files, piece)
        folder.mkdir()
        for name, content in files.items():
            (folder / Path(name).name).write_bytes(content)
        return folder / "store.db", acknowledged

    def _replay(self, position: int) -> tuple[dict[str, bytearray], dict[str, list[Write | Truncate]], list[str]]:
        """After `position` steps: the synced files, the writes not synced yet, and the acknowledged values."""
        files: dict[str, bytearray] = {}
        unsynced: dict[str, list[Write | Truncate]] = {}
        acknowledged: list[str] = []
        for step in self.steps[:position]:
            match step:
                case Acknowledged():
                    acknowledged.append(step.value)
                case Sync():
                    for change in unsynced.pop(step.file, []):
                        _apply(files, change)
                case Delete():
                    files.pop(step.file, None)
                    unsynced.pop(step.file, None)
                case _:
                    unsynced.setdefault(step.file, []).append(step)
        return files, unsynced, acknowledged


def _sectors(change: Write | Truncate) -> list[Write | Truncate]:
    if isinstance(change, Truncate):
        return [change]
    return [
        Write(change.file, change.offset + start, change.data[start : start + SECTOR])
        for start in range(0, len(change.data), SECTOR)
    ]


def _apply(files: dict[str, bytearray], change: Write | Truncate) -> None:
    content = files.setdefault(change.file, bytearray())
    if isinstance(change, Truncate):
        del content[change.size :]
        return
    end = change.offset + len(change.data)
    content.extend(bytes(max(0, end - len(content))))
    content[change.offset : end] = change.data


class TapingVFS(apsw.VFS):
    """The default VFS of the machine; `tape` records its writes and syncs."""

    def __init__(self, tape: Tape) -> None:
        self.name = f"taping-{next(_names)}"
        self.tape = tape
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _TapingFile(self.tape, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self.tape.steps.append(Delete(filename))


class _TapingFile(apsw.VFSFile):
    def __init__(self, tape: Tape, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._tape = tape
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name or "temporary"
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._tape.steps.append(Write(self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._tape.steps.append(Truncate(self._name, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._tape.steps.append(Sync(self._name))
