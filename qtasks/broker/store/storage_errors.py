"""What an error of SQLite means: for the storage as a whole, and for the caller of one write or read."""

from __future__ import annotations

from typing import TypeGuard

import apsw

from qtasks.errors import StoreError, StoreFull


def is_fatal(error: BaseException) -> TypeGuard[apsw.Error]:
    """True if the storage must not be used any more after `error`.

    After a failed read, write or sync SQLite's cache may differ from the disk: trying again proves nothing.
    """
    return isinstance(error, apsw.IOError)


def reason_of_failure(error: apsw.Error) -> str:
    """The sentence for a fatal error."""
    return f"the storage failed: {error}; restart the broker once the disk is sound"


def translated(error: BaseException) -> BaseException:
    """The error that the caller of a write gets for `error`, an error of SQLite or of the work itself."""
    if isinstance(error, apsw.FullError):
        return StoreFull("no space left for the store; nothing of this request was stored")
    if isinstance(error, apsw.BusyError):
        return StoreError("the store is busy: another program holds a lock on it; nothing of this request was stored")
    if isinstance(error, apsw.Error):
        return StoreError(f"the store refused: {error}")
    return error
