"""Calls are found by the labels of their arguments at once, and by reading them where they have none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from qtasks.broker.console.console_context import Role
from qtasks.broker.console.views import again, message_page, messages, schedule_table
from qtasks.protocol.messages import Response
from tests.support.api import Service
from tests.support.manifests import DESCRIBED, parameters
from tests.support.view_caller import Console

pytestmark = pytest.mark.anyio

TASKS = "http://127.0.0.1:8000/qtasks"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = await Service.open(":memory:")
    yield made
    await made.close()


@pytest.fixture
def console(service: Service) -> Console:
    return Console(service)


async def publish(service: Service, task: str, body: str, *labels: str) -> str:
    """A call of a task."""
    lines = {"Qtasks-Interrupted-For": "1h", **({"Upstash-Label": ",".join(labels)} if labels else {})}
    return str((await service.post(f"/v2/publish/{TASKS}/{task}", lines, body))["messageId"])


def call(*args: str, **kwargs: str) -> str:
    """An envelope with these JSON texts as arguments."""
    named = ",".join(f'"{name}":{value}' for name, value in kwargs.items())
    return f'{{"v":1,"args":[{",".join(args)}],"kwargs":{{{named}}}}}'


async def found(console: Console, text: str, **query: Any) -> tuple[list[str], int]:
    """The ids that a filter finds on one page, and how many messages were read for it."""
    seen = await console.see(messages.list_messages, filter=text, **query)
    return [row["messageId"] for row in seen["messages"]], seen["scanned"]["messages"]


async def test_a_labelled_call_is_found_without_reading_any(service: Service, console: Console) -> None:
    first = await publish(service, "charge", call("42"), "qtasks.arg.user_id=42")
    await publish(service, "charge", call("7"), "qtasks.arg.user_id=7")
    last = await publish(service, "charge", call(user_id="42"), "mine", "qtasks.arg.user_id=42")
    await publish(service, "charge", call(), "qtasks.arg.user_id")
    assert await found(console, "arg.user_id:42") == ([last, first], 0)
    assert (await found(console, "arg.user_id:42 label:mine"))[0] == [last]
    assert await found(console, "arg.user_id:42 -label:mine task:charge status:scheduled,waiting") == ([first], 0)
    assert (await found(console, "-arg.user_id:42 label:mine"))[0] == []
    assert await found(console, "arg.user_id:42,7", count=2) == ([last, await newest(console, "arg.user_id:7")], 0)


async def newest(console: Console, text: str) -> str:
    return (await found(console, text))[0][0]


async def test_calls_without_a_label_are_found_as_well_by_reading_only_them(service: Service, console: Console) -> None:
    early = await publish(service, "charge", call(user_id="42"))
    labelled = [await publish(service, "charge", call("42"), "qtasks.arg.user_id=42") for _ in range(3)]
    other = await publish(service, "other", call(user_id='"42"'))
    await publish(service, "other", call(user_id="1"))
    ids, read = await found(console, "arg.user_id:42")
    assert ids == [other, *reversed(labelled), early]
    assert read == 3  # the first call of one task, and two of the other
    assert await found(console, "arg.user_id:42 task:other") == ([other], 2)
    late = await publish(service, "charge", call(user_id="42"))  # by an older version of the application
    assert (await found(console, "arg.user_id:42"))[0] == [late, other, *reversed(labelled), early]


async def test_pages_show_what_the_index_has_and_then_what_was_read_each_once(
    service: Service, console: Console
) -> None:
    ids = set()
    for number in range(9):
        label = ["qtasks.arg.n=1"] if number % 3 else []
        ids.add(await publish(service, f"t{number % 2}", call(n="1"), *label))
    pages: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        seen = await console.see(messages.list_messages, filter="arg.n:1", count=2, cursor=cursor)
        pages.append([row["messageId"] for row in seen["messages"]])
        cursor = seen["cursor"]
    shown = [message_id for page in pages for message_id in page]
    assert len(shown) == len(ids) == 9
    assert set(shown) == ids
    assert (await console.ask(messages.list_messages, filter="arg.n:1", cursor="x1"))[0] == 400


async def test_a_call_that_is_labelled_says_all_about_the_argument(service: Service, console: Console) -> None:
    await publish(service, "charge", call(user_id="42"), "qtasks.arg.user_id=7")
    assert await found(console, "arg.user_id:42") == ([], 0)
    long = await publish(service, "charge", call(user_id=f'"{"ü" * 70}"'), label_of("ü" * 70))
    assert await found(console, f"arg.user_id:{'ü' * 70}") == ([long], 0)


def label_of(text: str) -> str:
    from qtasks.protocol.labels.argument_labels import label_of as made

    return made("user_id", text)


async def test_a_list_and_a_viewer_without_payloads_see_only_labels_that_people_chose(
    service: Service, console: Console
) -> None:
    message_id = await publish(service, "charge", call("42"), "mine", "qtasks.arg.user_id=42")
    lines = {"Upstash-Cron": "0 9 * * *", "Upstash-Label": "qtasks.arg.user_id=42"}
    await service.post(f"/v2/schedules/{TASKS}/charge", lines, call("42"))
    [row] = (await console.see(messages.list_messages))["messages"]
    assert row["labels"] == ["mine"]
    console = Console(service, Role.METADATA)
    shown = await console.see(message_page.show, message_id)
    assert (shown["message"]["label"], shown["message"]["labels"]) == ("mine", ["mine"])
    assert "user_id" not in str(shown)
    assert "user_id" not in str(await console.see(schedule_table.list_schedules))
    for text in ("arg.user_id:42", "label:qtasks.arg.user_id=42", "-label:qtasks.arg.user_id=42"):
        assert (await console.ask(messages.list_messages, filter=text))[0] == 403


async def test_a_callback_does_not_have_the_arguments_of_its_message(service: Service, console: Console) -> None:
    lines = {"Upstash-Label": "mine,qtasks.arg.n=1", "Upstash-Callback": f"{TASKS}/done"}
    message = (await service.post(f"/v2/publish/{TASKS}/work", lines, call("1")))["messageId"]
    await service.run()
    assert await found(console, "arg.n:1") == ([message], 1)
    assert len((await console.see(messages.list_messages, filter="label:mine"))["messages"]) == 2


@pytest.mark.parametrize(
    ("body", "labels"),
    [
        (call("8"), ["mine"]),  # whose position is unknown here: it is read when it is searched for
        (call(user_id="8"), ["mine", "qtasks.arg.user_id=8"]),
        (call(), ["mine", "qtasks.arg.user_id"]),
        ('{"x":1}', ["mine"]),
        ("no JSON", ["mine"]),
        (None, ["mine", "qtasks.arg.user_id=42"]),
    ],
)
async def test_a_call_that_is_edited_and_run_again_has_the_labels_of_its_new_arguments(
    service: Service, console: Console, body: str | None, labels: list[str]
) -> None:
    old = await publish(service, "charge", call("42"), "mine", "qtasks.arg.user_id=42")
    status, answer = await console.ask(again.publish_again, old, body={} if body is None else {"body": body})
    assert status == 201
    message = await service.get(f"/v2/messages/{answer['messageId']}")
    assert message["labels"] == labels


async def test_an_application_tells_the_positions_of_its_arguments(service: Service, console: Console) -> None:
    manifest = {
        "v": 1,
        "tasks": [
            {**DESCRIBED, "name": "charge", "parameters": parameters("amount", "user_id"), "searchable": ["user_id"]},
        ],
    }
    service.transport.answer = lambda request: Response(status=200, body=json.dumps(manifest).encode())
    old = await publish(service, "charge", call("1", "42"), "qtasks.arg.user_id=42")
    _, answer = await console.ask(again.publish_again, old, body={"body": call("1", "8")})
    assert (await service.get(f"/v2/messages/{answer['messageId']}"))["labels"] == ["qtasks.arg.user_id=8"]


async def test_a_body_that_its_publisher_hides_is_not_searched_and_found_by_labels_only(
    service: Service, console: Console
) -> None:
    lines = {"Qtasks-Interrupted-For": "1h", "Upstash-Redact-Fields": "body"}
    hidden, labelled = [
        str((await service.post(f"/v2/publish/{TASKS}/charge", headers, call(user_id="42")))["messageId"])
        for headers in (lines, {**lines, "Upstash-Label": "qtasks.arg.user_id=42"})
    ]
    open_ = await publish(service, "charge", call(user_id="42"))
    assert sorted((await found(console, "arg.user_id:42"))[0]) == sorted([open_, labelled])
    assert (await found(console, "-arg.user_id:42"))[0] == [hidden]
