"""The code blocks of a page of the documentation, and a folder in which they are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.process import environment

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
_BLOCK: Final = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
_NAME: Final = re.compile(r"\A# ([\w/]+\.\w+)\n")
_PRINTS: Final = re.compile(r"^ *print\(.*\)  # (.*)$", flags=re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of `language`, without the indentation that a list gives them."""
    found = [(match[1], match[3]) for match in _BLOCK.finditer(text) if match[2] == language]
    return [re.sub(rf"^{indentation}", "", code, flags=re.MULTILINE) for indentation, code in found]


def files(text: str) -> dict[str, str]:
    """The Python blocks whose first line is a comment with the name of a file, by that name."""
    return {name[1]: code for code in blocks(text, "python") if (name := _NAME.match(code))}


def script(text: str) -> str:
    """All other Python blocks, one after the other."""
    return "\n".join(code for code in blocks(text, "python") if not _NAME.match(code))


def printed(code: str) -> list[str]:
    """What `code` says that it prints: the comments behind its calls of print."""
    return _PRINTS.findall(code)


def write_files(text: str, folder: Path) -> None:
    """Write the files of a page into `folder`."""
    for name, code in files(text).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")


def run(*arguments: str, folder: Path, timeout_s: float, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `arguments` in `folder`, as a reader of the page would."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(PYTHONIOENCODING="utf-8", **variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )
