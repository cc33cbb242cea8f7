"""`BackgroundTasks`: calls that are sent when the response of a FastAPI path operation has gone."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import fastapi
import starlette.background
from fastapi import Depends

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError, PartlyRefused
from qtasks.masking import MASK, is_secret_name, mask_pairs
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.definition import qualified_name
from qtasks.tasks.encode.shown_values import cut
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.runtime_port import Runtime

log = logging.getLogger("qtasks.background")

P = ParamSpec("P")

Added = tuple[BaseTask[..., Any], Outgoing]
"""A call that waits for the end of the response, and its task."""


class BackgroundTasks(starlette.background.BackgroundTasks):
    """Calls that are sent when the response has gone: ``def view(background: BackgroundTasks)``.

    The drop-in for FastAPI's class of the same name, which runs a function in the process of the web application, once.
    Here ``background.add_task(send_mail, order_id)`` takes a task: its call is sent to the broker, which stores and
    retries it. Starlette's responses take it as well: ``JSONResponse(content, background=background)``.

    Nothing is sent if the path operation raises. The calls are lost if the process dies between the response and the
    broker's answer, or if the broker cannot be reached then: that is logged with the calls, and raised, as FastAPI does
    with the exception of a function. A call that must not be lost is made with ``.delay()`` before the response.
    """

    def __init__(self) -> None:
        super().__init__()
        self._added: list[Added] = []

    def add_task(  # type: ignore[override]  # a task in place of any function
        self, task: BaseTask[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Add a call of `task`; its arguments are checked and encoded now.

        Raises DefinitionError for something that is not a task, ArgumentsError for arguments that do not fit or cannot
        be encoded, and ConfigurationError if no application includes the task's router.
        """
        if not isinstance(task, BaseTask):
            raise DefinitionError(
                f"{qualified_name(task)} is not a task: only the calls of tasks can be sent",
                fix="put @tasks.task above the function; fastapi.BackgroundTasks runs plain functions",
                code=ErrorCode.NOT_A_TASK,
            )
        _ = task.runtime
        self._added.append((task, task.encoded(task.message(args, kwargs))))

    async def __call__(self) -> None:
        """Send the calls, those of one application in one request. Logs those that were not sent; raises why."""
        failures: list[BaseException] = []
        for runtime, added in self._taken():
            refused: dict[str, BaseException] = {}
            try:
                async with Batch(runtime):
                    for task, message in added:
                        try:
                            await task.asend_message(message)
                        except Exception as error:
                            refused[message.call_id] = error
            except PartlyRefused as error:
                refused.update(dict.fromkeys(error.refused, error))
            except BaseException as error:
                refused = {message.call_id: error for _, message in added} | refused
                if not isinstance(error, Exception):
                    _log_unsent(added, refused)
                    raise
            _log_unsent(added, refused)
            failures.extend(refused.values())
        if failures:
            raise failures[0]

    def _taken(self) -> Iterator[tuple[Runtime, list[Added]]]:
        """Take the calls out, by the application that they belong to."""
        added, self._added = self._added, []
        runtimes = {id(runtime): runtime for runtime in (task.runtime for task, _ in added)}
        for key, runtime in runtimes.items():
            yield runtime, [(task, message) for task, message in added if id(task.runtime) == key]

    def __del__(self) -> None:
        if self.__dict__.get("_added"):
            names = ", ".join(sorted({task.name for task, _ in self._added}))
            log.warning("calls of %s were not sent: no response was sent with them", names)


async def _of_request(background: fastapi.BackgroundTasks) -> AsyncIterator[BackgroundTasks]:
    """The calls of one request, as a dependency: sent by FastAPI's own background tasks."""
    calls = BackgroundTasks()
    background.add_task(calls)
    yield calls
    await calls()  # a response with a background of its own: FastAPI drops the one of the request


def _log_unsent(added: Sequence[Added], refused: dict[str, BaseException]) -> None:
    for task, message in added:
        if (error := refused.get(message.call_id)) is not None:
            fields = {"action": "not_sent", "task": task.name, "call_id": message.call_id}
            log.error("%s was not sent after its response: %s", _shown(task, message), error, extra=fields)


def _shown(task: BaseTask[..., Any], message: Outgoing) -> str:
    """A call as the log shows it, without secrets."""
    envelope = message.envelope
    if message.options.redact is not None:
        return f"{task.name}(...)"
    named = [*zip(task.parameters.positional, envelope.args, strict=False), *envelope.kwargs.items()]
    arguments = (f"{name}={MASK if is_secret_name(name) else cut(mask_pairs(repr(value)))}" for name, value in named)
    return f"{task.name}({', '.join(arguments)})"


if not TYPE_CHECKING:
    # FastAPI would make an instance of its own class for an annotation that is a subclass of Starlette's.
    BackgroundTasks = Annotated[BackgroundTasks, Depends(_of_request)]
