"""The console's reader of JSON against Python's: every number as it was written, and bad JSON refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.programs import program

HERE = Path(__file__).parent
MODULE = HERE.parents[1] / "qtasks/broker/console/static/lib/lossless.js"


class Node:
    """The reader in a process of Node."""

    def __init__(self) -> None:
        command = [program("node"), str(HERE / "lossless_lines.mjs")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._send([MODULE.as_uri()])

    def _send(self, line: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def read(self, text: str) -> dict[str, Any]:
        self._send(text)
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    started = Node()
    yield started
    started.close()


class Number(str):
    __slots__ = ()


def refuse(text: str) -> None:
    raise ValueError(text)


def pythons(text: str) -> dict[str, Any] | None:
    """What Python reads, as `lossless_lines.mjs` shows it; None if it refuses the text."""
    try:
        read = json.loads(
            text, parse_int=Number, parse_float=Number, parse_constant=refuse, object_pairs_hook=lambda pairs: (pairs,)
        )
    except ValueError:
        return None
    return shown(read)


def shown(value: Any) -> dict[str, Any]:
    match value:
        case Number():
            return {"number": str(value)}
        case tuple():
            return {"object": [[name, shown(item)] for name, item in value[0]]}
        case list():
            return {"array": [shown(item) for item in value]}
    return {"value": value}


def alike(node: Node, text: str) -> None:
    expected, read = pythons(text), node.read(text)
    if expected is None:
        assert read.get("error", "").startswith("SyntaxError"), (text, read)
    else:
        assert read.get("tree") == expected, (text, read)
        assert pythons(read["written"]) == expected


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.one_of(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.integers(10**15, 10**40), st.just(10**400)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=20,
)
PIECES = st.sampled_from(
    [
        *'{}[]:,"\\ \t\n\r-+.eE0123456789',
        "\u00a0",
        "\u2028",
        "\ufeff",
        "\v",
        "true",
        "false",
        "null",
        '"a"',
        "\\u00",
        "NaN",
    ]
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
@settings(max_examples=150, deadline=None)
def test_what_python_writes_is_read_and_written_without_loss(
    node: Node, value: Any, is_ascii: bool, indent: int | None
) -> None:
    alike(node, json.dumps(value, ensure_ascii=is_ascii, indent=indent))


@given(st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_as_python_reads_it_or_refused(node: Node, text: str) -> None:
    alike(node, text)


@given(VALUES.map(json.dumps), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_text_is_read_as_python_reads_it_or_refused(node: Node, text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    alike(node, text[:place] + data.draw(PIECES) + text[place + data.draw(st.integers(0, 1)) :])


@pytest.mark.parametrize(
    "text",
    [
        "12345678901234567890123",
        "1.10",
        "-0",
        "1E400",
        '{"a": 1, "a": 2}',
        "[" * 400 + "]" * 400,
        '"' + "a\\n" * 400_000 + '"',
        '"' + "é" * 1_000_000 + '"',
        '{"__proto__": {"x": 1}, "constructor": null}',
    ],
    ids=lambda text: text[:20],
)
def test_hard_texts_are_read(node: Node, text: str) -> None:
    alike(node, text)


@pytest.mark.parametrize(
    "text",
    ["", "01", "1.", ".5", "+1", "NaN", "[1,]", "{,}", '{"a" 1}', "'a'", "\u00a01", "1\u00a0", '"\t"', '"\\x"', "tru"],
)
def test_bad_texts_are_refused(node: Node, text: str) -> None:
    assert pythons(text) is None
    alike(node, text)


def test_what_nests_too_deeply_is_refused(node: Node) -> None:
    assert node.read("[" * 100_000)["error"].startswith("SyntaxError")


def test_an_endless_string_is_refused_at_once(node: Node) -> None:
    assert node.read('"' + "a\\n" * 300_000)["error"].startswith("SyntaxError")
