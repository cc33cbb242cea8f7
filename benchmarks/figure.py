"""Results of a measurement as values: rows of name, value, aim and method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Aim:
    """The limit that a value should reach: at least `limit`, or at most with `most`."""

    limit: float
    most: bool = False

    def met(self, value: float) -> bool:
        """Whether `value` reaches the aim."""
        return value <= self.limit if self.most else value >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. `value` None: it could not be measured, and `note` says why."""

    name: str
    value: float | None
    unit: str
    method: str
    """One line: what was done and between which moments."""
    aim: Aim | None = None
    note: str = ""
    """Other observations: spread, processor time, sizes."""

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; None without an aim or a value."""
        return None if self.aim is None or self.value is None else self.aim.met(self.value)


def number(value: float) -> str:
    """Three significant digits, thousands apart: ``5,120``, ``14.2``, ``0.85``."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of all lie (1 to 99), interpolated; a single value is returned as it is."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
