"""The benchmarks run: real broker and dispatcher as processes, one small load, the table and the JSON."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench import TINY, Bench
from benchmarks.figure import Aim, number, percentile
from benchmarks.peers import candidates
from benchmarks.peers.services import POSTGRES, Services
from benchmarks.task_times import TaskTimes

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 60


def test_a_figure_is_measured_and_written_for_people_and_as_json(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--only", "stream", "--json", str(report)]
    ended = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    document = json.loads(report.read_text())
    (row,) = document["figures"]
    assert row["unit"] == "tasks/s"
    assert row["value"] > 0
    assert row["name"] in ended.stdout
    assert row["method"] in ended.stdout
    assert "fsync" in document["machine"]["disk"]
    assert [path.name for path in tmp_path.iterdir()] == [report.name], "nothing is left behind"


def test_a_peer_without_its_service_is_left_out_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = closed.getsockname()[1]
        bench = Bench(TINY, tmp_path, lambda text: None)
        services = Services(f"redis://127.0.0.1:{port}/15", POSTGRES)
        with candidates.available(["celery"], services, tmp_path, bench) as peers:
            assert peers == []
    assert f"celery is left out: Redis does not answer at 127.0.0.1:{port}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "nothing is installed for a peer that cannot run"


def test_no_other_machine_is_loaded() -> None:
    with pytest.raises(ValueError, match="not on this machine"):
        Services("redis://192.0.2.1:6379/15", POSTGRES)


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
