"""When a schedule runs: what a person writes, as an expression that every service knows.

A schedule is told in five fields, with the zone in front where it is not UTC: hosted QStash documents nothing else, and
code that runs here has to run there. So ``@daily`` and its kin are spelled out, and an interval is one that five fields
can say. It keeps to the clock: ``every("15m")`` runs at :00, :15, :30 and :45, whenever it was declared.
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
"""Minutes to the fields that say them: what divides an hour, a day, a week."""


def at(expression: str, zone: Zone | None = None) -> Cron:
    """Read a cron expression; its zone is `zone`, or that of its own prefix ``CRON_TZ=``, or UTC.

    Raises DefinitionError with a caret under what is wrong: QT104, QT105 for dates that never come, QT106 for zones.
    """
    if not isinstance(expression, str):
        raise DefinitionError(
            f"a cron expression is a text, not {expression!r}",
            fix='cron("0 9 * * MON-FRI", tz="Europe/Berlin")',
            code=ErrorCode.CRON_INVALID,
        )
    if "@every" in expression:
        raise DefinitionError(
            f"{expression.strip()!r} is not known to every service",
            fix='every("10m") says an interval in five fields',
            code=ErrorCode.CRON_INVALID,
        )
    try:
        read = cron.parse(_with_zone(expression.strip(" \t"), zone))
        return cron.parse(read.fields if read.zone == "UTC" else f"CRON_TZ={read.zone} {read.fields}")
    except cron.UnknownZone as error:
        raise DefinitionError(str(error), code=ErrorCode.TIME_ZONE_UNKNOWN) from None
    except cron.NeverComes as error:
        raise DefinitionError(str(error), code=ErrorCode.CRON_NEVER_DUE) from None
    except ValueError as error:
        raise DefinitionError(str(error), code=ErrorCode.CRON_INVALID) from None


def every(span: Span, zone: Zone | None = None) -> Cron:
    """An interval on the clock of `zone`: minutes that divide an hour, hours that divide a day, a day, a week.

    Raises DefinitionError for any other, naming the nearest that work.
    """
    try:
        span_ms = durations.to_ms(span)
    except (ValueError, TypeError) as error:
        raise DefinitionError(f"every({span!r}): {error}", code=ErrorCode.CRON_INVALID) from None
    if span_ms % 60_000 == 0 and (expression := _INTERVALS.get(span_ms // 60_000)) is not None:
        return at(expression, zone)
    raise DefinitionError(
        f"every({span!r}): no cron expression says that, and QStash has nothing else; what works and is nearest: "
        + " and ".join(_shown(minutes) for minutes in _nearest(span_ms / 60_000)),
        fix='one of these, or cron("...") for times of the day, the week or the month',
        code=ErrorCode.CRON_INVALID,
    )


def shown(timing: Cron) -> str:
    """A timing as a person reads it: the fields, and the zone behind them."""
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
    known = sorted(_INTERVALS)
    below = [one for one in known if one < minutes]
    above = [one for one in known if one > minutes]
    return [*below[-1:], *above[:1]]


def _shown(minutes: int) -> str:
    return f"{minutes // _DAY}d" if minutes % _DAY == 0 else durations.format(minutes * 60_000)
