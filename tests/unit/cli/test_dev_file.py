"""`.qtasks/dev.json`: written in one step, for its owner alone, removed by whom it belongs to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qtasks.cli.dev import dev_file
from qtasks.cli.dev.dev_file import FILE, FOLDER, DevFile
from qtasks.tasks.dev_server import ServedApplication


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts(pid: int = 1) -> DevFile:
    return DevFile(
        broker="http://127.0.0.1:8080",
        token="t",
        current_signing_key="c",
        next_signing_key="n",
        base_url="http://127.0.0.1:8000/qtasks",
        results="memory://",
        pid=pid,
        application=ServedApplication("/srv/shop", "tasks", None),
    )


def test_it_holds_the_facts_and_is_for_its_owner_alone() -> None:
    before = os.umask(0)
    try:
        facts().write()
    finally:
        os.umask(before)
    assert json.loads(FILE.read_text()) == {
        "broker": "http://127.0.0.1:8080",
        "token": "t",
        "current_signing_key": "c",
        "next_signing_key": "n",
        "base_url": "http://127.0.0.1:8000/qtasks",
        "results": "memory://",
        "pid": 1,
        "application": {"folder": "/srv/shop", "module": "tasks", "attribute": None},
    }
    assert FILE.stat().st_mode & 0o777 == 0o600
    assert FOLDER.stat().st_mode & 0o777 == 0o700


def test_a_reader_never_sees_half_of_it() -> None:
    facts(1).write()
    with FILE.open() as reader:
        facts(2).write()
        assert json.load(reader)["pid"] == 1
    assert json.loads(FILE.read_text())["pid"] == 2
    assert sorted(path.name for path in FOLDER.iterdir()) == [".gitignore", "dev.json"]


def test_it_is_removed_by_whom_it_belongs_to() -> None:
    facts(7).write()
    dev_file.remove(8)
    assert FILE.exists()
    dev_file.remove(7)
    assert not FILE.exists()
    dev_file.remove(7)


@pytest.mark.parametrize("content", ["", "{", "5", "[]", '{"pid": "7"}'])
def test_a_file_that_is_none_of_ours_is_left_alone(content: str) -> None:
    dev_file.prepare()
    FILE.write_text(content)
    dev_file.remove(7)
    assert FILE.read_text() == content


def test_the_folder_keeps_itself_out_of_a_repository() -> None:
    dev_file.prepare()
    assert (FOLDER / ".gitignore").read_text() == "*\n"
    (FOLDER / ".gitignore").write_text("# mine\n")
    dev_file.prepare()
    assert (FOLDER / ".gitignore").read_text() == "# mine\n"
