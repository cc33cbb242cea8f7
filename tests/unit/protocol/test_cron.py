"""When schedules run (docs/protocol.md 5.8; Debian cron's rule at clock changes)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol import cron, cron_english

MINUTE = timedelta(minutes=1)


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def runs(text: str, after: datetime) -> Iterator[datetime]:
    """Runs after a moment, in UTC."""
    expression = cron.parse(text)
    at = ms(after)
    while (found := expression.next_ms(at)) is not None:
        assert found > at
        at = found
        yield datetime.fromtimestamp(at / 1000, UTC)


def local_runs(text: str, zone: str, start: str, end: str) -> list[str]:
    """Runs in [start, end) of a zone's calendar, as local times with their abbreviation or offset."""
    tz = ZoneInfo(zone)
    first, last = (datetime.fromisoformat(text).replace(tzinfo=tz) for text in (start, end))
    found = []
    for moment in runs(f"CRON_TZ={zone} {text}", first - timedelta(seconds=1)):
        if moment >= last:
            break
        found.append(moment.astimezone(tz).strftime("%m-%d %H:%M %z"))
    return found


# The calendar

NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)  # a Monday, of a leap year


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* * * * *", ["01-01 00:01", "01-01 00:02"]),
        ("*/15 * * * *", ["01-01 00:15", "01-01 00:30"]),
        ("? ? ? ? ?", ["01-01 00:01", "01-01 00:02"]),
        ("5/20 1 * * *", ["01-01 01:05", "01-01 01:25", "01-01 01:45", "01-02 01:05"]),
        ("0 9-17/4 * * *", ["01-01 09:00", "01-01 13:00", "01-01 17:00", "01-02 09:00"]),
        ("0,30 6,18 * * *", ["01-01 06:00", "01-01 06:30", "01-01 18:00"]),
        ("5,*/30 * * * *", ["01-01 00:05", "01-01 00:30", "01-01 01:00", "01-01 01:05"]),
        ("0 0 * * MON-FRI", ["01-02 00:00", "01-03 00:00", "01-04 00:00", "01-05 00:00", "01-08 00:00"]),
        ("0 0 * * sun", ["01-07 00:00", "01-14 00:00"]),
        ("0 0 * * 5/1", ["01-05 00:00", "01-06 00:00", "01-12 00:00"]),  # 5 and 6: no 7, which would be Sunday
        ("0 0 * * */2", ["01-02 00:00", "01-04 00:00", "01-06 00:00", "01-07 00:00"]),
        ("0 0 1 jan,JUL *", ["07-01 00:00"]),
        ("0 0 13 * 5", ["01-05 00:00", "01-12 00:00", "01-13 00:00"]),  # both restricted: either
        ("0 0 */10 * 1", ["01-08 00:00", "01-11 00:00", "01-15 00:00", "01-21 00:00"]),  # a step restricts as well
        ("0 0 5,* * 1", ["01-08 00:00", "01-15 00:00"]),  # a list with a star does not
        ("0 0 29 2 *", ["02-29 00:00", "02-29 00:00"]),
        ("0 0 31 * *", ["01-31 00:00", "03-31 00:00", "05-31 00:00"]),
        ("0 0 30 2 1", ["02-05 00:00", "02-12 00:00"]),
        ("*/90 * * * *", ["01-01 01:00", "01-01 02:00"]),
        ("05 04 * * *", ["01-01 04:05"]),
        ("\t0  9\t* * * ", ["01-01 09:00"]),
        ("@hourly", ["01-01 01:00", "01-01 02:00"]),
        ("@daily", ["01-02 00:00", "01-03 00:00"]),
        ("@midnight", ["01-02 00:00"]),
        ("@weekly", ["01-07 00:00"]),
        ("@monthly", ["02-01 00:00", "03-01 00:00"]),
        ("@yearly", ["01-01 00:00"]),
        ("@annually", ["01-01 00:00"]),
        ("@every 90m", ["01-01 01:30", "01-01 03:00"]),
        ("CRON_TZ=Asia/Kathmandu 0 9 * * *", ["01-01 03:15", "01-02 03:15"]),  # UTC+5:45
        ("TZ=Etc/GMT+12 @daily", ["01-01 12:00", "01-02 12:00"]),
        ("CRON_TZ=UTC 0 9 * * *", ["01-01 09:00"]),
    ],
)
def test_an_expression_runs_when_it_says(text: str, expected: list[str]) -> None:
    assert [moment.strftime("%m-%d %H:%M") for moment in islice(runs(text, NEW_YEAR), len(expected))] == expected


def test_the_text_is_kept_without_the_blanks_around_it() -> None:
    assert cron.parse("*/10 * * * * ").text == "*/10 * * * *"
    expression = cron.parse(" CRON_TZ=Europe/Berlin 0 9 * * *")
    assert (expression.text, expression.zone) == ("CRON_TZ=Europe/Berlin 0 9 * * *", "Europe/Berlin")


@pytest.mark.parametrize("offset_ms", [-1, -60_000, -59_999, -500])
def test_the_next_run_is_strictly_later_and_on_the_minute(offset_ms: int) -> None:
    nine = ms(datetime(2024, 1, 1, 9, tzinfo=UTC))
    every_minute, daily = cron.parse("* * * * *"), cron.parse("0 9 * * *")
    assert daily.next_ms(nine + offset_ms) == nine
    assert every_minute.next_ms(nine + offset_ms) == nine
    assert every_minute.next_ms(nine) == nine + 60_000


def test_an_interval_counts_from_the_run_before() -> None:
    assert cron.parse("@every 1h30m").next_ms(10_000_123) == 10_000_000 + 5_400_000


def test_what_never_comes_in_the_calendar_is_none() -> None:
    assert cron.parse("0 0 1 1 *").next_ms(ms(datetime(9999, 6, 1, tzinfo=UTC))) is None
    assert (
        cron.parse("CRON_TZ=Asia/Tokyo * * * * *").next_ms(ms(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))) is None
    )


# Refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid cron expression empty spec string"),
        (" \t", "Invalid cron expression empty spec string"),
        ("* * * *", "Invalid cron expression expected exactly 5 fields, found 4: [* * * *]"),
        ("0 * * * * *", "Invalid cron expression expected exactly 5 fields, found 6: [0 * * * * *]"),
        ("CRON_TZ=UTC", "Invalid cron expression expected exactly 5 fields, found 0: []"),
    ],
)
def test_a_text_of_the_wrong_shape_is_refused_in_the_words_people_search_for(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="Invalid cron expression") as caught:
        cron.parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "marks", "reason"),
    [
        ("0 24 * * *", "  ^^", 'hour: "24" is not 0 to 23'),
        ("TZ=UTC 0 9 * * 7", "               ^", 'day of week: "7" is not 0 to 6 or SUN to SAT'),
        ("0 0 30 2 *", "    ^^", "day of month: there is never a day 30 in FEB"),
        ("TZ=No/Where * * * * *", "   ^^^^^^^^", "unknown time zone; write an IANA name such as Europe/Berlin"),
        ("@every 10s", "       ^^^", "an interval is a whole number of seconds of at least 1m"),
    ],
)
def test_a_refusal_points_at_the_wrong_field(text: str, marks: str, reason: str) -> None:
    with pytest.raises(ValueError, match="Invalid cron expression") as caught:
        cron.parse(text)
    assert str(caught.value) == f"Invalid cron expression: {reason}\n  {text}\n  {marks}"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (0, "60", '"60" is not 0 to 59'),
        (0, "-1", "is not a number, range, step or list"),
        (0, "*/0", "a step of 0"),
        (0, "5/0", "a step of 0"),
        (0, "1,,2", "an empty item"),
        (0, "1,", "an empty item"),
        (0, "10-5", "ends before it begins"),
        (0, "1-2-3", "is not a number, range, step or list"),
        (0, "*-5", "is not a number, range, step or list"),
        (0, "1/2/3", "is not a number, range, step or list"),
        (0, "a", '"a" is not 0 to 59'),
        (0, "1.5", "is not a number, range, step or list"),
        (0, "+5", "is not a number, range, step or list"),
        (0, "٣", "is not a number, range, step or list"),
        (0, "*/9999999999", "is not a number, range, step or list"),
        (0, "00000", "is not 0 to 59"),
        (1, "24", "is not 0 to 23"),
        (2, "0", "is not 1 to 31"),
        (2, "32", "is not 1 to 31"),
        (2, "L", "is not 1 to 31"),
        (2, "15W", "is not 1 to 31"),
        (3, "13", "is not 1 to 12 or JAN to DEC"),
        (3, "0", "is not 1 to 12 or JAN to DEC"),
        (3, "JANUARY", "is not 1 to 12 or JAN to DEC"),
        (3, "MON", "is not 1 to 12 or JAN to DEC"),
        (4, "7", "is not 0 to 6 or SUN to SAT"),
        (4, "FRI-MON", "ends before it begins"),
        (4, "MON#2", "is not a number, range, step or list"),
        (4, "5L", "is not 0 to 6 or SUN to SAT"),
    ],
)
def test_f26_each_field_has_its_grammar(field: int, value: str, reason: str) -> None:
    fields = ["*"] * 5
    fields[field] = value
    name = ["minute", "hour", "day of month", "month", "day of week"][field]
    with pytest.raises(ValueError, match=f"Invalid cron expression: {name}: ") as caught:
        cron.parse(" ".join(fields))
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["0 0 30 2 *", "0 0 30,31 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2/2 *", "0 0 31 4 ?"])
def test_f26_dates_that_never_come_are_refused(text: str) -> None:
    if text == "0 0 31 2/2 *":  # FEB, APR, JUN, AUG ...: August has one
        assert cron.parse(text).next_ms(0) is not None
        return
    with pytest.raises(ValueError, match="there is never a day 3"):
        cron.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "@",
        "@fortnightly",
        "@Daily",
        "@daily now",
        "@every",
        "@every 59s",
        "@every 90",
        "@every 1m500ms",
        "@every -1h",
        "@every 1h 30m",
        "@reboot",
    ],
)
def test_unknown_descriptors_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Invalid cron expression: "):
        cron.parse(text)


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "../../etc/passwd",
        "/etc/localtime",
        "America",
        "leapseconds",
        "localtime",
        "posixrules",
        "posix/Europe/Berlin",
        "right/Europe/Berlin",
        "Local",
        "zone.tab",
        "Europe/",
        "Europe//Berlin",
        "Europe/Berlin\x00",
        "Europe/Nowhere",
        "é",
        "x" * 300,
    ],
)
def test_zones_that_do_not_exist_are_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="Invalid cron expression: unknown time zone"):
        cron.parse(f"CRON_TZ={zone} * * * * *")


def test_a_long_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="10009 characters, more than 512"):
        cron.parse(",".join(["1"] * 5001) + " * * * *")


@given(st.text() | st.text("0123456789*/-,? @MONJAN", max_size=30))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        expression = cron.parse(text)
    except ValueError as error:
        assert str(error).startswith("Invalid cron expression")  # noqa: PT017 - both ends are fine
    else:
        assert expression.next_ms(0) is not None


# Clock changes


@pytest.mark.parametrize(
    ("zone", "text", "start", "end", "expected"),
    [
        # 02:00 becomes 03:00
        ("America/New_York", "30 2 * * *", "2025-03-09", "2025-03-11", ["03-09 03:00 -0400", "03-10 02:30 -0400"]),
        ("America/New_York", "15,45 2 * * *", "2025-03-09", "2025-03-10", ["03-09 03:00 -0400"]),
        ("America/New_York", "0 2,3 * * *", "2025-03-09", "2025-03-10", ["03-09 03:00 -0400"]),
        (
            "America/New_York",
            "*/30 1-3 * * *",
            "2025-03-09",
            "2025-03-10",
            ["03-09 01:00 -0500", "03-09 01:30 -0500", "03-09 03:00 -0400", "03-09 03:30 -0400"],
        ),
        # 02:00 becomes 01:00
        ("America/New_York", "30 1 * * *", "2025-11-02", "2025-11-03", ["11-02 01:30 -0400"]),
        (
            "America/New_York",
            "*/30 1 * * *",
            "2025-11-02",
            "2025-11-03",
            ["11-02 01:00 -0400", "11-02 01:30 -0400", "11-02 01:00 -0500", "11-02 01:30 -0500"],
        ),
        # half an hour
        ("Australia/Lord_Howe", "15 2 * * *", "2025-10-05", "2025-10-06", ["10-05 02:30 +1100"]),
        ("Australia/Lord_Howe", "45 1 * * *", "2025-04-06", "2025-04-07", ["04-06 01:45 +1100"]),
        (
            "Australia/Lord_Howe",
            "0 */5 * * *",
            "2025-04-06",
            "2025-04-06T11:00",
            ["04-06 00:00 +1100", "04-06 05:00 +1030", "04-06 10:00 +1030"],
        ),
        # midnight is missing
        ("America/Sao_Paulo", "0 0 4 11 *", "2018-11-01", "2019-11-01", ["11-04 01:00 -0200"]),
        ("America/Sao_Paulo", "0 1 4 11 *", "2018-11-01", "2019-11-01", ["11-04 01:00 -0200"]),
        (
            "Africa/Cairo",
            "0 */8 * * *",
            "2025-04-24T12:00",
            "2025-04-26",
            ["04-24 16:00 +0200", "04-25 08:00 +0300", "04-25 16:00 +0300"],
        ),
        ("Africa/Cairo", "0 0 * * *", "2025-04-25", "2025-04-27", ["04-25 01:00 +0300", "04-26 00:00 +0300"]),
        # a whole day is missing
        ("Pacific/Apia", "0 12 30 12 *", "2011-12-28", "2012-06-01", ["12-31 00:00 +1400"]),
        ("Pacific/Apia", "0 */12 30 12 *", "2011-12-28", "2012-06-01", []),
        # two hours
        ("Antarctica/Troll", "0 2 * * *", "2025-03-30", "2025-03-31", ["03-30 03:00 +0200"]),
        (
            "Antarctica/Troll",
            "0 * * * *",
            "2025-03-30",
            "2025-03-30T05:00",
            ["03-30 00:00 +0000", "03-30 03:00 +0200", "03-30 04:00 +0200"],
        ),
    ],
)
def test_a_clock_change_neither_skips_nor_repeats_a_fixed_time(
    zone: str, text: str, start: str, end: str, expected: list[str]
) -> None:
    assert local_runs(text, zone, start, end) == expected


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("30 2 * * *", "2025-03", "go from 02:00 to 03:00: its run of 02:30 starts at 03:00."),
        ("0 */2 * * *", "2025-03", "go from 02:00 to 03:00: its runs in between, from 02:00, are left out."),
        ("30 2 * * *", "2025-10", "go from 03:00 to 02:00: its run of 02:30 comes once."),
        ("*/20 2 * * *", "2025-10", "go from 03:00 to 02:00: its runs in between, from 02:00, come twice."),
        ("30 4 * * *", "2025-03", None),
        ("0 3 * * *", "2025-10", None),
        ("30 2 * * MON", "2025-03", None),
        ("*/5 * * * *", "2025-03", None),
        ("30 2 * * *", "2025-05", None),
    ],
)
def test_a_change_of_the_clocks_is_announced_if_a_run_is_in_it(text: str, start: str, expected: str | None) -> None:
    expression = cron.parse(f"CRON_TZ=Europe/Berlin {text}")
    change = expression.clock_change(ms(datetime.fromisoformat(f"{start}-01T00:00+00:00")), 60 * 86_400_000)
    assert (change is None) == (expected is None)
    if change is not None and expected is not None:
        assert cron_english.describe_change("Europe/Berlin", change).endswith(expected)


def test_wildcards_follow_elapsed_time() -> None:
    """The day has 25 hours: 100 quarters of an hour, all the same length."""
    moments = list(islice(runs("CRON_TZ=America/New_York */15 * * * *", datetime(2025, 11, 2, 3, 59, tzinfo=UTC)), 100))
    assert moments[-1].astimezone(ZoneInfo("America/New_York")).strftime("%m-%d %H:%M") == "11-02 23:45"
    assert {later - earlier for earlier, later in pairwise(moments)} == {timedelta(minutes=15)}


def test_a_fixed_time_does_not_run_again_after_a_restart_in_the_repeated_hour() -> None:
    expression = cron.parse("CRON_TZ=America/New_York 30 1 * * *")
    second_pass = datetime(2025, 11, 2, 6, 10, tzinfo=UTC)  # 01:10 EST
    assert expression.next_ms(ms(second_pass)) == ms(datetime(2025, 11, 3, 6, 30, tzinfo=UTC))


# An oracle that looks at every minute

EXPRESSIONS: list[tuple[str, set[int], set[int], bool]] = [
    ("* * * * *", set(range(60)), set(range(24)), False),
    ("*/7 * * * *", set(range(0, 60, 7)), set(range(24)), False),
    ("5 * * * *", {5}, set(range(24)), False),
    ("0 */5 * * *", {0}, set(range(0, 24, 5)), False),
    ("*/20 2 * * *", {0, 20, 40}, {2}, False),
    ("30 2 * * *", {30}, {2}, True),
    ("0,15 0-3 * * *", {0, 15}, {0, 1, 2, 3}, True),
    ("59 23,1 * * *", {59}, {23, 1}, True),
]


def every_minute(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += MINUTE


def oracle(
    minutes: set[int], hours: set[int], fixed: bool, zone: ZoneInfo, start: datetime, end: datetime
) -> list[datetime]:
    """Runs in [start, end) by trying every minute of UTC; fixed times by trying every minute of the local calendar."""
    if not fixed:
        return [
            moment
            for moment in every_minute(start, end)
            if (local := moment.astimezone(zone)).minute in minutes and local.hour in hours and local.second == 0
        ]
    found = set()
    instants: dict[datetime, datetime] = {}
    for moment in every_minute(start - timedelta(days=2), end + timedelta(days=2)):
        instants.setdefault(moment.astimezone(zone).replace(tzinfo=None, fold=0), moment)  # the first of two
    ordered = sorted(instants)
    calendar = every_minute(ordered[0], ordered[-1])
    for local in calendar:
        if local.minute in minutes and local.hour in hours:
            later = local
            while later not in instants:  # a gap
                later += MINUTE
            found.add(instants[later])
    return sorted(moment for moment in found if start <= moment < end)


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("Europe/Berlin", "2025-03-30"),
        ("Europe/Berlin", "2025-10-26"),
        ("America/St_Johns", "2025-11-02"),
        ("Australia/Lord_Howe", "2025-04-06"),
        ("Australia/Lord_Howe", "2025-10-05"),
        ("Africa/Cairo", "2025-04-25"),
        ("Africa/Cairo", "2025-10-31"),
        ("Asia/Kathmandu", "2025-06-01"),
        ("Antarctica/Troll", "2025-10-26"),
        ("Pacific/Apia", "2011-12-30"),
        ("Africa/Casablanca", "2025-02-23"),
    ],
)
@pytest.mark.parametrize(("text", "minutes", "hours", "fixed"), EXPRESSIONS)
def test_every_minute_agrees_with_the_oracle(
    name: str, day: str, text: str, minutes: set[int], hours: set[int], fixed: bool
) -> None:
    middle = datetime.fromisoformat(day).replace(tzinfo=UTC)
    start, end = middle - timedelta(hours=14), middle + timedelta(hours=26)
    expected = oracle(minutes, hours, fixed, ZoneInfo(name), start, end)
    found = []
    for moment in runs(f"CRON_TZ={name} {text}", start - timedelta(seconds=1)):
        if moment >= end:
            break
        found.append(moment)
    assert found == expected


@given(
    st.sampled_from(
        ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC", "Asia/Tehran"]
    ),
    st.sampled_from(EXPRESSIONS),
    st.integers(0, 2**32),
)
def test_no_run_is_skipped_whenever_one_asks(
    name: str, case: tuple[str, set[int], set[int], bool], after_s: int
) -> None:
    """Asking again from anywhere before the answer gives the same answer."""
    expression = cron.parse(f"CRON_TZ={name} {case[0]}")
    after_ms = after_s * 1000
    answer = expression.next_ms(after_ms)
    assert answer is not None
    assert answer > after_ms
    for between in (after_ms + 1, (after_ms + answer) // 2, answer - 1):
        assert expression.next_ms(between) == answer


# Telling wrong expressions apart, and spelling them out


def test_a_zone_that_does_not_exist_is_told_from_a_date_that_never_comes_and_both_from_the_rest() -> None:
    with pytest.raises(cron.UnknownZone):
        cron.parse("CRON_TZ=Mars/Olympus 0 9 * * *")
    with pytest.raises(cron.NeverDue):
        cron.parse("0 0 31 4 *")
    with pytest.raises(ValueError, match="hour") as other:
        cron.parse("0 25 * * *")
    assert type(other.value) is ValueError


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0 9 * * MON", "0 9 * * MON"),
        ("CRON_TZ=Europe/Berlin  0   9 * *\tMON", "0 9 * * MON"),
        ("TZ=Asia/Tokyo @weekly", "0 0 * * 0"),
        ("@hourly", "0 * * * *"),
        ("@every 90s", "@every 90s"),
    ],
)
def test_the_fields_stand_alone_and_spelled_out(text: str, fields: str) -> None:
    assert cron.parse(text).fields == fields
