"""Everything the documentation shows is run, and prints what it says it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import citations, source
from tests.support.process import environment

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PRINTS = re.compile(r"^ *print\(.*\)  # (.*)$", flags=re.MULTILINE)


@pytest.mark.parametrize("page", ["celery.md", "cli.md", "llm.md", "tasks.md"])
def test_the_blocks_of_a_page_run_one_after_the_other(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    program = "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING="utf-8"),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == PRINTS.findall(program)


def test_the_blocks_of_the_page_on_testing_are_tests_that_pass(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "testing.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "test_page.py").write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", str(tmp_path)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(re.findall('def test_', ''.join(blocks)))} passed" in done.stdout


@pytest.mark.parametrize("folder", ["qtasks", "tests", "examples", "benchmarks"])
def test_what_the_code_cites_is_in_the_documentation(folder: str) -> None:
    modules = {
        name: module
        for name, module in source.read(ROOT / folder).items()
        if "house" not in module.path.parts  # its tests cite pages that do not exist
    }
    assert citations.broken_citations(modules, DOCS) == []


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_of_a_page_lead_to_a_file_and_a_heading(page: str) -> None:
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (DOCS / name).resolve() if name else DOCS / page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file.read_text(encoding="utf-8")), target


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([\w/]+(?:\.py|/))`", (DOCS / "architecture.md").read_text(encoding="utf-8"))
    parents = (ROOT, ROOT / "qtasks", ROOT / "qtasks" / "tasks")
    assert len(named) > 20
    assert [path for path in named if not any((parent / path).exists() for parent in parents)] == []


def _anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
