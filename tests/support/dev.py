"""`qtasks dev` as a user starts it: a process in a folder, on free ports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.process import PATIENCE_S, Process, environment

__all__ = ["PATIENCE_S", "Dev", "environment"]


class Dev(Process):
    """A running `qtasks dev`."""

    def __init__(self, folder: Path, *arguments: str, port: str | None = "0", **variables: str) -> None:
        chosen = () if port is None else ("--port", port)
        super().__init__(folder, "dev", *chosen, "--app-port", "0", *arguments, **variables)

    def started(self) -> dict[str, Any]:
        """Wait until it serves, and return the content of its dev.json."""
        self.wait_for("  store ")
        return self.started_already()

    def started_already(self) -> dict[str, Any]:
        """The content of its dev.json, when it serves already."""
        facts: dict[str, Any] = json.loads((self.folder / ".qtasks" / "dev.json").read_text())
        return facts

    def run(self, script: str) -> str:
        """Run a script in the same folder, without any configuration; its output."""
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
