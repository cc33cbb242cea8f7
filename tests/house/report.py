"""The state of the house as rows: what is measured, its bar, and the places that miss it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tests.house import citations, idioms, imports, names, sizes, trace
from tests.house.source import ROOT, Modules, read

GLOSSARY: Final = ROOT / "docs" / "glossary.md"
PYPROJECT: Final = ROOT / "pyproject.toml"

LAYERED: Final = frozenset({"qtasks", "qtasks.broker", "qtasks.tasks"})
"""The packages whose rooms are floors."""

LARGEST_ROOM: Final = 20
LONGEST_FUNCTION: Final = 60
LONGEST_MODULE: Final = 462


@dataclass(frozen=True)
class Row:
    """One measurement. It holds while `value` is at most `bar`; without a bar it always holds."""

    name: str
    value: int
    bar: int | None = None
    misses: Sequence[object] = ()
    """What is shown when the bar is missed."""
    notes: Sequence[str] = field(default=())
    """What is shown in any case."""

    @property
    def holds(self) -> bool:
        return self.bar is None or self.value <= self.bar


Measure = Callable[[Modules], Row]


def _counted(name: str, measure: Callable[[Modules], Sequence[object]]) -> Measure:
    """A row of places none of which should be there."""

    def row(modules: Modules) -> Row:
        places = measure(modules)
        return Row(name, len(places), 0, places)

    row.__name__ = name.replace(" ", "_")
    return row


def _circles(modules: Modules) -> Row:
    circles = imports.circles(modules)
    ties = [line for circle in circles for line in (" ".join(circle), *imports.within(circle, modules))]
    return Row("modules in import circles", sum(map(len, circles)), 0, ties)


def _upward(modules: Modules) -> list[str]:
    layers = imports.contracts(PYPROJECT)
    without = LAYERED - {contract.container for contract in layers}
    missing = [f"{PYPROJECT.name}: {container} has no contract of type layers" for container in sorted(without)]
    return [
        *missing,
        *imports.upward(modules, layers),
        *imports.uncovered(modules, layers),
        *imports.exceptions(PYPROJECT),
    ]


def _rooms(modules: Modules) -> Row:
    measured = [(count, str(folder.relative_to(ROOT))) for count, folder in sizes.rooms(modules)]
    over = [f"{folder}: {count}" for count, folder in measured if count > LARGEST_ROOM]
    every_room = "  ".join(f"{folder} {count}" for count, folder in measured)
    return Row("files flat in the largest room", measured[0][0], LARGEST_ROOM, over, [every_room])


def _longest_function(modules: Modules) -> Row:
    measured = sizes.functions(modules)
    over = [f"{place}: {lines} lines" for lines, place in measured if lines > LONGEST_FUNCTION]
    return Row("lines of the longest function", measured[0][0], LONGEST_FUNCTION, over, [str(measured[0][1])])


def _longest_module(modules: Modules) -> Row:
    measured = sizes.lengths(modules)
    over = [f"{place}: {lines} lines" for lines, place in measured if lines > LONGEST_MODULE]
    return Row("lines of the longest module", measured[0][0], LONGEST_MODULE, over, [str(measured[0][1])])


MEASURES: Final[Sequence[Measure]] = (
    _circles,
    _counted("imports upward, uncovered modules, exceptions", _upward),
    _counted("class names in use for two things", names.classes_in_two_uses),
    _counted("module names in use for two things", partial(names.modules_in_two_uses, glossary=GLOSSARY)),
    _counted("retired words in names", names.retired_names),
    _counted("variables with a vague name", names.vague_names),
    _rooms,
    _longest_function,
    _longest_module,
    _counted("idioms", idioms.idioms),
    _counted("citations of what is not in docs/", partial(citations.broken_citations, docs=ROOT / "docs")),
)
"""What has a bar."""


def rows(folder: Path = ROOT / "qtasks") -> list[Row]:
    """The rows that have a bar."""
    modules = read(folder)
    return [measure(modules) for measure in MEASURES]


def reported() -> Iterator[Row]:
    """The rows that have no bar: what is no part of the package, and the ways of a call."""
    for name in ("tests", "benchmarks", "examples"):
        modules = read(ROOT / name)
        yield Row(f"idioms in {name}/", len(idioms.idioms(modules)))
        yield Row(f"variables with a vague name in {name}/", len(names.vague_names(modules)))
    delay, delivery = trace.trace()
    yield Row("file changes of a traced .delay()", delay.moves, notes=[f"{delay}; 41 before the rooms"])
    yield Row("file changes of a traced delivery", delivery.moves, notes=[f"{delivery}; 84 before the rooms"])
