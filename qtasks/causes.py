"""What an exception was raised from."""

from __future__ import annotations

from collections.abc import Iterator


def cause_chain(error: BaseException, *, with_suppressed: bool = True) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling, each once: user code can make a circle of them.

    `with_suppressed` False leaves out what ``raise ... from None`` hides.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        is_hidden = current.__suppress_context__ and not with_suppressed
        current = current.__cause__ or (None if is_hidden else current.__context__)
