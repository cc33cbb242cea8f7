"""When a schedule runs: expressions that every service accepts, and the errors for others."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from qtasks.errors import DefinitionError
from qtasks.protocol import cron
from qtasks.tasks.schedules import recurrence

START_MS = 1_800_000_000_000


def runs(expression: cron.Cron, count: int) -> list[int]:
    """The next runs in Unix milliseconds."""
    found: list[int] = []
    for _ in range(count):
        after_ms = expression.next_ms(found[-1] if found else START_MS)
        assert after_ms is not None
        found.append(after_ms)
    return found


def refused(make: Any, *args: Any) -> DefinitionError:
    with pytest.raises(DefinitionError) as refusal:
        make(*args)
    return refusal.value


# --- expressions


@pytest.mark.parametrize(
    ("expression", "zone", "sent"),
    [
        ("0 9 * * MON-FRI", None, "0 9 * * MON-FRI"),
        (" 0\t9  * * * ", None, "0 9 * * *"),
        ("0 9 * * *", "Europe/Berlin", "CRON_TZ=Europe/Berlin 0 9 * * *"),
        ("0 9 * * *", ZoneInfo("Asia/Tokyo"), "CRON_TZ=Asia/Tokyo 0 9 * * *"),
        ("0 9 * * *", "UTC", "0 9 * * *"),
        ("TZ=Asia/Tokyo 0 9 * * *", None, "CRON_TZ=Asia/Tokyo 0 9 * * *"),
        ("CRON_TZ=Europe/Berlin   0 9 * * *", None, "CRON_TZ=Europe/Berlin 0 9 * * *"),
        ("@hourly", None, "0 * * * *"),
        ("@daily", "Europe/Berlin", "CRON_TZ=Europe/Berlin 0 0 * * *"),
        ("@weekly", None, "0 0 * * 0"),
        ("@monthly", None, "0 0 1 * *"),
        ("CRON_TZ=Asia/Tokyo @yearly", None, "CRON_TZ=Asia/Tokyo 0 0 1 1 *"),
    ],
)
def test_what_is_sent_is_five_fields_and_a_zone_where_it_is_not_utc(
    expression: str, zone: recurrence.Zone | None, sent: str
) -> None:
    assert recurrence.at(expression, zone).text == sent


@pytest.mark.parametrize(
    "descriptor", ["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"]
)
def test_a_descriptor_that_is_spelled_out_runs_when_it_did(descriptor: str) -> None:
    assert runs(recurrence.at(descriptor), 20) == runs(cron.parse(descriptor), 20)


@pytest.mark.parametrize(
    ("expression", "zone", "code", "shown", "pointed"),
    [
        ("0 25 * * *", None, "QT104", "0 25 * * *", "25"),
        ("0 9 * * MOON", None, "QT104", "0 9 * * MOON", "MOON"),
        ("*/0 * * * *", None, "QT104", "*/0 * * * *", "*/0"),
        ("@dayly", None, "QT104", "@dayly", "@dayly"),
        ("0 0 30 FEB *", None, "QT105", "0 0 30 FEB *", "30"),
        ("0 0 31 4,6,9,11 *", "UTC", "QT105", "CRON_TZ=UTC 0 0 31 4,6,9,11 *", "31"),
        ("0 9 * * *", "Europe/Berln", "QT106", "CRON_TZ=Europe/Berln 0 9 * * *", "Europe/Berln"),
        ("TZ=../../etc/passwd 0 9 * * *", None, "QT106", "TZ=../../etc/passwd 0 9 * * *", "../../etc/passwd"),
    ],
)
def test_a_caret_stands_under_what_is_wrong(
    expression: str, zone: str | None, code: str, shown: str, pointed: str
) -> None:
    error = refused(recurrence.at, expression, zone)
    *_, line, carets = error.message.splitlines()
    assert (error.code, line.strip()) == (code, shown)
    assert line[carets.index("^") : carets.rindex("^") + 1] == pointed


@pytest.mark.parametrize(
    ("expression", "zone", "code", "text"),
    [
        ("", None, "QT104", "empty"),
        ("", "Europe/Berlin", "QT104", "empty"),
        ("0 9 * *", None, "QT104", "expected exactly 5 fields, found 4"),
        (540, None, "QT104", "a cron expression must be a text, not 540"),
        ("@every 10m", None, "QT104", 'every("10m")'),
        ("CRON_TZ=UTC 0 9 * * *", "UTC", "QT156", "contradict each other"),
        ("0 9 * * *", "", "QT106", "unknown time zone"),
    ],
)
def test_what_cannot_be_an_expression_is_told(expression: Any, zone: str | None, code: str, text: str) -> None:
    error = refused(recurrence.at, expression, zone)
    assert error.code == code
    assert text in str(error)


# --- intervals


MINUTES = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30)
HOURS = (1, 2, 3, 4, 6, 8, 12, 24, 7 * 24)


@pytest.mark.parametrize("minutes", [*MINUTES, *(60 * hours for hours in HOURS)])
def test_an_interval_passes_between_any_two_runs(minutes: int) -> None:
    expression = recurrence.every(timedelta(minutes=minutes))
    gaps = {later - earlier for earlier, later in itertools.pairwise(runs(expression, 100))}
    assert gaps == {minutes * 60_000}


@pytest.mark.parametrize(
    ("span", "sent"),
    [
        ("15m", "*/15 * * * *"),
        (3600, "0 * * * *"),
        ("12h", "0 */12 * * *"),
        (timedelta(days=1), "0 0 * * *"),
        ("7d", "0 0 * * 0"),
    ],
)
def test_a_span_may_be_written_in_every_way_a_span_can(span: Any, sent: str) -> None:
    assert recurrence.every(span).text == sent


def test_an_interval_keeps_to_the_clock_of_its_zone() -> None:
    assert recurrence.every("1d", "Europe/Berlin").text == "CRON_TZ=Europe/Berlin 0 0 * * *"


@pytest.mark.parametrize(
    ("span", "nearest"),
    [
        ("7m", "6m and 10m"),
        ("45m", "30m and 1h"),
        ("90m", "1h and 2h"),
        ("20s", "1m"),
        (90, "1m and 2m"),
        ("5h", "4h and 6h"),
        ("2d", "1d and 7d"),
        ("30d", "7d"),
        (0, "1m"),
    ],
)
def test_an_interval_that_no_expression_says_names_the_nearest_that_one_does(span: Any, nearest: str) -> None:
    error = refused(recurrence.every, span)
    assert error.code == "QT104"
    assert error.message.endswith(f"the nearest valid ones: {nearest}")


@pytest.mark.parametrize("span", ["soon", -5, float("nan"), True])
def test_what_is_no_span_is_told(span: Any) -> None:
    assert refused(recurrence.every, span).code == "QT104"


def test_a_person_reads_the_fields_and_the_zone() -> None:
    assert recurrence.shown(recurrence.at("@daily", "Europe/Berlin")) == "0 0 * * *  Europe/Berlin"
    assert recurrence.shown(recurrence.every("5m")) == "*/5 * * * *  UTC"
