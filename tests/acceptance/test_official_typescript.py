"""The official `@upstash/qstash` package, unchanged, on this machine's Node, against a real broker on a real socket.

The checks are in `typescript/*.mjs`; each runs with a user of its own. Needs `node` and `npm`: without them the tests
are skipped on a laptop and fail in CI.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qtasks.broker.settings import BrokerSettings
from tests.support.programs import npm_installed, program
from tests.support.running import RunningBroker

FOLDER = Path(__file__).parent / "typescript"
NAMES = [
    name
    for script in sorted(FOLDER.glob("*.mjs"))
    for name in re.findall(r'^check\("([^"]+)"', script.read_text(encoding="utf-8"), re.MULTILINE)
]
CHECKLIST = {*range(6, 13), *range(14, 25), 26, 27, 29, 30}
"""The items of the conformance checklist that come from this SDK (docs/protocol.md, appendix B)."""
RUN_S = 120


@dataclass(frozen=True)
class Check:
    ok: bool
    detail: str


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts with the SDK beside them, as the lock file has it."""
    program("node")
    return npm_installed(FOLDER, tmp_path_factory.mktemp("typescript") / "scripts")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    running = RunningBroker(BrokerSettings(path=str(tmp_path_factory.mktemp("broker") / "broker.db")))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def checks(installed: Path, broker: RunningBroker) -> dict[str, Check]:
    """What every check found, by its name."""
    users = {}
    for name in NAMES:
        user = broker.new_user()
        assert user.keys is not None
        users[name] = {"token": user.token, "current": user.keys.current, "next": user.keys.next}
    telling = ("QSTASH_", "QTASKS_", "UPSTASH_", "EU_CENTRAL_1_", "US_EAST_1_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(telling)}
    done = subprocess.run(
        ["node", "run.mjs"],
        cwd=installed,
        env={**environment, "QTASKS_BROKER": broker.url, "QTASKS_USERS": json.dumps(users)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: Check(line["ok"], line["detail"]) for line in lines}


def test_every_check_that_is_written_was_run(checks: dict[str, Check]) -> None:
    assert len(NAMES) == len(set(NAMES)) >= 40
    assert set(checks) == set(NAMES)


def test_every_item_of_the_conformance_checklist_has_a_check() -> None:
    assert {int(number) for name in NAMES for number in re.findall(r"\bB(\d+)", name)} == CHECKLIST


@pytest.mark.parametrize("name", NAMES)
def test_the_official_typescript_sdk(checks: dict[str, Check], name: str) -> None:
    assert checks[name].ok, checks[name].detail
