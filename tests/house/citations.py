"""Whether every document and section that the code cites exists.

A citation is the path of a Markdown file in `docs/`, alone or with the numbers of sections behind it, such as
`docs/protocol.md 2.9, 5.9` or `docs/compatibility.md A3 to A7`. A section exists if a heading or the first cell of a
table row begins with its number.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from tests.house.source import Modules, Place

_NUMBER: Final = re.compile(r"\b[A-Z]?\d+(?:\.\d+)*\b")
_CITATION: Final = re.compile(r"\bdocs/([\w/-]+\.md)((?:,|\s+(?:#\s*)?(?:to\s+|and\s+)?[A-Z]?\d+(?:\.\d+)*\b)*)")
_SECTION: Final = re.compile(r"^(?:#+|\|)\s*\**([A-Z]?\d+(?:\.\d+)*)\b", re.MULTILINE)


def broken_citations(modules: Modules, docs: Path) -> list[Place]:
    """Every cited document or section that is not in the folder `docs`."""
    return [
        Place(module.path, module.text.count("\n", 0, citation.start()) + 1, missing)
        for module in modules.values()
        for citation in _CITATION.finditer(module.text)
        for missing in _missing(docs / citation[1], _NUMBER.findall(citation[2]))
    ]


def _missing(document: Path, numbers: list[str]) -> list[str]:
    if not document.exists():
        return [f"docs/{document.name} does not exist"]
    return [f"docs/{document.name} has no section {number}" for number in numbers if number not in _sections(document)]


@cache
def _sections(document: Path) -> frozenset[str]:
    return frozenset(_SECTION.findall(document.read_text(encoding="utf-8")))
