"""The modules of a source tree, each parsed once."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""The folder of the project."""


@dataclass(frozen=True)
class Place:
    """A line of a file, and what is wrong there."""

    path: Path
    line: int
    text: str = ""

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}  {self.text}".rstrip()


@dataclass(frozen=True)
class Module:
    """A Python file and the dotted name that imports it; a package has the name of its folder."""

    name: str
    path: Path

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def base_name(self) -> str:
        return self.name.rpartition(".")[2]

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the syntax tree, in no particular order."""
        return list(ast.walk(ast.parse(self.text, str(self.path))))

    def at(self, node: ast.AST, text: str) -> Place:
        return Place(self.path, getattr(node, "lineno", 1), text)


Modules = Mapping[str, Module]


def read(folder: Path) -> Modules:
    """The modules of the package in `folder`, in the order of their names."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path)
    return dict(sorted(modules.items()))
