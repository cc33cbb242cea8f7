"""The lines of code around the places where an attempt failed, asked of its application (docs/protocol.md 5.20)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from qtasks.broker.console.answer_forms import INT, TEXT, list_of, object_of
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.signed_questions import Refusal
from qtasks.protocol import strict_json
from qtasks.protocol.dispatcher_questions import MAX_PLACES, SOURCE, VERSION, SourceFrame, SourceReport

MAX_ANSWER: Final = 256 * 1024
"""Bytes of an answer at most: twice the longest lines around all places."""
MAX_VALUES: Final = 2_000
"""JSON values of an answer at most."""
_REPORT: Final = object_of({"v": INT, "frames": list_of(object_of({"at": TEXT, "first": INT, "lines": list_of(TEXT)}))})


async def ask(context: ConsoleContext, viewer: Viewer, prefix: str, places: Sequence[str]) -> Mapping[str, SourceFrame]:
    """The lines by place; none where the application does not tell them. Nothing of them is kept."""
    if not places:
        return {}
    question = orjson.dumps({"v": VERSION, "at": list(places[:MAX_PLACES])})
    content = await context.questions.ask(viewer.account, prefix, SOURCE, question)
    if isinstance(content, Refusal):
        return {}
    try:
        return {frame["at"]: frame for frame in read_report(content)["frames"]}
    except ValueError:
        return {}


def read_report(content: bytes) -> SourceReport:
    """An answer of the right form. Raises ValueError."""
    if len(content) > MAX_ANSWER:
        raise ValueError(f"it has more than {MAX_ANSWER} bytes")
    report: SourceReport = _REPORT(strict_json.loads(content, max_values=MAX_VALUES), "the answer")
    if report["v"] != VERSION:
        raise ValueError(f"it has version {report['v']}; this broker reads version {VERSION}")
    return report
