from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support.browsing.browser import ConsolePage, chromium, console_page
from tests.support.browsing.world import OPERATOR, Account, World, fill, world
from tests.support.programs import npm_installed

# "package": the event loop behind the browser must be gone when the next asynchronous test of another folder begins.


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="package")
def shop() -> Iterator[World]:
    """One world for all tests; those that change something do it as an `account` of their own."""
    with world() as made:
        yield made


@pytest.fixture(scope="package")
def messages(shop: World) -> dict[str, str]:
    """The ids of messages of the operator, by what became of them."""
    return fill(shop)


@pytest.fixture
def account(shop: World) -> Account:
    """A user whose account is empty."""
    return Account(shop.broker)


@pytest.fixture(scope="package")
def window(browser: Browser, shop: World) -> Iterator[ConsolePage]:
    """The one page of all tests: the files of the console are loaded once."""
    with console_page(browser, shop.url) as page:
        yield page


@pytest.fixture
def console(window: ConsolePage) -> Iterator[ConsolePage]:
    """A page that nobody has signed in to. At its end it must have reported no error and no blocked script."""
    window.reset()
    yield window
    window.check()


@pytest.fixture
def operators(console: ConsolePage, messages: dict[str, str]) -> ConsolePage:
    """A page of the operator, whose account has something of everything."""
    console.sign_in(OPERATOR)
    return console


@pytest.fixture
def own(console: ConsolePage, account: Account) -> ConsolePage:
    """A page of the user `account`."""
    console.sign_in(account.token)
    return console


@pytest.fixture(scope="package")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, which looks for what people with disabilities could not use."""
    folder = npm_installed(Path(__file__).parent / "axe", tmp_path_factory.mktemp("axe") / "axe")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
