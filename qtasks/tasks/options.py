"""Options of tasks and calls: as users write them (TypedDicts), and in the protocol's form (`DeliveryOptions`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError, did_you_mean
from qtasks.protocol import durations, expressions, targets, wire
from qtasks.protocol.labels import argument_labels
from qtasks.protocol.messages import (
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_MS,
    MAX_DELAY_MS,
    MAX_RETRIES,
    MAX_TIMEOUT_MS,
    FlowControl,
    PublishOptions,
    Redaction,
)
from qtasks.tasks.celery import celery_options
from qtasks.tasks.codec import AS_JSON, Codec, WireForm, wire_form
from qtasks.tasks.retries import RetryPolicy

Span = str | float | timedelta
"""``"1h30m"``, a number of seconds, or a timedelta."""


class AttemptOptions(TypedDict, total=False):
    """Options of everything that is delivered: tasks, calls and completions. An absent key leaves the default."""

    retries: int | RetryPolicy
    """Attempts after the first, 0 to 999; 3 by default. A `RetryPolicy` also sets the waits, and after which errors to
    retry."""
    retry_delay: Span
    """Wait before each retry: a time, or an expression in milliseconds over `retried` (0 before the first retry), such
    as ``"pow(2, retried) * 1000"``; a day at most. By default the wait grows: 12 s, 2 m 28 s, 30 m 8 s, 6 h 7 m 6 s,
    then a day."""
    timeout: Span
    """Longest time for one attempt; 15 minutes by default, 2 hours at most."""
    label: str | Sequence[str]
    """One label or several, by which logs and dead letters can be filtered; none by default. Without commas."""
    key: str
    """Flow-control key: all calls with this key share `rate` and `parallelism`, even calls of different tasks. None by
    default. Needs at least one of the two limits."""
    rate: int | str
    """Starts per second for the key, or per another period: ``"10/1m"`` is ten a minute; a week at most. Unlimited by
    default. Needs `key`."""
    parallelism: int
    """How many calls with the key may run at the same time, 1 or more. Unlimited by default. Needs `key`."""


class CommonOptions(AttemptOptions, total=False):
    """Options of a task, for all its calls, or of one call."""

    queue: str
    """Name of the queue for the call; none by default. A queue starts calls in order, as many at a time as its
    parallelism allows. Not with `delay` or `eta`."""
    unique: bool | str | Sequence[str]
    """Allow only one unfinished call at a time: True compares all arguments, names compare only these parameters; False
    by default. A second call is not sent, and its handle is that of the first. A call that never ends blocks others for
    a day at most. Needs a result store."""
    unique_for: Span
    """With `unique`: block others for this long after the call, finished or not; a year at most. By default until the
    call is done."""
    callback: str
    """URL to which the broker sends the response of every attempt; none by default."""
    failure_callback: str
    """URL to which the broker sends one message when the call has finally failed; none by default."""
    interrupted_for: Span
    """For how long interrupted attempts spend no retry (nothing listens, the connection is cut, the process drains); a
    year at most, ``"0"``: they count at once. 24 hours by default, or the setting of the same name. Only on our broker;
    the hosted service counts every attempt."""
    redact: bool
    """Hide the arguments in logs and dead letters; False by default. Deliveries carry them unchanged."""


class SearchOptions(TypedDict, total=False):
    """The option of a task, of an LLM task too, by which its calls are found."""

    search: str | Sequence[str]
    """Parameters by whose values calls are found at once, also among millions: ``search=("user_id",)`` and then the
    filter ``arg.user_id:42``. Up to 8; none by default. Their values travel as labels, which
    the logs show: no secrets, and not with `encrypt`, `codec`, ``"pickle"`` or `redact`."""


class TaskOptions(CommonOptions, SearchOptions, total=False):
    """Options of a task."""

    soft_time_limit: Span
    """Only for an ``async def``: raise SoftTimeLimitExceeded inside of it after this time, which must be shorter than
    `timeout`; none by default. A ``def`` checks `TaskContext.should_stop`."""
    serializer: Literal["json", "pickle"]
    """How arguments travel: ``"json"``, the default, by their annotations; or ``"pickle"``, with cloudpickle, which is
    then also used for results that are not JSON. A pickle can run any code, so pickles also need `allow_pickle` and
    `QTASKS_SECRET_KEY`. ``"json"`` also means: not by the application's codec."""
    codec: Codec
    """How arguments and results become bytes, in place of JSON; that of the application by default. Not with
    `serializer`."""
    encrypt: bool
    """Encrypt arguments and results with `QTASKS_SECRET_KEY`, so that neither the broker nor the result store can read
    them; as the application says by default. Needs the extra ``crypto``."""
    accepts: Sequence[Codec | Literal["json", "encrypted", "unencrypted"]]
    """What is read beside the declared form, while calls made before a change of `codec` or `encrypt` are on their way:
    other codecs, ``"json"``, ``"encrypted"``, ``"unencrypted"``. Nothing by default, or as the application says."""


class CallOptions(CommonOptions, total=False):
    """Options of one call."""

    delay: Span
    """Run at this time after now or later; 0 by default, a year at most. Not with `eta` or `queue`."""
    eta: datetime
    """Run at this moment or later; a datetime with a time zone. By default at once. Not with `delay` or `queue`."""
    expires: Span | datetime
    """Do not run after this moment, or this long after the call (a year at most): the call then ends as expired. Never
    by default."""
    deduplication_id: str
    """Do not send a second call with the same id within ten minutes; its handle is that of the first. Visible ASCII
    characters without a colon; none by default."""


class ApplyOptions(CallOptions, total=False):
    """Options of `apply_async`: those of a call, and Celery's names for two of them."""

    countdown: Span
    """Celery's name for `delay`."""
    task_id: str
    """Id of the call; a new one by default."""
    link: Any
    """A call made with ``.s()`` or ``.si()``, or a list of them: made once this one has succeeded, with its result as
    the first argument. None by default."""
    link_error: Any
    """The same once this one has failed for good, with its id and its error as the first arguments; with the id alone
    if the task has no room for both. None by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOptions:
    """The options of a call in the protocol's form, and those that only the dispatcher and the client use."""

    publish: PublishOptions
    retries: int
    """Attempts after the first."""
    jitter: float = 0.0
    """Part of each wait, 0 to 1, by which it changes at random."""
    expires: Span | datetime | None = None
    """As the user wrote it: a time span starts at the call."""
    queue: str | None = None
    unique: bool | str | tuple[str, ...] = False
    """True for all parameters, or the names of those that identify the call."""
    unique_ms: int | None = None
    """How long a unique call blocks others, in milliseconds; None: until it is done."""
    form: WireForm = AS_JSON
    """How arguments and results travel, as far as the options say it."""
    search: tuple[str, ...] = ()
    """Names of the parameters by whose values calls are found."""
    soft_limit_ms: int | None = None
    """After this time SoftTimeLimitExceeded is raised in the function; None: it is not."""

    def expires_ms(self, now_ms: int) -> int | None:
        """Unix time in milliseconds after which a call made at `now_ms` does not run any more; None: never."""
        if self.expires is None:
            return None
        if isinstance(self.expires, datetime):
            return max(0, math.floor(self.expires.timestamp() * 1000))
        return now_ms + durations.to_ms(self.expires)


_CALL_OPTIONS = tuple(CallOptions.__annotations__)
_FORM = ("serializer", "codec", "encrypt", "accepts")


def merge(declared: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`declared` with `options` over it. Of two options that exclude each other, the one in `options` remains."""
    merged = {**declared, **options}
    if isinstance(options.get("retries"), RetryPolicy) and "retry_delay" not in options:
        merged.pop("retry_delay", None)
    elif "retry_delay" in options and "retries" not in options and isinstance(merged.get("retries"), RetryPolicy):
        merged["retries"] = merged["retries"].max
    for name, other in (("delay", "eta"), ("eta", "delay")):
        if name in options and other not in options:
            merged.pop(other, None)
    if options.get("redact"):
        merged.pop("search", None)
    return merged


def check(
    task: str,
    options: Mapping[str, Any],
    *,
    allowed: Sequence[str] = _CALL_OPTIONS,
    merged: Mapping[str, Any] | None = None,
) -> None:
    """Validate `options`, alone and merged with the declaration. Raises DefinitionError naming the option."""
    policy = options.get("retries")
    if "expires" in allowed and isinstance(policy, RetryPolicy) and policy.chooses:
        raise _error(
            task,
            "the policy of one call cannot depend on the type of error: exception classes cannot travel with a call",
            fix="give `on` and `give_up_on` where the task is declared",
        )
    if (misnamed := celery_options.misnamed(task, options, allowed)) is not None:
        raise misnamed
    for name in options:
        if name not in allowed:
            guess = did_you_mean(name, allowed)
            raise _error(task, f"there is no option {name!r}{guess}", details={"options": ", ".join(allowed)})
    delivery_options(task, options if merged is None else merged)


def delivery_options(task: str, options: Mapping[str, Any]) -> DeliveryOptions:
    """Convert `options` to the protocol's form. Raises DefinitionError naming an option with a wrong value.

    A value of None is the same as an absent key.
    """
    if options.get("delay") is not None and options.get("eta") is not None:
        raise _error(task, "delay and eta contradict each other", fix="give one of them")
    retries, retry_delay, jitter = _retries(task, options)
    if retries is not None and not (type(retries) is int and 0 <= retries <= MAX_RETRIES):
        raise _error(task, f"retries is {retries!r}; expected a whole number from 0 to {MAX_RETRIES}")
    publish = PublishOptions(
        method="POST",
        content_type="application/json",
        delay_ms=_span(task, "delay", options.get("delay"), MAX_DELAY_MS),
        not_before_s=_moment(task, options.get("eta")),
        retries=retries,
        retry_delay=retry_delay,
        timeout_ms=_span(task, "timeout", options.get("timeout"), MAX_TIMEOUT_MS, least_ms=1),
        deduplication_id=_deduplication_id(task, options.get("deduplication_id")),
        labels=_labels(task, options.get("label")),
        flow_control=_flow_control(task, options),
        callback=_url(task, "callback", options.get("callback")),
        failure_callback=_url(task, "failure_callback", options.get("failure_callback")),
        redact=_redaction(task, options.get("redact")),
        interrupted_for_ms=_span(task, "interrupted_for", options.get("interrupted_for"), MAX_DELAY_MS),
    )
    queue = _queue(task, options)
    expires = options.get("expires")
    if isinstance(expires, datetime):
        _moment(task, expires, name="expires")
    else:
        _span(task, "expires", expires, MAX_DELAY_MS)
    unique, unique_ms = _unique(task, options)
    form = _form(task, options)
    return DeliveryOptions(
        publish=publish,
        retries=DEFAULT_RETRIES if retries is None else retries,
        jitter=jitter,
        expires=expires,
        queue=queue,
        unique=unique,
        unique_ms=unique_ms,
        form=form,
        search=_search(task, options, form),
        soft_limit_ms=_soft_limit(task, options, publish.timeout_ms),
    )


def _retries(task: str, options: Mapping[str, Any]) -> tuple[Any, str | None, float]:
    """The number of retries, the expression for the waits before them, and the jitter."""
    retries = options.get("retries")
    if not isinstance(retries, RetryPolicy):
        return retries, _retry_delay(task, options.get("retry_delay")), 0.0
    if options.get("retry_delay") is not None:
        raise _error(task, "a RetryPolicy and retry_delay contradict each other", fix="give one of them")
    return retries.max, retries.expression, retries.jitter


def _span(task: str, name: str, value: Span | None, limit_ms: int, *, least_ms: int = 0) -> int | None:
    if value is None:
        return None
    try:
        span_ms = durations.to_ms(value)
    except (ValueError, TypeError) as error:
        raise _error(task, f"{name}={value!r}: {error}") from None
    if not least_ms <= span_ms <= limit_ms:
        raise _error(task, f"{name}={value!r} is not between {least_ms} ms and {durations.format(limit_ms)}")
    return span_ms


def _soft_limit(task: str, options: Mapping[str, Any], timeout_ms: int | None) -> int | None:
    limit_ms = _span(task, "soft_time_limit", options.get("soft_time_limit"), MAX_TIMEOUT_MS, least_ms=1)
    timeout_ms = timeout_ms or DEFAULT_TIMEOUT_MS
    if limit_ms is not None and limit_ms >= timeout_ms:
        raise _error(
            task,
            f"soft_time_limit={options['soft_time_limit']!r} is not shorter than its timeout, "
            f"{durations.format(timeout_ms)}",
            fix="raise the timeout, or lower the soft time limit",
        )
    return limit_ms


def _moment(task: str, value: Any, *, name: str = "eta") -> int | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise _error(
            task,
            f"{name}={value!r} is not a moment: expected a datetime with a time zone",
            fix="datetime(..., tzinfo=ZoneInfo(...)) or datetime.now(UTC) + timedelta(...)",
        )
    return max(0, math.ceil(value.timestamp()))


def _retry_delay(task: str, value: Span | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or _is_duration(value):
        return str(_span(task, "retry_delay", value, expressions.MAX_DELAY_MS))
    try:
        return expressions.parse(value).text
    except ValueError as error:
        raise _error(
            task,
            f"retry_delay={value!r} is neither a time nor an expression: {error}",
            fix='write "30s", or milliseconds such as "pow(2, retried) * 1000"',
        ) from None


def _is_duration(text: str) -> bool:
    try:
        durations.parse(text)
    except ValueError:
        return False
    return True


def _deduplication_id(task: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or ":" in value or not value.isascii() or not value.isprintable():
        raise _error(task, f"deduplication_id={value!r}: expected visible ASCII characters without a colon")
    return value


def _labels(task: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    labels = (value,) if isinstance(value, str) else tuple(value)
    for label in labels:
        if not isinstance(label, str) or not label.strip() or "," in label or not label.isprintable():
            raise _error(task, f"label={value!r}: expected texts without a comma")
        if argument_labels.is_argument_label(label):
            raise _error(task, f"label={value!r}: {argument_labels.PREFIX} begins the labels of `search`")
    return labels


def _queue(task: str, options: Mapping[str, Any]) -> str | None:
    if (queue := options.get("queue")) is None:
        return None
    if options.get("delay") is not None or options.get("eta") is not None:
        raise _error(
            task,
            "a queue starts its calls in order, so delay and eta have no meaning there",
            fix='leave out one of them; queue=None takes one call out of the queue of its task, key="..." with '
            "parallelism=... limits calls that also have a delay",
        )
    try:
        return targets.check_name(queue, "queue name")
    except (ValueError, TypeError) as error:
        raise _error(task, f"queue={queue!r}: {error}") from None


def _unique(task: str, options: Mapping[str, Any]) -> tuple[bool | str | tuple[str, ...], int | None]:
    value = options.get("unique")
    unique = tuple(value) if isinstance(value, (list, tuple)) else False if value is None else value
    names = unique if isinstance(unique, tuple) else ()
    if not isinstance(unique, (bool, str, tuple)) or unique in ("", ()) or not all(type(name) is str for name in names):
        raise _error(task, f"unique={value!r}: expected True, the name of a parameter, or a list of names")
    window_ms = _span(task, "unique_for", options.get("unique_for"), MAX_DELAY_MS, least_ms=1)
    if window_ms is not None and not unique:
        raise _error(task, "unique_for sets a time, but `unique` is not set", fix="unique=True")
    return unique, window_ms


def _form(task: str, options: Mapping[str, Any]) -> WireForm:
    if not any(options.get(name) is not None for name in _FORM):
        return AS_JSON
    form = wire_form(task, **{name: options.get(name) for name in _FORM})
    if form.pickled and options.get("unique") is True:
        raise _error(
            task,
            "pickles of equal arguments can differ, so unique=True cannot compare them",
            fix="name the parameters that identify a call",
        )
    return form


def _search(task: str, options: Mapping[str, Any], form: WireForm) -> tuple[str, ...]:
    value = options.get("search")
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if names and options.get("redact"):
        raise _error(task, "`search` shows arguments in the logs, and `redact` hides them", fix="leave out one of them")
    if names:
        form.check_searchable(task)
    return names


def _flow_control(task: str, options: Mapping[str, Any]) -> FlowControl | None:
    key, rate, parallelism = options.get("key"), options.get("rate"), options.get("parallelism")
    if key is None:
        if rate is None and parallelism is None:
            return None
        raise _error(task, "rate and parallelism are limits of a key, and there is no key", fix='key="..."')
    if not isinstance(key, str) or not 1 <= len(key) <= wire.MAX_TEXT or not key.isprintable() or not key.isascii():
        raise _error(task, f"key={key!r}: expected 1 to {wire.MAX_TEXT} visible ASCII characters")
    if rate is None and parallelism is None:
        raise _error(task, "a key without limits limits nothing", fix="give rate or parallelism, or both")
    if parallelism is not None and not (type(parallelism) is int and 1 <= parallelism <= wire.MAX_LIMIT):
        raise _error(task, f"parallelism={parallelism!r}: expected a whole number from 1")
    starts, period_s = _rate(task, rate)
    return FlowControl(key, parallelism, starts, period_s)


def _rate(task: str, value: Any) -> tuple[int | None, int]:
    """Starts, and the period in seconds: 10 is (10, 1), ``"10/1m"`` is (10, 60)."""
    if value is None:
        return None, 1
    if type(value) is int and 1 <= value <= wire.MAX_LIMIT:
        return value, 1
    number, slash, period = value.partition("/") if isinstance(value, str) else ("", "", "")
    try:
        period_ms = durations.parse(period if period[:1].isdigit() else f"1{period}")
    except ValueError:
        period_ms = 0
    digits = number.isascii() and number.isdigit() and 1 <= int(number) <= wire.MAX_LIMIT
    if not slash or not digits or period_ms % 1000 or not 1000 <= period_ms <= wire.MAX_PERIOD_MS:
        raise _error(task, f'rate={value!r}: expected starts per second, or a text such as "10/1m"; a week at most')
    return int(number), period_ms // 1000


def _url(task: str, name: str, value: Any) -> str | None:
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise ValueError("not a text")
        targets.check_url(value)
    except ValueError as error:
        raise _error(task, f"{name}={value!r} is not a URL: {error}") from None
    return value


def _redaction(task: str, value: Any) -> Redaction | None:
    if value not in (None, True, False):
        raise _error(task, f"redact={value!r}: expected True or False")
    return Redaction(body=True) if value else None


def _error(
    task: str, text: str, *, details: Mapping[str, str] | None = None, fix: str | None = None
) -> DefinitionError:
    return DefinitionError(f"{task}: {text}", details=details, fix=fix, code=ErrorCode.OPTION_INVALID)
