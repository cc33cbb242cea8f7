"""A message is published once more at a service that is not ours: as a call of its own, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qtasks.errors import ApiError
from qtasks.qstash.conversation.operation import Operation
from qtasks.qstash.message import Message, message_fields
from qtasks.tasks.admin.republish import publish_again


def message(**members: object) -> Message:
    body = json.dumps({"v": 1, "id": "call_1", "args": [1], "kwargs": {}, **members})
    facts = {"messageId": "msg_1", "url": "https://app.example/qtasks/charge", "method": "POST", "maxRetries": 3}
    return Message(**message_fields({**facts, "createdAt": 1, "notBefore": 1, "body": body}))


def published(source: Message, body: bytes | None = None) -> dict[str, Any]:
    """The body with which `source` is published again."""
    operation: Operation[Any] = next(publish_again(source, body, asks_console=False))
    found: dict[str, Any] = json.loads(operation.body or b"")
    return found


def test_a_call_gets_an_id_of_its_own_so_that_an_application_that_has_run_it_runs_it_again() -> None:
    again = published(message())
    assert again == {"v": 1, "id": again["id"], "args": [1], "kwargs": {}}
    assert again["id"] != "call_1"


@pytest.mark.parametrize("member", [{"coded": "sealed1:k.body"}, {"pickled": "pickle1:mac.body"}])
def test_a_call_whose_arguments_can_be_read_under_its_own_id_only_is_refused(member: dict[str, str]) -> None:
    for body in (None, message(**member).body):
        with pytest.raises(ApiError, match="only the application can call it again") as caught:
            published(message(**member), body if body is None else body.encode())
        assert caught.value.status == 409
