"""Which module imports which, and whether the imports run one way.

Every import counts: at the head of a module, inside a function, and under `TYPE_CHECKING`. `from package import name`
is an import of the submodule `package.name` if there is one, and of the package's `__init__` otherwise. Importing a
submodule is no import of the packages above it.

The floors are those of the contracts of type `layers` in `pyproject.toml`, the highest first. A module may import
from its own layer and from the layers below. The `__init__` of a contract's container is above all layers unless it
imports nothing of the container.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.house.source import Module, Modules, Place


@dataclass(frozen=True)
class Arrow:
    """One import: `source` imports `target`, in line `line`."""

    source: Module
    target: str
    line: int

    def __str__(self) -> str:
        return str(Place(self.source.path, self.line, f"imports {self.target}"))


def arrows(modules: Modules) -> list[Arrow]:
    """Every import among `modules`."""
    every_import = (
        Arrow(module, target, line)
        for module in modules.values()
        for node in module.nodes
        for target, line in _targets(node, module, modules)
    )
    return [arrow for arrow in every_import if arrow.target != arrow.source.name]


def _targets(node: ast.AST, module: Module, modules: Modules) -> Iterator[tuple[str, int]]:
    match node:
        case ast.Import(names=names):
            targets = [alias.name for alias in names]
        case ast.ImportFrom(names=names):
            package = _absolute(node, module)
            submodules = {alias.name: f"{package}.{alias.name}" for alias in names}
            targets = [name if name in modules else package for name in submodules.values()]
        case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[literal, *_]):
            targets = [literal.value] if isinstance(literal, ast.Constant) and isinstance(literal.value, str) else []
        case _:
            return
    for target in dict.fromkeys(targets):
        if target in modules:
            yield target, getattr(node, "lineno", 1)


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    """The package that a `from` import names."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parents = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parents, node.module] if node.module else parents)


def circles(modules: Modules) -> list[list[str]]:
    """The groups of modules that import each other, directly or by way of others."""
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for arrow in arrows(modules):
        graph[arrow.source.name].add(arrow.target)
    return [component for component in _components(graph) if len(component) > 1]


def within(circle: Sequence[str], modules: Modules) -> list[Arrow]:
    """The imports that tie the modules of a circle."""
    return [arrow for arrow in arrows(modules) if arrow.source.name in circle and arrow.target in circle]


def _components(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components: what can be reached both forwards and backwards (Kosaraju)."""
    backwards: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            backwards[target].add(name)
    order: list[str] = []
    seen: set[str] = set()
    for name in graph:
        order += _finished(name, graph, seen)
    seen.clear()
    return [sorted(component) for name in reversed(order) if (component := _finished(name, backwards, seen))]


def _finished(start: str, graph: Mapping[str, set[str]], seen: set[str]) -> list[str]:
    """What can be reached from `start` and is not in `seen`, each after everything it leads to."""
    if start in seen:
        return []
    seen.add(start)
    finished: list[str] = []
    path = [(start, iter(sorted(graph[start])))]
    while path:
        _, targets = path[-1]
        if (target := next((target for target in targets if target not in seen), None)) is None:
            finished.append(path.pop()[0])
        else:
            seen.add(target)
            path.append((target, iter(sorted(graph[target]))))
    return finished


@dataclass(frozen=True)
class Layers:
    """One contract of type `layers`, for one container."""

    name: str
    container: str
    floors: Sequence[Sequence[str]]
    """The highest first; modules on one floor stand beside each other and do not import each other."""

    def covers(self, module: str) -> bool:
        return self.container == module or module.startswith(f"{self.container}.")

    def place(self, module: str) -> tuple[int, str] | None:
        """The floor of a module, counted from the top, and its layer; None if no layer covers it."""
        for floor, layers in enumerate(self.floors):
            for layer in layers:
                if module == layer or module.startswith(f"{layer}."):
                    return floor, layer
        return None


def contracts(pyproject: Path) -> list[Layers]:
    """The contracts of type `layers` that the project declares."""
    declared = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("importlinter", {})
    return [
        _layers(contract, container)
        for contract in declared.get("contracts", [])
        if contract["type"] == "layers"
        for container in contract.get("containers", [None])
    ]


def _layers(contract: Mapping[str, list[str]], container: str | None) -> Layers:
    prefix = "" if container is None else f"{container}."
    floors = [
        [prefix + name.strip().strip("()") for name in line.replace(":", "|").split("|")] for line in contract["layers"]
    ]
    parents = {name.rpartition(".")[0] for floor in floors for name in floor}
    return Layers(str(contract["name"]), container or min(parents, key=len), floors)


def exceptions(pyproject: Path) -> list[str]:
    """The imports that a contract, of any type, declares to ignore."""
    declared = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("importlinter", {})
    return [
        f"{pyproject.name}: contract {contract['name']!r} ignores {ignored}"
        for contract in declared.get("contracts", [])
        for ignored in contract.get("ignore_imports", [])
    ]


def uncovered(modules: Modules, layers: Sequence[Layers]) -> list[str]:
    """The modules of a container that none of its layers covers; the container's own `__init__` needs no layer."""
    return [
        f"{module.name} is in no layer of {contract.name!r}"
        for contract in layers
        for module in modules.values()
        if module.name != contract.container and contract.covers(module.name) and contract.place(module.name) is None
    ]


def upward(modules: Modules, layers: Sequence[Layers]) -> list[str]:
    """The imports that run against the declared order, and those between layers of one floor."""
    imports = arrows(modules)
    return [line for contract in layers for line in _against(contract, imports)]


def _against(contract: Layers, imports: Sequence[Arrow]) -> Iterator[str]:
    inside = [arrow for arrow in imports if contract.covers(arrow.source.name) and contract.covers(arrow.target)]
    init_imports = any(arrow.source.name == contract.container for arrow in inside)
    for arrow in inside:
        source, target = contract.place(arrow.source.name), contract.place(arrow.target)
        if arrow.source.name == contract.container or source is None:
            continue
        if arrow.target == contract.container:
            if init_imports:
                yield f"{arrow}, which is above its layers"
        elif target is not None and source != target and target[0] <= source[0]:
            yield f"{arrow} ({target[1]} is {'beside' if target[0] == source[0] else 'above'} {source[1]})"
