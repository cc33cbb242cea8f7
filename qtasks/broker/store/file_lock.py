"""A lock on a file that ends with the process: whoever gets it knows that the earlier holder is gone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from qtasks.errors import StoreLocked


class FileLock:
    """An exclusive lock; the file names the holder for people. The operating system drops it with the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, path: Path) -> FileLock:
        """Take the lock or raise StoreLocked naming who has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            _lock(descriptor)
        except OSError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise StoreLocked(
                f"{path.with_suffix('')} is in use by {holder}",
                fix="stop that process, name another file, or let both use one server: qtasks broker",
            ) from None
        os.ftruncate(descriptor, 0)
        program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
        os.write(descriptor, f"process {os.getpid()} ({program})".encode())
        return cls(path, descriptor)

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would race with the next holder. Idempotent."""
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
