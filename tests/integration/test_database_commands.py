"""`qtasks broker check`, `backup` and `repair`, beside a running broker and after damage."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from click.testing import CliRunner, Result

from qtasks.broker.store.connection import schema_version
from qtasks.broker.store.integrity import backup_note
from qtasks.cli import cli
from tests.support.logs import FRAME, HEADER, commit_ends, flip, killed, log_of, stored_messages
from tests.support.pages import damage_page, pages_of
from tests.support.process import qtasks
from tests.support.servers import SECRETS, BrokerServer

LATER = {"Upstash_Delay": "1h"}
NOBODY = 65534


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[BrokerServer]:
    with BrokerServer(folder, *arguments) as broker:
        yield broker.started()


def command(folder: Path, *arguments: str) -> Result:
    """Run a command of `qtasks broker` inside this process, where no broker runs."""
    db = ("--db", str(folder / "qtasks.db"))
    return CliRunner().invoke(cli, ["broker", *arguments, *db], standalone_mode=False)


def text(result: Result) -> str:
    """What a person sees."""
    return f"{result.output}{result.exception or ''}"


def test_the_help_of_a_backup_names_the_command_that_restores_it(tmp_path: Path) -> None:
    shown = command(tmp_path, "backup", "--help").output
    assert "`qtasks broker restore TARGET`" in " ".join(shown.split())


def test_check_and_backup_work_beside_a_running_broker_which_keeps_its_locks_and_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as broker:
        first = broker.publish("http://127.0.0.1:9/", b"one", **LATER)
        checked = qtasks("broker", "check", folder=tmp_path)
        assert (checked.status, checked.err) == (0, "")
        assert checked.out.startswith("sound: 1 messages, 1 of them not finished")
        assert "its log was not checked" in checked.out
        assert "in use by process" in checked.out
        copied = qtasks("broker", "backup", "copy.db", folder=tmp_path)
        assert (copied.status, copied.err) == (0, "")
        assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
        second = broker.publish("http://127.0.0.1:9/", b"two", **LATER)
        refused = qtasks("broker", "repair", folder=tmp_path)
        assert refused.status == 2
        assert "in use by" in refused.err
        assert broker.states(first) == broker.states(second) == ["CREATED"]
    assert stored_messages(tmp_path / "copy.db") == {first}
    assert not list(tmp_path.glob("copy.db?*")), "nothing is left beside the copy"


def test_a_backup_is_restored_by_copying_it_back(tmp_path: Path) -> None:
    path = killed(tmp_path / "qtasks.db", commits=5)
    assert command(tmp_path, "backup", str(tmp_path / "copy.db")).exception is None
    for file in tmp_path.glob("qtasks.db*"):
        file.unlink()
    shutil.copy(tmp_path / "copy.db", path)
    assert text(command(tmp_path, "check")).startswith("sound: 5 messages")


def test_a_backup_is_made_on_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = killed(tmp_path / "qtasks.db", commits=5)
    monkeypatch.setattr(os, "link", refuse)
    copy = tmp_path / "copy.db"
    assert "checked" in command(tmp_path, "backup", str(copy)).output
    assert stored_messages(copy) == stored_messages(path)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert "replaces nothing" in text(command(tmp_path, "backup", str(copy)))
    assert not list(tmp_path.glob("copy.db?*"))


def test_a_backup_that_is_copied_onto_the_database_of_a_killed_broker_is_not_mixed_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    killed(tmp_path / "earlier" / "qtasks.db", commits=5)
    command(tmp_path / "earlier", "backup", str(tmp_path / "copy.db"))
    path = killed(tmp_path / "qtasks.db", commits=30)
    path.write_bytes((tmp_path / "copy.db").read_bytes())  # as `cp` does: the file keeps its identity
    log = log_of(path).read_bytes()
    for arguments in (("repair",), ("token", "list"), ("backup", "other.db")):
        assert "qtasks.db is a backup, but the write-ahead log" in text(command(tmp_path, *arguments))
    with pytest.raises(AssertionError, match="is a backup, but the write-ahead log"), running(tmp_path):
        pass
    assert log_of(path).read_bytes() == log
    log_of(path).unlink()
    assert len(stored_messages(path)) == 5
    with running(tmp_path) as broker:
        assert broker.publish("http://127.0.0.1:9/", b"new", **LATER)


def test_a_backup_is_noted_beside_the_database_whose_note_no_backup_replaces(tmp_path: Path) -> None:
    path = str(killed(tmp_path / "qtasks.db", commits=3))
    note = backup_note.note_path(path)
    assert "in which the last backup is noted" in text(command(tmp_path, "backup", str(note)))
    assert backup_note.read(path) is None
    assert command(tmp_path, "backup", str(tmp_path / "copy.db")).exception is None
    noted = backup_note.read(path)
    assert noted is not None
    assert (noted.target, noted.bytes) == (str(tmp_path / "copy.db"), (tmp_path / "copy.db").stat().st_size)
    assert stat.S_IMODE(note.stat().st_mode) == 0o600


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files to others")
def test_the_note_of_a_backup_by_root_can_be_read_by_the_user_of_the_broker(tmp_path: Path) -> None:
    path = killed(tmp_path / "qtasks.db", commits=3)
    os.chown(path, NOBODY, NOBODY)
    assert command(tmp_path, "backup", str(tmp_path / "copy.db")).exception is None
    note = backup_note.note_path(str(path)).stat()
    assert (note.st_uid, note.st_gid, stat.S_IMODE(note.st_mode)) == (NOBODY, NOBODY, 0o600)
    assert (tmp_path / "copy.db").stat().st_uid == 0, "the copy belongs to the user who has made it"


def test_a_backup_succeeds_where_it_cannot_be_noted(tmp_path: Path) -> None:
    path = str(killed(tmp_path / "qtasks.db", commits=3))
    backup_note.note_path(path).mkdir()
    done = command(tmp_path, "backup", str(tmp_path / "copy.db"))
    assert done.exception is None
    assert "the console will not show this backup" in done.output
    assert stored_messages(tmp_path / "copy.db")


def test_a_backup_replaces_no_file(tmp_path: Path) -> None:
    killed(tmp_path / "qtasks.db", commits=3)
    (tmp_path / "copy.db").write_bytes(b"something else")
    assert "copy.db exists already" in text(command(tmp_path, "backup", str(tmp_path / "copy.db")))
    assert (tmp_path / "copy.db").read_bytes() == b"something else"


def test_a_damaged_database_is_named_by_check_refused_by_backup_and_saved_by_repair(tmp_path: Path) -> None:
    path = killed(tmp_path / "qtasks.db", commits=60)
    moved_into_the_database(path)
    ids = stored_messages(path)
    damage_page(path, pages_of(path, "messages")[2])
    start = qtasks("broker", "--port", "0", folder=tmp_path, **SECRETS)
    assert start.status == 2
    assert "qtasks broker repair" in start.err
    checked = command(tmp_path, "check")
    assert checked.exit_code == 1
    assert "damaged: " in checked.output
    assert f"`qtasks broker repair --db {path}` saves what can be read" in checked.output
    assert f"`qtasks broker restore BACKUP --db {path}`" in checked.output
    assert "broker check" not in checked.output, "it does not advise what it has just done"
    assert "its copy is of no use" in text(command(tmp_path, "backup", str(tmp_path / "copy.db")))
    assert not list(tmp_path.glob("copy.db*"))
    assert command(tmp_path, "repair").exception is None
    [report] = tmp_path.glob("*.report")
    lost = {line.split()[2].rstrip(":") for line in report.read_text().splitlines()}
    assert lost
    assert stored_messages(path) | lost == ids
    assert text(command(tmp_path, "check")).startswith(f"sound: {len(ids - lost)} messages")
    assert "is sound: nothing was changed" in text(command(tmp_path, "repair"))


def test_a_damaged_log_is_named_by_every_command_and_saved_by_repair_without_loss(tmp_path: Path) -> None:
    path = killed(tmp_path / "qtasks.db", commits=40)
    flip(log_of(path), 8 * (32 + commit_ends(path)[9] * FRAME + 2000))
    for arguments in (["check"], ["backup", str(tmp_path / "copy.db")], ["token", "list"]):
        refused = command(tmp_path, *arguments)
        assert refused.exception is not None
        assert "write-ahead log is damaged" in text(refused), arguments
    assert "saved: 40 messages, 40 of them as they were accepted" in text(command(tmp_path, "repair"))
    assert stored_messages(path) == {f"msg_{number}" for number in range(40)}


def moved_into_the_database(path: Path) -> None:
    apsw.Connection(str(path)).close()


def test_a_broker_that_meets_a_damaged_page_ends_with_status_2_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "qtasks.db"
    with running(tmp_path) as broker:
        broker.publish("http://127.0.0.1:9/", b"one", **LATER)
    unread = pages_of(path, "log_by_account")
    with running(tmp_path) as broker:
        for page in unread:
            damage_page(path, page)
        answer = broker.ask("GET", "/v2/logs")
        assert answer.status == 503, answer.body
        assert "qtasks broker repair" in broker.wait_for("is damaged")
        assert broker.finish() == 2


@pytest.mark.parametrize("release", ["schema_2", "schema_3"])
def test_a_database_of_an_earlier_release_is_sound(tmp_path: Path, release: str) -> None:
    archive = Path(__file__).parents[1] / "store" / "released" / f"{release}.tar.xz"
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (tmp_path / "old.db").rename(tmp_path / "qtasks.db")
    (tmp_path / "old.db-wal").rename(tmp_path / "qtasks.db-wal")
    assert text(command(tmp_path, "check")).startswith("sound: ")
    assert "is sound: nothing was changed" in text(command(tmp_path, "repair"))
    assert command(tmp_path, "backup", str(tmp_path / "copy.db")).exception is None


@pytest.mark.parametrize("arguments", [("check",), ("repair",), ("backup", "copy.db"), ("token", "list")])
def test_no_command_loses_the_log_of_a_database_that_was_emptied(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = killed(tmp_path / "qtasks.db", commits=5)
    database, log = path.read_bytes(), log_of(path).read_bytes()
    os.truncate(path, 0)
    assert "is missing or empty, but its write-ahead log" in text(command(tmp_path, *arguments))
    assert log_of(path).read_bytes() == log
    path.write_bytes(database)
    assert len(stored_messages(path)) == 5


@pytest.mark.parametrize("log_was_moved", [False, True], ids=["before the log was moved", "after the log was moved"])
def test_a_repair_that_was_interrupted_says_what_to_do_and_then_saves_all(tmp_path: Path, log_was_moved: bool) -> None:
    path = killed(tmp_path / "qtasks.db", commits=12)
    flip(log_of(path), (HEADER + 3 * FRAME + 500) * 8)
    kept = tmp_path / "qtasks.db.damaged-1"  # as a kill in the middle of the exchange leaves it
    os.link(path, kept)
    if log_was_moved:
        log_of(path).rename(log_of(kept))
    refused = text(command(tmp_path, "repair"))
    assert f"a repair of {path} was interrupted" in refused
    assert (f"move {log_of(kept)} back to {log_of(path)}" in refused) == log_was_moved
    if log_was_moved:
        log_of(kept).rename(log_of(path))
    kept.unlink()
    assert "saved: 12 messages" in text(command(tmp_path, "repair"))


@pytest.mark.parametrize("version", [0, schema_version() + 1])
def test_a_damaged_number_of_the_schemas_version_is_named_and_repaired(tmp_path: Path, version: int) -> None:
    path = killed(tmp_path / "qtasks.db", commits=5)
    db = apsw.Connection(str(path))
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    before = stored_messages(path)
    checked = command(tmp_path, "check")
    assert checked.exit_code == 1
    assert f"damaged: the number of the schema's version is damaged: {version}" in checked.output
    assert f"saved: {len(before)} messages, {len(before)} of them as they were accepted" in text(
        command(tmp_path, "repair")
    )
    assert command(tmp_path, "check").output.startswith(f"sound: {len(before)} messages")
    assert stored_messages(path) == before


@pytest.mark.parametrize("arguments", [("check",), ("repair",)])
def test_a_file_of_another_program_is_left_as_it_is(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "qtasks.db"
    db = apsw.Connection(str(path))
    db.execute("CREATE TABLE diary (day TEXT)")
    db.close()
    content = path.read_bytes()
    assert "is a database of another program" in text(command(tmp_path, *arguments))
    path.write_bytes(content[:100] + b"\xa5" * 9000)
    assert command(tmp_path, *arguments).exception is not None
    assert path.read_bytes() == content[:100] + b"\xa5" * 9000
    path.write_bytes(b"Dear diary, " * 2000)
    assert command(tmp_path, *arguments).exception is not None
    assert path.read_bytes() == b"Dear diary, " * 2000


def test_a_damaged_message_is_named_until_a_broker_has_set_it_aside(tmp_path: Path) -> None:
    path = killed(tmp_path / "qtasks.db", commits=5)
    db = apsw.Connection(str(path))
    db.execute("UPDATE messages SET url = url || '/other' WHERE id = 'msg_4'")
    db.close()
    checked = command(tmp_path, "check")
    assert checked.exit_code == 1
    assert "damaged: message msg_4: corrupt" in checked.output
