"""What a person reads in a module: docstrings, comments, and the texts of errors and logs."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.house.source import Module

_CODE: Final = re.compile(r"(``?)[^`\n]*\1")
_LINE_BREAK: Final = re.compile(r"[ \t]*\n[ \t]*")


@dataclass(frozen=True)
class Passage:
    """A docstring, a string literal, or a block of comments that stand under each other."""

    line: int
    text: str

    def line_of(self, offset: int) -> int:
        """The line of the file that the character `offset` of the text stands in."""
        return self.line + self.text.count("\n", 0, offset)


def passages(module: Module) -> Iterator[Passage]:
    """All passages of a module, with code between backticks blanked and lines without indentation."""
    for passage in [*_strings(module), *_comments(module)]:
        text = _CODE.sub(lambda code: "`" * len(code.group()), passage.text)
        yield Passage(passage.line, _LINE_BREAK.sub("\n", text))


def _strings(module: Module) -> Iterator[Passage]:
    for node in module.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Passage(node.lineno, node.value)


def _comments(module: Module) -> Iterator[Passage]:
    """Each block of comment lines as one passage."""
    lines: dict[int, str] = {}
    if "#" in module.text:
        for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
            if token.type == tokenize.COMMENT:
                lines[token.start[0]] = token.string.lstrip("#: ")
    block: list[str] = []
    for line, text in lines.items():
        block.append(text)
        if line + 1 not in lines:
            yield Passage(line + 1 - len(block), "\n".join(block))
            block = []
