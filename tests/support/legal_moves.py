"""Whether the table of legal moves explains the log of a message."""

from __future__ import annotations

from collections.abc import Sequence

from qtasks.broker.core.rules import TRANSITIONS, Stage
from qtasks.protocol.messages import State


def assert_legal(states: Sequence[State], stage: Stage) -> None:
    """Assert that some path of legal moves writes exactly these log entries and ends in `stage`."""
    assert states[0] is State.CREATED
    reached = {(Stage.DUE, 1)}
    unseen = list(reached)
    while unseen:
        at, position = unseen.pop()
        for (start, _), transition in TRANSITIONS.items():
            after = (transition.to, position + len(transition.log))
            fits = tuple(states[position : after[1]]) == transition.log
            if start is at and fits and after not in reached:
                reached.add(after)
                unseen.append(after)
    assert (stage, len(states)) in reached, f"no legal path leads to {stage.name} by {[str(s) for s in states]}"
