"""What a server of ours loads stays in its memory for as long as it runs: nothing large that most of them never use."""

from __future__ import annotations

import subprocess
import sys

import pytest

LARGE = {"httpx", "apsw.ext", "openai", "pytest"}


@pytest.mark.parametrize("modules", ["qtasks.cli.broker.serve", "qtasks.cli.serving.run, qtasks.tasks.web.router"])
def test_a_server_loads_nothing_large_that_it_does_not_use(modules: str) -> None:
    script = f"import sys, {modules}; print(*sorted({LARGE!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
