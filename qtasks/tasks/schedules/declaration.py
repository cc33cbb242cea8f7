"""Declared schedules: what the code declares, and the schedule that the service should have. Pure: `sync` acts.

The id of a schedule is made of the environment (the address of the dispatcher, `QTASKS_BASE_URL`), the name of the task
and the name of the schedule, and of nothing else. It stays the same when the expression or the arguments change, and
two environments that share an account never have the same ids, even if they run the same code.

Labels mark the schedules that qtasks made, and their runs: `DECLARED` for a schedule that the code declares, so that
`sync` may remove it when the declaration no longer exists; `DYNAMIC` for one that a running program made; and
``qtasks.<environment>.<fingerprint>``, where the fingerprint is a hash of the whole schedule. `existing_schedule` and
`diff` read them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, get_args

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, DefinitionError, did_you_mean
from qtasks.protocol import wire
from qtasks.protocol.cron import Cron
from qtasks.protocol.labels.schedule_labels import DECLARED
from qtasks.protocol.messages import PublishOptions
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.pickling import Purpose
from qtasks.tasks.options import TaskOptions
from qtasks.tasks.schedules.recurrence import Zone
from qtasks.tasks.send.end_callback import EndQuery, ending_at
from qtasks.tasks.send.outgoing import Outgoing

MAX_ID = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Overlap = Literal["allow", "wait", "skip"]


class ScheduleOptions(TypedDict, total=False):
    """Options of a schedule. An absent key leaves the default."""

    tz: Zone
    """Time zone of the expression, such as ``"Europe/Berlin"``; UTC by default."""
    overlap: Overlap
    """What happens to a run while the previous one is still running. ``"allow"``, the default: both run. ``"wait"``: it
    waits; attempts run one at a time (by flow control, on every service). ``"skip"``: it ends at once as cancelled;
    needs a result store that all processes that run the task share. A run that waits for a retry does not count as
    running."""
    args: Sequence[Any]
    """Positional arguments of every run; none by default."""
    kwargs: Mapping[str, Any]
    """Named arguments of every run; none by default."""


class DeclarationOptions(TaskOptions, ScheduleOptions, total=False):
    """Options of `cron` and `every`. Those of the task are allowed only where the decorator makes the task."""

    schedule: str
    """Name of the schedule, if a task has several; empty by default. 1 to 64 letters, digits, ``_``, ``.`` or ``-``."""
    name: str
    """Name of the task; that of the function by default."""
    aliases: Sequence[str]
    """Earlier names of the task, as for `task`."""


@dataclass(frozen=True, slots=True)
class DesiredSchedule:
    """A schedule as the service should have it."""

    title: str
    destination: str
    body: bytes = field(repr=False)
    options: PublishOptions
    """What the code declares. The end callback is not a part of it: it never makes a schedule look changed."""
    end_url: str = ""
    """Where the ends of its calls are reported."""
    is_lasting: bool = True
    """False if another body may say the same, because arguments are encoded or contain, for example, a random id. Only
    the fingerprint tells."""

    @property
    def id(self) -> str:
        """The schedule id at the service."""
        return self.options.schedule_id or ""

    def sent(self, interrupted_for_ms: int) -> PublishOptions:
        """The options that the service gets; `interrupted_for_ms` is for a task that does not set it."""
        return ending_at(self.end_url, self.options, None, interrupted_for_ms=interrupted_for_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDeclaration:
    """A task, when it runs, and with which arguments. `label` is `DECLARED` or `DYNAMIC`."""

    task: BaseTask[..., Any]
    cron: Cron
    name: str = ""
    overlap: Overlap = "allow"
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    label: str = DECLARED

    @property
    def title(self) -> str:
        """``task`` or ``task:name``: the name of the schedule in Python and on the command line."""
        return title(self.task.name, self.name)

    def check(self) -> None:
        """Validate everything. Raises DefinitionError; ArgumentsError for arguments that do not fit the task."""
        if self.name and _NAME.fullmatch(self.name) is None:
            raise self._error(f"{self.name!r} is not a valid name for a schedule: 1 to 64 letters, digits, _ . -")
        if self.overlap not in get_args(Overlap):
            raise self._error(f"overlap={self.overlap!r}: expected one of {', '.join(map(repr, get_args(Overlap)))}")
        if isinstance(self.args, str) or not isinstance(self.args, Sequence):
            raise self._error(f"args={self.args!r}: expected a list of arguments", fix="args=[...]")
        if (length := len(identity("", self.task.name, self.name))) > MAX_ID:
            raise self._error(f"its id would have {length} characters; {MAX_ID} are allowed")
        self._check_options()
        try:
            parameters = self.task.parameters
        except DefinitionError:
            return  # an annotation names a class that is defined later: the start, or the first call, checks again
        parameters.to_json(parameters.check(parameters.bind(self.args, self.kwargs)))

    def _check_options(self) -> None:
        options = self.task.delivery_options
        if options.unique:
            raise self._error(
                "`unique` is decided by the process that sends a call, and the service sends the calls of a schedule",
                fix='overlap="skip" or overlap="wait"',
            )
        if options.form.pickled:
            raise self._error(
                "its arguments are pickled, and a schedule may outlive the Python version that a pickle needs",
                fix="schedule a task that takes JSON and calls this one",
            )
        if options.expires is not None:
            raise self._error("`expires` starts with the call, and the service sends the calls of a schedule")
        if options.publish.not_before_s is not None or options.publish.deduplication_id is not None:
            raise self._error("`eta` and `deduplication_id` belong to one call; a schedule makes many")
        self.task.for_flow()
        if self.overlap == "skip" and self.task.is_llm:
            raise self._error(
                "no process runs a call while a language model works on it, so overlaps cannot be seen",
                fix='overlap="wait"',
            )
        if self.overlap == "wait" and options.publish.flow_control is not None:
            raise self._error(
                'overlap="wait" uses a flow-control key of its own, and a call can have only one key',
                fix=f"leave out overlap; parallelism=1 lets calls with the key "
                f"{options.publish.flow_control.key!r} run one at a time",
            )
        if self.overlap == "wait" and options.queue is not None:
            raise self._error('a queue already decides which calls wait, so overlap="wait" has no meaning with it')

    def call(self, base_url: str, *, is_run: bool = True) -> Outgoing:
        """The message of a run now, with a new call id. Raises DefinitionError, ArgumentsError.

        `is_run` is false for the message that is the model of all runs.
        """
        schedule_id = identity(base_url, self.task.name, self.name)
        task = self.task.using(key=schedule_id, parallelism=1) if self.overlap == "wait" else self.task
        values = task.parameters.check(task.parameters.bind(self.args, self.kwargs))
        purpose = None if is_run else Purpose.schedule(task.name, schedule_id)
        message = task.message_with(values, len(self.args), purpose=purpose)
        overlap = envelopes.SKIP if self.overlap == envelopes.SKIP else None
        envelope = message.envelope._replace(schedule=schedule_id, overlap=overlap)
        options = replace(message.options, labels=(self.label, *message.options.labels), delay_ms=None)
        return replace(message, envelope=envelope, options=options)

    def desired(self, base_url: str) -> DesiredSchedule:
        """The schedule that the service should have for environment `base_url`. Raises as `call`."""
        call = self.call(base_url, is_run=False)
        # The body is the same at every tick, so the call id of a run is made of its message id.
        body = self.task.encoded(replace(call, envelope=call.envelope._replace(call_id=None))).body
        options = replace(
            call.options,
            labels=call.labels,
            delay_ms=self.task.delivery_options.publish.delay_ms,
            cron=self.cron.text,
            schedule_id=call.envelope.schedule,
            queue=call.queue,
        )
        destination = f"{base_url}/{call.task}"
        kind_label, *other_labels = options.labels
        compared = self._compared(call.envelope, body)
        fingerprint = f"{label_prefix(base_url)}{_fingerprint(destination, compared, options)}"
        labels = (kind_label, fingerprint, *other_labels)
        end_url = EndQuery(call.task).url(base_url)
        return DesiredSchedule(
            self.title, destination, body, replace(options, labels=labels), end_url, is_lasting=compared is body
        )

    def _compared(self, envelope: Envelope, body: bytes) -> bytes:
        """What the fingerprint covers: `body`, or what is the same in every process where the body is another one."""
        parameters = self.task.parameters
        lasting = parameters.lasting_json(parameters.check(parameters.bind(self.args, self.kwargs)))
        args, kwargs = parameters.arrange(lasting, len(self.args))
        plain = envelope._replace(call_id=None, coded=None, args=args, kwargs=kwargs)
        if envelope.coded is not None:
            return self.task.codec.encoding.fingerprint(envelopes.encode(plain))
        is_same = (list(envelope.args), dict(envelope.kwargs)) == (args, kwargs)
        return body if is_same else envelopes.encode(plain)

    def _error(self, text: str, *, fix: str | None = None) -> DefinitionError:
        return DefinitionError(f"schedule {self.title}: {text}", fix=fix, code=ErrorCode.OPTION_INVALID)


def declare(
    task: BaseTask[..., Any], cron: Cron, name: str, options: Mapping[str, Any], *, label: str = DECLARED
) -> ScheduleDeclaration:
    """A validated declaration. `options` are `ScheduleOptions`; `cron` already contains the zone.

    Raises DefinitionError for an option that cannot work, ArgumentsError for arguments that do not fit the task.
    """
    allowed = tuple(ScheduleOptions.__annotations__)
    for option in options:
        if option not in allowed:
            raise DefinitionError(
                f"schedule {title(task.name, name)}: there is no option {option!r}{did_you_mean(option, allowed)}",
                details={"options": ", ".join(allowed)},
                fix="give options of the calls to .using(...)",
                code=ErrorCode.OPTION_INVALID,
            )
    declaration = ScheduleDeclaration(
        task=task,
        cron=cron,
        name=name,
        overlap=options.get("overlap", "allow"),
        args=options.get("args", ()),
        kwargs=options.get("kwargs") or {},
        label=label,
    )
    declaration.check()
    return declaration


def title(task: str, name: str) -> str:
    """``task`` or ``task:name``."""
    return f"{task}:{name}" if name else task


def identity(base_url: str, task: str, name: str) -> str:
    """The schedule id at the service, such as ``report.weekend-5b0c6c1e9f2a``. It must never change.

    Task and schedule name make it readable; the digest also covers the environment.
    """
    digest = hashlib.sha256(f"{base_url}\n{task}\n{name}".encode()).hexdigest()[:12]
    return f"{task}.{name}-{digest}" if name else f"{task}-{digest}"


def label_prefix(base_url: str) -> str:
    """The beginning of the label that says to which environment a schedule belongs."""
    return f"qtasks.{hashlib.sha256(base_url.encode()).hexdigest()[:8]}."


def declaration_error(error: ArgumentsError, title: str) -> DefinitionError:
    """The error for wrong or missing arguments in the declaration of schedule `title`."""
    return DefinitionError(
        f"schedule {title}: {error.message}",
        details=error.details,
        fix=error.fix or 'args=[...] or kwargs={"...": ...} beside the expression, or a default',
        code=error.code,
    )


def _fingerprint(destination: str, body: bytes, options: PublishOptions) -> str:
    lines = [f"{name}: {value}" for name, value in wire.write(options)]
    return hashlib.sha256("\n".join((destination, *lines, "")).encode() + body).hexdigest()[:12]
