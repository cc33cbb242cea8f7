"""`GET console/api/llm`: messages to language models, and their sums; `GET console/api/llm/ID`: prompts and answer."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, Query, json_response
from qtasks.broker.console import table_rows
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core.observed.statuses import Status
from qtasks.broker.core.values import DAY_MS
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import model_calls
from qtasks.broker.store.verbs.insight.model_calls import ModelCall
from qtasks.broker.store.verbs.reads import queries
from qtasks.protocol.views import Json

PAGE: Final = 50
"""Calls of a page."""
LARGEST_PAGE: Final = 100
HOURS: Final = 24
"""The time of the sums."""
MOST_SUMMED: Final = 1_000
"""Calls that are read for the sums, the latest."""
PORTION: Final = 100
"""Calls that are read at a time."""
_FAILED: Final = (Status.FAILED, Status.DEAD)


async def list_calls(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """One page of calls, newest first, and the sums of the last 24 hours."""
    query = Query(request.query)
    below, count = query.integer("cursor", high=2**53), query.count(default=PAGE, most=LARGEST_PAGE)
    await Indexer(context.store, context.clock).catch_up()
    page = await context.store.read_long(model_calls.page, viewer.account, below=below, count=count)
    since_ms = context.clock.now_ms() - DAY_MS
    latest = await _latest(context, viewer, since_ms)
    callbacks = [call.callback for call in page.calls if call.callback is not None]
    rows = await table_rows.read_by_seq(context, viewer, [*(call.seq for call in page.calls), *callbacks])
    return json_response(
        {
            "calls": [_shown(call, rows) for call in page.calls if call.seq in rows],
            "cursor": None if page.below is None else str(page.below),
            "sums": _sums(latest),
        }
    )


class _LatestCalls(NamedTuple):
    """The calls that the sums are made of."""

    calls: list[ModelCall]
    is_complete: bool
    """False if there were more calls in the time than are read."""


async def _latest(context: ConsoleContext, viewer: Viewer, since_ms: int) -> _LatestCalls:
    """The newest calls since a time. Others read between its portions."""
    calls: list[ModelCall] = []
    below: int | None = None
    while True:
        count = min(PORTION, MOST_SUMMED - len(calls))
        some = await context.store.read_long(
            model_calls.page, viewer.account, below=below, count=count, since_ms=since_ms
        )
        calls += some.calls
        below = some.below
        if below is None:
            return _LatestCalls(calls, is_complete=True)
        if len(calls) >= MOST_SUMMED or sum(call.size for call in calls) >= model_calls.PAGE_BYTES:
            return _LatestCalls(calls, is_complete=False)


async def show_call(context: ConsoleContext, viewer: Viewer, request: ApiRequest, message_id: str) -> ApiResponse:
    """The prompts of one call, and the answer."""
    seq = await context.store.read(queries.seq_of, viewer.account, message_id)
    call = None if seq is None else await context.store.read_long(model_calls.call_at, seq)
    if call is None:
        raise HttpError(404, f"message {message_id[:128]} not found")
    figures = _figures(call)
    if not viewer.sees_payloads:
        return json_response({**figures, "turns": None, "answer": None})
    turns = None if call.is_redacted else [{"role": turn.role, "text": turn.text} for turn in call.question.turns]
    return json_response({**figures, "turns": turns, "answer": None if call.answer is None else call.answer.text})


def _shown(call: ModelCall, rows: Mapping[int, Json]) -> Json:
    row = rows.get(call.callback) if call.callback is not None else None
    callback = None if row is None else {name: row[name] for name in ("messageId", "task", "destination", "status")}
    return {**rows[call.seq], **_figures(call), "callback": callback}


def _figures(call: ModelCall) -> dict[str, Any]:
    answer = call.answer
    return {
        "model": _model(call),
        "provider": call.provider,
        "durationMs": call.duration_ms,
        "promptTokens": None if answer is None else answer.prompt_tokens,
        "completionTokens": None if answer is None else answer.completion_tokens,
        "isRedacted": call.is_redacted,
    }


def _model(call: ModelCall) -> str | None:
    """The model that answered, which may be another version of the one that was asked."""
    return (call.answer.model if call.answer is not None else None) or call.question.model


def _sums(latest: _LatestCalls) -> Json:
    by_model: defaultdict[tuple[str, str], list[ModelCall]] = defaultdict(list)
    for call in latest.calls:
        by_model[call.question.model or _model(call) or "", call.provider].append(call)
    ordered = sorted(by_model.items(), key=lambda item: (-len(item[1]), item[0]))
    return {
        "hours": HOURS,
        "calls": len(latest.calls),
        "isComplete": latest.is_complete,
        "models": [_sum(model, provider, calls) for (model, provider), calls in ordered],
    }


def _sum(model: str, provider: str, calls: Sequence[ModelCall]) -> Json:
    durations = sorted(call.duration_ms for call in calls if call.duration_ms is not None)
    answers = [call.answer for call in calls if call.answer is not None]
    return {
        "model": model or None,
        "provider": provider,
        "calls": len(calls),
        "failed": sum(call.status in _FAILED for call in calls),
        "promptTokens": _total(answer.prompt_tokens for answer in answers),
        "completionTokens": _total(answer.completion_tokens for answer in answers),
        "p50Ms": _quantile(durations, 50),
        "p95Ms": _quantile(durations, 95),
    }


def _total(tokens: Iterable[int | None]) -> int | None:
    """The sum of the numbers that are known; None if none is."""
    numbers = [number for number in tokens if number is not None]
    return sum(numbers) if numbers else None


def _quantile(durations: Sequence[int], percent: int) -> int | None:
    if len(durations) < 2:
        return durations[0] if durations else None
    return round(statistics.quantiles(durations, n=100, method="inclusive")[percent - 1])
