"""Sizes, durations and host names as people write them in options."""

from __future__ import annotations

import click
import pytest

from qtasks.cli.option_types import Duration, HostName, Size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1KB", 1000),
        ("500MB", 500 * 10**6),
        ("500 mb", 500 * 10**6),
        (" 1GB ", 10**9),
        ("2tb", 2 * 10**12),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1.5GB", "1 PB", "1GiB", "٣GB", "1e9", "1GBGB", "9" * 40])
def test_another_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size; write it as 500MB or 1GB"):
        Size().convert(text, None, None)


@pytest.mark.parametrize(("text", "ms"), [("7d", 604_800_000), ("1h30m", 5_400_000), ("30s", 30_000)])
def test_a_duration_is_written_as_everywhere(text: str, ms: int) -> None:
    assert Duration().convert(text, None, None) == ms


@pytest.mark.parametrize("text", ["", "soon", "-1d", "1x", "٣s"])
def test_another_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write it as 30s, 12h or 7d"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize("text", ["App.example.com", "localhost", "my_host", "[::1]", "10.0.0.5"])
def test_a_host_name_is_that_of_a_host_header(text: str) -> None:
    assert HostName().convert(text, None, None) == text.lower()


@pytest.mark.parametrize("text", ["", "https://app.example.com", "app.example.com:8000", "::1", "a b", "u@h", "*.h"])
def test_another_host_name_is_refused_with_an_example(text: str) -> None:
    """It would never match."""
    with pytest.raises(click.BadParameter, match="without scheme and port"):
        HostName().convert(text, None, None)


def test_a_value_below_what_makes_sense_is_refused_with_the_least_one() -> None:
    with pytest.raises(click.BadParameter, match="1 is too small: at least 10MB, or 0 for no limit"):
        Size(least="10MB").convert("1", None, None)
    assert Size(least="10MB").convert("0", None, None) == 0
    assert Size(least="10MB").convert("10MB", None, None) == 10**7
    with pytest.raises(click.BadParameter, match="0s is too short: at least 1m"):
        Duration(least="1m").convert("0s", None, None)
    assert Duration(least="1m").convert("1m", None, None) == 60_000


def test_a_duration_out_of_its_bounds_is_refused_with_them() -> None:
    bounded = Duration(least="1h", most="30d")
    assert bounded.convert("30d", None, None) == 30 * 86_400_000
    with pytest.raises(click.BadParameter, match="31d is too long: at most 30d"):
        bounded.convert("31d", None, None)
    with pytest.raises(click.BadParameter, match="30s is too short: at least 1h"):
        bounded.convert("30s", None, None)
