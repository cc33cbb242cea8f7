"""The official SDK's README, feature by feature, as a person runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.process import environment

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "qstash_sdk" / "readme.py"


def test_every_feature_of_the_readme_is_shown_offline(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT)],
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING="utf-8"),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert done.stdout.strip() == EXPECTED.strip()


EXPECTED = """
publish a json message
arrived: {"hello": "world"} with test-header: test-value

receive messages
verified: pay 1 EUR
forged: body

create a schedule
next run: True cron: CRON_TZ=Europe/Berlin */5 * * * *
paused: True

publish to a language model
the model says: Ankara

chat with the brokers own model
This is the built-in echo model of qtasks, not a language model. You said: hello

configure a message
deduplicated: False
deduplicated: True
not before its time: True
first attempt: status 500, body 'not today'
second attempt: status 200, body 'thank you'

publish to a url group
arrived: {"to": "all"} and {"to": "all"}

keep an order
in order: 1 2 3

limit a rate
started: 2 of 2, waiting: 1

send a batch
accepted: 2 arrived: {"n": 1}
cancelled: 1

look after failures
failure callback: status 404, body 'nothing here'
dead letter: 404 nothing here
log: CREATED ACTIVE ERROR FAILED

use async code
arrived: "from async code"
"""
