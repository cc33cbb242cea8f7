"""A virtual environment for each peer, made once with pip and kept."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import processes
from benchmarks.peers.catalogue import Peer
from benchmarks.waiting import Say

INSTALL_S: Final = 600
_MARK: Final = "installed.txt"
_VERSION: Final = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


class UnavailableError(Exception):
    """A peer cannot be measured; the text gives the reason."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment in which a peer is installed."""

    folder: Path
    version: str

    def program(self, name: str) -> Path:
        """Path of a program in the environment."""
        return self.folder / "bin" / name


def prepare(peer: Peer, parent: Path, say: Say, python: str) -> Environment:
    """The peer's environment below `parent`, created if it does not exist. Raises UnavailableError.

    `python` is the interpreter for a peer that needs a newer one than this.
    """
    folder = parent / peer.name
    mark, packages = folder / _MARK, "\n".join(peer.packages)
    try:
        if not mark.is_file() or mark.read_text() != packages:
            say(f"installing {' '.join(peer.packages)} into {folder}")
            _run([_interpreter(peer, python), "-m", "venv", "--clear", str(folder)])
            _run([str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *peer.packages])
            mark.write_text(packages)
        package = peer.packages[0].partition("[")[0]
        version = _run([str(folder / "bin" / "python"), "-c", _VERSION, package]).strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"it cannot be installed: {_reason(error)}") from None
    return Environment(folder, version)


def _interpreter(peer: Peer, python: str) -> str:
    if sys.version_info >= peer.python:
        return sys.executable
    wanted = ".".join(map(str, peer.python))
    code = f"import sys; print(sys.version_info >= {peer.python})"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if _run([python, "-c", code]).strip() == "True":
            return python
    raise UnavailableError(f"it needs Python {wanted} or newer, which {python} is not: name one with --python")


def _run(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=INSTALL_S, env=processes.environment()
    ).stdout


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        return lines[-1] if lines else f"pip ended with status {error.returncode}"
    return str(error)
