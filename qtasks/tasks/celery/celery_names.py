"""Attributes that Celery's objects have and ours do not, each with what to write instead.

They do not exist: `hasattr` is false, and a type checker reports them. Code that uses one all the same gets an
AttributeError that says what to write. docs/migrate/celery.md lists them beside the names that work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qtasks.errors import CeleryNameError

_NO_TREE: Final = "keep the handle that .delay() of the chain, the group or the chord returned"
_NOT_STORED: Final = "keep it with your own data, beside result.id"
_REQUEST: Final = "ctx: TaskContext = injected; then ctx.call_id, ctx.attempt, ctx.retried, ctx.retries"
_OPTION: Final = "an option of the declaration: task.options[...]"
_NOT_NEEDED: Final = "leave it out: nothing has to be set up or torn down"
_CONNECTION: Final = "leave it out: the application opens its connections itself; tasks.close() closes them"

RESULT: Final[Mapping[str, str]] = {
    "args": _NOT_STORED,
    "as_tuple": "result.id, and tasks.result(id) to get the handle again",
    "backend": "leave it out: tasks.result(id) reads the results of QTASKS_RESULTS",
    "children": _NO_TREE,
    "collect": _NO_TREE,
    "date_done": "result.finished_at",
    "forget": "leave it out: a result is removed after QTASKS_RESULT_TTL, a day by default",
    "get_leaf": _NO_TREE,
    "graph": _NO_TREE,
    "ignored": "leave it out: results are stored where QTASKS_RESULTS is set",
    "info": "result.progress while the call runs, result.result once it has ended",
    "iterdeps": _NO_TREE,
    "kwargs": _NOT_STORED,
    "maybe_reraise": "result.get(timeout=0)",
    "maybe_throw": "result.get(timeout=0)",
    "name": "result.task",
    "queue": _NOT_STORED,
    "retries": "result.attempts, which counts the first attempt, too",
    "revoke": "result.cancel(); it also asks an attempt that runs to end",
    "task_id": "result.id",
    "then": "@task.on_success, a hook in the process that ran the call",
    "throw": "result.get(timeout=0)",
    "traceback": "result.error, which is \"TypeName: message\"; the traceback is in the log where the task ran",
    "wait": "result.get(timeout=...)",
    "worker": "leave it out: the log of the process that ran the call has result.id",
}  # fmt: skip
"""Attributes of a result."""

TASK: Final[Mapping[str, str]] = {
    "acks_late": _OPTION,
    "add_to_chord": "build the whole group before it is sent: group(...) | body.s()",
    "after_return": "@task.on_success and @task.on_failure",
    "app": "the QTasks object that declared it; in a task, import it",
    "apply": "call it: task(...) runs the function here",
    "apply_async_on_commit": "transaction.on_commit(functools.partial(task.apply_async, args))",
    "autoretry_for": "@tasks.task(retries=RetryPolicy(on=...)); task.retry_policy",
    "backend": "leave it out: task.result(id) reads the results of QTASKS_RESULTS",
    "before_start": "@tasks.run_middleware",
    "chunks": "task.starmap(calls), which sends one call for each item in one request",
    "default_retry_delay": '@tasks.task(retry_delay="30s"), or raise RetryAfter("30s")',
    "delay_on_commit": "transaction.on_commit(functools.partial(task.delay, *args)), of django.db",
    "ignore_result": _OPTION,
    "max_retries": '@tasks.task(retries=5); in the task ctx.retries',
    "rate_limit": '@tasks.task(key="...", rate="10/1m")',
    "replace": "return the value, and let a chain go on with it: first.s(...) | second.s()",
    "request": _REQUEST,
    "retry": 'raise RetryAfter("1m") in the task; "raise ... from error" keeps the cause',
    "run": "call it: task(...) runs the function here",
    "signature": "task.s(*args, **kwargs)",
    "signature_from_request": "raise RetryAfter(...), or Snooze(...)",
    "soft_time_limit": "@tasks.task(soft_time_limit=...)",
    "subtask": "task.s(*args, **kwargs)",
    "subtask_from_request": "raise RetryAfter(...), or Snooze(...)",
    "time_limit": '@tasks.task(timeout="30s")',
    "update_state": 'ctx.progress(done, total, "note"), with ctx: TaskContext = injected',
}  # fmt: skip
"""Attributes of a task."""

_GO_ON: Final = "let the flow go on: call | other.s()"
_ON_FAILURE: Final = "@task.on_failure, where the task is declared; the handle of a flow says which call failed"

SIGNATURE: Final[Mapping[str, str]] = {
    "apply": "call it: signature(...) runs the function here",
    "errback": _ON_FAILURE,
    "freeze": "signature.delay().id",
    "id": "signature.delay().id",
    "link": _GO_ON,
    "link_error": _ON_FAILURE,
    "name": "signature.task.name",
    "on_error": _ON_FAILURE,
    "options": "signature.task.options",
    "partial": "signature.clone(args, kwargs)",
    "replace": "signature.clone(args, kwargs)",
    "stamp": "@tasks.send_middleware: message.carrying({...})",
    "subtask_type": "isinstance(part, Group), of qtasks.tasks.flow.canvas",
    "type": "signature.task",
}  # fmt: skip
"""Attributes of a signature."""

FLOW: Final[Mapping[str, str]] = {
    "apply": "a test environment of qtasks.testing runs a flow in the test; functions can be called one by one",
    "body": "the last of the nodes",
    "clone": "a flow is not used up: start it again, flow.delay(...)",
    "errback": _ON_FAILURE,
    "freeze": "flow.delay().id",
    "link": _GO_ON,
    "link_error": _ON_FAILURE,
    "on_error": _ON_FAILURE,
    "skew": 'task.using(delay=...).s(...) for each member, or key="..." with rate="10/1m"',
    "tasks": "members of a group, nodes of a chain",
}  # fmt: skip
"""Attributes of a chain or a group."""

GROUP_RESULT: Final[Mapping[str, str]] = {
    "add": "build the whole group before it is sent: group(...)",
    "backend": "leave it out: tasks.result(id) reads the results of QTASKS_RESULTS",
    "children": "list(handle), or handle[0]",
    "forget": "leave it out: a result is removed after QTASKS_RESULT_TTL, a day by default",
    "id": "[call.id for call in handle.calls]",
    "iter_native": "handle.as_completed()",
    "iterate": "handle.as_completed()",
    "join_native": "handle.get(timeout=...)",
    "maybe_reraise": "handle.get(timeout=0)",
    "maybe_throw": "handle.get(timeout=0)",
    "parent": "keep the handle of the whole flow; its parent is this group",
    "restore": "[tasks.result(id) for id in ids]",
    "revoke": "handle.cancel()",
    "save": "[call.id for call in handle.calls], and tasks.result(id) to get each handle again",
}  # fmt: skip
"""Attributes of the handle of a group."""

APPLICATION: Final[Mapping[str, str]] = {
    "GroupResult": "keep the handles: [tasks.result(id) for id in ids]",
    "ResultSet": "[tasks.result(id) for id in ids]",
    "Task": "@tasks.run_middleware for what surrounds every task; @tasks.on_failure and others for hooks",
    "add_periodic_task": '@tasks.cron("0 7 * * *") above the task; task.schedule("0 7 * * *") at run time',
    "amqp": _CONNECTION,
    "autodiscover_tasks": "import the modules with tasks: import shop.tasks",
    "backend": "QTASKS_RESULTS, or QTasks(results=...)",
    "broker_connection": _CONNECTION,
    "canvas": "from qtasks import chain, chord, group",
    "config_from_cmdline": "QTasks(...), or environment variables: QSTASH_URL, QSTASH_TOKEN, QTASKS_RESULTS",
    "config_from_envvar": "environment variables: QSTASH_URL, QSTASH_TOKEN, QTASKS_RESULTS",
    "config_from_object": "QTasks(...), or environment variables: QSTASH_URL, QSTASH_TOKEN, QTASKS_RESULTS",
    "connection": _CONNECTION,
    "connection_for_read": _CONNECTION,
    "connection_for_write": _CONNECTION,
    "current_task": "current_context(), of qtasks",
    "current_worker_task": "current_context(), of qtasks",
    "events": "@tasks.on_success, @tasks.on_retry and @tasks.on_failure",
    "finalize": _NOT_NEEDED,
    "loader": _NOT_NEEDED,
    "log": "logging.getLogger(__name__), with TaskLogFilter on a handler; in a task ctx.logger",
    "main": _NOT_NEEDED,
    "on_after_configure": '@tasks.cron("0 7 * * *") above the task',
    "on_after_finalize": '@tasks.cron("0 7 * * *") above the task',
    "pool": _CONNECTION,
    "producer_pool": _CONNECTION,
    "register_task": "@tasks.task above a function; a class cannot be a task",
    "set_current": _NOT_NEEDED,
    "set_default": _NOT_NEEDED,
    "setup_security": "set QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY: every delivery is signed",
    "signature": "tasks.send_task(name, args, kwargs); in a flow, import the task and write task.s(...)",
    "start": "qtasks run, on the command line",
    "timezone": '@tasks.cron("0 7 * * *", tz="Europe/Berlin")',
    "user_options": _NOT_NEEDED,
    "worker_main": "qtasks run, on the command line",
}  # fmt: skip
"""Attributes of an application."""


def refuse(call: str, celery: Mapping[str, Any], fix: str) -> None:
    """Raise CeleryNameError if there are arguments of Celery's that the method named `call` does not take."""
    if celery:
        raise CeleryNameError(f"{call} does not take {', '.join(map(repr, celery))}", fix=fix)


def attribute(owner: object, name: str, names: Mapping[str, str]) -> Any:
    """For `__getattr__`: raise CeleryNameError for an attribute that another queue has, AttributeError for any other.

    Python also calls `__getattr__` if a property of `owner` has raised an AttributeError, which must not be lost: the
    property is asked once more, and raises it again.
    """
    if hasattr(type(owner), name):
        return object.__getattribute__(owner, name)
    kind = type(owner).__name__
    if (fix := names.get(name)) is not None:
        raise CeleryNameError(f"{kind} has no {name!r}, which is a name of Celery", fix=fix)
    from qtasks.tasks.celery import other_queues

    if (other := other_queues.find(owner, name)) is not None:
        raise CeleryNameError(f"{kind} has no {name!r}, which is a name of {other.queue}", fix=other.instead)
    raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=owner)
