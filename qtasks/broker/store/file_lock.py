"""The lock of a database: one store has it at a time, and it ends with the process.

How it works. The lock is on the file itself, not on a name: a process that opens it by a symbolic link, a hard link or
another mount finds it locked, and nothing is unlocked by removing a lock file. Two bytes are locked that SQLite does
not use, in the page that it keeps free of data for its own locks (https://sqlite.org/fileformat2.html, section 1.4):

- one with a record lock, the kind that SQLite uses. It works where SQLite works, and the system knows which process has
  it. But SQLite ends it while it opens the file, because it unlocks all bytes at once; so it is taken again afterwards.
  And it ends when this process closes any descriptor of the file. So do SQLite's own locks: nothing in this process may
  open and close a database file that a store uses.
- one with a lock of the open descriptor, where the system has them. It lasts as long as the descriptor.

The file ``FILE.lock`` contains the name of the owner, for people, and which file its database was; see `orphaned_log`.
Earlier versions of this program lock that file, and nothing else, so it is locked as well.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Final, NoReturn

from qtasks.broker.store import foreign_database, orphaned_log, storage_errors
from qtasks.broker.store.file_watch import FileId, file_at, file_id
from qtasks.errors import StoreError, StoreLocked

_BYTE: Final = 0x40000000 + 1024
"""Offset of the byte with the record lock; the next byte has the lock of the descriptor. SQLite uses the first 512."""
_OPEN: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)

_changing = threading.Lock()
_held: dict[FileId, list[int]] = {}
"""The descriptors of each database that this process has locked. They are closed together, at the end of the lock."""


def _forget() -> None:
    """Close the descriptors in a forked process: it has no lock, and would keep that of its parent after its death."""
    global _changing
    _changing = threading.Lock()
    for descriptors in _held.values():
        for descriptor in descriptors:
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class FileLock:
    """The exclusive right to a database. It ends with the process."""

    def __init__(self, path: str, database: FileId, owner: FileId) -> None:
        self._path = path
        self._database: FileId | None = database
        self._log: FileId | None = None
        self.files = {path: database, owner_file(path): owner}
        """The locked database and its lock file: the path and the identity of each."""

    @classmethod
    def acquire(cls, path: str, *, for_repair: bool = False) -> FileLock:
        """Lock the database at `path`, which contains no symbolic link; a file that does not exist is created.

        Raises StoreLocked with the name of the owner if it is locked; StoreError if the database is that of another
        program, if the file has several names, so that SQLite could miss its write-ahead log, or if it cannot be opened
        or locked. Of another program's database nothing is changed. `for_repair`: see `foreign_database.refuse`.
        """
        with _changing:
            try:
                if file_at(path) in _held:  # before it is opened: closing a descriptor would end the locks of SQLite
                    _refuse(path, _this_process())
                foreign_database.refuse(path, for_repair=for_repair)
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                orphaned_log.refuse_without_database(path)
                descriptor = os.open(path, _OPEN, 0o600)
                database = file_id(os.fstat(descriptor))
                if database in _held:  # the file was moved to this name a moment ago
                    _held[database].append(descriptor)
                    _refuse(path, _this_process())
                _held[database] = [descriptor]
                try:
                    return cls(path, database, _locked(path, descriptor))
                except BaseException:
                    _close(database)
                    raise
            except OSError as error:
                raise storage_errors.of_file(error, path) from error

    def confirm(self) -> None:
        """Take the record lock again, after SQLite has opened the file. StoreLocked if another process has taken it."""
        assert self._database is not None
        _lock_bytes(self._path, _held[self._database][0])
        self._log = file_at(f"{self._path}-wal")

    def release(self) -> None:
        """Unlock, after SQLite has closed the file. The files stay, see `orphaned_log`. Idempotent."""
        if self._database is not None:
            with _changing:
                is_away = file_at(self._path) != self._database and self._database in _held
                if is_away and self._log == file_at(f"{self._path}-wal") is not None:
                    orphaned_log.set_aside(self._path, os.fstat(_held[self._database][0]))
                _close(self._database)
            self._database = None


def owner_file(path: str) -> str:
    """The path of the file with the name of the owner of the database at `path`."""
    return f"{path}.lock"


def _locked(path: str, descriptor: int) -> FileId:
    """Lock the open database and its lock file; the identity of the lock file."""
    _lock_bytes(path, descriptor)
    _refuse_unsafe(path, os.fstat(descriptor))
    owner_descriptor = os.open(owner_file(path), _OPEN, 0o600)
    _held[file_id(os.fstat(descriptor))].append(owner_descriptor)
    try:
        _lock_whole(owner_descriptor)
    except OSError:
        _refuse(path, _owner(path, None))
    owner = file_id(os.fstat(owner_descriptor))
    identities = " ".join(f"{device}:{inode}" for device, inode in (file_id(os.fstat(descriptor)), owner))
    orphaned_log.refuse_replaced_database(path, _written(path)[1], identities)
    orphaned_log.refuse_backup(path, _header(descriptor))
    orphaned_log.take_back(path, os.fstat(descriptor))
    with contextlib.suppress(OSError):  # on a full disk the lock has no name, which is for people only
        os.ftruncate(owner_descriptor, 0)
        os.write(owner_descriptor, f"{_this_process()}\n{identities}\n".encode())
    return owner


def _header(descriptor: int) -> bytes:
    """The header of the database."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 100)


def _lock_bytes(path: str, descriptor: int) -> None:
    try:
        _lock_database(descriptor)
    except (BlockingIOError, PermissionError):  # PermissionError: EACCES, which POSIX allows for a record lock
        _refuse(path, _owner(path, _locking_process(descriptor)))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be locked: {error}", fix="put the database on a disk of this machine"
        ) from error


def _refuse_unsafe(path: str, status: os.stat_result) -> None:
    """Raise StoreError if the database could be opened by a name beside which its write-ahead log is not."""
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is not a file", fix="name a file with --db")
    if status.st_nlink > 1:
        _refuse_interrupted_repair(path)
        raise StoreError(
            f"{path} has {status.st_nlink} names (hard links). SQLite keeps the newest data in a file beside the name"
            " it is given, so what was written under one name could be lost under another",
            fix="keep the name that has a file with -wal beside it, and remove the others; symbolic links do no harm",
        )
    if _is_mount_point(path):
        raise StoreError(
            f"{path} is mounted as a single file. SQLite keeps the newest data in a file beside it, which would be lost"
            " with the mount",
            fix="mount the folder that contains the database",
        )


def _refuse_interrupted_repair(path: str) -> None:
    """Raise StoreError if the second name of the database is the one that a repair gives it at its end."""
    folder, name = os.path.split(path)
    for kept in Path(folder).glob(f"{glob.escape(name)}.damaged-*"):
        if file_at(str(kept)) == file_at(path):
            log, kept_log = Path(f"{path}-wal"), Path(f"{kept}-wal")
            move = f"move {kept_log} back to {log}, " if kept_log.exists() and not log.exists() else ""
            raise StoreError(
                f"a repair of {path} was interrupted: the damaged database has the name {kept}, too",
                fix=f"{move}remove {kept}, then run `qtasks broker repair --db {path}` again",
            )


def _is_mount_point(path: str) -> bool:
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return os.path.ismount(path)
    escaped = os.fsencode(path)
    for character in (b"\\", b" ", b"\t", b"\n"):  # the backslash first: the others bring new ones
        escaped = escaped.replace(character, b"\\%03o" % character[0])
    return any(mount.split(b" ")[4] == escaped for mount in mounts)


def _close(database: FileId) -> None:
    for descriptor in reversed(_held.pop(database, [])):
        os.close(descriptor)


def _refuse(path: str, owner: str) -> NoReturn:
    raise StoreLocked(
        f"{path} is in use by {owner}",
        fix="stop that process, name another file, or let both use one server: qtasks broker",
    )


def _this_process() -> str:
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return f"process {os.getpid()} ({program})"


def _owner(path: str, process: int | None) -> str:
    """The name of the owner: as the lock file says, if that agrees with the process that the system knows."""
    written, _ = _written(path)
    if process is None or written.startswith(f"process {process} "):
        return written or "another process"
    return f"process {process}"


def _written(path: str) -> tuple[str, str]:
    """What the last owner has written into the lock file: its name; the identities of the database and of this file."""
    try:
        text = Path(owner_file(path)).read_bytes()[:400].decode(errors="replace")
    except OSError:
        return "", ""
    name, _, identities = text.partition("\n")
    return name.strip(), identities.strip()


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock_database(descriptor: int) -> None:
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _lock_whole(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

    def _locking_process(_descriptor: int) -> int | None:
        return None

else:
    import errno
    import fcntl
    import struct

    _RECORD: Final = "hhqqi0q"
    """The C structure `flock`: type, whence, start, length, process."""

    def _lock_database(descriptor: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _BYTE)
        if sys.platform == "linux":
            record = struct.pack(_RECORD, fcntl.F_WRLCK, os.SEEK_SET, _BYTE + 1, 1, 0)
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, record)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a system without these locks
                    raise

    def _lock_whole(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _locking_process(descriptor: int) -> int | None:
        """The process that has the record lock, if this process can see it."""
        if sys.platform != "linux":  # the structure has another layout
            return None
        record = struct.pack(_RECORD, fcntl.F_WRLCK, os.SEEK_SET, _BYTE, 1, 0)
        kind, _, _, _, process = struct.unpack(_RECORD, fcntl.fcntl(descriptor, fcntl.F_GETLK, record))
        return process if kind != fcntl.F_UNLCK and process > 0 else None
