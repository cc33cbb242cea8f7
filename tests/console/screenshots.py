"""The pictures of the console in the documentation, made from a running program.

`python -m tests.console.screenshots` writes them to ``docs/screenshots``.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Final, Literal

import apsw
from playwright.sync_api import Page, expect

from qtasks.broker.store.integrity import backup_note
from qtasks.broker.store.integrity.backup_note import BackupNote
from qtasks.broker.store.verbs.upkeep import store_sizes
from qtasks.broker.store.verbs.upkeep.store_sizes import HOUR_MS, StoreSize
from tests.console.every_page import ADDRESSES, address_of
from tests.support.browsing.browser import HEIGHT, NARROW, WIDE, ConsolePage, chromium, console_page
from tests.support.browsing.world import OPERATOR, World, fill, world

FOLDER: Final = Path(__file__).parents[2] / "docs/screenshots"
SHOWN: Final = tuple(address for address in ADDRESSES if address != "llm")
"""All pages but the one that is empty here."""
DARK: Final = ("overview", "schedules")
ON_A_TELEPHONE: Final = ("overview", "schedules", "messages")
CALLS: Final = 60
STORE: Final = "qtasks.db"
DAYS: Final = 7


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


def grown(made: World) -> None:
    """The sizes of a week, as a broker notes them, and a backup: something for the page of the system to show."""

    def note(db: apsw.Connection, now_ms: int) -> int:
        used, file = store_sizes.current(db)
        hour = now_ms // HOUR_MS
        for ago in range(1, DAYS * 24):
            share = 1 - ago / (DAYS * 48) + (ago % 24) / 500
            size = StoreSize(hour - ago, round(used * share), round(file * (1.05 - ago // 30 / 12)))
            db.execute("INSERT INTO store_sizes (hour, used_bytes, file_bytes) VALUES (?, ?, ?)", size)
        return file

    store = made.broker.broker.store
    now_ms = store.clock.now_ms()
    size = made.broker.call(store.write(note, now_ms))
    backup_note.write(STORE, BackupNote(now_ms - 9 * HOUR_MS, size, "/backups/qtasks-monday.db"))


def picture(console: ConsolePage, made: World, address: str, name: str) -> None:
    page = console.open(address)
    expect(page.locator(".connection")).to_have_text("live")
    if address == "events":
        happening(made, page)
    page.screenshot(path=FOLDER / f"{name}.png", animations="disabled")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        chromium() as browser,
        world(STORE) as made,
        console_page(browser, made.url) as console,
    ):
        ids = fill(made)
        busy(made)
        grown(made)
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
