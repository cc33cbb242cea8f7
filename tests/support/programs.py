"""Programs that some tests need and a laptop may not have: without them the tests are skipped, and fail in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

INSTALL_S = 120


def unavailable(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def program(*names: str) -> str:
    """The path of the first of these programs that is here."""
    path = next((path for name in names if (path := shutil.which(name)) is not None), None)
    if path is None:
        unavailable(f"{' or '.join(names)} is not on PATH")
    return path


def npm_installed(source: Path, target: Path) -> Path:
    """A copy of the folder `source` with its npm packages, as its lock file has them."""
    npm = program("npm")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--prefer-offline"],
        cwd=target,
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    if done.returncode != 0:
        unavailable(f"npm ci could not install {source.name}:\n{done.stderr[-2000:]}")
    return target
