"""How a call is to be delivered, as a person writes it; and the same as the protocol wants it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError, did_you_mean
from qtasks.protocol import durations, expressions, targets, wire
from qtasks.protocol.messages import (
    DEFAULT_RETRIES,
    MAX_DELAY_MS,
    MAX_RETRIES,
    MAX_TIMEOUT_MS,
    FlowControl,
    PublishOptions,
    Redaction,
)
from qtasks.tasks.retries import RetryPolicy

Span = str | float | timedelta
"""``"1h30m"``, a number of seconds, or a timedelta."""


class AttemptOptions(TypedDict, total=False):
    """What may be said of anything that is delivered; an absent key means "not said"."""

    retries: int | RetryPolicy
    """Attempts after the first, 0 to 999; 3 by default. A policy says when and after which errors, too."""
    retry_delay: Span
    """Time before each retry, or an expression in milliseconds over `retried` (0 before the first retry), such as
    ``"pow(2, retried) * 1000"``. The default grows: 12 s, 2 m 28 s, 30 m 8 s, 6 h 7 m 6 s, then a day."""
    timeout: Span
    """How long one attempt may take; 15 minutes by default, 2 hours at most."""
    label: str | Sequence[str]
    """For filters in logs and dead letters; several as a list."""
    key: str
    """Calls of one key share the limits `rate` and `parallelism`, whatever their task."""
    rate: int | str
    """Starts per second for the key, or ``"10/1m"``: ten in a minute."""
    parallelism: int
    """Calls of the key that may run at once."""


class CommonOptions(AttemptOptions, total=False):
    """What a task may say about its calls, and a call about itself."""

    queue: str
    """Go through this queue, in order, as many at a time as the queue allows. Not with `delay` or `eta`."""
    unique: bool | str | Sequence[str]
    """Make the call once: True, for the same arguments; or the parameters that matter. While an earlier one is not done
    (a day at most, if it is never heard of again) a second is not sent and its handle is that of the first. Needs a
    place for results."""
    unique_for: Span
    """With `unique`: for this long after the call, whether it is done or not."""
    callback: str
    """A URL that is told of every attempt's answer."""
    failure_callback: str
    """A URL that is told once when the call has failed for good."""
    redact: bool
    """Keep the arguments out of logs and dead letters as they are shown; they are delivered all the same."""


class TaskOptions(CommonOptions, total=False):
    """What a task may say besides."""

    serializer: Literal["json", "pickle"]
    """How arguments travel: as JSON by their annotations, or pickled with cloudpickle, as is then a result that JSON
    cannot carry. Whoever makes a pickle runs code, so it takes `allow_pickle` and `QTASKS_SECRET_KEY` as well."""


class CallOptions(CommonOptions, total=False):
    """What one call may say besides."""

    delay: Span
    """Run no sooner than this from now, a year at most."""
    eta: datetime
    """Run no sooner than this moment; it must know its time zone."""
    expires: Span | datetime
    """Do not run it any more this long after the call, or after this moment: the call ends as expired."""
    deduplication_id: str
    """A second call with the same id within ten minutes is not made; its result is the first one's."""


class ApplyOptions(CallOptions, total=False):
    """What `apply_async` takes: Celery's words for the same things, and ours."""

    countdown: Span
    """As `delay`."""
    task_id: str
    """The id of the call, in place of a new one."""


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """Options in the protocol's terms, and what the dispatcher has to know besides."""

    publish: PublishOptions
    retries: int
    """How many attempts may follow the first."""
    jitter: float = 0.0
    expires: Span | datetime | None = None
    """As it was written: what it comes to is known at the call."""
    queue: str | None = None
    unique: bool | str | tuple[str, ...] = False
    """Parameters that make a call the same as another."""
    unique_ms: int | None = None
    pickled: bool = False
    """Whether arguments are pickled."""

    def expires_ms(self, now_ms: int) -> int | None:
        """Unix time after which a call made now is not run any more."""
        if self.expires is None:
            return None
        if isinstance(self.expires, datetime):
            return max(0, math.floor(self.expires.timestamp() * 1000))
        return now_ms + durations.to_ms(self.expires)


_KNOWN = tuple(CallOptions.__annotations__)


def check(
    task: str,
    options: Mapping[str, Any],
    *,
    known: Sequence[str] = _KNOWN,
    merged: Mapping[str, Any] | None = None,
) -> None:
    """Refuse what cannot be meant, by itself or as part of `merged`. Raises DefinitionError naming the option."""
    policy = options.get("retries")
    if "expires" in known and isinstance(policy, RetryPolicy) and policy.chooses:
        raise _error(
            task,
            "the policy of a call cannot choose by the kind of error: exceptions do not travel",
            fix="give `on` and `give_up_on` where the task is declared",
        )
    for name in options:
        if name not in known:
            guess = did_you_mean(name, known)
            raise _error(task, f"there is no option {name!r}{guess}", details={"known": ", ".join(known)})
    delivery_options(task, options if merged is None else merged)


def delivery_options(task: str, options: Mapping[str, Any]) -> DeliveryOptions:
    """Bring options into the protocol's form. Raises DefinitionError naming the one that does not fit."""
    if "delay" in options and "eta" in options:
        raise _error(task, "delay and eta contradict each other", fix="give one of them")
    retries, retry_delay, jitter = _retries(task, options)
    if retries is not None and not (type(retries) is int and 0 <= retries <= MAX_RETRIES):
        raise _error(task, f"retries is {retries!r}; a whole number from 0 to {MAX_RETRIES} is wanted")
    publish = PublishOptions(
        method="POST",
        content_type="application/json",
        delay_ms=_span(task, "delay", options.get("delay"), MAX_DELAY_MS),
        not_before_s=_moment(task, options.get("eta")),
        retries=retries,
        retry_delay=retry_delay,
        timeout_ms=_span(task, "timeout", options.get("timeout"), MAX_TIMEOUT_MS, least=1),
        deduplication_id=_deduplication_id(task, options.get("deduplication_id")),
        labels=_labels(task, options.get("label")),
        flow_control=_flow_control(task, options),
        callback=_url(task, "callback", options.get("callback")),
        failure_callback=_url(task, "failure_callback", options.get("failure_callback")),
        redact=_redaction(task, options.get("redact")),
    )
    queue = _queue(task, options)
    expires = options.get("expires")
    if isinstance(expires, datetime):
        _moment(task, expires, name="expires")
    else:
        _span(task, "expires", expires, MAX_DELAY_MS)
    unique, unique_ms = _unique(task, options)
    return DeliveryOptions(
        publish,
        DEFAULT_RETRIES if retries is None else retries,
        jitter,
        expires,
        queue,
        unique,
        unique_ms,
        _pickled(task, options),
    )


def _retries(task: str, options: Mapping[str, Any]) -> tuple[Any, str | None, float]:
    """How many retries, the expression for the waits before them, and the jitter."""
    given = options.get("retries")
    if not isinstance(given, RetryPolicy):
        return given, _retry_delay(task, options.get("retry_delay")), 0.0
    if options.get("retry_delay") is not None:
        raise _error(task, "a RetryPolicy and retry_delay contradict each other", fix="give one of them")
    return given.max, given.expression, given.jitter


def _span(task: str, name: str, value: Span | None, limit_ms: int, *, least: int = 0) -> int | None:
    if value is None:
        return None
    try:
        span_ms = durations.to_ms(value)
    except (ValueError, TypeError) as error:
        raise _error(task, f"{name}={value!r}: {error}") from None
    if not least <= span_ms <= limit_ms:
        raise _error(task, f"{name}={value!r} is not between {least} ms and {durations.format(limit_ms)}")
    return span_ms


def _moment(task: str, value: Any, *, name: str = "eta") -> int | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise _error(
            task,
            f"{name}={value!r} is not a moment: a datetime with a time zone is wanted",
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
        raise _error(task, f"deduplication_id={value!r}: visible ASCII characters without a colon are wanted")
    return value


def _labels(task: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    labels = (value,) if isinstance(value, str) else tuple(value)
    for label in labels:
        if not isinstance(label, str) or not label.strip() or "," in label or not label.isprintable():
            raise _error(task, f"label={value!r}: each is a text without a comma")
    return labels


def _queue(task: str, options: Mapping[str, Any]) -> str | None:
    if (queue := options.get("queue")) is None:
        return None
    if "delay" in options or "eta" in options:
        raise _error(task, "a queue runs its calls in their order, so delay and eta have no meaning there")
    try:
        return targets.check_name(queue, "queue name")
    except (ValueError, TypeError) as error:
        raise _error(task, f"queue={queue!r}: {error}") from None


def _unique(task: str, options: Mapping[str, Any]) -> tuple[bool | str | tuple[str, ...], int | None]:
    given = options.get("unique", False)
    choice = tuple(given) if isinstance(given, (list, tuple)) else given
    names = choice if isinstance(choice, tuple) else ()
    if not isinstance(choice, (bool, str, tuple)) or choice in ("", ()) or not all(type(name) is str for name in names):
        raise _error(task, f"unique={given!r}: True, the name of a parameter, or several as a list are wanted")
    window_ms = _span(task, "unique_for", options.get("unique_for"), MAX_DELAY_MS, least=1)
    if window_ms is not None and not choice:
        raise _error(task, "unique_for says how long, but not what is unique", fix="unique=True")
    return choice, window_ms


def _pickled(task: str, options: Mapping[str, Any]) -> bool:
    serializer = options.get("serializer", "json")
    if serializer not in ("json", "pickle"):
        raise _error(task, f'serializer={serializer!r}: "json" or "pickle" is wanted')
    if serializer == "json":
        return False
    if importlib.util.find_spec("cloudpickle") is None:
        raise DefinitionError(
            f"{task}: its arguments are to be pickled, and cloudpickle is not installed",
            fix='pip install "qstash-tasks[pickle]"',
            code=ErrorCode.PACKAGE_MISSING,
        )
    if options.get("unique") is True:
        raise _error(
            task,
            "pickles of equal arguments need not be equal, so unique=True says nothing",
            fix="name the parameters that make a call the same as another",
        )
    return True


def _flow_control(task: str, options: Mapping[str, Any]) -> FlowControl | None:
    key, rate, parallelism = options.get("key"), options.get("rate"), options.get("parallelism")
    if key is None:
        if rate is None and parallelism is None:
            return None
        raise _error(task, "rate and parallelism are limits of a key", fix='key="..."')
    if not isinstance(key, str) or not 1 <= len(key) <= wire.MAX_TEXT or not key.isprintable() or not key.isascii():
        raise _error(task, f"key={key!r}: 1 to {wire.MAX_TEXT} visible ASCII characters are wanted")
    if rate is None and parallelism is None:
        raise _error(task, "a key without limits limits nothing", fix="give rate or parallelism, or both")
    if parallelism is not None and not (type(parallelism) is int and 1 <= parallelism <= wire.MAX_LIMIT):
        raise _error(task, f"parallelism={parallelism!r}: a whole number from 1 is wanted")
    starts, period_s = _rate(task, rate)
    return FlowControl(key, parallelism, starts, period_s)


def _rate(task: str, value: Any) -> tuple[int | None, int]:
    """Starts, and the seconds they are counted in: 10 and ``"10/1m"``."""
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
        raise _error(task, f'rate={value!r}: a number per second, or such as "10/1m", a week at most, is wanted')
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
        raise _error(task, f"redact={value!r}: True or False is wanted")
    return Redaction(body=True) if value else None


def _error(
    task: str, text: str, *, details: Mapping[str, str] | None = None, fix: str | None = None
) -> DefinitionError:
    return DefinitionError(f"{task}: {text}", details=details, fix=fix, code=ErrorCode.OPTION_INVALID)
