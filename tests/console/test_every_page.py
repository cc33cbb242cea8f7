"""Every page of the console: it opens without an error, everybody can use it, and it fits on a telephone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.console.every_page import ADDRESSES, NAMES, address_of
from tests.support.browsing.browser import HEIGHT, NARROW, WIDE, ConsolePage
from tests.support.browsing.world import Account

LOOK = """async (rules) => {
  const only = rules.length ? { runOnly: rules } : {};
  const { violations } = await axe.run(document, { resultTypes: ["violations"], ...only });
  const shown = (nodes) => nodes.slice(0, 3).map(({ html }) => html.slice(0, 200)).join(" | ");
  return violations.map(({ id, nodes }) => `${id}: ${shown(nodes)}`);
}"""


OF_COLOURS = ("color-contrast", "link-in-text-block")
"""The rules of axe that look at colours."""


def violations(page: Page, axe: str, *rules: str) -> list[str]:
    """What a person could not use, by `rules`, or by all of axe."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    return list(page.evaluate(LOOK, rules))


def look_in_both_themes_at_both_widths(console: ConsolePage, axe: str) -> None:
    """Look for violations. A theme changes nothing but colours, so a dark page is looked at for these alone."""
    for width in (WIDE, NARROW):
        console.page.set_viewport_size({"width": width, "height": HEIGHT})
        console.page.emulate_media(color_scheme="light")
        assert violations(console.page, axe) == []
        console.page.emulate_media(color_scheme="dark")
        assert violations(console.page, axe, *OF_COLOURS) == []
    assert console.overflow == 0


def test_every_page_of_the_navigation_is_looked_at(operators: ConsolePage) -> None:
    operators.open()
    module = "import(new URL('console/static/pages/index.js', document.baseURI))"
    names = operators.page.evaluate(f"{module}.then(({{ PAGES }}) => PAGES.map(({{ name }}) => name))")
    assert set(names) == NAMES
    shown = operators.page.locator("nav li a").evaluate_all("links => links.map((link) => link.hash.slice(2))")
    assert [address.partition("?")[0] for address in shown] == [name for name in names if name != "llm"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_page_with_content_is_for_everyone(
    operators: ConsolePage, messages: dict[str, str], axe: str, address: str
) -> None:
    operators.open(address_of(address, messages))
    look_in_both_themes_at_both_widths(operators, axe)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_page_of_an_empty_account_is_for_everyone(own: ConsolePage, axe: str, name: str) -> None:
    own.open(name)
    look_in_both_themes_at_both_widths(own, axe)


def test_what_does_not_exist_is_a_sentence(own: ConsolePage) -> None:
    expect(own.open("nowhere").get_by_role("heading", name="No such page")).to_be_visible()
    expect(own.open("schedules/scd_none").get_by_role("heading", name="No such schedule")).to_be_visible()


def test_the_sign_in_is_for_everyone(console: ConsolePage, axe: str) -> None:
    page = console.open()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page, axe) == []
    page.set_viewport_size({"width": NARROW, "height": HEIGHT})
    assert console.overflow == 0


def test_questions_and_lists_of_keys_are_for_everyone(own: ConsolePage, account: Account, axe: str) -> None:
    account.ask("POST", "/v2/queues", {"queueName": "mail", "parallelism": 2})
    page = own.open("queues")
    for press in ("Set", "Delete"):
        page.get_by_role("button", name=press).first.click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert violations(page, axe) == []
        page.keyboard.press("Escape")
    for key in ("Control+k", "?"):
        page.keyboard.press(key)
        expect(page.get_by_role("dialog")).to_be_visible()
        assert violations(page, axe) == []
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
