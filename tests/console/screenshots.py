"""The pictures of the console in the documentation, made from a running program.

`python -m tests.console.screenshots` writes them to ``docs/screenshots``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from playwright.sync_api import Page, expect

from tests.console.every_page import ADDRESSES, address_of
from tests.support.browsing.browser import HEIGHT, NARROW, WIDE, ConsolePage, chromium, console_page
from tests.support.browsing.world import OPERATOR, World, fill, world

FOLDER: Final = Path(__file__).parents[2] / "docs/screenshots"
SHOWN: Final = tuple(address for address in ADDRESSES if address != "llm")
"""All pages but the one that is empty here."""
DARK: Final = ("overview", "schedules")
ON_A_TELEPHONE: Final = ("overview", "schedules")
CALLS: Final = 60


def happening(made: World, page: Page) -> None:
    """Something to see in the live stream."""
    made.tasks.tasks["refund"].delay(1908, "changed their mind")
    made.tasks.tasks["send_welcome_mail"].delay("ada@example.com", user_id=42)
    expect(page.locator(".stream")).to_contain_text("refund")
    expect(page.locator(".stream")).to_contain_text("ms")


def busy(made: World) -> None:
    """Some calls of each task, so that there are figures to show."""
    welcome, refund = made.tasks.tasks["send_welcome_mail"], made.tasks.tasks["refund"]
    for number in range(CALLS):
        call = welcome.delay(f"customer-{number}@example.com", user_id=number)
        if number % 8 == 0:
            refund.delay(1800 + number, "changed their mind")
        call.get(timeout=10)


def picture(console: ConsolePage, made: World, address: str, name: str) -> None:
    page = console.open(address)
    expect(page.locator(".connection")).to_have_text("live")
    if address == "events":
        happening(made, page)
    page.screenshot(path=FOLDER / f"{name}.png", animations="disabled")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with chromium() as browser, world() as made, console_page(browser, made.url) as console:
        ids = fill(made)
        busy(made)
        console.sign_in(OPERATOR)
        themes: dict[Literal["light", "dark"], tuple[str, ...]] = {"light": SHOWN, "dark": DARK}
        for theme, addresses in themes.items():
            console.page.emulate_media(color_scheme=theme)
            for address in addresses:
                name = address.replace("/{", "-").rstrip("}")
                picture(console, made, address_of(address, ids), name if theme == "light" else f"{name}-dark")
        console.page.emulate_media(color_scheme="light")
        console.page.set_viewport_size({"width": NARROW, "height": HEIGHT})
        for address in ON_A_TELEPHONE:
            picture(console, made, address, f"{address}-narrow")
        console.page.set_viewport_size({"width": WIDE, "height": HEIGHT})
        console.check()


if __name__ == "__main__":
    main()
