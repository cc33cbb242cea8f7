"""The benchmarks run: real broker and dispatcher as processes, one small load, the table and the JSON."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.bench import QUICK, Bench
from benchmarks.comparison import nginx, trees
from benchmarks.comparison.endpoint import first_request
from benchmarks.figure import Aim, number, percentile
from benchmarks.peers import session
from benchmarks.peers.catalogue import PEERS, USUAL_PEERS
from benchmarks.peers.services import POSTGRES, Services
from benchmarks.task_times import TaskTimes

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 300
IN_GIT = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source archive has no other revisions")


def run(folder: Path, *arguments: str) -> tuple[str, Any]:
    report = folder / "report.json"
    command = [sys.executable, "-m", "benchmarks", *arguments, "--json", str(report), "--folder", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [path.name for path in folder.iterdir()] == [report.name], "nothing is left behind"
    return ended.stdout, json.loads(report.read_text())


def test_a_figure_is_measured_and_written_for_people_and_as_json(tmp_path: Path) -> None:
    said, document = run(tmp_path, "--quick", "--only", "stream")
    (row,) = document["figures"]
    assert row["unit"] == "tasks/s"
    assert row["value"] > 0
    assert row["name"] in said
    assert row["method"] in said
    assert "fsync" in document["machine"]["disk"]


@IN_GIT
def test_two_revisions_are_measured_in_turns(tmp_path: Path) -> None:
    said, document = run(tmp_path, "--against", "HEAD", "--quick", "--only", "drain")
    drains = [row for row in document["comparison"] if row["measure"] == "drain"]
    earlier, this = drains
    assert this["candidate"] == trees.THIS_TREE
    assert earlier["version"] == "HEAD"
    assert earlier["ours_over_this"] == pytest.approx(this["median"] / earlier["median"])
    assert min(row["cpu_us"] for row in drains) > 0, "processor time of broker and dispatcher"
    assert f"ours {number(earlier['ours_over_this'])} times" in said


@IN_GIT
def test_a_revision_is_imported_in_place_of_this_tree(tmp_path: Path) -> None:
    tree = trees.checkout("HEAD", tmp_path)
    code = "import benchmarks, qtasks; print(qtasks.__file__); print(benchmarks.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=tree.environment(), capture_output=True, text=True, check=True
    )
    of_qtasks, of_benchmarks = said.stdout.split()
    assert Path(of_qtasks).is_relative_to(tree.folder)
    assert Path(of_benchmarks).is_relative_to(ROOT)


@IN_GIT
def test_a_revision_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--against", "no-such-revision", "--folder", str(tmp_path)])
    assert "no-such-revision cannot be read from" in capsys.readouterr().err


def test_a_figure_is_not_a_step_of_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--against", "HEAD", "--only", "publish"])
    assert "--only publish: here it takes drain, mixed, call, live" in capsys.readouterr().err


def test_a_missing_nginx_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(nginx.NoNginxError, match="apt install nginx-light"):
        nginx.version()


def test_a_peer_without_its_service_is_left_out_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = closed.getsockname()[1]
        bench = Bench(QUICK, tmp_path, lambda text: None)
        services = Services(f"redis://127.0.0.1:{port}/15", POSTGRES)
        with session.available(["celery"], services, tmp_path, bench, python=sys.executable) as peers:
            assert peers == []
    assert f"celery is left out: Redis does not answer at 127.0.0.1:{port}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "nothing is installed for a peer that cannot run"


def test_no_other_machine_is_loaded() -> None:
    with pytest.raises(ValueError, match="not on this machine"):
        Services("redis://192.0.2.1:6379/15", POSTGRES)


def test_every_peer_has_an_application() -> None:
    apps = {path.stem for path in (ROOT / "benchmarks" / "peers" / "apps").glob("*_app.py")}
    assert {peer.module for peer in PEERS.values()} == apps - {"qtasks_app"}
    assert set(USUAL_PEERS) <= set(PEERS)


def test_every_process_with_the_file_open_sees_which_tasks_are_done() -> None:
    with TaskTimes.fresh(10) as task_times:
        first, second, third = tasks = task_times.reserve(3)
        elsewhere = TaskTimes(task_times.path)
        elsewhere.record_sent(first)
        elsewhere.record_started(first)
        elsewhere.record_done(first)
        elsewhere.record_done(third)
        elsewhere.close()
        assert task_times.first_unfinished(tasks) == second
        assert task_times.count(tasks) == 2
        assert 0 < task_times.sent_ns(tasks)[0] <= task_times.started_ns(tasks)[0] <= task_times.done_ns(tasks)[0]
        task_times.record_done(second)
        assert task_times.first_unfinished(tasks) is None
        with pytest.raises(ValueError, match="3 are used, 8 requested"):
            task_times.reserve(8)


def test_the_endpoint_reads_requests_that_arrive_in_pieces() -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n17"
    assert first_request(request[:-1]) is None
    assert first_request(request[:20]) is None
    assert first_request(request + b"POST") == (b"17", b"POST")


def test_an_aim_may_be_a_floor_or_a_ceiling() -> None:
    assert Aim(5_000).met(5_000)
    assert not Aim(5_000).met(4_999)
    assert Aim(80, most=True).met(80)
    assert not Aim(80, most=True).met(80.1)


@pytest.mark.parametrize(("value", "text"), [(5119.6, "5,120"), (14.24, "14.2"), (0.853, "0.85"), (-0.26, "-0.26")])
def test_numbers_are_shown_with_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_percentiles_lie_between_the_values() -> None:
    assert percentile([float(value) for value in range(101)], 99) == 99.0
    assert percentile([7.0], 50) == 7.0
