"""What each role sees and may do: payloads, and actions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Response, expect

from qtasks.broker.api.auth import Principal, TokenScope
from qtasks.protocol.messages import State
from tests.console.every_page import NAMES, address_of
from tests.support.browsing.browser import ConsolePage
from tests.support.browsing.world import Account, World
from tests.support.running import Endpoint

SECRET = "s3cr3t-that-was-planted"
ACTIONS = re.compile("Retry|Delete|Cancel|Run|Pause|Resume|^Set|Pin|Rotate|^New|Edit|Add")


class Planted:
    """An account with the secret in every payload, and a token of it for each role."""

    def __init__(self, shop: World) -> None:
        self.account = Account(shop.broker)
        number = shop.broker.broker.accounts[self.account.name]
        for role, scope in (("viewer", TokenScope.READ), ("metadata", TokenScope.METADATA)):
            shop.broker.broker.tokens.add(f"planted-{role}", Principal(number, scope))
        self.endpoint = Endpoint(lambda _: (500, {"X-Answer": SECRET}, f'{{"error": "{SECRET}"}}'.encode()))
        self.ids: dict[str, str] = {}
        self._publish(shop)

    def _publish(self, shop: World) -> None:
        host = self.endpoint.url.removeprefix("http://")
        url = f"http://user:{SECRET}@{host}/qtasks/charge?token={SECRET}"
        body = json.dumps({"v": 1, "id": "call_1", "args": [SECRET], "kwargs": {"note": SECRET}}).encode()
        payload = {"Forward_X_Secret": SECRET, "Callback": f"{self.endpoint.url}/callback?token={SECRET}"}
        call = {"Qtasks_Call_Id": "call_1", "Qtasks_Interrupted_For": "1h", **payload}
        self.ids["failed"] = self.account.publish(url, body, Retries="0", **call)
        self.ids["retrying"] = self.account.publish(url, SECRET.encode(), Retries="3", **payload)
        self.ids["scheduled"] = self.account.publish(url, SECRET.encode(), Delay="1d", **payload)
        self.ids["schedule"] = self.account.schedule(url, "0 9 * * *", Forward_X_Secret=SECRET)
        shop.broker.wait_for(State.FAILED, self.ids["failed"])


@pytest.fixture(scope="module")
def planted(shop: World) -> Iterator[Planted]:
    made = Planted(shop)
    yield made
    made.endpoint.close()


DETAILS = ("messages/{failed}", "messages/{retrying}", "messages/{scheduled}", "schedules/{schedule}")
OWN = (*sorted(NAMES), *DETAILS)


def test_a_token_without_payloads_sees_the_planted_secret_nowhere(console: ConsolePage, planted: Planted) -> None:
    console.sign_in("planted-metadata")
    page, answers = console.page, []

    def keep(response: Response) -> None:
        if "/console/api/" in response.url and not response.url.endswith("/events"):
            answers.append((response.url, response.text()))

    page.on("response", keep)
    try:
        for address in OWN:
            console.open(address_of(address, planted.ids))
            assert SECRET not in page.content(), address
        console.open("failures")
        page.locator("tbody a.target").first.click()
        console.settled()
        assert SECRET not in page.content()
    finally:
        page.remove_listener("response", keep)
    assert len(answers) > len(OWN)
    assert [url for url, text in answers if SECRET in text] == []


def test_who_only_looks_sees_payloads_and_is_offered_no_action(console: ConsolePage, planted: Planted) -> None:
    console.sign_in("planted-viewer")
    for address in OWN:
        page = console.open(address_of(address, planted.ids))
        buttons = page.locator("main button").all_inner_texts() if address != "events" else []
        assert [text for text in buttons if ACTIONS.search(text)] == [], address
        expect(page.locator("main input[type=checkbox]")).to_have_count(0)
    page = console.open(f"messages/{planted.ids['failed']}")
    expect(page.locator("main")).to_contain_text(SECRET)


def test_the_broker_refuses_what_a_page_does_not_offer(console: ConsolePage, planted: Planted) -> None:
    console.expects("403")
    console.sign_in("planted-viewer")
    page = console.open("dead-letters")
    status = page.evaluate(
        """async () => {
          const session = await (await fetch("console/api/session")).json();
          const headers = {"QTasks-CSRF": session.csrf, "Content-Type": "application/json"};
          const body = JSON.stringify({filter: "", expected: 9});
          return (await fetch("console/api/dead-letters/delete", {method: "POST", headers, body})).status;
        }"""
    )
    assert status == 403
    assert len(planted.account.ask("GET", "/v2/dlq")["messages"]) >= 1
