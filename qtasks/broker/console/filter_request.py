"""The filter of a request to the console."""

from __future__ import annotations

from qtasks.broker.api.api_request import ApiResponse, HttpError, json_response
from qtasks.broker.console import filter_text
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.filter_text import FilterError
from qtasks.broker.core.observed.message_filter import ConsoleFilter, Kind
from qtasks.protocol.labels import argument_labels


def read_filter(context: ConsoleContext, viewer: Viewer, text: str) -> ConsoleFilter:
    """The filter in `text`, with its times as the broker's. Raises FilterError, and HttpError 403.

    A viewer without payloads may not search in them: the matches would tell what is in them.
    """
    criteria = filter_text.read(text, now_ms=context.api.wall_ms())
    if not viewer.sees_payloads and (criteria.of(Kind.ERROR, Kind.ARGUMENT) or _names_arguments(criteria)):
        raise HttpError(403, "your token sees no payloads, so it cannot filter by error: and arg.")
    return criteria.in_broker_time(context.clock.offset_ms())


def _names_arguments(criteria: ConsoleFilter) -> bool:
    """True if a label is asked for that says what an argument is."""
    return any(argument_labels.is_argument_label(value) for each in criteria.of(Kind.LABEL) for value in each.values)


def unreadable(error: FilterError) -> ApiResponse:
    """The answer to a filter that cannot be read: 422 with its problems."""
    problems = [{"at": problem.at, "length": problem.length, "text": problem.text} for problem in error.problems]
    return json_response({"error": str(error), "problems": problems}, 422)
