"""Pages of the book that stand elsewhere in the repository: changelog, contributing, benchmarks, examples.

A link of a page that leads out of `docs/` leads to a copy of its target below `repository/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
COPIES: Final = "repository"
_COPIED: Final = ("CHANGELOG.md", "LICENSE", "Dockerfile", ".github/*.md", "benchmarks/README.md", "examples/**/*.py")
_LINK: Final = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?(\))")
_ROW: Final = re.compile(r"^ *\|.*$", flags=re.MULTILINE)
_CODE: Final = re.compile(r"`[^`\n]+`")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add a page for each file outside of `docs/` that the book shows, and one for each folder of examples."""
    folders: dict[str, list[str]] = {}
    for path in sorted(path for pattern in _COPIED for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, _page_of(name), content=_text_of(path, name)))
        folders.setdefault(posixpath.dirname(name), []).append(path.name)
    for folder, names in folders.items():
        if folder.startswith("examples"):
            rows = "".join(f"- [{name}]({name})\n" for name in names)
            files.append(File.generated(config, _page_of(folder), content=f"# `{folder}`\n\n{rows}"))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let each link that leads out of `docs/` lead to the copy, and show bars in the tables as GitHub does."""
    uri = page.file.src_uri
    copied = uri.startswith(f"{COPIES}/")
    original = uri.removeprefix(f"{COPIES}/").replace("github/", ".github/") if copied else f"docs/{uri}"

    def lead(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(original), link[2]))
        found = target.removeprefix("docs/") if target.startswith("docs/") else _page_of(target)
        return f"{link[1]}{posixpath.relpath(found, posixpath.dirname(uri))}{link[3] or ''}{link[4]}"

    return _ROW.sub(_without_escapes, _LINK.sub(lead, markdown))


def _without_escapes(row: re.Match[str]) -> str:
    """A row of a table whose code has bars without the backslash: GitHub needs it there, and mkdocs would show it."""
    return _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0])


def _page_of(name: str) -> str:
    """The page that shows the file or the folder `name` of the repository."""
    visible = f"{COPIES}/{name.removeprefix('.')}"  # files that begin with a dot are not served
    if (ROOT / name).is_dir():
        return f"{visible}/index.md"
    return visible if name.endswith(".md") else f"{visible}.md"


def _text_of(path: Path, name: str) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"# `{name}`\n\n````{'python' if path.suffix == '.py' else 'text'}\n{text}````\n"
