"""`qtasks send` makes a call as the task says that its calls are made, though the code of the task is elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.dev import Dev
from tests.support.process import qtasks

APPLICATION = """
from qtasks import RetryPolicy, task

@task(retries=RetryPolicy(max=7, initial="2h", jitter=0.1), queue="mail", label="mails", search=("to",), timeout="20s")
def mail(to: str) -> str:
    return to

@task(unique=True)
def rebuild() -> None: ...

@task(failure_callback="https://example.com/failed")
def plain() -> None: ...
"""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("sent")
    (folder / "tasks.py").write_text(APPLICATION, encoding="utf-8")
    with Dev(folder, "--memory") as started:
        started.started()
        yield started


def sent(dev: Dev, *arguments: str) -> dict[str, Any]:
    """The message of a call that is sent."""
    done = qtasks("send", *arguments, folder=dev.folder)
    assert done.status == 0, done.err
    shown = qtasks("messages", "show", done.out.split()[0], "--json", folder=dev.folder)
    message: dict[str, Any] = json.loads(shown.out)["message"]
    return message


def test_a_call_has_the_options_of_its_task(dev: Dev) -> None:
    message = sent(dev, "mail", "ada")
    assert (message["maxRetries"], message["queueName"]) == (7, "mail")
    assert message["labels"][0] == "mails"
    assert json.loads(message["body"])["retries"] == 7
    assert json.loads(message["body"])["timeout_ms"] == 20_000


def test_a_call_is_found_by_an_argument_that_its_task_declares(dev: Dev) -> None:
    message = sent(dev, "mail", "grace")
    found = json.loads(qtasks("messages", "--json", "arg.to:grace", folder=dev.folder).out)["messages"]
    assert [row["messageId"] for row in found] == [message["messageId"]]


def test_a_callback_of_the_task_stays_and_a_delay_is_that_of_the_command(dev: Dev) -> None:
    message = sent(dev, "plain", "--delay", "10m")
    assert message["failureCallback"] == "https://example.com/failed"
    assert message["notBefore"] - message["createdAt"] == pytest.approx(600_000, abs=1_000)


def test_what_only_the_application_can_make_is_refused(dev: Dev) -> None:
    done = qtasks("send", "rebuild", folder=dev.folder)
    assert done.status == 2
    assert "rebuild cannot be called from here: its calls are unique" in done.err
