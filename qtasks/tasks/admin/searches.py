"""Lists of messages and dead letters: by the console API of a broker of ours, else by the API of every service."""

from __future__ import annotations

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from qtasks.errors import ApiError, InvalidCallError
from qtasks.tasks.admin import summaries
from qtasks.tasks.admin.filter_words import (
    FilterMatcher,
    FilterWord,
    has_labels_of,
    labels_of,
    positive,
    read,
    searchable,
    time_ms,
)
from qtasks.tasks.admin.service_steps import Steps, lacks_path
from qtasks.tasks.admin.summaries import DeadLetterPage, DeadLetterSummary, MessagePage, MessageSummary

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.log import Log, LogFilter

CONSOLE: Final = "/console/api"
MAX_PAGE: Final = 100
_MAX_PAGES: Final = 50
"""Pages of a service's own lists that one page of a filtered list reads at most."""
_MAX_ENTRIES: Final = 1_000
_READING: Final = "r:"
_PARAMETERS: Final = {"queue": "queue", "key": "flow_control_key", "label": "label", "schedule": "schedule_id"}
"""Words of a filter that every QStash service knows, and their names in its API."""


@dataclass(frozen=True, slots=True)
class ListRequest:
    """One page of a list: at most `count` entries that match `text`, from `cursor` on."""

    text: str = ""
    count: int = 50
    cursor: str | None = None
    now_ms: int = 0
    """The current time, which ages in the filter count from."""
    asks_console: bool = True
    """False for a service that is known to have no console API."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_PAGE:
            raise InvalidCallError(f"count is {self.count}; expected 1 to {MAX_PAGE}")


def messages(request: ListRequest) -> Steps[MessagePage]:
    """A page of messages, newest first."""
    words = _checked(request)
    if request.asks_console:
        try:
            answer = yield _console("messages", request)
        except ApiError as error:
            _raise_unless_lacking(error)
        else:
            rows = [summaries.of_row(row) for row in answer["messages"]]
            return MessagePage(rows, answer.get("cursor") or None)
    return (yield from _from_log(request, words))


def dead_letters(request: ListRequest) -> Steps[DeadLetterPage]:
    """A page of dead letters, newest first; oldest first where a service knows that order alone."""
    words = _checked(request)
    if request.asks_console:
        try:
            answer = yield _console("dead-letters", request)
        except ApiError as error:
            _raise_unless_lacking(error)
        else:
            rows = [summaries.dead_letter_of_row(row) for row in answer["deadLetters"]]
            return DeadLetterPage(rows, answer.get("cursor") or None, answer.get("matching"))
    return (yield from _from_dlq(request, words))


def console_operation(path: str, pairs: list[tuple[str, str]]) -> Operation[Any]:
    """A GET of the console API (docs/console.md)."""
    from qtasks.qstash.conversation.operation import Operation, answer, query

    return Operation("GET", f"{CONSOLE}/{path}{query(pairs)}", answer)


def _console(path: str, request: ListRequest) -> Operation[Any]:
    pairs = [("filter", request.text), ("count", str(request.count)), ("cursor", request.cursor or "")]
    return console_operation(path, [(name, value) for name, value in pairs if value])


def _raise_unless_lacking(error: ApiError) -> None:
    if error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        raise InvalidCallError(f"the broker cannot read the filter: {error.detail}") from None
    if not lacks_path(error):
        raise error


def _checked(request: ListRequest) -> tuple[FilterWord, ...]:
    """The words of the filter, whose times can be read."""
    words = read(request.text)
    for word in words:
        if word.name in ("after", "before"):
            for value in word.values:
                time_ms(value, request.now_ms)
    return words


def _parameters(words: tuple[FilterWord, ...]) -> dict[str, Any]:
    """The words that a service compares itself, as filters of its API."""
    parameters: dict[str, Any] = {}
    for name, parameter in _PARAMETERS.items():
        if values := positive(words, name):
            parameters[parameter] = values
    urls = positive(words, "url")
    if urls and not any(value.endswith("*") for value in urls):
        parameters["url"] = urls
    return parameters


def _from_log(request: ListRequest, words: tuple[FilterWord, ...]) -> Steps[MessagePage]:
    """Messages by their acceptance in the log, each with its other entries.

    With a word about a searchable argument: first those that the service finds by the label, then the others, which are
    read; their cursors begin with `_READING`.
    """
    argument = None if positive(words, "label") else searchable(words)
    cursor = request.cursor or ""
    if argument is None:
        return (yield from _some_of_log(request, words, {}))
    labelled = MessagePage([], None)
    if not cursor.startswith(_READING):
        labelled = yield from _some_of_log(request, words, {"label": labels_of(argument)})
        if labelled.cursor is not None or len(labelled.messages) >= request.count:
            return MessagePage(labelled.messages, labelled.cursor or _READING)
    rest = replace(
        request,
        count=request.count - len(labelled.messages),
        cursor=cursor.removeprefix(_READING) if cursor.startswith(_READING) else None,
    )
    others = yield from _some_of_log(rest, words, {}, unlabelled=argument)
    then = None if others.cursor is None else f"{_READING}{others.cursor}"
    return MessagePage([*labelled.messages, *others.messages], then)


def _some_of_log(
    request: ListRequest, words: tuple[FilterWord, ...], also: LogFilter, *, unlabelled: FilterWord | None = None
) -> Steps[MessagePage]:
    """One page of the log; with `unlabelled`, without messages that have a label of that argument."""
    from qtasks.qstash import log
    from qtasks.qstash.log import LogState

    filters: LogFilter = {"state": LogState.CREATED, **_parameters(words), **also}  # type: ignore[typeddict-item]
    if ids := [value for value in positive(words, "id") if value.startswith("msg_")]:
        filters["message_ids"] = ids
    if after := positive(words, "after"):
        filters["from_time"] = min(time_ms(value, request.now_ms) for value in after)
    if before := positive(words, "before"):
        filters["to_time"] = max(time_ms(value, request.now_ms) for value in before)
    matcher = FilterMatcher(words, request.now_ms)
    matching: list[MessageSummary] = []
    cursor = request.cursor or None
    for _ in range(_MAX_PAGES):
        page = yield log.list_page(cursor, request.count - len(matching), filters)
        entries = yield from _histories([entry.message_id for entry in page.logs])
        for created in page.logs:
            history = [entry for entry in entries if entry.message_id == created.message_id and entry is not created]
            message = summaries.of_log([*_without_acceptance(history), created], request.now_ms)
            if unlabelled is not None and has_labels_of(unlabelled, message):
                continue
            if matcher.matches(message):
                matching.append(message)
        cursor = page.cursor
        if cursor is None or len(matching) >= request.count:
            break
    return MessagePage(matching, cursor)


def _without_acceptance(entries: list[Log]) -> list[Log]:
    return [entry for entry in entries if entry.state.value != "CREATED"]


def _histories(message_ids: list[str]) -> Steps[list[Log]]:
    """All entries of these messages, newest first."""
    from qtasks.qstash import log

    entries: list[Log] = []
    cursor: str | None = None
    while message_ids:
        page = yield log.list_page(cursor, _MAX_ENTRIES, {"message_ids": message_ids})
        entries += page.logs
        cursor = page.cursor
        if cursor is None:
            break
    return entries


def _from_dlq(request: ListRequest, words: tuple[FilterWord, ...]) -> Steps[DeadLetterPage]:
    """Dead letters of the API, of which those are left out that do not match."""
    from qtasks.qstash import dlq
    from qtasks.qstash.dlq import DlqFilter

    filters: DlqFilter = {**_parameters(words)}  # type: ignore[typeddict-item]
    matcher = FilterMatcher(words, request.now_ms)
    matching: list[DeadLetterSummary] = []
    cursor = request.cursor
    for _ in range(_MAX_PAGES):
        # No more than fit: the cursor of the service continues behind the last dead letter of its page.
        page = yield dlq.list_page(cursor, request.count - len(matching), filters, newest_first=True)
        letters = [summaries.of_dead_letter(letter) for letter in page.messages]
        matching += [letter for letter in letters if matcher.matches(letter)]
        cursor = page.cursor
        if cursor is None or len(matching) >= request.count:
            break
    return DeadLetterPage(matching, cursor, None)
