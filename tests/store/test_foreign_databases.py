"""A broker touches no database of another program, and knows its own, those of earlier releases included."""

from __future__ import annotations

import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from click.testing import CliRunner

from qtasks.broker.store.connection import APPLICATION_ID, connect
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.cli import cli
from qtasks.errors import StoreError
from tests.support.broker import VirtualClock

pytestmark = pytest.mark.anyio

RELEASED = Path(__file__).with_name("released")
MADE_BY: dict[str, list[str]] = {
    "a shop": ["CREATE TABLE orders (id)", "INSERT INTO orders VALUES (1)"],
    "a shop that counts versions as we do": ["CREATE TABLE orders (id)", "PRAGMA user_version = 4"],
    "a mailer with tables named like ours": ["CREATE TABLE messages (id, text)", "PRAGMA user_version = 3"],
    "a mixture": ["CREATE TABLE messages (id)", "CREATE TABLE zebras (id)"],
    "one that has views only": ["CREATE VIEW messages AS SELECT 1 AS id"],
    "one with a trigger": ["CREATE TABLE a (b)", "CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; END"],
    "one that says who it is": ["PRAGMA application_id = 1196444487", "PRAGMA user_version = 10200"],
    "one with an id and our names": ["PRAGMA application_id = 7", "CREATE TABLE messages (id)"],
    "one with a negative id": ["PRAGMA application_id = -5"],
    "the results of tasks": ["PRAGMA application_id = 1903455090", "CREATE TABLE results (call_id)"],
}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def made_by(program: str, journal: str, folder: Path) -> Path:
    path = folder / "shop #1?.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        for statement in MADE_BY[program]:
            db.execute(statement)
    return path


def id_of(path: Path) -> bytes:
    """The application id in the header of a database."""
    return path.read_bytes()[68:72]


async def start(path: Path) -> None:
    store, _ = await SqliteStore.open(str(path), VirtualClock())
    await store.close()


@pytest.mark.parametrize("program", MADE_BY)
@pytest.mark.parametrize("journal", ["delete", "wal"])
async def test_a_broker_does_not_start_on_it_and_changes_nothing(program: str, journal: str, tmp_path: Path) -> None:
    foreign = made_by(program, journal, tmp_path)
    before = contents(foreign.parent)
    with pytest.raises(StoreError, match=r"is a database of another program: .*; nothing was changed") as caught:
        await start(foreign)
    assert (caught.value.code, caught.value.fix is not None) == ("QT504", True)
    assert contents(foreign.parent) == before


@pytest.mark.parametrize(
    "command",
    ["init", "token create x", "token list", "token revoke x", "check", "repair", "backup copy.db"],
)
def test_no_command_touches_it(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = made_by("a shop that counts versions as we do", "wal", tmp_path)
    monkeypatch.chdir(foreign.parent)
    before = contents(foreign.parent)
    done = CliRunner().invoke(cli, ["broker", "--db", str(foreign), *command.split()])
    assert isinstance(done.exception, StoreError), done.output
    assert "is a database of another program" in str(done.exception)
    assert done.output == ""
    assert contents(foreign.parent) == before


async def test_one_that_another_program_is_writing_at_the_moment_is_not_touched_either(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as shop:
        shop.execute("PRAGMA journal_mode = WAL")
        shop.execute("CREATE TABLE orders (id)")  # in the log only
        before = {name: data for name, data in contents(tmp_path).items() if not name.endswith("-shm")}
        with pytest.raises(StoreError, match="it has the table orders"):
            await start(path)
        after = {name: data for name, data in contents(tmp_path).items() if not name.endswith("-shm")}
        assert after == before
        shop.execute("INSERT INTO orders VALUES (1)")
        assert shop.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("nobodys", ["missing", "empty", "without tables"])
async def test_a_file_of_nobody_becomes_the_brokers_and_says_so(tmp_path: Path, nobodys: str) -> None:
    path = tmp_path / "q.db"
    if nobodys == "empty":
        path.touch()
    if nobodys == "without tables":
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA page_size = 8192")
            db.execute("VACUUM")
    await start(path)
    assert id_of(path) == b"qtks"
    await start(path)


@pytest.fixture(params=["schema_2", "schema_3", "schema_4"])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database of a release that gave it no application id; of the first two, all is in the log of a killed one."""
    path = tmp_path / "old.db"
    if request.param == "schema_4":
        connect(str(path)).execute("PRAGMA application_id = 0").close()
        assert id_of(path) == bytes(4)
    else:
        with tarfile.open(RELEASED / f"{request.param}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
    return path


async def test_a_database_of_an_earlier_release_is_known_by_its_tables_and_marked(earlier: Path) -> None:
    await start(earlier)
    assert id_of(earlier) == b"qtks"
    await start(earlier)


async def test_an_earlier_one_with_a_table_of_somebody_else_is_refused_until_it_is_marked(earlier: Path) -> None:
    with closing(apsw.Connection(str(earlier))) as db:
        db.execute("CREATE TABLE orders (id)")
    with pytest.raises(StoreError, match="it has the table orders"):
        await start(earlier)
    with closing(apsw.Connection(str(earlier))) as db:
        db.execute("DROP TABLE orders")
    await start(earlier)
    with closing(apsw.Connection(str(earlier))) as db:
        db.execute("CREATE TABLE orders (id)")
    checked = CliRunner().invoke(cli, ["broker", "check", "--db", str(earlier)])
    assert "another program" not in str(checked.exception)


@pytest.fixture
def broker_command(tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli, ["broker", "--db", str(tmp_path / "q.db"), *arguments])
        assert done.exit_code == code, done.output + repr(done.exception)
        return done.output

    return run


async def test_a_damaged_id_keeps_the_broker_away_until_a_repair(
    tmp_path: Path, broker_command: Callable[..., str]
) -> None:
    broker_command("init")
    with (tmp_path / "q.db").open("r+b") as file:
        file.seek(68)
        file.write(b"qtkz")
    with pytest.raises(StoreError, match="its application id is 0x71746b7a, not 0x71746b73"):
        await start(tmp_path / "q.db")
    assert "damaged: the application id in the header is 0x71746b7a" in broker_command("check", code=1)
    assert "saved: 0 messages" in broker_command("repair")
    assert "sound" in broker_command("check")
    assert "first" in broker_command("token", "list")
    await start(tmp_path / "q.db")


def test_a_backup_has_the_id_too(tmp_path: Path, broker_command: Callable[..., str]) -> None:
    broker_command("init")
    broker_command("backup", str(tmp_path / "copy.db"))
    assert int.from_bytes((tmp_path / "copy.db").read_bytes()[68:72]) == APPLICATION_ID


async def test_a_file_that_is_no_database_at_all_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"buy milk\n" * 1000)
    with pytest.raises(StoreError, match="is not a qtasks database"):
        await start(path)
    assert path.read_bytes() == b"buy milk\n" * 1000
