"""The figures by name, in the order of the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.bench import Figure
from benchmarks.figures.claiming import claiming
from benchmarks.figures.clients import clients
from benchmarks.figures.draining import draining, napping, streaming
from benchmarks.figures.footprint import idling, memory, store
from benchmarks.figures.latency import latency
from benchmarks.figures.publishing import publishing
from benchmarks.figures.recovery import recovering
from benchmarks.figures.starting import developing, importing

FIGURES: Final[Mapping[str, Figure]] = {
    "publish": publishing,
    "claim": claiming,
    "clients": clients,
    "drain": draining,
    "stream": streaming,
    "nap": napping,
    "latency": latency,
    "memory": memory,
    "store": store,
    "idle": idling,
    "import": importing,
    "dev": developing,
    "recovery": recovering,
}
