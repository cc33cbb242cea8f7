"""The manifests of the dispatchers that an account's messages go to: what their tasks and schedules are.

A manifest is asked for with a request that is signed with the account's keys, at the prefix that its messages have, and
under the same destination policy as a delivery. It comes from the network: what is not of the right form is refused,
and a single task of another form is left out. A large one is read on a thread, and one of very many values not at all.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from qtasks.broker.api.api_request import read_large
from qtasks.broker.console.answer_forms import BOOL, TEXT, list_of, object_of, optional
from qtasks.broker.console.signed_questions import DispatcherQuestions, KeptAnswers, Refusal
from qtasks.protocol import strict_json
from qtasks.protocol.dispatcher_questions import MANIFEST, VERSION

FRESH_S: Final = 15.0
"""Seconds for which an answer is used again, also one that is an error."""
MAX_PREFIXES: Final = 50
"""Dispatchers that are asked at most, those that were used last."""
MAX_TASKS: Final = 5_000
"""Tasks of one manifest at most."""
MAX_VALUES: Final = 100_000
"""JSON values of one manifest at most."""


class ManifestAnswer(NamedTuple):
    """What a prefix answered."""

    prefix: str
    """The URL before the names of its tasks, with a slash at its end."""
    manifest: bytes | None
    """The manifest, JSON of the right form."""
    error: str | None
    """Why there is no manifest, a sentence."""
    time_ms: int
    """When it answered, in the broker's time."""


class Manifests:
    """Asks for manifests, and keeps each answer for a while."""

    def __init__(self, questions: DispatcherQuestions) -> None:
        self._questions = questions
        self._answers = KeptAnswers[ManifestAnswer](questions.clock, FRESH_S)

    def prefixes(self, account: int, used: Sequence[str]) -> list[str]:
        """The prefixes to ask: those that were announced, and those that messages have `used`."""
        return list(dict.fromkeys((*self._questions.announced.get(account, ()), *used)))

    async def of(self, account: int, prefixes: Sequence[str]) -> list[ManifestAnswer]:
        """The answers of `prefixes`, of the first `MAX_PREFIXES` of them, asked at the same time."""
        asked = [
            self._answers.get((account, prefix), functools.partial(self._ask, account, prefix))
            for prefix in prefixes[:MAX_PREFIXES]
        ]
        return [await asyncio.shield(task) for task in asked]

    async def _ask(self, account: int, prefix: str) -> ManifestAnswer:
        now_ms = self._questions.clock.now_ms()
        content = await self._questions.ask(account, prefix, MANIFEST)
        answer = content if isinstance(content, Refusal) else await read_large(len(content), lambda: _read(content))
        if isinstance(answer, Refusal):
            return ManifestAnswer(prefix, None, answer.text, now_ms)
        return ManifestAnswer(prefix, answer, None, now_ms)


def _read(answer: bytes) -> bytes | Refusal:
    """The manifest in an answer, without the tasks that are not of the right form."""
    try:
        content = strict_json.loads(answer, max_values=MAX_VALUES, big_integers=True)
    except ValueError as error:
        return Refusal(f"its manifest is not JSON: {error}")
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), list):
        return Refusal("its answer is not a manifest")
    if not all(isinstance(content.get(name, ""), str) for name in ("package", "python")):
        return Refusal("its answer is not a manifest")
    if content.get("v") != VERSION:
        return Refusal(f"its manifest has version {content.get('v')!r:.20}; this broker reads version {VERSION}")
    if len(content["tasks"]) > MAX_TASKS:
        return Refusal(f"its manifest has more than {MAX_TASKS} tasks")
    fit = [task for task in content["tasks"] if _is_task(task)]
    return answer if len(fit) == len(content["tasks"]) else json.dumps({**content, "tasks": fit}).encode()


def _is_task(value: object) -> bool:
    """True for a task of the right form; a page that reads another one would fail."""
    try:
        _TASK(value, "task")
    except ValueError:
        return False
    return True


def _schema(value: Any, place: str) -> None:
    """What the form to run a task reads of a schema."""
    if not isinstance(value, dict) or not isinstance(value.get("enum", []), list):
        raise ValueError(f"{place} is not a schema")


_TASK: Final = object_of(
    {
        "name": TEXT,
        "aliases": list_of(TEXT),
        "kind": TEXT,
        "module": TEXT,
        "doc": TEXT,
        "signature": TEXT,
        "parameters": list_of(
            object_of({"name": TEXT, "type": TEXT, "required": BOOL, "byPosition": BOOL, "schema": optional(_schema)})
        ),
        "searchable": list_of(TEXT),
        "headers": list_of(list_of(TEXT)),
        "queue": optional(TEXT),
        "envelope": TEXT,
        "refusal": optional(TEXT),
        "schedules": list_of(object_of({"id": TEXT, "name": TEXT, "cron": TEXT, "labels": list_of(TEXT)})),
    }
)
