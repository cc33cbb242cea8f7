"""The attempts on the page of a message: their parts on a time axis, in words, and in numbers."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from qtasks.protocol.messages import State
from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import World


def test_the_parts_of_an_attempt_are_drawn_named_and_told(operators: ConsolePage, messages: dict[str, str]) -> None:
    page = operators.open(f"messages/{messages['failed']}")
    timeline = page.get_by_role("group", name="Attempts over time")
    expect(timeline.locator(".legend")).to_contain_text(
        "Waiting for its turnConnectingWaiting for the first byteReading the answer"
    )
    expect(timeline.locator(".track.outcome-failed i")).not_to_have_count(0)
    summary = r"waiting for its turn: [\d.]+ m?s, connecting: \d+ ms, waiting for the first byte: [\d.]+ m?s"
    expect(timeline.locator("summary")).to_contain_text(re.compile(summary))
    expect(timeline.locator("dl.facts")).to_contain_text(re.compile(r"Connecting\d+ ms"))


def test_deliveries_that_travelled_together_say_so(operators: ConsolePage, shop: World) -> None:
    addresses = [(f"{name}@example.com", number) for number, name in enumerate(("ann", "ben", "cay"))]
    calls = shop.tasks.tasks["send_welcome_mail"].starmap(addresses)
    ids = [str(call.message_id) for call in calls]
    for message_id in ids:
        shop.broker.wait_for(State.DELIVERED, message_id)
    page = operators.open(f"messages/{ids[0]}")
    expect(page.locator(".attempt summary")).to_contain_text("in a bundle with 2 other messages")
    page.locator(".attempt summary").click()
    expect(page.locator(".attempt dl.facts")).to_contain_text("Sentin a bundle with 2 other messages")
