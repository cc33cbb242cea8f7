"""Schedules as code: what a task declares, and how it is told to the service. Pure; `scheduling` acts.

A schedule's id is made of the environment (the address of the dispatcher, `QTASKS_BASE_URL`), the task's name and the
schedule's own, and of nothing else. So it stays what it is when the expression or the arguments change, and two
environments that share an account never meet, not even where they run the same code.

What is ours says so, in the labels that its runs have too: `DECLARED` for a schedule that stands in the code, so that
`sync` may remove it once it does not, or `DYNAMIC` for one that a running program has made; and
``qtasks.<environment>.<fingerprint>``, where the fingerprint is that of all that was sent. `drift` reads them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, DefinitionError, did_you_mean
from qtasks.protocol import wire
from qtasks.protocol.cron import Cron
from qtasks.protocol.messages import PublishOptions
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.options import TaskOptions
from qtasks.tasks.schedules.recurrence import Zone
from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.tasks.task import Task

DECLARED, DYNAMIC = "qtasks-schedule", "qtasks-schedule-dynamic"
MAX_ID = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Overlap = Literal["allow", "wait", "skip"]


class ScheduleOptions(TypedDict, total=False):
    """How a task runs by the clock; an absent key means "not said"."""

    tz: Zone
    """The zone of the expression, such as ``"Europe/Berlin"``; UTC by default."""
    overlap: Overlap
    """What becomes of a run while the one before it is under way. ``"allow"``, the default: both run. ``"wait"``: it
    waits, as many as there are; attempts run one at a time (by flow control, on every service). ``"skip"``: it ends at
    once as cancelled; needs a place for results that all processes share which run the task. A run that waits for a
    retry is not under way."""
    args: Sequence[Any]
    """Positional arguments of every run."""
    kwargs: Mapping[str, Any]
    """Named arguments of every run."""


class DeclarationOptions(TaskOptions, ScheduleOptions, total=False):
    """What `cron` and `every` take; those of the task only where they make one of a function."""

    schedule: str
    """The name of this schedule, where a task has several."""
    name: str
    """Of the task, in place of its function's."""
    aliases: Sequence[str]
    """As of `task`."""


@dataclass(frozen=True, slots=True)
class DesiredSchedule:
    """A schedule as the service is to have it."""

    title: str
    destination: str
    body: bytes = field(repr=False)
    options: PublishOptions

    @property
    def id(self) -> str:
        """Its id at the service."""
        return self.options.schedule_id or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDeclaration:
    """A task, when it runs, and with what arguments. `label` is `DECLARED` or `DYNAMIC`."""

    task: Task[..., Any]
    cron: Cron
    name: str = ""
    overlap: Overlap = "allow"
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    label: str = DECLARED

    @property
    def title(self) -> str:
        """``task`` or ``task:name``: what it is called here and on the command line."""
        return title(self.task.name, self.name)

    def check(self) -> None:
        """Refuse what cannot work. Raises DefinitionError, ArgumentsError for arguments that do not fit."""
        if self.name and _NAME.fullmatch(self.name) is None:
            raise self._error(f"{self.name!r} is no name for a schedule: 1 to 64 letters, digits, _ . -")
        if self.overlap not in get_args(Overlap):
            raise self._error(f"overlap={self.overlap!r}: {', '.join(map(repr, get_args(Overlap)))} are known")
        if isinstance(self.args, str) or not isinstance(self.args, Sequence):
            raise self._error(f"args={self.args!r}: a list of arguments is wanted", fix="args=[...]")
        if (length := len(identity("", self.task.name, self.name))) > MAX_ID:
            raise self._error(f"its id would have {length} characters; {MAX_ID} are allowed")
        self._check_options()
        try:
            parameters = self.task.parameters
        except DefinitionError:
            return  # a name that the module does not have yet: the start, or the first call, looks again
        parameters.to_json(parameters.check(parameters.bind(self.args, self.kwargs)))

    def _check_options(self) -> None:
        how = self.task.delivery_options
        if how.unique:
            raise self._error(
                "`unique` is decided where a call is made, and nobody makes the calls of a schedule",
                fix='overlap="skip" or overlap="wait"',
            )
        if how.pickled:
            raise self._error(
                "its arguments are pickled, and a pickle is for one version of Python, which a schedule outlives",
                fix="schedule a task that takes JSON, and have it call this one",
            )
        if how.expires is not None:
            raise self._error("`expires` is counted from a call, and nobody makes the calls of a schedule")
        if how.publish.not_before_s is not None or how.publish.deduplication_id is not None:
            raise self._error("`eta` and `deduplication_id` are of one call; a schedule makes many")
        self.task.for_flow()
        if self.overlap == "skip" and self.task.asks:
            raise self._error(
                "while a language model works on a call, nothing of it is under way here that could be seen",
                fix='overlap="wait"',
            )
        if self.overlap == "wait" and how.publish.flow_control is not None:
            raise self._error(
                'overlap="wait" limits its runs by a key of its own, and a call has one key',
                fix=f"leave out overlap; parallelism=1 lets calls of the key "
                f"{how.publish.flow_control.key!r} run one at a time",
            )
        if self.overlap == "wait" and how.queue is not None:
            raise self._error('a queue decides what waits, so overlap="wait" has no meaning there')

    def call(self, base_url: str) -> Outgoing:
        """A run now, with an id of its own. Raises DefinitionError, ArgumentsError."""
        own = identity(base_url, self.task.name, self.name)
        task = self.task.using(key=own, parallelism=1) if self.overlap == "wait" else self.task
        message = task.carrying(task.parameters.check(task.parameters.bind(self.args, self.kwargs)), len(self.args))
        assert message.envelope is not None
        envelope = replace(
            message.envelope, schedule=own, overlap=envelopes.SKIP if self.overlap == envelopes.SKIP else None
        )
        options = replace(message.options, labels=(self.label, *message.options.labels), delay_ms=None)
        return replace(message, envelope=envelope, options=options).sealed()

    def desired(self, base_url: str) -> DesiredSchedule:
        """The schedule at the service of environment `base_url`. Raises as `call`."""
        call = self.call(base_url)
        assert call.envelope is not None
        body = envelopes.encode(replace(call.envelope, call_id=None))  # static, so a run is named by its message
        options = replace(
            call.options,
            delay_ms=self.task.delivery_options.publish.delay_ms,
            cron=self.cron.text,
            schedule_id=call.envelope.schedule,
            queue=call.queue,
        )
        destination = f"{base_url}/{call.task}"
        kind, *given = options.labels
        labels = (kind, f"{mark(base_url)}{_fingerprint(destination, body, options)}", *given)
        return DesiredSchedule(self.title, destination, body, replace(options, labels=labels))

    def _error(self, text: str, *, fix: str | None = None) -> DefinitionError:
        return DefinitionError(f"schedule {self.title}: {text}", fix=fix, code=ErrorCode.OPTION_INVALID)


def declaration(
    task: Task[..., Any], timing: Cron, name: str, options: Mapping[str, Any], *, label: str = DECLARED
) -> ScheduleDeclaration:
    """A checked declaration. `options` are `ScheduleOptions`, their zone being in `timing` already.

    Raises DefinitionError for an option that cannot work, ArgumentsError for arguments that do not fit.
    """
    for option in options:
        if option not in (known := tuple(ScheduleOptions.__annotations__)):
            raise DefinitionError(
                f"schedule {title(task.name, name)}: there is no option {option!r}{did_you_mean(option, known)}",
                details={"known": ", ".join(known)},
                fix="give options of the calls to .using(...)",
                code=ErrorCode.OPTION_INVALID,
            )
    made = ScheduleDeclaration(
        task=task,
        cron=timing,
        name=name,
        overlap=options.get("overlap", "allow"),
        args=options.get("args", ()),
        kwargs=options.get("kwargs") or {},
        label=label,
    )
    made.check()
    return made


def title(task: str, name: str) -> str:
    """``task`` or ``task:name``."""
    return f"{task}:{name}" if name else task


def identity(base_url: str, task: str, name: str) -> str:
    """The id of a schedule at the service, for ever: what a person knows it by, and a digest that also has the place.

    ``report.weekend-5b0c6c1e9f2a``.
    """
    digest = hashlib.sha256(f"{base_url}\n{task}\n{name}".encode()).hexdigest()[:12]
    return f"{task}.{name}-{digest}" if name else f"{task}-{digest}"


def mark(base_url: str) -> str:
    """How the label begins that says of which environment a schedule is."""
    return f"qtasks.{hashlib.sha256(base_url.encode()).hexdigest()[:8]}."


def as_declared(error: ArgumentsError, name: str) -> DefinitionError:
    """The error of arguments that stand in a declaration, or should."""
    return DefinitionError(
        f"schedule {name}: {error.message}",
        details=error.details,
        fix=error.fix or 'args=[...] or kwargs={"...": ...} beside the expression, or a default',
        code=error.code,
    )


def _fingerprint(destination: str, body: bytes, options: PublishOptions) -> str:
    lines = [f"{name}: {value}" for name, value in wire.write(options)]
    return hashlib.sha256("\n".join((destination, *lines, "")).encode() + body).hexdigest()[:12]
