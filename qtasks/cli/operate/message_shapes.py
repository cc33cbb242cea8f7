"""Messages and dead letters in tables and in JSON (docs/cli.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeVar

from qtasks.cli.operate.masked import MaskedMessages
from qtasks.cli.printing import TableColumn, age, counted, echo_facts, echo_json, echo_table, moment, talk
from qtasks.masking import mask_pairs, masked_text
from qtasks.tasks.admin.summaries import DeadLetterSummary, MessageSummary

S = TypeVar("S", bound=MessageSummary)

_COLUMNS: Final = (
    TableColumn("MESSAGE"),
    TableColumn("STATUS"),
    TableColumn("AGE", is_number=True),
    TableColumn("TRIES", is_number=True),
    TableColumn("TASK OR DESTINATION", is_flexible=True),
)
_DLQ_COLUMNS: Final = (
    TableColumn("DEAD LETTER"),
    TableColumn("AGE", is_number=True),
    TableColumn("ANSWER", is_number=True),
    TableColumn("TASK OR DESTINATION", is_flexible=True),
)
_ATTEMPT_COLUMNS: Final = (
    TableColumn("ATTEMPT", is_number=True),
    TableColumn("OUTCOME"),
    TableColumn("TOOK", is_number=True),
    TableColumn("ITS TURN", is_number=True),
    TableColumn("CONNECT", is_number=True),
    TableColumn("FIRST BYTE", is_number=True),
    TableColumn("BODY", is_number=True),
)
_PARTS: Final = ("queuedMs", "connectMs", "firstByteMs", "bodyMs")
_HIDDEN: Final = ("arguments", "argument_labels")


def echo_newest(
    what: str,
    newest: Sequence[S],
    echo: Callable[[Sequence[S], int], None],
    *,
    now_ms: int,
    has_more: bool,
    is_filtered: bool,
    as_json: bool,
) -> None:
    """Print the newest of what a service has of `what`, such as "dead letter", by `echo`, or as JSON."""
    if as_json:
        member = _camel(f"{what}s".replace(" ", "_"))
        echo_json({member: [row(each) for each in newest], "hasMore": has_more})
    elif not newest:
        talk(f"no {what} matches" if is_filtered else f"there are no {what}s")
    else:
        echo(newest, now_ms)
    if has_more and not as_json:
        talk(f"the newest {len(newest):,}; --count {2 * len(newest)} shows more")


def echo_messages(messages: Sequence[MessageSummary], now_ms: int) -> None:
    """Print messages as a table, errors below their messages."""
    rows = [
        (each.message_id, each.status, age(each.created_ms, now_ms), _tries(each), each.task or each.destination)
        for each in messages
    ]
    echo_table(_COLUMNS, rows, [_error(each) for each in messages])


def echo_dead_letters(letters: Sequence[DeadLetterSummary], now_ms: int) -> None:
    """Print dead letters as a table, errors below them."""
    rows = [
        (each.dlq_id, age(each.failed_ms, now_ms), str(each.response_status or "none"), each.task or each.destination)
        for each in letters
    ]
    echo_table(_DLQ_COLUMNS, rows, [_error(each) for each in letters])


def row(message: MessageSummary) -> dict[str, Any]:
    """A message or a dead letter as JSON, as the console has its rows; values that do not apply are null."""
    facts = {name: value for name, value in asdict(message).items() if name not in _HIDDEN}
    facts["labels"] = list(message.labels)
    facts["error"] = None if message.error is None else mask_pairs(message.error)
    if isinstance(message, DeadLetterSummary):
        facts["dead_letter_id"] = facts.pop("dlq_id")
    return {_camel(name): value for name, value in facts.items()}


def echo_message(
    message: dict[str, Any],
    now_ms: int,
    masking: MaskedMessages,
    *,
    reveal: bool,
    waiting: dict[str, Any] | None = None,
) -> None:
    """Print a message or a dead letter of the API (docs/protocol.md 2.5, 2.9).

    `waiting` is what the console says about why it waits, which is a whole sentence.
    """
    body = message.get("body") or ""
    shown = body if reveal else masked_text(body)
    answer, error = (message.get(name) or "" for name in ("responseBody", "lastError"))
    call = masking.arguments(message["url"], body)
    limits = [f"{name} {message[name]}" for name in ("parallelism", "rate") if message.get(name)]
    echo_facts(
        [
            ("destination", message["url"].partition("?")[0]),
            ("created", f"{moment(message['createdAt'])} ({age(message['createdAt'], now_ms)} ago)"),
            ("due", moment(message["nextDeliveryTime"]) if message.get("nextDeliveryTime") else None),
            ("retries", _retries(message)),
            ("waits for", message.get("waitsFor") if waiting is None else _waiting(waiting)),
            ("call", message.get("callId")),
            ("queue", message.get("queueName")),
            ("key", " ".join([message["flowControlKey"], *limits]) if message.get("flowControlKey") else None),
            ("schedule", message.get("scheduleId")),
            ("labels", ", ".join(message["labels"]) if message.get("labels") else None),
            ("dead letter", message.get("dlqId")),
            ("answer", None if message.get("responseStatus") is None else str(message["responseStatus"] or "none")),
            (
                "answered",
                masking.text(message, masked_text(answer)) or None,
            ),
            ("error", masking.text(message, error) or None),
            ("arguments", call if not reveal else None),
            ("body", shown if shown and (reveal or call is None) else None),
            ("body", "not text" if message.get("bodyBase64") else None),
        ]
    )


def attempt(shown: dict[str, Any]) -> dict[str, Any]:
    """An attempt that the console shows, without its error and its answer."""
    return {name: shown.get(name) for name in ("number", "outcome", "startedMs", "endedMs", "nextMs", "timing")}


def echo_attempts(attempts: Sequence[dict[str, Any]]) -> None:
    """Print where the time of attempts went."""
    rows = [
        (
            str(each["number"]),
            str(each["outcome"]),
            _milliseconds(each["endedMs"] and each["endedMs"] - each["startedMs"]),
            *(_milliseconds(each["timing"].get(part)) for part in _PARTS),
        )
        for each in attempts
    ]
    echo_table(_ATTEMPT_COLUMNS, rows, [_bundle(each["timing"].get("bundled")) for each in attempts])


def _milliseconds(span_ms: int | None) -> str:
    return "" if span_ms is None else f"{span_ms:,} ms"


def _bundle(size: int | None) -> str:
    return f"in a bundle with {counted(size - 1, 'other message')}" if size and size > 1 else ""


def _waiting(waiting: dict[str, Any]) -> str:
    until_ms = waiting["untilMs"]
    return str(waiting["text"]) + ("" if until_ms is None else f" Until {moment(until_ms)}")


def _retries(message: dict[str, Any]) -> str:
    most = message["maxRetries"]
    return f"{message['retried']} of {most} spent" if "retried" in message else f"at most {most}"


def _tries(message: MessageSummary) -> str:
    return str(message.attempts) if message.max_retries is None else f"{message.attempts}/{message.max_retries + 1}"


def _error(message: MessageSummary) -> str:
    return mask_pairs(message.error) if message.error and message.status != "delivered" else ""


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)
