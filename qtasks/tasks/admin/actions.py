"""What can be done to messages and dead letters, by the API of every QStash service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from qtasks.errors import ApiError
from qtasks.tasks.admin.service_steps import Steps, just

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.dlq import DlqMessage
    from qtasks.qstash.message import Message

PORTION: Final = 100
"""Dead letters of one request."""
_CANCELLED_AT_ONCE: Final = 500
Report = Callable[[int], object]
"""Receives how many are done so far."""


def get_message(message_id: str) -> Steps[Message]:
    """One message."""
    from qtasks.qstash import message

    return just(message.get(message_id))


def get_dead_letter(dlq_id: str) -> Steps[DlqMessage]:
    """One dead letter."""
    from qtasks.qstash import dlq

    return just(dlq.get(dlq_id))


def cancel(message_ids: Sequence[str], report: Report = lambda _: None) -> Steps[int]:
    """Cancel messages; the number of those that had not ended."""
    from qtasks.qstash import message

    return (yield from _in_portions(message_ids, _CANCELLED_AT_ONCE, message.cancel_many, int, report))


def delete_dead_letters(dlq_ids: Sequence[str], report: Report = lambda _: None) -> Steps[int]:
    """Delete dead letters; the number of those that were there."""
    from qtasks.qstash import dlq

    return (yield from _in_portions(dlq_ids, PORTION, dlq.delete_many, int, report))


def retry_dead_letters(dlq_ids: Sequence[str], report: Report = lambda _: None) -> Steps[list[str]]:
    """Publish dead letters again, which removes them; the new message ids."""
    from qtasks.qstash import dlq

    published: list[str] = []

    def count(answer: Any) -> int:
        published.extend(response.message_id for response in answer.responses)
        return len(answer.responses)

    yield from _in_portions(dlq_ids, PORTION, lambda portion: dlq.retry_many(portion, {}), count, report)
    return published


def retry_messages(message_ids: Sequence[str]) -> Steps[list[str]]:
    """Publish messages again that failed for good; the new message ids. Raises ApiError with 404 or 409."""
    published: list[str] = []
    for message_id in message_ids:
        dlq_id = yield from _dead_letter_of(message_id)
        published += yield from retry_dead_letters([dlq_id])
    return published


def _dead_letter_of(message_id: str) -> Steps[str]:
    from qtasks.qstash import dlq, message

    page = yield dlq.list_page(None, 1, {"message_id": message_id})
    if page.messages:
        return str(page.messages[0].dlq_id)
    details = yield message.get(message_id)
    if details.status is not None and details.status.dlq_id is not None:  # `message_id` is that of a call
        return str(details.status.dlq_id)
    state = "" if details.status is None else f": it is {details.status.state}"
    raise ApiError(
        f"{message_id} has not failed for good{state}", status=HTTPStatus.CONFLICT, detail="it is not a dead letter"
    )


def _in_portions(
    ids: Sequence[str],
    size: int,
    operation: Callable[[list[str]], Operation[Any]],
    count: Callable[[Any], int],
    report: Report,
) -> Steps[int]:
    """Run `operation` for at most `size` ids at a time; the sum of what `count` makes of the answers."""
    done = 0
    remaining = iter(ids)
    asked = 0
    while portion := list(islice(remaining, size)):
        done += count((yield operation(portion)))
        asked += len(portion)
        report(asked)
    return done
