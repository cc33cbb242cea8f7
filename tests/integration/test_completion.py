"""What a shell completes: commands, options, and names from the service."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.process import QTASKS, environment, qtasks, soon
from tests.support.servers import SECRETS, BrokerServer


def completed(folder: Path, line: str, **variables: str) -> list[str]:
    """What bash offers behind `line`."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_QTASKS_COMPLETE": "bash_complete", **variables}
    done = subprocess.run(
        [QTASKS], cwd=folder, env=environment(**asked), capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stderr == ""
    return [each.partition(",")[2] for each in done.stdout.split()]


def test_commands_their_commands_and_options_are_completed(tmp_path: Path) -> None:
    assert completed(tmp_path, "qtasks me") == ["messages"]
    assert completed(tmp_path, "qtasks queues pa") == ["pause"]
    assert "--dry-run" in completed(tmp_path, "qtasks dlq retry --")
    assert completed(tmp_path, "qtasks nonsense x") == []


def test_names_come_from_the_service_and_nothing_if_it_does_not_answer(tmp_path: Path) -> None:
    with BrokerServer(tmp_path) as broker:
        broker.started()
        body = b'{"queueName": "email", "parallelism": 1}'
        assert broker.ask("POST", "/v2/queues", body, Content_Type="application/json").status == 200
        service = {"QSTASH_URL": broker.url, "QSTASH_TOKEN": SECRETS["QSTASH_TOKEN"]}
        # A service that is slow for a moment is given up: no name is offered then.
        soon(lambda: completed(tmp_path, "qtasks queues pause e", **service) == ["email"], "the name is offered")
        assert completed(tmp_path, "qtasks queues pause x", **service) == []
    assert completed(tmp_path, "qtasks queues pause e", **service) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed_and_bash_can_read_it(tmp_path: Path, shell: str) -> None:
    done = qtasks("completion", shell, folder=tmp_path)
    assert done.status == 0, done.err
    assert "_QTASKS_COMPLETE" in done.out
    if shell == "bash" and shutil.which("bash"):
        script = done.out + "\ncomplete -p qtasks\n"
        read = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20, check=False)
        assert "complete" in read.stdout
