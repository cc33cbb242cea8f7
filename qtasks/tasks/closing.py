"""Closing several parts: one that fails does not keep the others open."""

from __future__ import annotations

from collections.abc import Callable


def close_all(*parts: Callable[[], object]) -> None:
    """Call every part in order, even after one raised.

    Raises the first error at the end; every other error is added to it as a note.
    """
    first: BaseException | None = None
    for close in parts:
        try:
            close()
        except BaseException as error:
            if first is None:
                first = error
            else:
                first.add_note(f"closing another part failed as well: {type(error).__name__}: {error}")
    if first is not None:
        raise first


def raise_error(outcome: BaseException | None) -> None:
    """Raise an error that was the outcome of a step."""
    if outcome is not None:
        raise outcome
