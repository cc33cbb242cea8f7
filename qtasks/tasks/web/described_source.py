"""What the dispatcher tells the broker of the code in which an attempt failed: a few lines around each place.

Only lines of functions in the application's own modules, and never values: see docs/protocol.md 5.20.
"""

from __future__ import annotations

import ast
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qtasks.masking import mask_pairs
from qtasks.protocol import strict_json
from qtasks.protocol.dispatcher_questions import MAX_PLACES, MAX_SOURCE_QUESTION, VERSION, SourceFrame, SourceReport
from qtasks.user_frames import loaded_file, read_place

_AROUND: Final = 3
"""Lines before and after that of a place."""
_LONGEST: Final = 160
"""Characters of a line."""
_LARGEST_FILE: Final = 1_000_000


def source_report(question: bytes) -> bytes:
    """The answer to a question, JSON. Raises ValueError for what is not one. Reads files."""
    if len(question) > MAX_SOURCE_QUESTION:
        raise ValueError(f"it has more than {MAX_SOURCE_QUESTION} bytes")
    document = strict_json.loads(question)
    if not isinstance(document, dict) or document.get("v") != VERSION:
        raise ValueError(f"expected an object of version {VERSION}")
    places = document.get("at")
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places[:MAX_PLACES]):
        raise ValueError("expected places, which are texts")
    folder = str(Path.cwd())
    frames = [frame for place in dict.fromkeys(places[:MAX_PLACES]) for frame in _frames(place, folder)]
    report: SourceReport = {"v": VERSION, "frames": frames}
    return json.dumps(report, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _frames(place: str, folder: str) -> Iterator[SourceFrame]:
    """The lines around a place; nothing if it is in no function of that name, as after a change of the file."""
    if (parts := read_place(place)) is None or (path := loaded_file(parts.path, folder)) is None:
        return
    try:
        if Path(path).stat().st_size > _LARGEST_FILE:
            return
        with tokenize.open(path) as file:
            text = file.read()
        span = _function(ast.parse(text), parts.function, parts.line)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    if span is None:
        return
    first, last = max(span[0], parts.line - _AROUND), min(span[1], parts.line + _AROUND)
    lines = mask_pairs("\n".join(text.split("\n")[first - 1 : last])).split("\n")
    yield {"at": place, "first": first, "lines": [line[:_LONGEST] for line in lines]}


def _function(module: ast.Module, name: str, line: int) -> tuple[int, int] | None:
    """The first and the last line of the innermost function `name` that has the line; None if there is none."""
    spans = [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    return max((span for span in spans if span[0] <= line <= span[1]), default=None)
