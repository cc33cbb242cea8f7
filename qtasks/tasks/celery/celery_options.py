"""Options of Celery's decorators and of its `apply_async`, each with what to write instead."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, DefinitionError

_LATE: Final = "leave it out: a call is acknowledged after its end, and delivered again if its process dies"
_RESULTS: Final = "leave it out: results are stored where QTASKS_RESULTS is set"
_ORDER: Final = 'leave it out: calls that must not wait for others have a key or a queue of their own, key="..."'
_ROUTE: Final = 'queue="...", or key="..." with parallelism=...'
_WIRE: Final = "leave it out: the client sends each call in one request"

DECLARED: Final[Mapping[str, str]] = {
    "acks_late": _LATE,
    "acks_on_failure_or_timeout": _LATE,
    "autoretry_for": "retries=RetryPolicy(on=...)",
    "base": "@tasks.run_middleware for what surrounds a run, @task.on_failure and others for hooks",
    "bind": "take `ctx: TaskContext = injected` in place of `self`: "
    "self.request.id is ctx.call_id, self.request.retries is ctx.retried, "
    "self.retry(exc=error, countdown=60) is `raise RetryAfter(60) from error`, "
    "self.update_state(...) is ctx.progress(done, total)",
    "compression": "leave it out: arguments are small; store the data and pass its key",
    "default_retry_delay": "retry_delay=...",
    "dont_autoretry_for": "retries=RetryPolicy(give_up_on=...)",
    "expires": "task.using(expires=...) at the call",
    "ignore_result": _RESULTS,
    "max_retries": "retries=...",
    "priority": _ORDER,
    "pydantic": "leave it out: arguments are always checked by their annotations",
    "rate_limit": 'key="...", rate="10/1m"',
    "reject_on_worker_lost": _LATE,
    "resultrepr_maxsize": "leave it out: a log line has the id of the call, not its result",
    "retry_backoff": "retries=RetryPolicy(initial=..., factor=2)",
    "retry_backoff_max": "retries=RetryPolicy(max_delay=...)",
    "retry_jitter": "retries=RetryPolicy(jitter=0.5)",
    "retry_kwargs": "retries=RetryPolicy(max=...)",
    "send_events": "@task.on_success, @task.on_retry and @task.on_failure",
    "shared": "leave it out: TaskRouter() declares tasks that several applications include",
    "store_errors_even_if_ignored": _RESULTS,
    "throws": "raise NonRetryable(...) for an end that is expected",
    "time_limit": "timeout=...",
    "track_started": "leave it out: result.status is running, and result.state STARTED, while it runs",
    "trail": "leave it out: a flow has a handle of its own",
    "typing": "leave it out: arguments are always checked, at the call",
}
"""Options of a declaration."""

CALLED: Final[Mapping[str, str]] = {
    "add_to_parent": "leave it out: a flow has a handle of its own",
    "chord": "group(...) | body.s()",
    "compression": "leave it out: arguments are small; store the data and pass its key",
    "connection": _WIRE,
    "countdown": "delay=...",
    "exchange": _ROUTE,
    "group_id": "group(...).delay()",
    "headers": "@tasks.send_middleware: message.carrying({...}); in the task ctx.carried",
    "ignore_result": _RESULTS,
    "immutable": "task.si(...)",
    "mandatory": _WIRE,
    "parent_id": "leave it out: a flow has a handle of its own",
    "priority": _ORDER,
    "producer": _WIRE,
    "publisher": _WIRE,
    "reply_to": _WIRE,
    "retry": "leave it out: a call whose request fails is sent again for a second, and stored once",
    "retry_policy": "leave it out: a call whose request fails is sent again for a second, and stored once",
    "root_id": "leave it out: a flow has a handle of its own",
    "router": _ROUTE,
    "routing_key": _ROUTE,
    "serializer": '@tasks.task(serializer="pickle"), where the task is declared',
    "shadow": 'label="..."',
    "soft_time_limit": "@tasks.task(soft_time_limit=...), where the task is declared",
    "stamped_headers": "@tasks.send_middleware: message.carrying({...})",
    "time_limit": "timeout=...",
}
"""Options of a call."""


def positional(task: str, args: Iterable[Any] | None) -> tuple[Any, ...]:
    """The `args` of `apply_async` as a tuple; None means no arguments. Raises ArgumentsError for a single value.

    A text would be taken apart into its characters, and a set has no order.
    """
    if args is None:
        return ()
    if isinstance(args, (str, bytes, Mapping, set, frozenset)) or not isinstance(args, Iterable):
        raise ArgumentsError(
            f"{task}: args is a {type(args).__name__}, not a list or a tuple of arguments",
            fix="args=(value,), with the comma",
        )
    return tuple(args)


def misnamed(task: str, options: Mapping[str, Any], allowed: Collection[str]) -> DefinitionError | None:
    """The error for options of Celery that are not `allowed` here, with the line to write; None without any."""
    names = DECLARED if "serializer" in allowed else CALLED
    if not (misnamed := {name: names[name] for name in options if name in names and name not in allowed}):
        return None
    own = {name: value for name, value in options.items() if name in allowed}
    if names is DECLARED:
        fix = _decorator(task, options, own)
    else:
        fix = "; ".join(dict.fromkeys(misnamed.values()))
        if set(misnamed) == {"time_limit"}:
            fix = f"timeout={options['time_limit']!r}"
    shown = ", ".join(map(repr, misnamed))
    is_single = len(misnamed) == 1
    return DefinitionError(
        f"{task}: there is no option {shown}, which is a name of Celery"
        if is_single
        else f"{task}: there are no options {shown}, which are names of Celery",
        details=misnamed if names is DECLARED else None,
        fix=fix,
        code=ErrorCode.CELERY_NAME,
    )


def _decorator(task: str, options: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The decorator that says the same."""
    parts = [f"{name}={value!r}" for name, value in own.items()]
    parts += _retries(options)
    if (limit := options.get("time_limit")) is not None:
        parts.append(f"timeout={limit!r}")
    if (rate := options.get("rate_limit")) is not None:
        parts.append(f"key={task!r}, rate={_rate(rate)}".replace("'", '"'))
    line = f"@tasks.task({', '.join(parts)})" if parts else "@tasks.task"
    return f"{line}, and `ctx: TaskContext = injected` in place of `self`" if options.get("bind") else line


def _retries(options: Mapping[str, Any]) -> list[str]:
    """The options that say when and how often to try again."""
    settings = options.get("retry_kwargs") or {}
    most = settings.get("max_retries", options.get("max_retries", 3))
    most = 999 if most is None else most
    delay = settings.get("countdown", options.get("default_retry_delay"))
    errors, never = options.get("autoretry_for"), options.get("dont_autoretry_for")
    backoff = options.get("retry_backoff")
    if not (errors or never or backoff):
        counts = [f"retries={most}"] if "max_retries" in options or "max_retries" in settings else []
        return counts + ([] if delay is None else [f"retry_delay={delay!r}"])
    policy = [f"max={most}"]
    if errors:
        policy.append(f"on={_classes(errors)}")
    if never:
        policy.append(f"give_up_on={_classes(never)}")
    if backoff:
        policy.append(f"initial={int(backoff)}, factor=2, max_delay={options.get('retry_backoff_max', 600)!r}")
        if options.get("retry_jitter", True):
            policy.append("jitter=0.5")
    else:
        policy.append(f"initial={180 if delay is None else delay!r}, factor=1")
    return [f"retries=RetryPolicy({', '.join(policy)})"]


def _classes(errors: Any) -> str:
    names = [
        getattr(each, "__name__", repr(each)) for each in (errors if isinstance(errors, tuple | list) else (errors,))
    ]
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def _rate(value: Any) -> str:
    """Celery's ``10/m`` as ours."""
    match = re.fullmatch(r"(\d+)/([smh])", str(value))
    return f'"{match[1]}/1{match[2]}"' if match else f"{value!r}"
