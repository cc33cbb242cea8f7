"""The lines of a bundle that are composed from rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.broker.core import message_rows
from qtasks.broker.core.bundle_items import item_line_of
from qtasks.broker.core.delivery_requests import signed_request
from qtasks.protocol import bundles
from qtasks.protocol.bundles import BundleItem
from qtasks.protocol.messages import Headers, Message, SigningKeys
from tests.support.broker import message

KEYS = SigningKeys("current_key", "next_key")

texts = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.sampled_from(["User-Agent", "USER-AGENT", "Content-Type", "X-User-Agent", "X"]) | texts
tricky_values = st.sampled_from(['["User-Agent",', '[["user-agent","x"]]', "\\", '"', "\u2028"]) | texts


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Messages with everything that the headers of a delivery depend on."""
    headers: Headers = tuple(draw(st.lists(st.tuples(names, tricky_values), max_size=4)))
    return replace(
        message(1, headers=headers),
        caller_ip=draw(texts),
        retried=draw(st.integers(0, 999)),
        url_group=draw(st.none() | texts),
        schedule_id=draw(st.none() | texts),
        body=draw(texts.map(str.encode) | st.binary(max_size=20)),
    )


@given(messages(), texts)
def test_a_line_made_of_the_row_is_the_line_of_the_single_delivery(one: Message, target: str) -> None:
    request = signed_request(one, KEYS, now_s=0, jti="j", region="EU-CENTRAL-1")
    unsigned = tuple(line for line in request.headers if line[0] != "Upstash-Signature")
    expected = bundles.item_line(BundleItem(target, unsigned, one.body))
    row = message_rows.pack_message(one)
    assert item_line_of(row, one.body, target=target, region="EU-CENTRAL-1") == expected


@pytest.mark.parametrize("headers", ["[1]", "nothing", "5"])
def test_header_lines_that_cannot_be_read_are_known_before_a_message_is_made(headers: str) -> None:
    row = message_rows.pack_message(message(1))
    assert message_rows.is_readable(row)
    assert not message_rows.is_readable(row._replace(headers=headers))


@pytest.mark.parametrize("options", ["[1]", "nothing", '[["Upstash-Delay","?"]]'])
def test_options_that_cannot_be_read_are_known_before_a_message_is_made(options: str) -> None:
    assert not message_rows.is_readable(message_rows.pack_message(message(1))._replace(options=options))
