"""The lock of a database is on the file: no other name of it and no removed lock file lets a second store in."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qtasks.broker.store import file_lock
from qtasks.broker.store.connection import connect
from qtasks.broker.store.file_lock import FileLock
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.errors import StoreError, StoreLocked
from tests.support.broker import START_MS, VirtualClock, publication

pytestmark = pytest.mark.anyio

PROGRAM = """
import asyncio, sys
from qtasks.broker.store.sqlite import SqliteStore
from tests.support.broker import VirtualClock
async def main():
    store, _ = await SqliteStore.open(sys.argv[1], VirtualClock())
    print('open', flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


def symbolic_link(database: Path, other: Path) -> Path:
    (other / "link.db").symlink_to(database)
    return other / "link.db"


def link_to_the_folder(database: Path, other: Path) -> Path:
    (other / "folder").symlink_to(database.parent)
    return other / "folder" / database.name


def hard_link(database: Path, other: Path) -> Path:
    (other / "hard.db").hardlink_to(database)
    return other / "hard.db"


def other_spelling(database: Path, other: Path) -> Path:
    return other / ".." / database.parent.name / ".." / database.parent.name / database.name


def new_name(database: Path, other: Path) -> Path:
    return database.rename(other / "moved.db")


def mount(database: Path, other: Path) -> Path:
    (other / "a mount.db").touch()
    mounting = subprocess.run(
        ["mount", "--bind", database, other / "a mount.db"],
        capture_output=True,
        check=False,
    )
    if mounting.returncode:
        pytest.skip("only root may mount")
    return other / "a mount.db"


def without_its_lock_file(database: Path, _other: Path) -> Path:
    Path(f"{database}.lock").unlink()
    return database


NAMES = [symbolic_link, link_to_the_folder, hard_link, other_spelling, mount, without_its_lock_file, new_name]


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder for the database, and another one."""
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    yield data, other
    if (other / "a mount.db").exists():
        subprocess.run(["umount", other / "a mount.db"], capture_output=True, check=True)


@pytest.fixture(scope="module")
def owned() -> Iterator[Callable[[Path], int]]:
    """Opens a store in another process, which holds it until the end of the test module; the number of that process."""
    owners: list[subprocess.Popen[str]] = []

    def own(database: Path) -> int:
        owner = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        owners.append(owner)
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        return owner.pid

    yield own
    for owner in owners:
        owner.kill()
        owner.communicate()


async def test_no_other_name_of_the_file_lets_a_second_process_in(
    folders: tuple[Path, Path], owned: Callable[[Path], int]
) -> None:
    data, other = folders
    database = data / "tasks.db"
    process = owned(database)
    for name in NAMES:
        with pytest.raises(StoreLocked, match=f"in use by process {process}"):
            await SqliteStore.open(str(name(database, other)), VirtualClock())


@pytest.mark.parametrize("name", NAMES)
async def test_no_other_name_of_the_file_lets_a_second_store_of_this_process_in(
    folders: tuple[Path, Path], name: Callable[[Path, Path], Path]
) -> None:
    data, other = folders
    database = data / "tasks.db"
    store, _ = await SqliteStore.open(str(database), VirtualClock())
    second = name(database, other)
    for _ in range(2):
        with pytest.raises(StoreLocked, match="in use by process"):
            await SqliteStore.open(str(second), VirtualClock())
    await store.close()


@pytest.mark.parametrize("is_moved_meanwhile", [False, True])
async def test_a_refused_store_of_this_process_leaves_the_locks_of_the_first_alone(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, is_moved_meanwhile: bool
) -> None:
    """Closing any descriptor of a file ends all record locks of the process on it, those of SQLite included."""
    data, _ = folders
    database = data / "tasks.db"
    store, _ = await SqliteStore.open(str(database), VirtualClock())
    await store.accept([publication(1)], now_ms=START_MS)
    if is_moved_meanwhile:  # nothing is known of the file before it is opened
        monkeypatch.setattr(file_lock, "file_at", lambda _: None)
    with pytest.raises(StoreLocked):
        await SqliteStore.open(str(database), VirtualClock())
    connect(str(database)).close()
    # The bytes on which each connection to a log has a shared lock; see https://sqlite.org/lockingv3.html.
    program = (
        f"import fcntl; fcntl.lockf(open({str(database)!r}, 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in other.stderr
    await store.close()


async def test_refused_stores_leave_no_descriptors_open(folders: tuple[Path, Path]) -> None:
    data, _ = folders
    database = data / "tasks.db"
    store, _ = await SqliteStore.open(str(database), VirtualClock())
    before = open_files(database)
    for _ in range(3):
        with pytest.raises(StoreLocked):
            await SqliteStore.open(str(database), VirtualClock())
    assert open_files(database) == before
    await store.close()
    assert open_files(database) == 0


def open_files(database: Path) -> int:
    """How many descriptors of this process are of the database or of a file beside it."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of this listing
            count += str(link.readlink()).startswith(str(database))
    return count


async def test_a_program_that_copies_its_own_database_keeps_the_lock(folders: tuple[Path, Path]) -> None:
    """An application with an embedded broker, for example. The close of the copied file ends all its record locks."""
    data, _ = folders
    database = data / "tasks.db"
    store, _ = await SqliteStore.open(str(database), VirtualClock())
    shutil.copy(database, data / "copy.db")
    (data / "tasks.db.lock").unlink()
    second = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(database)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "StoreLocked" in second.stderr
    await store.close()


async def test_the_lock_ends_with_the_store(folders: tuple[Path, Path]) -> None:
    data, _ = folders
    for _ in range(2):
        store, _ = await SqliteStore.open(str(data / "tasks.db"), VirtualClock())
        await store.close()


def record_lock_only(descriptor: int) -> None:
    """The lock on a system without locks of descriptors."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, file_lock._BYTE)


async def test_a_process_that_locked_the_file_while_sqlite_opened_it_is_noticed(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, owned: Callable[[Path], int]
) -> None:
    """SQLite unlocks all bytes at once while it opens a file."""
    data, _ = folders
    database = data / "tasks.db"
    with monkeypatch.context() as patched:
        patched.setattr(file_lock, "_lock_database", record_lock_only)
        lock = FileLock.acquire(str(database))
        lock.confirm()
        database.open("rb").close()
        (data / "tasks.db.lock").unlink()
        process = owned(database)
        with pytest.raises(StoreLocked, match=f"in use by process {process}"):
            lock.confirm()
        lock.release()


@pytest.mark.parametrize("name", [hard_link, mount])
async def test_a_file_whose_log_could_lie_beside_another_name_is_refused(
    folders: tuple[Path, Path], name: Callable[[Path, Path], Path]
) -> None:
    data, other = folders
    database = data / "tasks.db"
    store, _ = await SqliteStore.open(str(database), VirtualClock())
    await store.close()
    second = name(database, other)
    with pytest.raises(StoreError, match="SQLite keeps the newest data in a file beside"):
        await SqliteStore.open(str(second), VirtualClock())


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(StoreError, match=f"{path}"):
            await SqliteStore.open(str(path), VirtualClock())
