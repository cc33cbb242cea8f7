"""What the QStash service says about a call: our broker by the call's id, the hosted one by its message's."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from qtasks.errors import ApiError
from qtasks.protocol.headers import DISPATCHER_HEADER, ENDED_HEADER
from qtasks.protocol.messages import PublishOptions, State
from qtasks.tasks.results.backend import ResultStatus
from qtasks.tasks.results.inquiry import ServiceState, Subject
from qtasks.tasks.send.end_callback import EndQuery, answered_error, answered_instead, delivery_failed, dispatcher_error

if TYPE_CHECKING:
    from qtasks.qstash.dlq import DlqMessage
    from qtasks.qstash.log import Log
    from qtasks.qstash.message import Message
    from qtasks.tasks.send.publisher import Publisher

_HOSTED: Final = ".upstash.io"
_WHAT: Final = "the state of a call"
_STATUSES: Final[Mapping[str, ResultStatus]] = {
    State.ACTIVE: ResultStatus.RUNNING,
    State.ERROR: ResultStatus.RETRYING,
    State.RETRY: ResultStatus.RETRYING,
    State.DELIVERED: ResultStatus.SUCCEEDED,
    State.FAILED: ResultStatus.FAILED,
    State.CANCELED: ResultStatus.CANCELLED,
}
_OPEN: Final = frozenset({ResultStatus.QUEUED, ResultStatus.RUNNING, ResultStatus.RETRYING})


class QStashService:
    """The service behind a publisher. `Service` describes its methods."""

    def __init__(self, publisher: Publisher, *, url: str, base_url: str) -> None:
        self._publisher = publisher
        self._base_url = base_url
        self._is_hosted = (urlsplit(url).hostname or "").endswith(_HOSTED)

    def state_of(self, call_id: str, message_id: str | None) -> ServiceState | None:
        """See `Service.state_of`. The hosted service does not know call ids, and forgets messages that have ended."""
        if self._is_hosted:
            return None if message_id is None else self._hosted_state(message_id)
        message = self._message(call_id)
        if message is not None and message_id not in (None, message.message_id) and _is_delivered(message):
            # The call goes on as a message of its own, such as the callback of a language model.
            message = self._message(message_id or "") or message
        if message is None and message_id is not None:  # the id is that of a message, or an older client has sent it
            message = self._message(message_id)
        return ServiceState(status=ResultStatus.UNKNOWN) if message is None else self._own_state(message)

    def is_open(self, call_id: str, ended: str, message_id: str | None) -> bool:
        """True if a message of the call other than `ended` is under way; `message_id` is one that may be.

        Raises QTasksError if the service does not answer.
        """
        if not self._is_hosted:
            message = self._message(call_id)
            state = None if message is None or message.status is None else _status_of(message.status.state)
            return state in _OPEN and message is not None and message.message_id != ended
        if message_id in (None, ended):
            return False
        hosted = self._hosted_state(message_id or "")
        return hosted is not None and hosted.status in _OPEN

    def report_end(self, subject: Subject, state: ServiceState) -> None:
        """See `Service.report_end`: publish the report that the service itself would make, once for each message."""
        from qtasks.qstash.operations import publishing

        is_cancelled = state.status is ResultStatus.CANCELLED
        report = {
            "sourceMessageId": state.message_id,
            "state": State.CANCELED if is_cancelled else State.FAILED,
            "status": 0,
            "body": base64.b64encode(json.dumps({"error": state.reason, "code": None}).encode()).decode(),
            "retried": max(0, state.attempt - 1),
            "maxRetries": state.retries,
            "createdAt": str(state.created_ms),
            "header": {ENDED_HEADER: ["true"]} if state.is_reported else {},
        }
        options = PublishOptions(
            method="POST",
            content_type="application/json",
            deduplication_id=hashlib.sha256(f"{subject.call_id} {state.message_id} ended".encode()).hexdigest(),
        )
        query = EndQuery(subject.task, subject.call_id, subject.flow, unique=subject.unique)
        publish = publishing.publish_raw(query.url(self._base_url), json.dumps(report).encode(), options, retry_id=None)
        self._publisher.call(publish, f"the end of {subject.call_id}")

    def _message(self, key: str) -> Message | None:
        from qtasks.qstash import message

        try:
            return self._publisher.call(message.get(key), _WHAT)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    def _own_state(self, message: Message) -> ServiceState | None:
        """What our broker says."""
        if (status := message.status) is None:
            return None
        if status.state == State.FAILED and status.dlq_id is not None:
            from qtasks.qstash import dlq

            letter = self._publisher.call(dlq.get(status.dlq_id), _WHAT)
            return _of_dead_letter(letter, status.last_error, attempt=status.retried + 1)
        reason = status.last_error
        if reason is not None and reason.startswith("the destination answered"):
            entry = self._last_refusal(message.message_id)
            reason = reason if entry is None else _refusal(entry)
        if status.waits_for is not None and status.waits_for not in ("retry", "delay"):
            reason = f"it waits for {status.waits_for}" + ("" if reason is None else f"; {reason}")
        return ServiceState(
            status=_status_of(status.state),
            message_id=message.message_id,
            attempt=status.retried + (status.state not in (State.CREATED, State.CANCELED)),
            retries=message.max_retries,
            created_ms=message.created_at,
            reason=reason,
            next_attempt_ms=status.next_delivery_time,
        )

    def _hosted_state(self, message_id: str) -> ServiceState | None:
        from qtasks.qstash import dlq, log

        dead = self._publisher.call(dlq.list_page(None, 1, {"message_id": message_id}), _WHAT).messages
        if dead:
            return _of_dead_letter(dead[0], None, attempt=dead[0].max_retries + 1)
        entries = self._publisher.call(log.list_page(None, 10, {"message_id": message_id}), _WHAT).logs
        if not entries:
            return None
        refused = next((entry for entry in entries if entry.error or (entry.response_status or 0) >= 300), None)
        return ServiceState(
            status=_status_of(entries[0].state.value),
            message_id=message_id,
            attempt=sum(entry.state.value == State.ACTIVE for entry in entries),
            retries=entries[0].max_retries or 0,
            created_ms=min(entry.time for entry in entries),
            reason=None if refused is None else _refusal(refused),
            next_attempt_ms=entries[0].next_delivery_time,
        )

    def _last_refusal(self, message_id: str) -> Log | None:
        from qtasks.qstash import log

        entries = self._publisher.call(log.list_page(None, 10, {"message_id": message_id}), _WHAT).logs
        return next((entry for entry in entries if entry.response_status), None)


def _is_delivered(message: Message) -> bool:
    return message.status is not None and message.status.state == State.DELIVERED


def _status_of(state: str) -> ResultStatus:
    return _STATUSES.get(state, ResultStatus.QUEUED)


def _of_dead_letter(letter: DlqMessage, error: str | None, *, attempt: int) -> ServiceState:
    status = letter.response_status
    return ServiceState(
        status=ResultStatus.FAILED,
        message_id=letter.message_id,
        attempt=attempt,
        retries=letter.max_retries,
        created_ms=letter.created_at,
        reason=answered_error(letter.response_body or "", status, is_ours=_is_ours(letter.response_headers))
        or delivery_failed(None if status else error, status),
        is_reported=ENDED_HEADER in (letter.response_headers or {}),
    )


def _refusal(entry: Log) -> str:
    """Why an attempt failed: the words of the dispatcher, else those of the service."""
    body: Any = entry.response_body or ""
    with contextlib.suppress(ValueError):  # the hosted service shows it as text
        body = base64.b64decode(body, validate=True)
    if entry.response_status == HTTPStatus.UNAUTHORIZED:
        return "the dispatcher refused the signature (401): it has the signing keys of another service"
    if (error := dispatcher_error(body) or entry.error) is not None:
        return error
    if not entry.response_status or _is_ours(entry.response_headers):
        return f"the destination answered {entry.response_status}"
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    return f"the destination {answered_instead(entry.response_status, text)}"


def _is_ours(headers: Mapping[str, Any] | None) -> bool:
    return any(name.lower() == DISPATCHER_HEADER.lower() for name in headers or ())
