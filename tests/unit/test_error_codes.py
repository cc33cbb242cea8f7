"""The table of error codes: each code stands in it once, is used, and can be explained."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import qtasks
from qtasks.error_codes import ErrorCode

PACKAGE = Path(qtasks.__file__).parent
TABLE = PACKAGE / "error_codes.py"
CODE = re.compile(r"QT\d{3}\b")
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")) if path != TABLE}


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of the text nodes that stand alone: docstrings of modules, classes, functions and attributes."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def literals(source: str) -> list[str]:
    """The codes that stand in the texts of `source`, docstrings aside."""
    tree = ast.parse(source)
    documentation = docstrings(tree)
    return [
        code
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
        for code in CODE.findall(node.value)
    ]


def test_no_module_writes_a_code_but_the_table() -> None:
    written = {str(path.relative_to(PACKAGE)): codes for path, source in SOURCES.items() if (codes := literals(source))}
    assert written == {}


def test_codes_in_docstrings_are_codes_of_the_table() -> None:
    mentioned = {code for source in SOURCES.values() for code in CODE.findall(source)}
    assert mentioned <= set(ErrorCode)


def test_every_code_is_used() -> None:
    used = {name for source in SOURCES.values() for name in re.findall(r"\bErrorCode\.([A-Z_]+)\b", source)}
    assert {code.name for code in ErrorCode} - used == set()


def test_numbers_are_in_order_and_names_are_unique() -> None:
    numbers = list(ErrorCode)
    assert numbers == sorted(set(numbers))
    assert all(CODE.fullmatch(number) for number in numbers)
    assert len(ErrorCode.__members__) == len(numbers)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_cause_and_a_fix_in_whole_sentences(code: ErrorCode) -> None:
    for text in (code.cause, code.fix):
        assert re.fullmatch(r"[A-Z`].{15,}\.", text), text
        assert not re.search(r"[{}]|TODO|TBD|XXX|\s\s", text), text
    assert re.fullmatch(r"[a-z ]+", code.title)


def test_a_member_is_its_number_as_text() -> None:
    number: str = ErrorCode.BROKER_UNREACHABLE
    assert number == f"{number}" == "QT301"
