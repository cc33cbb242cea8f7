"""The files of a database in the hands of others: opened twice, removed, renamed or replaced under a running broker."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.dev import Dev
from tests.support.process import qtasks, soon
from tests.support.servers import SECRETS, BrokerServer

ENDS_WITHIN_S = 3.0
"""The watch looks twice a second; the rest is the end of the process on a busy machine."""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder for the database, and another one."""
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    return data, other


def publish_until_it_ends(broker: BrokerServer, accepted: list[str]) -> None:
    with contextlib.suppress(OSError, AssertionError):
        while True:
            accepted.append(broker.publish("http://127.0.0.1:9/", Upstash_Delay="1h"))


def moved(file: Path) -> Callable[[], None]:
    """Move a file or folder away; the returned function puts it back."""
    away = file.with_name(file.name + " away")
    file.rename(away)

    def put_back() -> None:
        away.rename(file)

    return put_back


def removed(file: Path) -> Callable[[], None]:
    file.unlink()
    return lambda: None


def replaced(file: Path) -> Callable[[], None]:
    """Put an equal file in its place, as a program that restores a backup does; the returned function puts it back."""
    kept, copy = file.with_name(file.name + " kept"), file.with_name(file.name + " copy")
    kept.hardlink_to(file)
    shutil.copy(file, copy)
    copy.replace(file)

    def put_back() -> None:
        kept.replace(file)

    return put_back


CHANGES = [
    pytest.param("tasks.db", moved, "tasks.db was removed or renamed", id="database moved"),
    pytest.param("tasks.db", replaced, "tasks.db was replaced", id="database replaced", marks=pytest.mark.release),
    pytest.param("tasks.db-wal", removed, "tasks.db-wal was removed", id="log removed"),
    pytest.param("tasks.db-wal", replaced, "tasks.db-wal was replaced", id="log replaced", marks=pytest.mark.release),
    pytest.param("tasks.db-shm", removed, "tasks.db-shm was removed", id="index removed", marks=pytest.mark.release),
    pytest.param("tasks.db.lock", removed, "tasks.db.lock was removed", id="lock removed", marks=pytest.mark.release),
    pytest.param("", moved, "tasks.db was removed or renamed", id="folder moved", marks=pytest.mark.release),
]


@pytest.mark.parametrize(("file", "change", "sentence"), CHANGES)
def test_a_change_of_a_file_ends_the_broker_and_what_it_had_accepted_is_there_at_the_next_start(
    folders: tuple[Path, Path], file: str, change: Callable[[Path], Callable[[], None]], sentence: str
) -> None:
    folder, other = folders
    accepted: list[str] = []
    with BrokerServer(other, "--db", str(folder / "tasks.db")) as broker:
        broker.started()
        publishing = threading.Thread(target=publish_until_it_ends, args=(broker, accepted))
        publishing.start()
        soon(lambda: len(accepted) > 20, "messages are accepted")
        began = time.monotonic()
        put_back = change(folder / file)
        assert broker.finish() == 2
        assert time.monotonic() - began < ENDS_WITHIN_S
        publishing.join()
        assert sentence in broker.lines[-1]
        assert "Traceback" not in broker.output
    put_back()
    with BrokerServer(other, "--db", str(folder / "tasks.db")) as broker:
        broker.started()
        lost = [one for one in accepted if broker.ask("GET", f"/v2/messages/{one}").status != 200]
        assert lost == []


def test_a_second_broker_on_a_hard_link_and_a_command_beside_the_first_change_nothing_for_it(
    folders: tuple[Path, Path],
) -> None:
    folder, other = folders
    with BrokerServer(folder, "--db", "tasks.db") as broker:
        broker.started()
        done = qtasks("broker", "token", "create", "one", "--db", "tasks.db", folder=folder)
        assert done.status == 0, done.err
        broker.publish("http://127.0.0.1:9/", Upstash_Delay="1h")
        (other / "hard.db").hardlink_to(folder / "tasks.db")
        second = qtasks("broker", "--port", "0", "--db", "hard.db", folder=other, **SECRETS)
        assert second.status == 2
        assert f"in use by process {broker.process.pid}" in second.err
        assert broker.ask("GET", "/readyz").status == 200
        assert (folder / "tasks.db-wal").exists()


DEV_TASKS = """
import time
from qtasks import task

@task
def hang() -> None:
    print("hanging", flush=True)
    time.sleep(3600)
"""


@pytest.mark.release
def test_qtasks_dev_ends_with_the_sentence_though_a_task_hangs(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(DEV_TASKS)
    with Dev(tmp_path, "tasks.py") as dev:
        dev.started()
        dev.run("from tasks import hang; hang.delay()")
        dev.wait_for("hanging")
        shutil.rmtree(tmp_path / ".qtasks")
        assert dev.finish() == 2
        assert "dev.db was removed or renamed while the broker used it" in dev.output
        assert "Traceback" not in dev.output
