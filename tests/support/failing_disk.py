"""A disk whose syncs fail when a test says so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import apsw

NAME = "failing-sync"
"""Of the VFS, for `connect`."""


class FailingVFS(apsw.VFS):
    """Syncs of the files whose names end in `failing` fail."""

    failing: str | None = None

    def __init__(self) -> None:
        self.base = apsw.vfs_names()[0]
        super().__init__(NAME, self.base)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _FailingFile(self, name, flags)


class _FailingFile(apsw.VFSFile):
    def __init__(self, vfs: FailingVFS, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(vfs.base, name, flags)
        self._vfs = vfs
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name or ""

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._vfs.failing is not None and self._name.endswith(self._vfs.failing):
            raise apsw.IOError("the disk is gone")
        super().xSync(flags)


@contextlib.contextmanager
def failing_vfs(*, default: bool = False) -> Iterator[FailingVFS]:
    """A VFS of this name; with `default`, for every database that is opened meanwhile."""
    vfs = FailingVFS()
    if default:
        apsw.set_default_vfs(NAME)
    try:
        yield vfs
    finally:
        apsw.set_default_vfs(vfs.base)
        vfs.unregister()
