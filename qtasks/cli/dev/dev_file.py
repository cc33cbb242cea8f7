"""`.qtasks/dev.json`: the file in which other programs find a running `qtasks dev`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from qtasks.errors import ConfigurationError
from qtasks.tasks.dev_server import ServedApplication

FOLDER: Final = Path(".qtasks")
FILE: Final = FOLDER / "dev.json"


@dataclass(frozen=True)
class DevFile:
    """How to reach a running `qtasks dev`; only its user may read the file."""

    broker: str
    token: str
    current_signing_key: str
    next_signing_key: str
    base_url: str | None
    """None: it serves no application."""
    results: str
    pid: int
    application: ServedApplication | None = None

    def write(self) -> None:
        """Write the file in one step; only its owner can read it."""
        prepare()
        new_file = FILE.with_suffix(f".{self.pid}")
        descriptor = os.open(new_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            application = None if self.application is None else self.application._asdict()
            json.dump({**asdict(self), "application": application}, file, indent=2)
        new_file.replace(FILE)


def remove(pid: int) -> None:
    """Delete the file if process `pid` wrote it."""
    try:
        facts = json.loads(FILE.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and facts.get("pid") == pid:
            FILE.unlink()
    except (OSError, ValueError):
        return


def prepare() -> None:
    """Create the folder, with a `.gitignore` that keeps its files out of repositories.

    Raises ConfigurationError if that is not possible.
    """
    ignore = FOLDER / ".gitignore"
    try:
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the folder {FOLDER.absolute()}, which qtasks dev needs: {error.strerror}",
            fix="start it in a folder that may be written, and that has room",
        ) from error
