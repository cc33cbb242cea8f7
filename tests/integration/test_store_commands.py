"""`qtasks store` and `qtasks broker restore`: beside a running broker, from a good backup and from a bad one."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qtasks.broker.store.connection import schema_version
from qtasks.cli import cli
from tests.support.logs import killed, log_of, stored_messages
from tests.support.pages import damage_page, pages_of
from tests.support.process import qtasks
from tests.support.servers import BrokerServer

LATER = {"Upstash_Delay": "1h"}


def command(folder: Path, *arguments: str) -> Result:
    """Run a command of `qtasks store` inside this process, where no broker runs."""
    db = ("--db", str(folder / "qtasks.db"))
    return CliRunner().invoke(cli, ["store", *db, *arguments], standalone_mode=False)


def text(result: Result) -> str:
    return f"{result.output}{result.exception or ''}"


def test_the_database_of_a_running_broker_is_described_and_neither_restored_nor_rewritten(tmp_path: Path) -> None:
    with BrokerServer(tmp_path) as broker:
        broker.started().publish("http://127.0.0.1:9/", b"one", **LATER)
        shown = text(command(tmp_path))
        assert f"in use by     process {broker.process.pid} (qtasks)" in shown
        assert "messages      1, 1 of them not finished" in shown
        facts = json.loads(command(tmp_path, "status", "--json").output)
        assert (facts["messages"], facts["deadLetters"], facts["schema"]) == (1, 0, schema_version())
        copy = str(tmp_path / "copy.db")
        assert command(tmp_path, "backup", copy).exception is None
        for arguments in (("restore", copy, "--yes"), ("vacuum",), ("upgrade",)):
            assert f"is in use by process {broker.process.pid}" in text(command(tmp_path, *arguments))
        assert broker.ask("GET", "/readyz").status == 200
    assert "in use by     no process" in text(command(tmp_path, "status"))


def test_a_restored_backup_takes_the_place_of_the_database_which_is_kept_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    killed(tmp_path / "earlier" / "qtasks.db", commits=5)
    assert command(tmp_path / "earlier", "backup", str(tmp_path / "copy.db")).exception is None
    earlier = stored_messages(tmp_path / "copy.db")
    path = killed(tmp_path / "qtasks.db", commits=9)
    log = log_of(path).read_bytes()
    asked = command(tmp_path, "restore", str(tmp_path / "copy.db"))
    assert "confirm it with --yes" in text(asked)
    looked = command(tmp_path, "restore", str(tmp_path / "copy.db"), "--dry-run")
    assert "5 messages" in text(looked)
    assert log_of(path).read_bytes() == log
    restored = command(tmp_path, "restore", str(tmp_path / "copy.db"), "--yes")
    assert restored.exception is None, text(restored)
    assert stored_messages(path) == earlier
    assert path.stat().st_mode & 0o077 == 0
    [kept] = [file for file in tmp_path.glob("qtasks.db.before-*") if not file.name.endswith(("-wal", "-shm"))]
    assert str(kept) in restored.output
    assert log_of(kept).read_bytes() == log
    assert len(stored_messages(kept)) == 9
    assert not list(tmp_path.glob("*.restored"))
    assert "sound: 5 messages" in text(command(tmp_path, "check"))
    with BrokerServer(tmp_path) as broker:
        assert broker.started().publish("http://127.0.0.1:9/", b"new", **LATER)


def test_a_backup_is_restored_where_there_is_no_database(tmp_path: Path) -> None:
    killed(tmp_path / "qtasks.db", commits=4)
    command(tmp_path, "backup", str(tmp_path / "copy.db"))
    for file in tmp_path.glob("qtasks.db*"):
        file.unlink()
    db = ("--db", str(tmp_path / "qtasks.db"))
    done = CliRunner().invoke(cli, ["broker", "restore", str(tmp_path / "copy.db"), *db], standalone_mode=False)
    assert done.exception is None, text(done)
    assert len(stored_messages(tmp_path / "qtasks.db")) == 4


def test_what_is_no_sound_backup_is_not_restored_and_nothing_changes(tmp_path: Path) -> None:
    path = killed(tmp_path / "qtasks.db", commits=60)
    copy = tmp_path / "copy.db"
    command(tmp_path, "backup", str(copy))
    before = {file.name: file.read_bytes() for file in tmp_path.glob("qtasks.db*") if not file.name.endswith(".lock")}
    assert "there is no backup at" in text(command(tmp_path, "restore", str(tmp_path / "none.db"), "--yes"))
    assert "is the database itself" in text(command(tmp_path, "restore", str(path), "--yes"))
    damage_page(copy, pages_of(copy, "messages")[2])
    assert "copy.db is damaged, and nothing was changed" in text(command(tmp_path, "restore", str(copy), "--yes"))
    (tmp_path / "alive.db").write_bytes(path.read_bytes())
    (tmp_path / "alive.db-wal").write_bytes(log_of(path).read_bytes())
    assert "so it is not a backup" in text(command(tmp_path, "restore", str(tmp_path / "alive.db"), "--yes"))
    copy.write_bytes(b"no database at all" * 100)
    assert command(tmp_path, "restore", str(copy), "--yes").exception is not None
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_a_database_of_an_earlier_release_is_upgraded_once(tmp_path: Path) -> None:
    archive = Path(__file__).parents[1] / "store" / "released" / "schema_3.tar.xz"
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (tmp_path / "old.db").rename(tmp_path / "qtasks.db")
    (tmp_path / "old.db-wal").rename(tmp_path / "qtasks.db-wal")
    action = f"from schema 3 to {schema_version()}"
    assert action in text(command(tmp_path, "upgrade"))
    assert action in text(command(tmp_path, "upgrade", "--dry-run"))
    assert f"schema {schema_version()}" in text(command(tmp_path, "upgrade", "--yes"))
    assert "is up to date" in text(command(tmp_path, "upgrade"))


def test_a_database_is_written_anew_with_every_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed(tmp_path / "qtasks.db", commits=30)
    messages = stored_messages(path)
    assert "MB before" in text(command(tmp_path, "vacuum"))
    assert stored_messages(path) == messages
    assert "sound: 30 messages" in text(command(tmp_path, "check"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert "cannot be written anew" in text(command(tmp_path, "vacuum"))


def test_a_mistyped_command_and_a_missing_database_are_sentences(tmp_path: Path) -> None:
    assert "did you mean 'restore'?" in text(command(tmp_path, "resotre"))
    missing = qtasks("store", "--db", "none.db", folder=tmp_path)
    assert missing.status == 3
    assert "there is no database at" in missing.err


def test_every_command_says_in_json_what_it_has_done(tmp_path: Path) -> None:
    path = killed(tmp_path / "qtasks.db", commits=6)
    copy = tmp_path / "copy.db"

    def facts(*arguments: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(command(tmp_path, *arguments, "--json").stdout)
        return document

    checked = facts("check")
    assert (checked["sound"], checked["findings"], checked["contents"]["messages"]) == (True, [], 6)
    assert facts("backup", str(copy)) == {"path": str(path), "backup": str(copy), "bytes": copy.stat().st_size}
    contents = {**checked["contents"], "bytes": copy.stat().st_size}
    looked = facts("restore", str(copy), "--dry-run")
    assert looked == {"path": str(path), "backup": str(copy), "restored": False, "contents": contents, "kept": None}
    restored = facts("restore", str(copy), "--yes")
    assert restored["restored"]
    assert Path(restored["kept"]).is_file()
    current = {"path": str(path), "before": schema_version(), "schema": schema_version(), "upgraded": False}
    assert facts("upgrade") == current
    written = facts("vacuum")
    assert written == {"path": str(path), "bytesBefore": written["bytesBefore"], "bytes": written["bytes"]} | {
        "vacuumed": True
    }
    assert facts("repair") == {"path": str(path), "repaired": False}


def test_damage_and_its_repair_are_json_too(tmp_path: Path) -> None:
    path = killed(tmp_path / "qtasks.db", commits=60)
    command(tmp_path, "vacuum")
    damage_page(path, pages_of(path, "messages")[2])
    checked = command(tmp_path, "check", "--json")
    facts = json.loads(checked.stdout)
    assert (facts["sound"], facts["contents"]) == (False, None)
    assert facts["findings"]
    assert "is damaged" in checked.stderr
    repaired = json.loads(command(tmp_path, "repair", "--json").stdout)
    assert repaired["repaired"]
    assert repaired["saved"]["messages"] + len(repaired["lost"]) == 60
    assert all(Path(repaired[name]).is_file() for name in ("kept", "report"))
    assert set(repaired) == {"path", "repaired", "kept", "report", "log", "saved", "damaged", "lost", "unreadable"}
