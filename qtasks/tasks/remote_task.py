"""Tasks of which only the name is here: their calls can be sent, and results can be read by the id of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qtasks.errors import CeleryNameError, DefinitionError
from qtasks.protocol.labels.argument_labels import name_in
from qtasks.tasks.decorators import check_name
from qtasks.tasks.encode.searchable import searchable_names
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.task import SyncTask, Task

if TYPE_CHECKING:
    from qtasks.tasks.encode.parameters import Values
    from qtasks.tasks.encode.pickling import Purpose
    from qtasks.tasks.encode.result_codec import ResultForm
    from qtasks.tasks.results.backend import ResultRecord
    from qtasks.tasks.send.outgoing import Outgoing
    from qtasks.tasks.send.runtime_port import Runtime


class RemoteTask(SyncTask[..., Any]):
    """A task of which only the name is here, and the names of arguments by which its calls are found."""

    @property
    def searchable(self) -> Mapping[str, int | None]:
        """See `BaseTask.searchable`. Positions of arguments are not known here."""
        return dict.fromkeys(self.delivery_options.search)

    def message_with(
        self, values: Values, positional: int, call_id: str | None = None, purpose: Purpose | None = None
    ) -> Outgoing:
        """See `BaseTask.message_with`: an argument that the call may have by its position gets no label."""
        message = super().message_with(values, positional, call_id, purpose)
        names = message.envelope.kwargs if positional else self.searchable
        kept = tuple(label for label in message.argument_labels if name_in(label) in names)
        return replace(message, argument_labels=kept)


def remote_task(
    get_runtime: Callable[[], Runtime], name: str, search: str | Sequence[str] | None = None
) -> Task[..., Any]:
    """A task that another application has. Its arguments are plain JSON. Raises DefinitionError for a wrong name."""

    def remote(*args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ARG001 - without annotations: any JSON value
        raise CeleryNameError(
            f"the code of the task {name!r} is not here, only its name: it can be sent, not called",
            fix="import the module that declares it",
        )

    if not isinstance(name, str):
        raise DefinitionError(
            f"{name!r} is not the name of a task",
            fix='tasks.send_task("name", args=...), or call a task of this application with task.delay(...)',
        )
    names = searchable_names(check_name(name), search)
    return RemoteTask(get_runtime, remote, name=name, options={"search": names} if names else {})


class UntypedResult(TaskResult[Any]):
    """The handle of a call of which only the id is known. `task` is empty; the record of the call names its task."""

    __slots__ = ("_tasks",)

    def __init__(
        self,
        runtime: Runtime,
        tasks: Mapping[str, Task[..., Any]],
        id: str,  # noqa: A002 - the name it has for users
    ) -> None:
        plain = remote_task(lambda: runtime, "any")
        super().__init__(runtime, plain.result_form, task="", id=id, message_id=None)
        self._tasks = tasks

    def _form_of(self, record: ResultRecord) -> ResultForm[Any]:
        task = self._tasks.get(record.task)
        return self._form() if task is None else task.result_form()

    def _task_to_cancel(self) -> str:
        results = self._runtime.results_or_none()
        record = None if results is None else results.read(self.id)
        return "" if record is None else record.task
