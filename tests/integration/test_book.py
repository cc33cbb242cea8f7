"""docs/ is a book: it is built without a warning, and each of its pages is two clicks away from the first."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

import pytest

import qtasks
import qtasks.errors
import qtasks.llm
import qtasks.qstash
import qtasks.testing
import qtasks.testing.llm
from tests.support.page_code import DOCS

SITE = "http://book.test/"


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built book. In strict mode each warning is an error: dead links and anchors, pages without a menu entry."""
    folder = tmp_path_factory.mktemp("book")
    configuration = DOCS.parent / ".mkdocs" / "mkdocs.yml"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", configuration, "--site-dir", folder],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if anchor := values.get("id"):
            self.anchors.add(anchor)
        if tag == "a" and (target := values.get("href")):
            self.targets.append(target)
        if tag in {"script", "img", "link"} and (source := values.get("src") or values.get("href")):
            self.fetched.append(source)


def read(book: Path, url: str) -> _Links:
    """The links of the page at `url`."""
    links = _Links()
    links.feed((book / urlsplit(url).path.lstrip("/") / "index.html").read_text(encoding="utf-8"))
    return links


def test_every_page_is_two_clicks_away(book: Path) -> None:
    reached = {SITE}
    for _ in range(2):
        targets = {urldefrag(urljoin(url, target)).url for url in reached for target in read(book, url).targets}
        reached |= {url for url in targets if url.startswith(SITE) and url.endswith("/")}
    names = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")]
    pages = {urljoin(SITE, f"{name.removesuffix('index')}/".replace("//", "/").lstrip("/")) for name in names}
    assert len(pages) > 40
    assert pages - reached == set()


def test_a_page_fetches_nothing_from_elsewhere(book: Path) -> None:
    pages = [page.parent.relative_to(book).as_posix() for page in book.rglob("index.html")]
    fetched = [source for page in pages for source in read(book, page).fetched]
    assert len(fetched) > 40
    assert [source for source in fetched if urlsplit(source).netloc] == []


def public_names() -> set[str]:
    """The full names of all that users import."""
    exporting = (qtasks, qtasks.llm, qtasks.qstash, qtasks.testing)
    names = {f"{module.__name__}.{name}" for module in exporting for name in module.__all__}
    for module in (qtasks.errors, qtasks.testing.llm):
        for name, value in vars(module).items():
            is_class = isinstance(value, type) and issubclass(value, qtasks.errors.QTasksError)
            if (is_class or inspect.isfunction(value)) and value.__module__ == module.__name__ and name[0] != "_":
                names.add(f"{module.__name__}.{name}")
    return names - {"qtasks.errors.missing_extra", "qtasks.errors.did_you_mean"}


def api(book: Path) -> set[str]:
    """What the pages of the API describe."""
    return set().union(*(read(book, f"{SITE}reference/{page}/").anchors for page in ("tasks", "client", "testing")))


def test_the_pages_of_the_api_describe_every_public_name(book: Path) -> None:
    names = public_names()
    assert len(names) > 70
    assert names - api(book) == set()


def test_the_pages_of_the_api_describe_nothing_that_is_not_public(book: Path) -> None:
    described = api(book)
    assert {"qtasks.QTasks.task", "qtasks.QTasks.router", "qtasks.TaskResult.get"} <= described
    hidden = {f"qtasks.QTasks.{name}" for name in ("get_runtime", "running_on", "conf", "__getattr__", "_names")}
    hidden |= {"qtasks.TaskResult.accepted", "qtasks.TaskResult.waited_for", "qtasks.TaskContext.link"}
    assert hidden & described == set()


def test_code_in_a_table_shows_its_bars_without_an_escape(book: Path) -> None:
    cells = [
        cell
        for page in book.rglob("*.html")
        for cell in re.findall(r"<td.*?</td>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    ]
    assert any("<code>a | b</code>" in cell for cell in cells)
    assert [cell for cell in cells if "\\|" in cell] == []
