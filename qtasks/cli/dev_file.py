"""`.qtasks/dev.json`: how a program beside a running `qtasks dev` finds it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(".qtasks")
FILE: Final = FOLDER / "dev.json"


@dataclass(frozen=True)
class DevFile:
    """The facts of a running `qtasks dev`, for this user alone."""

    broker: str
    token: str
    current_signing_key: str
    next_signing_key: str
    base_url: str
    results: str
    pid: int

    def write(self) -> None:
        """Put the file in place in one step, readable by its owner alone."""
        prepare()
        fresh = FILE.with_suffix(f".{self.pid}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
        fresh.replace(FILE)


def remove(pid: int) -> None:
    """Take the file away if it is that of process `pid`."""
    try:
        facts = json.loads(FILE.read_text(encoding="utf-8"))
        if isinstance(facts, dict) and facts.get("pid") == pid:
            FILE.unlink()
    except (OSError, ValueError):
        return


def prepare() -> None:
    """Make the folder; what is in it never belongs into a repository."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    ignore = FOLDER / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
