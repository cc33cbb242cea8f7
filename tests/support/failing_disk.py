"""A disk that fails: a VFS whose reads, writes, syncs, truncations and openings raise errors when a test wants it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Literal

import apsw

Operation = Literal["open", "read", "write", "sync", "truncate"]
_names = itertools.count()


class FailingDisk(apsw.VFS):
    """The default VFS of the machine, with failures. `calls` counts the operations that `fail` names."""

    def __init__(self) -> None:
        self.name = f"failing-{next(_names)}"
        self.base = apsw.vfs_names()[0]
        self.heal()
        super().__init__(self.name, self.base)

    def heal(self) -> None:
        """Let every operation succeed."""
        self.calls = 0
        self._operations: tuple[Operation, ...] = ()
        self._file = ""
        self._first: int | None = None
        self._count = 0
        self._error: type[apsw.Error] = apsw.IOError

    def fail(
        self,
        *operations: Operation,
        file: str = "",
        first: int | None = 1,
        count: int = 1 << 62,
        error: type[apsw.Error] = apsw.IOError,
    ) -> None:
        """Let `count` of these operations raise `error`, from number `first` on (None: only count them).

        Only files whose names end in `file` are meant.
        """
        self.heal()
        self._operations, self._file, self._first, self._count, self._error = operations, file, first, count, error

    def note(self, operation: Operation, file: str) -> None:
        """An operation of `file` is about to happen. Raises the error if it is to fail."""
        if operation not in self._operations or not file.endswith(self._file):
            return
        self.calls += 1
        if self._first is not None and self._first <= self.calls < self._first + self._count:
            raise self._error(f"the disk is gone: {operation} number {self.calls} fails")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _FailingFile(self, name, flags)


class _FailingFile(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._disk = disk
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        disk.note("open", self._name)
        super().__init__(disk.base, name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._disk.note("read", self._name)
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.note("write", self._name)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.note("sync", self._name)
        super().xSync(flags)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._disk.note("truncate", self._name)
        super().xTruncate(newsize)


@contextlib.contextmanager
def failing(*, default: bool = False) -> Iterator[FailingDisk]:
    """A disk that may fail; with `default`, that of every database that is opened meanwhile."""
    disk = FailingDisk()
    if default:
        apsw.set_default_vfs(disk.name)
    try:
        yield disk
    finally:
        apsw.set_default_vfs(disk.base)
        disk.unregister()
