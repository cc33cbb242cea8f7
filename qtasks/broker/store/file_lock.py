"""A file lock that ends with its process: a process that gets it knows that the earlier owner is dead."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from qtasks.errors import StoreLocked


class FileLock:
    """An exclusive lock. Its file contains the name of the owner, for people. It ends with the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, path: Path) -> FileLock:
        """Lock the file at `path`. Raises StoreLocked with the name of the owner if another process has locked it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            _lock(descriptor)
        except OSError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise StoreLocked(
                f"{path.with_suffix('')} is in use by {owner}",
                fix="stop that process, name another file, or let both use one server: qtasks broker",
            ) from None
        os.ftruncate(descriptor, 0)
        program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
        os.write(descriptor, f"process {os.getpid()} ({program})".encode())
        return cls(path, descriptor)

    def release(self) -> None:
        """Unlock. The file stays: to remove it would race with the next owner. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
