"""`qtasks doctor`: a sound installation, and what it says about one that is not."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qtasks.cli import cli
from qtasks.cli.operate.doctor.doctor_command import CHECKS
from tests.support.process import environment, qtasks
from tests.support.servers import NEXT, SECRETS, BrokerServer, Dispatcher

TASKS = """
from qtasks import cron, task

@task
def add(a: int, b: int) -> int:
    return a + b

@cron("30 2 * * *", tz="Europe/Berlin")
def nightly() -> None: ...
"""
LEVELS = {"ok", "note", "fail"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrokerServer, Dispatcher]]:
    folder = tmp_path_factory.mktemp("sound")
    (folder / "tasks.py").write_text(TASKS)
    with BrokerServer(folder) as broker:
        broker.started()
        with Dispatcher(folder, "--log-level", "info", broker=broker) as dispatcher:
            yield broker, dispatcher.started()


def examined(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, **variables: str) -> dict[str, Any]:
    """The findings of `qtasks doctor --json` in this process, by their checks; for folders without an application."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "environ", {**environment(), **variables})
    done = CliRunner().invoke(cli, ["doctor", "--json", *arguments], standalone_mode=False)
    document = json.loads(done.stdout)
    assert document["ok"] == (done.exit_code == 0)
    return {finding["check"]: finding for finding in document["checks"]}


def test_a_sound_installation_has_no_failure_and_a_probe_says_how_long_each_hop_took(
    pair: tuple[BrokerServer, Dispatcher],
) -> None:
    _, dispatcher = pair
    synced = qtasks("schedules", "sync", "--yes", folder=dispatcher.folder, **dispatcher.variables)
    assert synced.status == 0, synced.err
    done = qtasks("doctor", "--json", "--probe", folder=dispatcher.folder, **dispatcher.variables)
    document = json.loads(done.out)
    checks = {finding["check"]: finding for finding in document["checks"]}
    failures = [finding for finding in document["checks"] if finding["level"] == "fail"]
    assert (done.status, failures, document["ok"]) == (0, [], True)
    assert set(checks) >= {*CHECKS} - {"secrets in .env", "readers of .env", "secret key", "development file"}
    assert all(set(finding) == {"check", "level", "text", "cause", "fix"} for finding in document["checks"])
    assert {finding["level"] for finding in document["checks"]} <= LEVELS
    assert checks["probe"]["text"].startswith("accepted in ")
    assert "nightly on" in checks["clock changes"]["text"]
    assert checks["served tasks"]["text"] == "the running application has 2 tasks of this code"
    assert "INFO" in dispatcher.wait_for("`qtasks doctor`")
    assert "signature rejected" not in dispatcher.output


def test_what_is_wrong_is_said_with_its_cause_and_what_to_do(
    pair: tuple[BrokerServer, Dispatcher], tmp_path: Path
) -> None:
    broker, dispatcher = pair
    (tmp_path / "tasks.py").write_text(TASKS + "\n@task\ndef newer() -> None: ...\n")
    wrong = {
        **dispatcher.variables,
        "QSTASH_CURRENT_SIGNING_KEY": "sig_" + "x" * 28,
        "QTASKS_BASE_URL": f"http://127.0.0.1:{broker.port}/qtasks",
        "QTASKS_RESLUTS": "sqlite:///results.db",
        "COLUMNS": "80",
    }
    done = qtasks("doctor", folder=tmp_path, **wrong)
    assert (done.status, done.err) == (1, "")
    lines = done.out.splitlines()
    failed = [line[6:24].strip() for line in lines if line.startswith("fail")]
    assert failed == ["variables", "keys of service", "dispatcher", "schedule drift"]
    assert "did you mean" in done.out
    assert [line for line in lines if len(line) > 80 and len(line[24:].split()) > 1] == [], (
        "only a long word, a path, is wider"
    )
    assert lines[-1].endswith("4 failures")


def test_a_service_that_does_not_answer_ends_the_checks_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = examined(tmp_path, monkeypatch, **SECRETS, QSTASH_URL="http://127.0.0.1:9")
    assert checks["service answers"]["level"] == "fail"
    assert "No answer from http://127.0.0.1:9" in checks["service answers"]["text"]
    assert "token" not in checks
    nowhere = examined(tmp_path, monkeypatch)
    assert nowhere["service"]["text"] == "no QStash service is configured"
    assert "service answers" not in nowhere


@pytest.mark.parametrize(
    ("variables", "check", "text"),
    [
        ({"QSTASH_NEXT_SIGNING_KEY": SECRETS["QSTASH_CURRENT_SIGNING_KEY"]}, "signing keys", "are the same"),
        ({"QSTASH_URL": "http://b.invalid", "QTASKS_BASE_URL": "http://[::1]/q"}, "address of tasks", "this machine"),
        ({"QTASKS_SECRET_KEY": "short"}, "secret key", "has 5 characters"),
        ({"QTASKS_RESULTS": "sqlite:////nowhere/at/all.db"}, "results", "there is no folder"),
        ({"QTASKS_THREADS": "many"}, "service", "QTASKS_THREADS is 'many'"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], check: str, text: str
) -> None:
    unreachable = {**SECRETS, "QSTASH_URL": "http://127.0.0.1:9", **variables}
    finding = examined(tmp_path, monkeypatch, **unreachable)[check]
    assert finding["level"] == "fail"
    assert text in finding["text"]
    assert finding["fix"]


def test_keys_that_are_swapped_or_older_are_told_apart(
    pair: tuple[BrokerServer, Dispatcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, _ = pair
    keys = broker.ask("GET", "/v2/keys").json
    service = {"QSTASH_URL": broker.url, "QSTASH_TOKEN": broker.token}
    for current, following, level, text in (
        (keys["next"], keys["current"], "fail", "swapped"),
        ("sig_" + "o" * 28, keys["current"], "note", "rotated once"),
        ("sig_" + "o" * 28, NEXT[::-1], "fail", "signs with another key"),
    ):
        pairs = {"QSTASH_CURRENT_SIGNING_KEY": current, "QSTASH_NEXT_SIGNING_KEY": following}
        finding = examined(tmp_path, monkeypatch, **service, **pairs)["keys of service"]
        assert (finding["level"], text in finding["text"]) == (level, True), finding


def test_what_can_be_made_good_safely_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert qtasks("broker", "init", "--db", "qtasks.db", folder=tmp_path).status == 0
    (tmp_path / "qtasks.db").chmod(0o644)
    (tmp_path / ".env").write_text("QSTASH_TOKEN=eyJsaXZl\n")
    (tmp_path / ".env").chmod(0o644)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    checks = examined(tmp_path, monkeypatch)
    assert checks["permissions"]["level"] == checks["secrets in .env"]["level"] == "fail"
    assert "QSTASH_TOKEN" in checks["secrets in .env"]["text"]
    assert checks["readers of .env"]["text"] == ".env can be read by others (mode 644)"
    assert "eyJsaXZl" not in json.dumps(checks)
    checks = examined(tmp_path, monkeypatch, "--fix")
    assert checks["permissions"]["level"] == checks["secrets in .env"]["level"] == "ok"
    assert checks["readers of .env"]["level"] == "ok"
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert (tmp_path / "qtasks.db").stat().st_mode & 0o077 == 0
    assert ".env" in (tmp_path / ".gitignore").read_text().splitlines()


def test_a_check_that_breaks_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qtasks.db").write_bytes(b"no database at all" * 100)
    checks = examined(tmp_path, monkeypatch)
    assert checks["database"]["level"] == "fail"
    assert checks["disk"]["level"] in LEVELS
