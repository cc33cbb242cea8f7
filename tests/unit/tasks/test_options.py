"""Options of users are converted to the form of the protocol."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from qtasks.errors import DefinitionError
from qtasks.tasks.options import CallOptions, check, delivery_options

ETA = datetime(2030, 1, 1, 12, 0, 0, 1, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("option", "value", "field", "expected"),
    [
        ("delay", "10m", "delay_ms", 600_000),
        ("delay", 1.5, "delay_ms", 1500),
        ("delay", timedelta(days=1), "delay_ms", 86_400_000),
        ("delay", 0, "delay_ms", 0),
        ("eta", ETA, "not_before_s", 1893492001),  # 10:00 UTC and a microsecond: never too early
        ("eta", datetime(1960, 1, 1, tzinfo=UTC), "not_before_s", 0),
        ("retries", 0, "retries", 0),
        ("retries", 999, "retries", 999),
        ("retry_delay", "30s", "retry_delay", "30000"),
        ("retry_delay", 30, "retry_delay", "30000"),
        ("retry_delay", timedelta(milliseconds=5), "retry_delay", "5"),
        ("retry_delay", "pow(2, retried) * 1000", "retry_delay", "pow(2, retried) * 1000"),
        ("retry_delay", "1000", "retry_delay", "1000"),
        ("timeout", "30s", "timeout_ms", 30_000),
        ("deduplication_id", "order-1", "deduplication_id", "order-1"),
        ("label", "billing", "labels", ("billing",)),
        ("label", ["a", "b"], "labels", ("a", "b")),
    ],
)
def test_every_option_has_one_form_on_the_wire(option: str, value: Any, field: str, expected: object) -> None:
    assert getattr(delivery_options("work", {option: value}).publish, field) == expected


def test_what_was_not_said_stays_unsaid() -> None:
    made = delivery_options("work", {})
    assert made.publish.method == "POST"
    assert made.publish.content_type == "application/json"
    assert made.publish.retries is None
    assert made.retries == 3


@pytest.mark.parametrize("name", [*CallOptions.__annotations__, "serializer"])
def test_none_is_the_same_as_an_absent_option(name: str) -> None:
    assert delivery_options("work", {name: None}) == delivery_options("work", {})


@pytest.mark.parametrize("options", [{"delay": None, "eta": ETA}, {"queue": "mail", "delay": None, "eta": None}])
def test_none_contradicts_no_other_option(options: dict[str, Any]) -> None:
    delivery_options("work", options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retires": 3}, "no option 'retires'; did you mean 'retries'?"),
        ({"retries": -1}, "retries is -1"),
        ({"retries": 1000}, "retries is 1000"),
        ({"retries": True}, "retries is True"),
        ({"retries": "3"}, "retries is '3'"),
        ({"delay": "10"}, "delay='10'"),
        ({"delay": -1}, "delay=-1"),
        ({"delay": "400d"}, "delay='400d'"),
        ({"delay": "1s", "eta": ETA}, "contradict"),
        ({"queue": "mail", "delay": "1s"}, "delay and eta have no meaning"),
        ({"queue": "mail", "eta": ETA}, "delay and eta have no meaning"),
        ({"eta": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"eta": "tomorrow"}, "eta='tomorrow'"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": "3h"}, "timeout='3h'"),
        ({"retry_delay": "soon(1)"}, "neither a time nor an expression"),
        ({"retry_delay": "2d"}, "retry_delay"),
        ({"deduplication_id": "a:b"}, "without a colon"),
        ({"deduplication_id": ""}, "without a colon"),
        ({"deduplication_id": 7}, "deduplication_id=7"),
        ({"label": "a,b"}, "without a comma"),
        ({"label": ["", "b"]}, "without a comma"),
    ],
)
def test_an_option_that_cannot_be_meant_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        check("work", options)
    assert text in str(caught.value)
    assert str(caught.value).startswith("work: ")
    assert caught.value.code == "QT156"
