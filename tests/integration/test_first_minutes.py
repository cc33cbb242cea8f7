"""The first five minutes: two commands, no network, no account, and a task has run and stands on the console's page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import QTASKS, environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "support" / "first_minutes.py"
GUARD = ROOT / "tests" / "support" / "network_guard"
TASK_DONE_S, ALL_S = 60.0, 90.0
"""Generous: an idle machine needs two seconds."""
INSTALL_S = 600


def without_network() -> list[str] | None:
    """What runs a command in a network of its own; None if this machine does not let us."""
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return None


def first_minutes(python: str, qtasks: str, folder: Path) -> dict[str, Any]:
    """Do what a person does, without a network; when each step was done."""
    apart = without_network()
    command = [*(apart or []), python, str(SCRIPT), qtasks, str(folder), "guarded" if apart is None else "none"]
    variables = {"PYTHONPATH": str(GUARD)} if apart is None else {}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(PYTHONIOENCODING="utf-8", PYTHONUTF8="1", **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    how = "no network" if apart is not None else "a guard in every Python process, for want of a network of its own"
    sys.stdout.write(f"{len(facts['commands'])} commands, {how}: {facts['seconds']}\n")
    return facts


def check(facts: dict[str, Any]) -> None:
    assert facts["commands"] == ["qtasks new hello && cd hello && qtasks dev", "qtasks send greet Ada --wait"]
    assert facts["isolated"]
    assert facts["result"] == '"Hello, Ada!"'
    assert "✓  greet" in facts["line"]
    assert facts["delivered"] == 1
    assert facts["seconds"]["task done, in the terminal"] < TASK_DONE_S
    assert facts["seconds"]["shown by the console"] < ALL_S


def test_two_commands_lead_to_a_task_that_has_run_and_a_page_that_shows_it(tmp_path: Path) -> None:
    check(first_minutes(sys.executable, QTASKS, tmp_path))


def test_the_guard_in_place_of_a_network_lets_a_process_reach_this_machine_alone() -> None:
    script = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], 9)) == 0)"
    ended = {
        host: subprocess.run(
            [sys.executable, "-c", script, host], env=environment(PYTHONPATH=str(GUARD)), capture_output=True, text=True
        )
        for host in ("127.0.0.1", "192.0.2.1")
    }
    assert ended["127.0.0.1"].returncode == 0
    assert "may not reach 192.0.2.1" in ended["192.0.2.1"].stderr


@pytest.mark.release
def test_they_do_so_in_a_clean_environment_from_the_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    python = tmp_path / "venv" / "bin" / "python"
    wheels = tmp_path / "wheels"
    steps = (
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)],
        [sys.executable, "-m", "venv", str(tmp_path / "venv")],
        [str(python), *pip[1:], "install", f"{wheels}/WHEEL[broker]"],
    )
    for step in steps:
        command = [part.replace("WHEEL", next(wheels.glob("*.whl")).name) if "WHEEL" in part else part for part in step]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "person").mkdir()
    facts = first_minutes(str(python), str(python.with_name("qtasks")), tmp_path / "person")
    with capsys.disabled():
        sys.stdout.write(f"\n{capsys.readouterr().out}")
    check(facts)
