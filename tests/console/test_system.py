"""The broker itself: keys are rotated only after a question, and secrets are shown only on demand."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from qtasks.broker.core.values import AccountCredentials, Retention
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.store.integrity import backup_note
from qtasks.broker.store.integrity.backup_note import BackupNote
from qtasks.broker.store.verbs.upkeep import store_sizes
from qtasks.broker.store.verbs.upkeep.store_sizes import HOUR_MS
from qtasks.protocol.messages import State
from tests.console.test_every_page import violations
from tests.support.browsing.browser import ConsolePage, console_page
from tests.support.browsing.world import OPERATOR, Account
from tests.support.running import Endpoint, RunningBroker
from tests.support.tasks import KEYS


def test_the_keys_are_rotated_after_a_question(own: ConsolePage, account: Account) -> None:
    before = account.ask("GET", "/v2/keys")
    page = own.open("system")
    expect(page.locator("main")).not_to_contain_text(before["current"])
    page.get_by_role("button", name="Show the keys").click()
    expect(page.locator("main")).to_contain_text(before["current"])
    page.get_by_role("button", name="Rotate").click()
    expect(page.get_by_role("dialog")).to_contain_text("The next key becomes the current one")
    page.keyboard.press("Escape")
    assert account.ask("GET", "/v2/keys") == before
    page.get_by_role("button", name="Rotate").click()
    own.confirm("Rotate")
    after = account.ask("GET", "/v2/keys")
    assert after["current"] == before["next"]
    expect(page.locator("main")).to_contain_text(after["next"])
    page.get_by_role("button", name="Hide the keys").click()
    expect(page.locator("main")).not_to_contain_text(after["next"])


def test_the_system_tells_of_its_store_and_its_tokens(operators: ConsolePage) -> None:
    page = operators.open("system")
    expect(page.get_by_role("region", name="Store")).to_contain_text("✓ ready")
    expect(page.get_by_role("region", name="Tokens")).to_contain_text("operator")


def test_a_new_store_in_memory_says_what_will_be_shown(operators: ConsolePage) -> None:
    page = operators.open("system")
    size = page.get_by_role("region", name="Size over time")
    expect(size).to_contain_text(re.compile("notes the size once an hour|the last 2 h"))  # an hour may just have begun
    expect(size).to_contain_text("known after 6 hours")
    expect(page.get_by_role("region", name="Retention removes next")).to_contain_text("Nothing comes of age")
    expect(page.get_by_role("region", name="Store")).not_to_contain_text("Last backup")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker with a file, some hours of history, a backup, and a message that was delivered."""
    path = str(tmp_path_factory.mktemp("kept") / "qtasks.db")
    credentials = (AccountCredentials("kept", OPERATOR, KEYS),)
    keep = Retention(delivered_ms=30 * HOUR_MS)
    broker, endpoint = RunningBroker(BrokerSettings(path=path, credentials=credentials, retention=keep)), Endpoint()
    try:
        store = broker.broker.store
        now_ms = store.clock.now_ms()
        for hour in range(9, 0, -1):
            broker.call(store.write(store_sizes.note, now_ms=now_ms - hour * HOUR_MS))
        backup_note.write(path, BackupNote(now_ms - 3 * HOUR_MS, 5_000_000, "/backups/<b>monday</b>.db"))
        broker.wait_for(State.DELIVERED, Account(broker, credentials[0]).publish(endpoint.url))
        yield broker
    finally:
        broker.stop()
        endpoint.close()


@pytest.fixture
def system(browser: Browser, kept: RunningBroker) -> Iterator[Page]:
    with console_page(browser, kept.url) as console:
        console.sign_in(OPERATOR)
        yield console.open("system")
        console.check()


def test_the_last_checks_and_the_last_backup_are_told(system: Page) -> None:
    store = system.get_by_role("region", name="Store")
    expect(store).to_contain_text("Last backup3 h ago, 5.0 MB /backups/<b>monday</b>.db")
    expect(store).to_contain_text(re.compile("Pages checked(now|[0-9]+ s ago), sound"))


def test_the_size_over_time_and_what_retention_removes_next_are_drawn(system: Page, axe: str) -> None:
    size, next_ = (system.get_by_role("region", name=name) for name in ("Size over time", "Retention removes next"))
    expect(size.get_by_role("img", name=re.compile("^Size: file .* kB, in use .* kB$"))).to_be_visible()
    expect(size).to_contain_text("Change a day")
    expect(next_).to_contain_text("Nothing comes of age in the next 24 h.")
    expect(next_).to_contain_text("First removalin about 1 d 5 h")
    next_.get_by_role("button", name="7 d").click()
    expect(next_.get_by_role("img", name=re.compile("delivered or cancelled 1, failed"))).to_be_visible()
    expect(next_).to_contain_text("1 message, about")
    for scheme in ("light", "dark"):
        system.emulate_media(color_scheme=scheme)
        assert violations(system, axe) == []
