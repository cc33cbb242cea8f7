"""What belongs to one process is made again in every process that is forked from it.

A fork copies the memory of a process and one thread. In the child a lock that another thread held stays locked for
ever, a pool has no threads, and the connections are still those of the parent: an answer may reach the wrong process,
and closing one may say goodbye on behalf of both. So an object with locks, threads or connections makes them in one
method, and gives that method to `per_process`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


_Methods = dict[int, tuple["weakref.ref[Any]", Callable[[Any], T]]]
"""Functions with the object that they are methods of, by the id of its reference. `weakref.WeakMethod` fails at the end
of the interpreter."""

_begins: _Methods[None] = {}
_holds: _Methods[Callable[[], None]] = {}
_held: dict[int, list[Callable[[], None]]] = {}
"""By the thread that forks: the functions that end what `rest_before_forks` has begun."""
_inherited: list[object] = []


def per_process(begin: Callable[[], None]) -> None:
    """Call the method `begin` now, and again in every process that is forked while its object lives.

    In the child it must not wait, and must close nothing: see `keep_inherited`.
    """
    begin()
    _remember(_begins, begin)


def rest_before_forks(hold: Callable[[], Callable[[], None]]) -> None:
    """Call the method `hold` before each fork. What it returns is called after it, in the parent.

    For what must not be copied in the middle of a change. `hold` waits for a limited time.
    """
    _remember(_holds, hold)


def keep_inherited(*parts: object) -> None:
    """Keep what the parent has opened as it is until this process ends, so that nothing closes it."""
    _inherited.extend(part for part in parts if part is not None)


def _remember(methods: _Methods[T], method: Any) -> None:
    reference = weakref.ref(method.__self__, lambda dead: methods.pop(id(dead), None))
    methods[id(reference)] = reference, method.__func__


def _called(methods: _Methods[T]) -> Iterator[T]:
    """Call each method whose object lives."""
    for reference, function in methods.copy().values():
        if (owner := reference()) is not None:
            yield function(owner)


def _before() -> None:
    _held[threading.get_ident()] = list(_called(_holds))


def _in_parent() -> None:
    for end in _held.pop(threading.get_ident(), ()):
        end()


def _in_child() -> None:
    _held.clear()
    for _ in _called(_begins):
        pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
