"""Which attributes of an object are its API: those that a prompt completes."""

from __future__ import annotations

from typing import ClassVar


class ApiNames:
    """A base of public classes: `dir` of their objects leaves out `_internal`, names that only qtasks itself uses."""

    __slots__ = ()
    _internal: ClassVar[frozenset[str]] = frozenset()

    def __dir__(self) -> list[str]:
        """The names of the API, and those that begin with an underscore."""
        return [name for name in super().__dir__() if name not in self._internal]
