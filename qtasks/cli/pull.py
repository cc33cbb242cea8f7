"""`qtasks pull`: a copy of a message of any QStash service for the `qtasks dev` of this folder, to step through it."""

from __future__ import annotations

import base64
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import click

from qtasks.cli.changes import as_json_option, dry_run_option
from qtasks.cli.operate.dlq_command import ID
from qtasks.cli.operate.masked import MaskedMessages
from qtasks.cli.operate.running_tasks import names_of_tasks
from qtasks.cli.operate.service import ServiceConnection, connected
from qtasks.cli.printing import echo_facts, echo_json, talk
from qtasks.error_codes import ErrorCode
from qtasks.errors import ApiError, ConfigurationError, InvalidCallError, did_you_mean
from qtasks.masking import mask_pairs
from qtasks.protocol.messages import PublishOptions
from qtasks.qstash import dlq
from qtasks.qstash.dlq import DlqMessage
from qtasks.qstash.message import Message
from qtasks.qstash.operations.publishing import publish_raw
from qtasks.tasks.admin import actions
from qtasks.tasks.admin.service_steps import Steps
from qtasks.tasks.admin.summaries import call_in, of_dead_letter
from qtasks.tasks.encode.envelope import COMPACT, new_call_id
from qtasks.tasks.settings import HOSTED_URL, VARIABLES

_REDACTED: Final = re.compile(r"REDACTED:[0-9a-f]{64}")
_KEPT: Final = ("v", "id", "args", "kwargs", "pickled", "coded", "carried")
"""The members of a call that a copy has: it runs alone."""
_CONTENT_TYPE: Final = "content-type"


@dataclass(frozen=True, slots=True)
class _Copy:
    """What is published here."""

    task: str | None
    """None: it goes to a place that the user has named."""
    destination: str
    body: bytes
    options: PublishOptions
    is_bound: bool
    """True if its arguments can be read under the id of the original call only."""

    def facts(self) -> dict[str, str]:
        """Where it goes and its body, as the API has them of a message."""
        return {"url": self.destination, "body": self.body.decode("utf-8", "replace")}


@click.command("pull")
@click.argument("message_id", metavar="MESSAGE")
@click.option("--url", envvar="QSTASH_URL", default=HOSTED_URL, help="The service that has it. [QSTASH_URL]")
@click.option(
    "--token-env",
    default="QSTASH_TOKEN",
    show_default=True,
    metavar="NAME",
    help="The environment variable that holds the token of that service.",
)
@click.option("--to", metavar="URL", help="Deliver it to this URL; by default to the task of the same name here.")
@click.option("--retries", type=click.IntRange(0, 999), default=0, show_default=True, help="Retries of the copy.")
@dry_run_option
@as_json_option
def command(
    message_id: str, url: str, token_env: str, to: str | None, retries: int, dry_run: bool, as_json: bool
) -> None:
    """Publish a copy of MESSAGE here, to the `qtasks dev` of this folder. The original stays as it is.

    MESSAGE is the id of a message, a call or a dead letter at the service of QSTASH_URL and QSTASH_TOKEN. The copy has
    its method, headers and body, and is signed by the broker here. A call runs alone and as often as you pull it: under
    an id of its own, without the time limit, the expiry, the unique key and the following steps of the original.
    """
    with ExitStack() as stack:
        here = _open_here(stack)
        service = _open_source(stack, url, token_env)
        if service.url == here.url:
            raise ConfigurationError(
                f"{service.url} is the broker of this folder",
                fix=f"run it once more: qtasks messages again {message_id}",
            )
        message = service.steps(_read(message_id))
        copy = _copy_of(message, here, to, retries)
        masking = MaskedMessages.of(here, [copy.facts()])
        published = None if dry_run else here.run(publish_raw(copy.destination, copy.body, copy.options, retry_id=None))
    new_id = None if published is None else published.message_id
    if as_json:
        echo_json(_facts(message, service.url, copy, new_id))
    else:
        _echo(message, service.url, copy, new_id, masking)


def _open_here(stack: ExitStack) -> ServiceConnection:
    try:
        return stack.enter_context(connected({}))
    except ConfigurationError as error:
        raise ConfigurationError(
            "no `qtasks dev` runs in this folder or above it",
            details=error.details,
            fix="start `qtasks dev` here, and pull again",
        ) from None


def _open_source(stack: ExitStack, url: str, token_env: str) -> ServiceConnection:
    token = os.environ.get(token_env, "")
    if not token:
        raise ConfigurationError(
            f"{token_env} is not set: the token of {url}", fix="set it, or name another variable with --token-env"
        )
    return stack.enter_context(connected({VARIABLES["url"]: url, VARIABLES["token"]: token}))


def _read(message_id: str) -> Steps[Message]:
    """The message, as its dead letter if it is one. Raises ApiError (404)."""
    if ID.fullmatch(message_id):
        return (yield from actions.get_dead_letter(message_id))
    try:
        message = yield from actions.get_message(message_id)
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        # The hosted service forgets a message that has ended, and keeps its dead letter.
        letters = (yield dlq.list_page(None, 1, {"message_id": message_id})).messages
        if not letters:
            raise
        message = letters[0]
    if message.status is not None and message.status.dlq_id is not None:
        return (yield from actions.get_dead_letter(message.status.dlq_id))
    return message


def _copy_of(message: Message, here: ServiceConnection, to: str | None, retries: int) -> _Copy:
    """What is published here of `message`. Raises ConfigurationError if it is not a call of a task of this folder."""
    body = base64.b64decode(message.body_base64) if message.body_base64 else (message.body or "").encode()
    if _REDACTED.fullmatch(message.body or ""):
        raise InvalidCallError(
            f"the body of {message.message_id} is redacted: the service does not show it",
            fix="call the task with its arguments: qtasks send",
        )
    call = call_in(body)
    is_bound = not call.keys().isdisjoint({"pickled", "coded"})
    if call:
        call = {name: call[name] for name in _KEPT if name in call} | {"retries": retries}
        call["id"] = call.get("id") if is_bound and "id" in call else new_call_id()
        body = COMPACT.encode(call).encode()
    task = None if to is not None else _task_here(message, here, is_call=bool(call))
    lines = [(name, value) for name, values in (message.headers or {}).items() for value in values]
    options = PublishOptions(
        method=message.method,
        content_type=next((value for name, value in lines if name.lower() == _CONTENT_TYPE), None),
        forward=tuple(
            (name, value) for name, value in lines if name.lower() != _CONTENT_TYPE and not _REDACTED.fullmatch(value)
        ),
        retries=retries,
        labels=tuple(message.labels or ([message.label] if message.label else ())),
        call_id=call.get("id"),
    )
    destination = to or f"{here.settings.base_url}/{task}"
    return _Copy(task, destination, body, options, is_bound)


def _task_here(message: Message, here: ServiceConnection, *, is_call: bool) -> str:
    """The path of the task that the message calls, which the application of this folder has."""
    path = message.url.partition("?")[0]
    if not is_call:
        raise ConfigurationError(
            f"{message.message_id} is not a call of a task: it goes to {path}",
            fix="name where to deliver its copy: --to http://127.0.0.1:8000/...",
            code=ErrorCode.COMMAND_OPTION_INVALID,
        )
    task = path.rpartition("/")[2]
    names = names_of_tasks(here.settings)
    if names is None:
        raise ConfigurationError(
            f"the application of {here.url} does not answer, so its tasks are not known",
            fix="start `qtasks dev` with an application, or name a URL with --to",
        )
    if unquote(task) not in names:
        raise ConfigurationError(
            f"the application here has no task {unquote(task)!r}{did_you_mean(unquote(task), names)}",
            details={"known": ", ".join(names) or "none"},
            fix="check out the code that has it, or name a URL with --to",
            code=ErrorCode.TASK_UNKNOWN,
        )
    return task


def _facts(message: Message, url: str, copy: _Copy, new_id: str | None) -> dict[str, Any]:
    return {
        "source": {"url": url, "messageId": message.message_id, "deadLetterId": getattr(message, "dlq_id", None)},
        "task": copy.task,
        "destination": copy.destination.partition("?")[0],
        "method": message.method,
        "retries": copy.options.retries,
        "error": _error(message),
        "messageId": new_id,
    }


def _echo(message: Message, url: str, copy: _Copy, new_id: str | None, masking: MaskedMessages) -> None:
    facts = copy.facts()
    call = masking.arguments(facts["url"], facts["body"])
    letter = f", dead letter {message.dlq_id}" if isinstance(message, DlqMessage) else ""
    click.echo(new_id or "nothing was published")
    echo_facts(
        [
            ("copy of", f"{message.message_id}{letter} at {url}, which keeps it"),
            ("answer", str(message.response_status or "none") if isinstance(message, DlqMessage) else None),
            ("error", _error(message)),
            ("arguments", call),
            ("body", f"{len(copy.body):,} bytes" if call is None else None),
            ("headers", ", ".join(name for name, _ in copy.options.forward) or None),
            ("delivered to", f"{message.method} {copy.destination.partition('?')[0]}"),
            ("retries", str(copy.options.retries)),
        ]
    )
    if copy.is_bound:
        talk("its arguments can be read under the id of the original call only, so it runs here once")
    if new_id is None:
        talk("this is what would be published; nothing was changed")


def _error(message: Message) -> str | None:
    """Why the message failed, with secrets masked; None if the service does not say it."""
    error = of_dead_letter(message).error if isinstance(message, DlqMessage) else None
    if error is None and message.status is not None:
        error = message.status.last_error
    return None if error is None else mask_pairs(error)
