"""What the dispatcher tells the broker of its tasks: see `qtasks.protocol.dispatcher_questions`."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any, Final

from pydantic import TypeAdapter

from qtasks.errors import QTasksError
from qtasks.masking import is_secret_name
from qtasks.protocol import strict_json, wire
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

_TASK_DEPTH: Final = strict_json.MAX_DEPTH - 2
"""How deep a task may be nested: the manifest and its list are around it."""


def manifest_of(tasks: Mapping[str, BaseTask[..., Any]], base_url: str) -> bytes:
    """The manifest of the tasks at `base_url`, as JSON. A task that cannot be described is left out, and logged."""
    head: Manifest = {
        "v": VERSION,
        "package": metadata.version("qstash-tasks"),
        "python": platform.python_version(),
        "tasks": [],
    }
    return _encoded(head).removesuffix(b"]}") + b",".join(_described(tasks, base_url)) + b"]}"


def _described(tasks: Mapping[str, BaseTask[..., Any]], base_url: str) -> Iterator[bytes]:
    for name, task in sorted(tasks.items()):
        if name != task.name:
            continue  # an alias
        if (described := _readable(task, base_url)) is not None:
            yield described


def _readable(task: BaseTask[..., Any], base_url: str) -> bytes | None:
    """A task as the broker can read it: without its defaults and schemas if they prevent that, None if more does.

    One task that cannot be read would take all others with it.
    """
    # Defaults, annotations and docstrings are objects of the user, whose code may raise an error of any kind.
    with contextlib.suppress(Exception):
        return _encoded(_task(task, base_url), _TASK_DEPTH)
    try:
        return _encoded(_task(task, base_url, has_values=False), _TASK_DEPTH)
    except Exception as error:
        log.warning("%s is not in the manifest: %s", task.name, error)
        return None


def _encoded(value: Manifest | ManifestTask, max_depth: int = strict_json.MAX_DEPTH) -> bytes:
    """JSON that the broker reads. Raises ValueError, TypeError or RecursionError for what it would refuse."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    strict_json.loads(text, max_depth=max_depth, big_integers=True)
    return text


def _task(task: BaseTask[..., Any], base_url: str, *, has_values: bool = True) -> ManifestTask:
    """A task; with the defaults and the schemas of its parameters if `has_values`."""
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
        "parameters": list(_parameters(parameters, has_values=has_values)),
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


def _parameters(parameters: TaskParameters, *, has_values: bool) -> Iterator[Parameter]:
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
        if has_values and (schema := _schema(annotation)) is not None:
            described["schema"] = schema
        if has_values and name in parameters.defaults and not is_secret_name(name):
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
