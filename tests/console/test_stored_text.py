"""What a publisher, an endpoint or an operator wrote is shown as text, wherever a page shows it: nothing of it runs."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from qtasks.protocol.messages import State
from tests.console.every_page import NAMES, address_of
from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World
from tests.support.running import Endpoint

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(1)</script>"
LINK = "javascript:alert(1)//"
HOSTILE = f"{IMAGE}{SCRIPT}\"'><svg/onload=alert(1)>{{{{7*7}}}}${{7*7}}"
"""All at once."""
IN_A_URL = HOSTILE.replace(" ", "%20")


class Attacked:
    """An account in which every text that can be chosen is hostile."""

    def __init__(self, shop: World) -> None:
        self.account = Account(shop.broker)
        self.endpoint = Endpoint(lambda _: (500, {"X-Answer": IMAGE, "Content-Type": "text/html"}, HOSTILE.encode()))
        url = f"{self.endpoint.url}/{IN_A_URL}?next={LINK}"
        self.ids: dict[str, str] = {}
        self._publish(shop, url)
        self._arrange(url)

    def _publish(self, shop: World, url: str) -> None:
        body = json.dumps({"v": 1, "id": "call_1", "args": [HOSTILE], "kwargs": {HOSTILE: LINK}}).encode()
        options = {"Label": IMAGE, "Forward_X_Note": HOSTILE, "Failure_Callback": url, "Method": "POST"}
        self.ids["failed"] = self.account.publish(url, body, Retries="0", **options)
        self.ids["retrying"] = self.account.publish(url, HOSTILE.encode(), Retries="3", **options)
        self.ids["html"] = self.account.publish(url, HOSTILE.encode(), Retries="0", Content_Type="text/html")
        self.ids["framework"] = self.account.publish(url, body, Retries="0", Qtasks_Call_Id=IMAGE.replace(" ", "/"))
        for name in ("failed", "html", "framework"):
            shop.broker.wait_for(State.FAILED, self.ids[name])

    def _arrange(self, url: str) -> None:
        ask = self.account.ask
        self.ids["schedule"] = self.account.schedule(url, "0 9 * * *", Label=IMAGE, Forward_X_Note=HOSTILE)
        ask("POST", "/v2/topics/group/endpoints", {"endpoints": [{"url": url, "name": HOSTILE}]})
        ask("PATCH", "/v2/topics/group", {"headers": {"Upstash-Label": HOSTILE}})
        limits = {"Flow_Control_Key": IMAGE, "Flow_Control_Value": "parallelism=1"}
        self.account.publish(url, Delay="1d", **limits)
        ask("POST", "/v2/queues", {"queueName": "queue"})


@pytest.fixture(scope="module")
def attacked(shop: World) -> Attacked:
    return Attacked(shop)


@pytest.fixture
def victim(console: ConsolePage, attacked: Attacked) -> ConsolePage:
    """A page of an operator of that account."""
    console.sign_in(attacked.account.token)
    return console


OWN = (
    *sorted(NAMES),
    *(f"messages/{{{name}}}" for name in ("failed", "retrying", "html", "framework")),
    "schedules/{schedule}",
)


@pytest.mark.parametrize("address", OWN)
def test_nothing_runs_on_a_page(victim: ConsolePage, attacked: Attacked, address: str) -> None:
    page = victim.open(address_of(address, attacked.ids))
    assert page.locator("main img, main script, main svg[onload], main iframe").count() == 0
    addresses = page.locator("a[href]").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    assert [each for each in addresses if not each.startswith("#")] == []


def test_the_text_is_shown_as_it_was_written(victim: ConsolePage, attacked: Attacked) -> None:
    expect(victim.open("url-groups").locator("main")).to_contain_text(HOSTILE)
    expect(victim.open("queues").locator("main")).to_contain_text(IMAGE)
    page = victim.open(f"schedules/{attacked.ids['schedule']}")
    expect(page.locator("main")).to_contain_text(HOSTILE)


def test_nothing_runs_in_the_live_stream(victim: ConsolePage, attacked: Attacked) -> None:
    page = victim.open("events")
    expect(page.locator(".connection")).to_have_text("live")
    attacked.account.publish(f"{attacked.endpoint.url}/{IN_A_URL}", HOSTILE.encode(), Retries="0", Label=IMAGE)
    expect(page.locator(".stream")).to_contain_text("failed")
    assert page.locator(".stream img, .stream script").count() == 0


def test_nothing_runs_from_the_address(victim: ConsolePage) -> None:
    expect(victim.open(IN_A_URL).locator("main")).to_contain_text("There is no page")
    victim.open(f"schedules/{IN_A_URL}")
    page = victim.open(f"queues?filter={IN_A_URL}")
    expect(page.get_by_role("searchbox")).to_have_value(HOSTILE)


def test_questions_and_reports_show_text(victim: ConsolePage, attacked: Attacked) -> None:
    page = victim.open("queues")
    page.get_by_role("button", name=f"Pause {IMAGE}").click()
    expect(page.get_by_role("dialog")).to_contain_text(IMAGE)
    victim.confirm("Pause")
    expect(page.get_by_role("status").filter(has_text="is paused")).to_contain_text(IMAGE)
    page.get_by_role("button", name=f"Resume {IMAGE}").click()
    victim.confirm("Resume")
