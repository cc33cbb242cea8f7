"""What a flow may carry: an encrypted result only to a call that encrypts its arguments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.results.flow_shape import members_of, sequence_of


class Leaf(Protocol):
    """A call of a flow."""

    @property
    def task(self) -> BaseTask[..., Any]:
        """The task with its options."""
        ...

    @property
    def immutable(self) -> bool:
        """True if it does not get the result of the call before it."""
        ...


def check_sequence(sequence: Sequence[Any]) -> None:
    """Raise DefinitionError if a call of a sequence would carry the result of the one before in the open.

    `tasks.results.flow_shape` describes its shape.
    """
    for node in sequence:
        for member in members_of(node) or ():
            check_sequence(sequence_of(member))
    for before, after in itertools.pairwise(sequence):
        sealed = [leaf.task.name for leaf in _leaves(before, -1) if leaf.task.encoding.form.encrypts]
        for leaf in _leaves(after, 0) if sealed else ():
            if not leaf.immutable and not leaf.task.encoding.form.encrypts:
                raise DefinitionError(
                    f"{leaf.task.name}: it takes the result of {sealed[0]}, which is encrypted, and would carry it "
                    "unencrypted",
                    fix="declare it with encrypt=True too, or use .si(), which does not take the result",
                    code=ErrorCode.FLOW_INVALID,
                )


def _leaves(node: Any, place: int) -> Iterator[Leaf]:
    """The first calls of a node, with `place` 0, or the last ones, with -1."""
    if (members := members_of(node)) is None:
        yield node
        return
    for member in members:
        yield from _leaves(sequence_of(member)[place], place)
