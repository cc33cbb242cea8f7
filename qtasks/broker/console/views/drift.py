"""`GET console/api/drift`: how the schedules at the broker differ from those that its applications declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, json_response, read_large
from qtasks.broker.console import manifest_reader
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.manifest_reader import DeclaredSchedule
from qtasks.broker.console.manifests import ManifestAnswer
from qtasks.broker.console.views import task_table
from qtasks.broker.store.verbs import schedules
from qtasks.protocol.labels import argument_labels
from qtasks.protocol.labels.schedule_labels import DECLARED, DYNAMIC
from qtasks.protocol.messages import Schedule
from qtasks.protocol.views import Json


async def show(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """Every schedule of both sides with its state."""
    stored = await context.store.read_long(schedules.schedules, viewer.account)
    answers = await task_table.answers(context, viewer)
    size = sum(len(answer.manifest or b"") for answer in answers)
    return json_response({"schedules": await read_large(size, lambda: _lines(stored, answers))})


def _lines(stored: Sequence[Schedule], answers: Sequence[ManifestAnswer]) -> list[Json]:
    declared = _declared(answers)
    return [
        *(_state(schedule, declared, answers) for schedule in stored),
        *_only_declared(declared, frozenset(schedule.id for schedule in stored)),
    ]


def _declared(answers: Sequence[ManifestAnswer]) -> dict[str, DeclaredSchedule]:
    """The schedules that the applications declare which answer, by id."""
    manifests = [manifest_reader.read(answer.manifest) for answer in answers if answer.manifest is not None]
    tasks = [task for manifest in manifests for task in manifest.tasks]
    return {schedule.id: schedule for task in tasks for schedule in task.schedules}


def _state(schedule: Schedule, declared: Mapping[str, DeclaredSchedule], answers: Sequence[ManifestAnswer]) -> Json:
    labels = frozenset(argument_labels.without(schedule.options.labels))
    declaration = declared.get(schedule.id)
    if DYNAMIC in labels:
        return _line(schedule.id, "dynamic", "A running program made it.")
    if declaration is not None and labels == declaration.labels:
        return _line(schedule.id, "inStep", "As its code declares it.")
    if declaration is not None:
        return _line(schedule.id, "differs", _difference(schedule, declaration))
    if DECLARED not in labels:
        return _line(schedule.id, "byHand", "Made outside of the code of an application.")
    prefix = f"{schedule.destination.partition('?')[0].rpartition('/')[0]}/"
    answer = next((each for each in answers if each.prefix == prefix), None)
    if answer is None or answer.manifest is None:
        reason = "" if answer is None else f": {answer.error}"
        return _line(schedule.id, "noAnswer", f"The application at {prefix} does not tell what it declares{reason}.")
    return _line(schedule.id, "leftOver", "The code of its application does not declare it any more.")


def _difference(schedule: Schedule, declaration: DeclaredSchedule) -> str:
    if schedule.cron != declaration.cron:
        return f"The code says {declaration.cron}, the broker {schedule.cron}."
    return "The arguments or the options in the code are others than at the broker."


def _only_declared(declared: Mapping[str, DeclaredSchedule], stored: frozenset[str]) -> Iterator[Json]:
    for schedule in declared.values():
        if schedule.id not in stored:
            text = f"The code of {schedule.task} declares it ({schedule.cron}); the broker does not have it."
            yield _line(schedule.id, "notSynced", text)


def _line(schedule_id: str, state: str, text: str) -> Json:
    return {"scheduleId": schedule_id, "state": state, "text": text}
