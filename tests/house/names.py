"""One word, one thing: names of classes and modules that stand for two, and words that are no names here.

A module that has the base name of another is right in three cases: `docs/glossary.md` defines the word; the module
mirrors another one on purpose (`qstash/asyncio/x.py` is the asynchronous twin of `qstash/x.py`, `qtasks/llm.py` the
public face of `qtasks/tasks/llm`); or Python gives the name (`__main__`). A folder counts as a module.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

from tests.house.source import Module, Modules, Place

SDK_NAMES: Final = frozenset({"FlowControl", "Message", "Queue", "Schedule", "UrlGroup"})
"""Public names of the official SDK. They stay in `qtasks.qstash` even where another room has the word too."""

MIRRORS: Final = (
    (re.compile(r"qtasks\.qstash\.asyncio\.(\w+)"), r"qtasks.qstash.\1"),
    (re.compile(r"qtasks\.llm"), "qtasks.tasks.llm"),
)
"""A module that matches the pattern has the base name of the other module on purpose."""

RETIRED: Final = {
    "cargo": "argument, result, codec",
    "carrier": "transport",
    "dialect": "provider API",
    "gate": "admission",
    "hold": "lock",
    "holder": "owner",
    "holding": "lock",
    "home": "embedded broker",
    "journal": "log",
    "ledger": "call log",
    "making": "decorators",
    "standin": "fake",
    "standing": "lock, owner",
    "stood": "lock, owner",
    "ticket": "callback URL",
    "told": "notified, reported",
    "verdict": "decision",
    "wanted": "expected, matcher",
    "wish": "option, control",
}
"""Words that name no module, class or function, each with the word to use."""

VAGUE: Final = frozenset(
    {"found", "given", "gone", "known", "left", "mine", "more", "one", "said", "standing", "told", "wanted"}
)
"""Words that name no variable, parameter or field: they do not say what is in it. `left` beside `right` is a side."""

T = TypeVar("T")
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_DEFINED: Final = re.compile(r"^[-*|\s]*\*\*(.+?)\*\*", re.MULTILINE)


def classes_in_two_uses(modules: Modules) -> list[str]:
    """Every class name that two classes have, nested and private ones included."""
    named = _groups((node.name, (module, node)) for module in modules.values() for node in _classes(module))
    return [
        f"class {name}: " + ", ".join(f"{module.name}:{node.lineno}" for module, node in uses)
        for name, uses in named.items()
        if len(uses) > 1 and not _is_sdk_name(name, [module.name for module, _ in uses])
    ]


def _classes(module: Module) -> Iterator[ast.ClassDef]:
    return (node for node in module.nodes if isinstance(node, ast.ClassDef))


def _is_sdk_name(name: str, modules: list[str]) -> bool:
    """The SDK's public class and one other, and no third."""
    return name in SDK_NAMES and len(modules) == 2 and any(module.startswith("qtasks.qstash.") for module in modules)


def modules_in_two_uses(modules: Modules, glossary: Path) -> list[str]:
    """Every base name that two modules have without one of the three reasons."""
    words = defined_words(glossary)
    named = _groups((module.base_name, module.name) for module in modules.values() if not _mirrors(module, modules))
    return [
        f"module {name}: {', '.join(uses)}"
        for name, uses in named.items()
        if len(uses) > 1 and name != "__main__" and _plain(name) not in words
    ]


def _mirrors(module: Module, modules: Modules) -> bool:
    return any(
        pattern.fullmatch(module.name) and pattern.sub(original, module.name) in modules
        for pattern, original in MIRRORS
    )


def defined_words(glossary: Path) -> set[str]:
    """The words in bold at the start of a line, or nothing if there is no glossary."""
    if not glossary.exists():
        return set()
    entries = _DEFINED.findall(glossary.read_text(encoding="utf-8"))
    return {_plain(word) for entry in entries for word in re.split(r"[,/·;]", entry)}


def _plain(word: str) -> str:
    """A word for comparing: letters only, without the plural's s."""
    return re.sub(r"[^a-z0-9]", "", word.lower().removesuffix(".py").strip()).removesuffix("s")


def retired_names(modules: Modules) -> list[Place]:
    """Modules, classes and functions with a retired word in their name."""
    return [
        module.at(node, f"{name}: use {RETIRED[word]}")
        for module in modules.values()
        for node, name in _named(module)
        if (word := _retired(name))
    ]


def _named(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """The names that a module defines, its own first."""
    for node in module.nodes:
        match node:
            case ast.Module():
                yield node, module.base_name
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node, name


def _retired(name: str) -> str | None:
    words = [word.lower() for word in _WORD.findall(name)]
    pairs = [first + second for first, second in pairwise(words)]
    return next((form for word in words + pairs for form in (word, word.removesuffix("s")) if form in RETIRED), None)


def vague_names(modules: Modules) -> list[Place]:
    """Variables, parameters and fields that do not say what they contain."""
    places = []
    for module in modules.values():
        bound = [(node, name) for node in module.nodes for name in _bound(node)]
        sides = {"left"} if any(name == "right" for _, name in bound) else set()
        places += [module.at(node, name) for node, name in bound if name.strip("_") in VAGUE - sides]
    return places


def _bound(node: ast.AST) -> list[str]:
    """The names that a node binds to a value."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
            return [name]
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.ExceptHandler(name=str(name)):
            return [name]
        case _:
            return []


def _groups(pairs: Iterable[tuple[str, T]]) -> Mapping[str, list[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return dict(sorted(groups.items()))
