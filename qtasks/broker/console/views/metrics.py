"""`GET /metrics`: the counters of the overview in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.views import system
from qtasks.broker.console.views.overview import OTHERS
from qtasks.broker.core.observed import histograms
from qtasks.broker.core.observed.statuses import COUNTED
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.store.verbs.insight import totals
from qtasks.broker.store.verbs.insight.totals import Counters, DestinationFigures
from qtasks.broker.store.verbs.upkeep import store_sizes

_TYPE: Final = ("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
_EVENTS: Final = (
    ("created", "qtasks_messages_created_total", "Messages that were accepted."),
    ("delivered", "qtasks_messages_delivered_total", "Messages that were delivered."),
    ("failed", "qtasks_messages_failed_total", "Messages that failed for good."),
    ("retried", "qtasks_attempts_retried_total", "Attempts after which another followed."),
)


async def show(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """The counters of the viewer's account."""
    await Indexer(context.store, context.clock).catch_up()
    now_ms = context.clock.now_ms()
    counters = await context.store.read_long(totals.counters, viewer.account, now_ms=now_ms)
    lines = [*_lines(counters, now_ms), *await _of_store(context)]
    text = "".join(f"{line}\n" for line in lines)
    return ApiResponse(200, text.encode(), (_TYPE,))


def _lines(counters: Counters, now_ms: int) -> Iterator[str]:
    yield from _head("qtasks_messages", "gauge", "Messages that have a status now; dead: dead letters.")
    for each in counters.destinations:
        for status in COUNTED:
            labels = _labels(each, ("status", status.name.lower()))
            yield f"qtasks_messages{labels} {each.counts.get(status, 0)}"
    for member, name, text in _EVENTS:
        yield from _head(name, "counter", text)
        for each in counters.destinations:
            yield f"{name}{_labels(each)} {getattr(each.figures, member)}"
    name = "qtasks_attempt_duration_seconds"
    yield from _head(name, "histogram", "How long attempts took that delivered.")
    for each in counters.destinations:
        yield from _histogram(name, each.figures.durations, _pairs(each))
    name = "qtasks_wait_seconds"
    yield from _head(name, "histogram", "How long messages that were due waited for their attempt.")
    yield from _histogram(name, counters.all.waits, ())
    yield from _head("qtasks_oldest_waiting_seconds", "gauge", "How long the message has waited that waits longest.")
    waits_ms = 0 if counters.oldest_waiting_ms is None else now_ms - counters.oldest_waiting_ms
    yield f"qtasks_oldest_waiting_seconds {waits_ms / 1000}"
    yield from _head("qtasks_log_entries_behind", "gauge", "Entries of the log that are not in these figures yet.")
    yield f"qtasks_log_entries_behind {counters.behind}"


async def _of_store(context: ConsoleContext) -> list[str]:
    """The size of the store, and when it was last checked and copied; what never happened has no line."""
    used, file = await context.store.read(store_sizes.current)
    size, checked, copied = (
        "qtasks_store_bytes",
        "qtasks_last_check_timestamp_seconds",
        "qtasks_last_backup_timestamp_seconds",
    )
    lines = [*_head(size, "gauge", "Bytes of the store; in use, and of its file with what is free in it.")]
    lines += [f'{size}{{what="{what}"}} {number}' for what, number in (("used", used), ("file", file))]
    state = await system.upkeep(context)
    lines += _head(checked, "gauge", "When all pages, or all messages, were last checked.")
    lines += [
        f'{checked}{{what="{what}"}} {check["timeMs"] / 1000}'
        for what, check in state["checks"].items()
        if check["timeMs"] is not None
    ]
    lines += _head(copied, "gauge", "When `qtasks broker backup` last copied the store.")
    if state["backup"] is not None:
        lines.append(f"{copied} {state['backup']['timeMs'] / 1000}")
    return lines


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _histogram(name: str, histogram: int, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    below, count, total_s = histograms.cumulative(histogram)
    for bound_s, number in below:
        yield f"{name}_bucket{_braces((*pairs, ('le', f'{bound_s:.6g}')))} {number}"
    yield f"{name}_bucket{_braces((*pairs, ('le', '+Inf')))} {count}"
    yield f"{name}_sum{_braces(pairs)} {total_s:.6g}"
    yield f"{name}_count{_braces(pairs)} {count}"


def _labels(each: DestinationFigures, *further: tuple[str, str]) -> str:
    return _braces((*_pairs(each), *further))


def _pairs(each: DestinationFigures) -> tuple[tuple[str, str], ...]:
    return ("destination", each.url or OTHERS), ("task", each.task or "")


def _braces(pairs: Iterable[tuple[str, str]]) -> str:
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
