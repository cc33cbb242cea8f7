"""What an error of SQLite means: for the storage as a whole, and for the caller of one write or read."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final, TypeGuard

import apsw

from qtasks.errors import StoreError, StoreFull

_FATAL: Final = (apsw.IOError, apsw.CorruptError, apsw.NotADBError)


def is_fatal(error: BaseException) -> TypeGuard[apsw.Error]:
    """True if the storage must not be used any more after `error`.

    After a failed read, write or sync SQLite's cache may differ from the disk: trying again proves nothing. After a
    page that cannot be read, every further write could destroy more, and deliveries may have stopped already.
    """
    return isinstance(error, _FATAL) and not is_full(error)


def is_full(error: BaseException) -> TypeGuard[apsw.Error]:
    """True if `error` means that the disk is full: the transaction was rolled back, and the storage is sound."""
    return isinstance(error, apsw.FullError) or (
        # The index of the write-ahead log could not grow, which SQLite finds out before it uses the new part.
        isinstance(error, apsw.IOError) and getattr(error, "extendedresult", None) == apsw.SQLITE_IOERR_SHMSIZE
    )


def reason_of_failure(error: apsw.Error, path: str) -> str:
    """The sentence for a fatal error of the database at `path`."""
    if isinstance(error, apsw.IOError):
        return f"the storage failed: {error}; restart the broker once the disk is sound"
    return sentence_of_damage(path, str(error))


def sentence_of_damage(path: str, what: str) -> str:
    """The sentence of a broker that ends because its database is damaged; without the folder: strangers may see it."""
    name = Path(path).name
    return f"{name} is damaged: {what}; {advice(name)}"


def advice(path: str) -> str:
    """What to do about the damaged database at `path`."""
    return f"`qtasks broker check --db {path}` names the damage, {advice_to_repair(path)}"


def advice_to_repair(path: str) -> str:
    """What to do about the damaged database at `path` once its damage is named."""
    return f"`qtasks broker repair --db {path}` saves what can be read"


def damaged(path: str, what: str) -> StoreError:
    """The error of a start on the damaged database at `path`; `what` is what was seen."""
    return StoreError(f"{path} is damaged: {what}", fix=f"{advice(path)}; or restore a backup")


def of_start(error: apsw.Error, path: str) -> StoreError:
    """The error of a start during which SQLite raised `error`."""
    if isinstance(error, apsw.IOError) and not is_full(error):
        return StoreError(f"cannot use {path}: {error}", fix="start the broker again once the disk is sound")
    if is_full(error):
        return StoreFull(f"cannot use {path}: no space is left on its disk", fix="make room there")
    if isinstance(error, apsw.BusyError):
        return StoreError(f"cannot use {path}: {error}", fix="end the program that has it open")
    return damaged(path, str(error))


def of_file(error: OSError | apsw.Error, path: str) -> StoreError:
    """The error of a start for which the system or SQLite refused to open or create the file at `path`."""
    code = error.errno if isinstance(error, OSError) else _cause(path)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"cannot write {path}: no space is left on its disk", fix="make room there")
    if code == errno.EROFS or isinstance(error, apsw.ReadOnlyError):
        what, fix = "its file system is read-only", "mount it for writing, or name a file on another one"
    elif code == errno.EISDIR:
        what, fix = "it is a folder", "name a file: it is created if it does not exist"
    elif code in (errno.ENOTDIR, errno.EEXIST):
        what, fix = "a part of its path is a file, not a folder", "name a file in a folder"
    elif code in (errno.EACCES, errno.EPERM):
        what, fix = (
            "permission denied",
            "let this user write the file and its folder, on a file system that is writable",
        )
    else:
        what, fix = str(error), "check that its folder exists and may be written"
    return StoreError(f"cannot open {path} for writing: {what}", fix=fix)


def _cause(path: str) -> int | None:
    """Why SQLite could not open the file at `path`, which it does not say, as an error number; None if unknown."""
    if Path(path).is_dir():
        return errno.EISDIR
    existing = path if Path(path).exists() else Path(path).absolute().parent
    return None if os.access(existing, os.W_OK) else errno.EACCES


def translated(error: BaseException) -> BaseException:
    """The error that the caller of a write gets for `error`, an error of SQLite or of the work itself."""
    if is_full(error):
        return StoreFull("no space left for the store; nothing of this request was stored")
    if isinstance(error, apsw.BusyError):
        return StoreError("the store is busy: another program holds a lock on it; nothing of this request was stored")
    if isinstance(error, UnicodeDecodeError):
        return StoreError(
            f"the database is damaged: a text in it cannot be read: {error}; `qtasks broker check` names the damage,"
            " `qtasks broker repair` saves what can be read"
        )
    if isinstance(error, apsw.Error):
        return StoreError(f"the store refused: {error}")
    return error
