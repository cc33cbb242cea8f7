"""How large the rooms, modules and functions are.

The size of a room is the number of Python files directly in its folder, `__init__.py` aside. The size of a function is
the number of lines from `def` to its end, decorators and docstring aside. The size of a module is all its lines.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.house.source import Module, Modules, Place


def rooms(modules: Modules) -> list[tuple[int, Path]]:
    """The size and the folder of every room, the largest first."""
    counted = Counter(module.path.parent for module in modules.values() if not module.is_package)
    return sorted(((count, folder) for folder, count in counted.items()), reverse=True)


def functions(modules: Modules) -> list[tuple[int, Place]]:
    """The size, the place and the name of every function, the longest first."""
    measured = [pair for module in modules.values() for pair in _functions(module)]
    return sorted(measured, key=lambda pair: (-pair[0], str(pair[1])))


def _functions(module: Module) -> Iterator[tuple[int, Place]]:
    for node in module.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _lines(node) - _docstring_lines(node), module.at(node, node.name)


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return 0 if ast.get_docstring(node, clean=False) is None else _lines(node.body[0])


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def lengths(modules: Modules) -> list[tuple[int, Place]]:
    """The size of every module, the longest first."""
    measured = [(module.text.count("\n"), Place(module.path, 1)) for module in modules.values()]
    return sorted(measured, key=lambda pair: (-pair[0], str(pair[1])))
