"""What the dispatcher of a message says of its call and of the flow around it (docs/protocol.md 5.18)."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from qtasks.broker.api.api_request import read_large
from qtasks.broker.console.answer_forms import BOOL, INT, NUMBER, TEXT, list_of, object_of, optional
from qtasks.broker.console.signed_questions import DispatcherQuestions, KeptAnswers, Refusal
from qtasks.protocol import strict_json
from qtasks.protocol.dispatcher_questions import CALL, VERSION, CallReport

FRESH_S: Final = 0.5
"""Seconds for which an answer is used again."""
_DEPTH: Final = 64
"""How deep an answer may be nested: each group of a flow inside another one has three levels."""
MAX_VALUES: Final = 20_000
"""JSON values of an answer at most. A dispatcher tells only a part of a long flow."""


class CallAnswer(NamedTuple):
    """What a prefix answered about a call."""

    prefix: str
    report: CallReport | None
    error: str | None
    """Why there is no answer, a sentence."""
    time_ms: int
    """When it was asked, in the broker's time."""


class AskedCalls:
    """Asks about calls."""

    def __init__(self, questions: DispatcherQuestions) -> None:
        self._questions = questions
        self._answers = KeptAnswers[CallAnswer](questions.clock, FRESH_S)

    async def of(self, account: int, prefix: str, call_id: str, flow_id: str | None) -> CallAnswer:
        """What the dispatcher at `prefix` says of a call, whose envelope names the flow `flow_id` or none."""
        ask = functools.partial(self._ask, account, prefix, call_id, flow_id)
        return await asyncio.shield(self._answers.get((account, prefix, call_id, flow_id), ask))

    async def _ask(self, account: int, prefix: str, call_id: str, flow_id: str | None) -> CallAnswer:
        now_ms = self._questions.clock.now_ms()
        question = {"v": VERSION, "id": call_id, **({} if flow_id is None else {"flow": flow_id})}
        content = await self._questions.ask(account, prefix, CALL, orjson.dumps(question))
        if isinstance(content, Refusal):
            return CallAnswer(prefix, None, content.text, now_ms)
        try:
            report = await read_large(len(content), lambda: read_report(content))
            return CallAnswer(prefix, report, None, now_ms)
        except ValueError as error:
            return CallAnswer(prefix, None, f"its answer cannot be read: {error}", now_ms)


def read_report(content: bytes) -> CallReport:
    """An answer of the right form, without members that are not known here. Raises ValueError."""
    document = strict_json.loads(content, max_depth=_DEPTH, max_values=MAX_VALUES, big_integers=True)
    if not isinstance(document, dict) or not isinstance(document.get("results"), bool):
        raise ValueError("it does not say what is known of the call")
    if document.get("v") != VERSION:
        raise ValueError(f"it has version {document.get('v')!r:.20}; this broker reads version {VERSION}")
    call, flow = document.get("call"), document.get("flow")
    return {
        "v": VERSION,
        "results": document["results"],
        "call": None if call is None else _RECORD(call, "call"),
        "flow": None if flow is None else _FLOW(flow, "flow"),
    }


def _node(value: Any, place: str) -> Any:
    """A step, a group, or what is left out."""
    if isinstance(value, dict) and "members" in value:
        return _GROUP(value, place)
    if isinstance(value, dict) and "leftOut" in value:
        counts = value["leftOut"]
        if not isinstance(counts, dict):
            raise ValueError(f"{place}.leftOut is not an object of counts")
        return {"leftOut": {state: INT(number, f"{place}.leftOut.{state}") for state, number in counts.items()}}
    return _STEP(value, place)


_STEP: Final = object_of({"task": TEXT, "id": TEXT, "state": TEXT})
_GROUP: Final = object_of({"members": list_of(list_of(_node)), "collect": TEXT})
_FLOW: Final = object_of({"id": TEXT, "state": TEXT, "sequence": list_of(_node)})
_PROGRESS: Final = object_of({"done": NUMBER, "total": optional(NUMBER), "note": TEXT})
_RESULT: Final = object_of({"form": TEXT, "bytes": INT, "text": optional(TEXT), "isCut": optional(BOOL)})
_RECORD: Final = object_of(
    {
        "id": TEXT,
        "task": TEXT,
        "state": TEXT,
        "attempt": INT,
        "updatedMs": INT,
        "progress": optional(_PROGRESS),
        "result": optional(_RESULT),
        "error": optional(TEXT),
    }
)


def steps_in(nodes: list[Any]) -> Iterator[dict[str, Any]]:
    """The steps of a sequence in an answer, in order."""
    for node in nodes:
        if "members" in node:
            for member in node["members"]:
                yield from steps_in(member)
        elif "leftOut" not in node:
            yield node
