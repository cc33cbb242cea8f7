"""`qtasks dev` when a process is killed in the last attempt of a call, and when a name is misspelt."""

from __future__ import annotations

from pathlib import Path

from tests.support.dev import Dev
from tests.support.process import qtasks, soon

TASKS = """
import os
from pathlib import Path

from qtasks import task

@task(retries=0, interrupted_for=0, unique=True)
def once(number: int) -> int:
    if not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), 9)
    return number

@once.on_failure
def note(event) -> None:
    with Path("failed").open("a") as file:
        file.write(f"{event.context.call_id} {event.reason}\\n")
"""

SCRIPT = """
from qtasks.errors import TaskFailed
from tasks import once

handle = once.delay(7)
try:
    handle.get(timeout=15)
except TaskFailed as error:
    print(handle.id, error.error, sep="\\n")
"""

AGAIN = """
from tasks import once

again = once.delay(7)
print(again.deduplicated, again.get(timeout=15))
"""


def test_a_call_whose_process_is_killed_ends_and_frees_its_key(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    with Dev(tmp_path, "tasks.py") as dev:
        dev.started()
        call_id, reason = dev.run(SCRIPT).splitlines()
        assert reason.startswith("DeliveryFailed: ")
        assert dev.run(AGAIN) == "False 7\n"
        failed = tmp_path / "failed"
        soon(failed.exists, "the hook is called")
        [line] = failed.read_text().splitlines()
        assert line == f"{call_id} {reason}"

        misspelt = qtasks("send", "onec", "7", folder=tmp_path)
        assert misspelt.status == 6
        assert "there is no task 'onec'; did you mean 'once'?" in misspelt.err
        assert dev.stop() == 0
        assert dev.lines[-1] == "1 done, 0 retried, 1 failed"
