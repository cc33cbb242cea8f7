"""When a schedule runs: a cron expression or an interval, converted to a cron expression that every service accepts.

The result has five fields, with the zone in front if it is not UTC: hosted QStash documents nothing else, and code that
runs here must also run there. So ``@daily`` and similar names are written out, and an interval must be one that five
fields can express. Intervals follow the clock: ``every("15m")`` runs at :00, :15, :30 and :45, no matter when the
schedule was declared.
"""

from __future__ import annotations

from zoneinfo import ZoneInfo

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.protocol import cron, durations
from qtasks.protocol.cron import Cron
from qtasks.tasks.options import Span

Zone = str | ZoneInfo
"""``"Europe/Berlin"`` or ``ZoneInfo("Europe/Berlin")``."""

_HOUR, _DAY, _WEEK = 60, 24 * 60, 7 * 24 * 60
_INTERVALS = {
    **{minutes: f"*/{minutes} * * * *" for minutes in (2, 3, 4, 5, 6, 10, 12, 15, 20, 30)},
    **{hours * _HOUR: f"0 */{hours} * * *" for hours in (2, 3, 4, 6, 8, 12)},
    1: "* * * * *",
    _HOUR: "0 * * * *",
    _DAY: "0 0 * * *",
    _WEEK: "0 0 * * 0",
}
"""Intervals in minutes, and their cron fields: those that divide an hour, a day or a week."""


def at(expression: str, zone: Zone | None = None) -> Cron:
    """Parse a cron expression. Its zone is `zone`, or that of its prefix ``CRON_TZ=``, or UTC.

    Raises DefinitionError with a caret under the wrong field: QT104; QT105 for dates that never come; QT106 for an
    unknown zone.
    """
    if not isinstance(expression, str):
        raise DefinitionError(
            f"a cron expression must be a text, not {expression!r}",
            fix='cron("0 9 * * MON-FRI", tz="Europe/Berlin")',
            code=ErrorCode.CRON_INVALID,
        )
    if "@every" in expression:
        raise DefinitionError(
            f"{expression.strip()!r} is not an expression that every service accepts",
            fix='every("10m") sets an interval',
            code=ErrorCode.CRON_INVALID,
        )
    try:
        parsed = cron.parse(_with_zone(expression.strip(" \t"), zone))
        return cron.parse(parsed.fields if parsed.zone == "UTC" else f"CRON_TZ={parsed.zone} {parsed.fields}")
    except cron.UnknownZone as error:
        raise DefinitionError(str(error), code=ErrorCode.TIME_ZONE_UNKNOWN) from None
    except cron.NeverDue as error:
        raise DefinitionError(str(error), code=ErrorCode.CRON_NEVER_DUE) from None
    except ValueError as error:
        raise DefinitionError(str(error), code=ErrorCode.CRON_INVALID) from None


def every(span: Span, zone: Zone | None = None) -> Cron:
    """An interval on the clock of `zone`: minutes that divide an hour, hours that divide a day, a day, a week.

    Raises DefinitionError for any other interval, naming the nearest valid ones.
    """
    try:
        span_ms = durations.to_ms(span)
    except (ValueError, TypeError) as error:
        raise DefinitionError(f"every({span!r}): {error}", code=ErrorCode.CRON_INVALID) from None
    if span_ms % 60_000 == 0 and (expression := _INTERVALS.get(span_ms // 60_000)) is not None:
        return at(expression, zone)
    raise DefinitionError(
        f"every({span!r}): no cron expression can express this interval; the nearest valid ones: "
        + " and ".join(_shown(minutes) for minutes in _nearest(span_ms / 60_000)),
        fix='one of these, or cron("...") for times of the day, the week or the month',
        code=ErrorCode.CRON_INVALID,
    )


def shown(timing: Cron) -> str:
    """The expression for people: the fields, and then the zone."""
    return f"{timing.fields}  {timing.zone}"


def _with_zone(expression: str, zone: Zone | None) -> str:
    if zone is None:
        return expression
    name = zone.key if isinstance(zone, ZoneInfo) else str(zone)
    if expression.startswith(("CRON_TZ=", "TZ=")):
        raise DefinitionError(
            f"tz={name!r} and the zone in {expression!r} contradict each other",
            fix="leave one out",
            code=ErrorCode.OPTION_INVALID,
        )
    return f"CRON_TZ={name} {expression}" if expression else expression


def _nearest(minutes: float) -> list[int]:
    intervals = sorted(_INTERVALS)
    below = [interval for interval in intervals if interval < minutes]
    above = [interval for interval in intervals if interval > minutes]
    return [*below[-1:], *above[:1]]


def _shown(minutes: int) -> str:
    return f"{minutes // _DAY}d" if minutes % _DAY == 0 else durations.format(minutes * 60_000)
