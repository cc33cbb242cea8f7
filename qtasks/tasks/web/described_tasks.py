"""What the dispatcher tells the broker of its tasks: see `qtasks.protocol.dispatcher_questions`."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

from pydantic import TypeAdapter

from qtasks.errors import QTasksError
from qtasks.masking import is_secret_name
from qtasks.protocol import wire
from qtasks.protocol.dispatcher_questions import VERSION, Manifest, ManifestSchedule, ManifestTask, Parameter
from qtasks.protocol.labels import argument_labels
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.annotations import type_name
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import TaskParameters
from qtasks.tasks.schedules.declaration import ScheduleDeclaration
from qtasks.tasks.send.end_callback import EndQuery, ending_at
from qtasks.tasks.task import Task

log = logging.getLogger("qtasks.dispatch")


def manifest_of(tasks: Mapping[str, BaseTask[..., Any]], base_url: str) -> bytes:
    """The manifest of the tasks at `base_url`, as JSON. A task that cannot be described is left out, and logged."""
    manifest: Manifest = {
        "v": VERSION,
        "package": metadata.version("qstash-tasks"),
        "python": platform.python_version(),
        "tasks": list(_described(tasks, base_url)),
    }
    return json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()


def _described(tasks: Mapping[str, BaseTask[..., Any]], base_url: str) -> Iterator[ManifestTask]:
    for name, task in sorted(tasks.items()):
        if name != task.name:
            continue  # an alias
        try:
            yield _task(task, base_url)
        except QTasksError as error:
            log.warning("%s is not in the manifest: %s", name, error)


def _task(task: BaseTask[..., Any], base_url: str) -> ManifestTask:
    parameters, delivery = task.parameters, task.delivery_options
    options = ending_at(
        EndQuery(task.name).url(base_url),
        delivery.publish,
        None,
        interrupted_for_ms=task.runtime.settings().interrupted_for_ms,
    )
    envelope = Envelope(
        None,
        retries=delivery.retries,
        timeout_ms=delivery.publish.timeout_ms,
        retry_delay=delivery.publish.retry_delay if delivery.jitter else None,
        jitter=delivery.jitter,
    )
    return {
        "name": task.name,
        "aliases": list(task.aliases),
        "kind": "llm" if task.is_llm else "task",
        "module": task.declared_in,
        "doc": inspect.getdoc(task.__wrapped__) or "",
        "signature": parameters.signature.removeprefix(task.name),
        "parameters": list(_parameters(parameters)),
        "searchable": list(task.searchable),
        "headers": [list(line) for line in wire.write(options)],
        "queue": delivery.queue,
        "envelope": envelopes.encode(envelope).decode(),
        "refusal": _refusal(task),
        "schedules": list(_schedules(task.declared, base_url)) if isinstance(task, Task) else [],
    }


def _refusal(task: BaseTask[..., Any]) -> str | None:
    delivery, form = task.delivery_options, task.encoding.form
    if delivery.unique:
        return "its calls are unique, which the process that sends them decides"
    if form.pickled or form.codec is not None:
        return "its arguments do not travel as JSON"
    if form.encrypts:
        return "its arguments are encrypted with a key that only the application has"
    return None


def _parameters(parameters: TaskParameters) -> Iterator[Parameter]:
    by_position = {parameter.name for parameter in parameters.leading}
    for name, annotation in parameters.annotations.items():
        if name not in parameters.positional and name not in parameters.keywords:
            continue  # `*args` and `**kwargs`
        described: Parameter = {
            "name": name,
            "type": type_name(annotation),
            "required": name in parameters.required,
            "byPosition": name in by_position,
        }
        if (schema := _schema(annotation)) is not None:
            described["schema"] = schema
        if name in parameters.defaults and not is_secret_name(name):
            with contextlib.suppress(QTasksError):  # a value of another type than declared, or one that is not JSON
                described["default"] = parameters.to_json({name: parameters.defaults[name]})[name]
        yield described


def _schema(annotation: Any) -> dict[str, Any] | None:
    if annotation in (inspect.Parameter.empty, Any):
        return {}
    try:
        return TypeAdapter(annotation).json_schema()
    except Exception:  # pydantic raises errors of several kinds for a type that has no schema
        return None


def _schedules(declared: Iterable[ScheduleDeclaration], base_url: str) -> Iterator[ManifestSchedule]:
    for declaration in declared:
        desired = declaration.desired(base_url)
        yield {
            "id": desired.id,
            "name": declaration.title,
            "cron": declaration.cron.text,
            "labels": list(argument_labels.without(desired.options.labels)),
        }
