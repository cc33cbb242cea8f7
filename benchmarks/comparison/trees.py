"""A revision of qtasks as a folder that processes can import it from."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.processes import ROOT

THIS_TREE: Final = "this tree"
_GIT_S: Final = 60
_COMPILE_S: Final = 60


class NoRevisionError(Exception):
    """The revision to compare with cannot be had; the text gives the reason."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder that holds the package `qtasks`."""

    name: str
    version: str
    folder: Path

    def environment(self) -> dict[str, str]:
        """Variables with which Python imports this `qtasks`, and the benchmarks of the running tree."""
        return {"PYTHONPATH": os.pathsep.join((str(self.folder), str(ROOT))), "PYTHONSAFEPATH": "1"}


def this_tree() -> Tree:
    """The running tree, with changes that are not committed."""
    _compile(ROOT / "qtasks")
    return Tree(THIS_TREE, "as it is", ROOT)


def checkout(revision: str, parent: Path) -> Tree:
    """The package `qtasks` of a revision, in a new folder below `parent`. Raises NoRevisionError.

    It runs with the dependencies of this interpreter.
    """
    commit = _git(revision, "rev-parse", "--short=7", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    folder = parent / f"tree-{commit}"
    with tarfile.open(fileobj=io.BytesIO(_git(revision, "archive", commit, "qtasks"))) as archive:
        archive.extractall(folder, filter="data")
    _compile(folder)
    return Tree(commit, "" if commit == revision else revision, folder)


def _compile(folder: Path) -> None:
    """Compile a tree once, so that no start of a process does: the trees that are compared begin alike."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", folder], check=False, timeout=_COMPILE_S)


def _git(revision: str, *arguments: str) -> bytes:
    try:
        ended = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False, timeout=_GIT_S)
    except OSError as error:
        raise NoRevisionError(f"git is needed to read {revision}: {error}") from None
    if ended.returncode:
        reason = ended.stderr.decode(errors="replace").strip() or "there is no such commit"
        raise NoRevisionError(f"{revision} cannot be read from {ROOT}: {reason}")
    return ended.stdout
