"""The files of the console: few bytes, nothing from elsewhere, third-party modules unchanged, with their licences."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.programs import program

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "qtasks/broker/console/static"
VENDOR = STATIC / "vendor"
FILES = sorted(path for path in STATIC.rglob("*") if path.is_file())
MODULES = [path for path in FILES if path.suffix == ".js"]
OWN = [path for path in MODULES if VENDOR not in path.parents]
MOST_BYTES = 120 * 1024
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml", "http://www.w3.org/1998/Math/MathML"}
"""Names that look like addresses; a browser does not ask for them."""
IMPORT = re.compile(r"""\b(?:from|import)\s*\(?\s*["']([^"'\s]+)["'][;)]""")
URL = re.compile(r"""(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s"'`)<>]*""")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def short(path: Path) -> str:
    return str(path.relative_to(STATIC))


def test_third_party_modules_are_those_of_the_list() -> None:
    lines = (line.split() for line in text(VENDOR / "CHECKSUMS.txt").splitlines())
    listed = {name: digest for digest, name in lines}
    present = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    del present["CHECKSUMS.txt"]
    assert present == listed


def test_each_third_party_module_has_its_licence() -> None:
    script = text(ROOT / ".ci/vendor-console")
    packages = re.findall(r"take (\S+) ", script)
    licences = text(VENDOR / "LICENSES.txt").split("== ")[1:]
    assert {licence.split()[0] for licence in licences} == set(packages)
    assert all("Permission is hereby granted" in each or "Apache License" in each for each in licences)


def test_all_files_together_are_small() -> None:
    assert sum(len(gzip.compress(path.read_bytes(), 9, mtime=0)) for path in FILES) <= MOST_BYTES


def test_the_wheel_contains_them() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["qtasks"]}
    ignored = subprocess.run(
        ["git", "check-ignore", *map(str, FILES)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""  # hatchling leaves out what git ignores


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "LICENSES.txt"], ids=short)
def test_no_file_names_another_server(path: Path) -> None:
    code = re.sub(r"^\s*//.*$", "", text(path), flags=re.MULTILINE)
    assert set(URL.findall(code)) <= NAMESPACES | EXAMPLES.get(short(path), set())


EXAMPLES: dict[str, set[str]] = {}
"""Addresses that are shown as text."""


def test_imports_are_relative_and_exist() -> None:
    for path in MODULES:
        for name in IMPORT.findall(text(path)):
            assert name.startswith("."), f"{short(path)} imports {name}"
            assert (path.parent / name).resolve() in FILES, f"{short(path)} imports {name}"


def test_every_module_is_loaded_by_the_page() -> None:
    loaded, waiting = set(), {STATIC / "app.js"}
    while waiting:
        path = waiting.pop()
        loaded.add(path)
        waiting |= {(path.parent / name).resolve() for name in IMPORT.findall(text(path))} - loaded
    assert [short(path) for path in MODULES if path not in loaded] == []


def test_the_page_has_no_script_and_no_style_of_its_own() -> None:
    page = text(STATIC / "index.html")
    assert re.findall(r"<script[^>]*>(.+?)</script>", page, re.DOTALL) == []
    assert "<style" not in page
    assert not re.search(r"\s(style|on\w+)=", page)


@pytest.mark.parametrize("path", OWN, ids=short)
def test_a_module_writes_no_markup_and_runs_no_text(path: Path) -> None:
    code = text(path)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in code


PARSE = """const { SourceTextModule } = require("node:vm");
for (const path of process.argv.slice(1)) {
  new SourceTextModule(require("node:fs").readFileSync(path, "utf8"), { identifier: path });
}"""


def test_every_module_is_javascript() -> None:
    command = [program("node"), "--experimental-vm-modules", "--no-warnings", "-e", PARSE, *map(str, MODULES)]
    parsed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert parsed.stderr == ""
