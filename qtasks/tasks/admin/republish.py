"""Publish a message once more, as it was or with another body."""

from __future__ import annotations

import base64
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from qtasks.errors import ApiError
from qtasks.randomness import ordered_id
from qtasks.tasks.admin.searches import CONSOLE
from qtasks.tasks.admin.service_steps import Steps, lacks_path
from qtasks.tasks.admin.summaries import call_in

if TYPE_CHECKING:
    from qtasks.qstash.message import Message

_CONTENT_TYPE: Final = "content-type"


def publish_again(message: Message, body: bytes | None, *, asks_console: bool = True) -> Steps[str]:
    """Publish `message` again, with `body` if that is not None; the id of the new message.

    A broker of ours has all options of the message; the API of other services does not show its time limit. A call
    gets a new id: otherwise an application that has run it would not run it again. Raises ApiError (409) for a call
    whose arguments can be read under its own id only.
    """
    from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, segment, to_json

    if asks_console:
        content = {} if body is None else {"body": body.decode("utf-8", "surrogateescape")}
        path = f"{CONSOLE}/messages/{segment(message.message_id, 'message_id')}/again"
        try:
            reply = yield Operation("POST", path, answer, headers=JSON_TYPE, body=to_json(content), repeatable=False)
        except ApiError as error:
            if not lacks_path(error):
                raise
        else:
            return str(reply["messageId"])
    return (yield from _by_the_api(message, body))


def _by_the_api(message: Message, body: bytes | None) -> Steps[str]:
    from qtasks.qstash.operations import publishing

    headers = {name: values[0] for name, values in (message.headers or {}).items() if name.lower() != _CONTENT_TYPE}
    content_type = next((v[0] for name, v in (message.headers or {}).items() if name.lower() == _CONTENT_TYPE), None)
    options: dict[str, Any] = {
        "url": message.url,
        "method": message.method,
        "headers": headers,
        "content_type": content_type,
        "retries": message.max_retries,
        "retry_delay": message.retry_delay_expression,
        "callback": message.callback,
        "failure_callback": message.failure_callback,
        "label": message.labels or message.label,
        "flow_control": _limits(message),
    }
    chosen = {name: value for name, value in options.items() if value not in (None, {}, [])}
    before = base64.b64decode(message.body_base64) if message.body_base64 else (message.body or "").encode()
    content = _with_new_call_id(before if body is None else body)
    if message.queue is None:
        published = yield publishing.publish(content, chosen, retry_id=None)
    else:
        published = yield publishing.enqueue(message.queue, content, chosen, retry_id=None)
    return str(published.message_id)


def _limits(message: Message) -> dict[str, Any] | None:
    if (control := message.flow_control) is None:
        return None
    limits = {"key": control.key, "parallelism": control.parallelism, "rate": control.rate, "period": control.period}
    return {name: value for name, value in limits.items() if value is not None}


def _with_new_call_id(body: bytes) -> bytes:
    call = call_in(body)
    if not call.get("id"):
        return body
    if not call.keys().isdisjoint(("coded", "pickled")):  # as a broker of ours refuses it
        raise ApiError(
            "the arguments are encrypted, pickled or encoded for this one call: only the application can call it again",
            status=HTTPStatus.CONFLICT,
            detail="its arguments can be read under its own id only",
        )
    return json.dumps({**call, "id": f"call_{ordered_id()}"}, ensure_ascii=False, separators=(",", ":")).encode()
