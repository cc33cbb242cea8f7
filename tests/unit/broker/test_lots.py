"""Where a message waits while it may not start."""

from __future__ import annotations

import pytest

from qtasks.broker.core import lots
from qtasks.broker.core.lots import Lot, lot_of
from qtasks.protocol import wire
from qtasks.protocol.messages import PublishOptions
from tests.support.broker import message

ALLOWED = PublishOptions(interrupted_for_ms=1)


@pytest.mark.parametrize(
    ("url", "lot"),
    [
        ("http://h:1/qtasks/add", "h:1/qtasks/"),
        ("http://h:1/a/b/add", "h:1/a/b/"),
        ("http://h:1/qtasks/_end?task=x/y&call=z", "h:1/qtasks/"),
        ("http://h:1/qtasks/", "h:1/qtasks/"),
        ("http://h:1/add", "h:1/"),
        ("http://h:1/", "h:1/"),
        ("http://h:1", "h:1/"),
        ("http://h:1?x=/y/z", "h:1/"),
        ("HTTPS://User:pw@H.Example/Jobs/add", "h.example:443/Jobs/"),
        ("http://[::1]:8000/qtasks/add", "[::1]:8000/qtasks/"),
    ],
)
def test_the_prefix_of_a_url_is_the_url_without_its_last_segment_and_its_query(url: str, lot: str) -> None:
    allowed = message(1, url=url, options=ALLOWED)
    host = wire.host_of(url)
    assert lot_of(allowed, host) == lot
    assert lots.parse(lot) == Lot(host, lot, is_alone=False, is_crashed=False)
    assert lots.prefix_of(lot, url, may_wait=True) == lot


def test_a_plain_message_waits_by_host() -> None:
    plain = message(1, url="http://h:1/qtasks/add")
    assert lot_of(plain, "h:1", cuts=9) == "h:1"
    assert lots.parse("h:1") == Lot("h:1", None, is_alone=False, is_crashed=False)
    assert lots.prefix_of("h:1", plain.url, may_wait=False) is None


def test_a_message_whose_allowance_is_used_up_waits_by_host_but_keeps_its_prefix() -> None:
    expired = message(1, url="http://h:1/qtasks/add", options=ALLOWED)
    assert lot_of(expired, "h:1", is_allowed=False) == "h:1"
    assert lots.prefix_of("h:1", expired.url, may_wait=True) == "h:1/qtasks/"


@pytest.mark.parametrize("prefix", ["h:1/qtasks/", "h:1/"])
def test_a_message_that_was_cut_twice_waits_to_be_tried_alone(prefix: str) -> None:
    suspect = message(1, url=f"http://{prefix}add", options=ALLOWED)
    assert lot_of(suspect, "h:1", cuts=1) == prefix
    assert lot_of(suspect, "h:1", cuts=2) == lots.alone_lot(prefix)
    assert lots.parse(lots.alone_lot(prefix)) == Lot("h:1", prefix, is_alone=True, is_crashed=False)


def test_messages_that_the_broker_did_not_survive_wait_apart() -> None:
    lot = lots.crashed_lot("h:1")
    assert lots.parse(lot) == Lot("h:1", None, is_alone=False, is_crashed=True)
    assert lots.prefix_of(lot, "http://h:1/qtasks/add", may_wait=True) == "h:1/qtasks/"


def test_no_two_kinds_of_lot_are_ever_the_same() -> None:
    """Paths are anybody's to choose."""
    paths = ("alone", "alone/x", "crashed", "crashed/x", "")
    prefixes = {lot_of(message(1, url=f"http://h:1/{path}", options=ALLOWED), "h:1") for path in paths}
    assert prefixes == {"h:1/", "h:1/alone/", "h:1/crashed/"}
    assert not prefixes & {"h:1", lots.crashed_lot("h:1"), *map(lots.alone_lot, prefixes)}
