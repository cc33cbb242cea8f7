"""The progress of a running task: reported by its function, read through its handle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

PUBLISH_EVERY_S = 0.1
"""The shortest time between two published reports of a run; reports in between are left out, the last step never."""

MAX_NOTE = 500
"""Characters of a note that are recorded."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` (None: not known), in the unit that the task counts, and a note for people."""

    done: float
    total: float | None = None
    note: str = ""

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None if the total is not known."""
        if self.total is None:
            return None
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 1.0

    def to_json(self) -> str:
        """As it is recorded."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """The reverse of `to_json`."""
        return cls(**json.loads(text))
