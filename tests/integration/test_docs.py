"""Everything the documentation shows is run, and prints what it says it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house import citations, source
from tests.support import page_code
from tests.support.command_lines import unknown_parts
from tests.support.page_code import DOCS

ROOT = DOCS.parent
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
OTHER_PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "benchmarks/README.md", ".github/CONTRIBUTING.md")]
WITH_TESTS_OF_THEIR_OWN = {"tutorial.md": "test_tutorial.py", "guides/testing.md": "below"}
WITH_CODE = [
    name for name, text in PAGES.items() if page_code.blocks(text, "python") and name not in WITH_TESTS_OF_THEIR_OWN
]
COMMANDS = sorted(
    {
        (name, line.strip())
        for name, text in PAGES.items()
        for block in page_code.blocks(text, "console")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip().startswith("qtasks ")
    }
)


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(name: str, tmp_path: Path) -> None:
    text = PAGES[name]
    page_code.write_files(text, tmp_path)
    if script := page_code.script(text):
        done = page_code.run("-c", script, folder=tmp_path, timeout_s=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == page_code.printed(script)
    if tests := [file for file in page_code.files(text) if file.startswith("test_")]:
        done = page_code.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, folder=tmp_path, timeout_s=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_blocks_of_the_page_on_testing_are_tests_that_pass(tmp_path: Path) -> None:
    code = "\n".join(page_code.blocks(PAGES["guides/testing.md"], "python"))
    (tmp_path / "test_page.py").write_text(code, encoding="utf-8")
    done = page_code.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", folder=tmp_path, timeout_s=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(re.findall('def test_', code))} passed" in done.stdout


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_of_a_page_has_the_options_that_the_page_shows(page: str, line: str) -> None:
    assert unknown_parts(line) == [], page


@pytest.mark.parametrize("folder", ["qtasks", "tests", "examples", "benchmarks"])
def test_what_the_code_cites_is_in_the_documentation(folder: str) -> None:
    modules = {
        name: module
        for name, module in source.read(ROOT / folder).items()
        if "house" not in module.path.parts  # its tests cite pages that do not exist
    }
    assert citations.broken_citations(modules, DOCS) == []


@pytest.mark.parametrize(
    "page", [*DOCS.rglob("*.md"), *OTHER_PAGES], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_links_of_a_page_lead_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file.read_text(encoding="utf-8")), target


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([\w/]+(?:\.py|/))`", PAGES["architecture.md"])
    parents = (ROOT, ROOT / "qtasks", ROOT / "qtasks" / "tasks")
    assert len(named) > 20
    assert [path for path in named if not any((parent / path).exists() for parent in parents)] == []


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
