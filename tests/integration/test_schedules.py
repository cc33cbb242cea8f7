"""Schedules where they are kept: on the command line, under `qtasks dev`, in an embedded broker, and on a laptop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from qtasks import Embedded, QTasks
from qtasks.errors import DefinitionError
from tests.support.dev import Dev
from tests.support.process import Done, ask, environment, qtasks
from tests.support.servers import SECRETS, BrokerServer, Dispatcher

TASKS = """
from qtasks import cron, every, task

@task
def add(a: int, b: int) -> int:
    return a + b
"""
REPORT = """
@cron("0 9 * * MON-FRI", tz="Europe/Berlin")
@cron("0 12 * * SAT", schedule="weekend", args=[2])
def report(days: int = 1) -> int:
    return days
"""
TIDY = """
@every("1h")
def tidy() -> str:
    return "tidied"
"""
PRODUCTION = "https://app.example.com/qtasks"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, REPORT, TIDY)
    return tmp_path


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerServer]:
    """A broker with its own credentials, which counts as production."""
    with BrokerServer(tmp_path_factory.mktemp("broker"), "--db", "broker.db") as running:
        yield running.started()


def write(folder: Path, *parts: str) -> None:
    (folder / "tasks.py").write_text(TASKS + "".join(parts))


def kept(url: str, token: str) -> dict[str, Any]:
    """The schedules of a broker, by id."""
    return {one["scheduleId"]: one for one in ask("GET", f"{url}/v2/schedules", token=token).json}


def titles(found: dict[str, Any]) -> list[str]:
    return sorted(name.rpartition("-")[0] for name in found)


# --- the command line


class Operator:
    """A user with the environment of production."""

    def __init__(self, folder: Path, broker: BrokerServer, base_url: str = PRODUCTION) -> None:
        self.folder = folder
        self.variables = {**SECRETS, "QSTASH_URL": broker.url, "QTASKS_BASE_URL": base_url}

    def run(self, *arguments: str, status: int = 0, **variables: str) -> Done:
        done = qtasks("schedules", *arguments, folder=self.folder, **{**self.variables, **variables})
        assert done.status == status, done
        assert "Traceback" not in done.err
        return done


def test_an_operator_sees_and_brings_together_what_code_and_service_say(folder: Path, broker: BrokerServer) -> None:
    operator = Operator(folder, broker)
    assert operator.run("diff", status=1).out.splitlines() == ["+ report", "+ report:weekend", "+ tidy"]
    operator.run("sync", "tasks.py", "--yes")
    assert titles(kept(broker.url, broker.token)) == ["report", "report.weekend", "tidy"]
    assert operator.run("diff").out == "in sync: 3 schedules\n"

    write(folder, REPORT.replace("0 9", "0 10"))
    changed = [
        "~ report  cron CRON_TZ=Europe/Berlin 0 9 * * MON-FRI -> CRON_TZ=Europe/Berlin 0 10 * * MON-FRI",
        "- tidy  not declared any more (left over; sync --prune removes it)",
    ]
    assert operator.run("diff", status=1).out.splitlines() == changed
    facts = json.loads(operator.run("diff", "--json", status=1).out)
    assert (facts["added"], list(facts["changed"]), facts["left_over"]) == ([], ["report"], ["tidy"])
    operator.run("sync", "--yes")
    assert titles(kept(broker.url, broker.token)) == ["report", "report.weekend", "tidy"]
    operator.run("diff", status=1)
    assert "- tidy  not declared any more (removed)" in operator.run("sync", "--prune", "--yes").out
    assert titles(kept(broker.url, broker.token)) == ["report", "report.weekend"]


def test_the_list_tells_when_each_runs_next_and_how_it_stands(folder: Path, broker: BrokerServer) -> None:
    operator = Operator(folder, broker)
    operator.run("sync", "--yes")
    operator.run("pause", "report:weekend")
    write(folder, REPORT.replace("0 9", "0 10"), '\n@cron("@daily")\ndef fresh() -> None: ...\n')
    fresh, report, weekend, paused_by, tidy = operator.run("list").out.splitlines()
    assert fresh.split() == ["fresh", "0", "0", "*", "*", "*", "UTC", "not", "synced"]
    assert "0 10 * * MON-FRI  Europe/Berlin  differs" in report
    assert ":00 CE" in report
    assert "UTC)" in report
    assert weekend.endswith("paused")
    assert re.fullmatch(r"    paused \d+s ago by the configured token", paused_by)
    assert "left over" in tidy
    rows = {row["name"]: row for row in json.loads(operator.run("list", "--json").out)}
    assert rows["report:weekend"]["paused"]
    assert rows["report"]["zone"] == "Europe/Berlin"
    assert [len(row["next"]) for row in rows.values()] == [5, 5, 5, 5]


def test_an_operator_steers_single_schedules(folder: Path, broker: BrokerServer) -> None:
    with Dispatcher(folder, broker=broker) as dispatcher:
        assert "3 tasks, 3 schedules" in dispatcher.wait_for("qtasks run tasks")
        operator = Operator(folder, broker, f"http://127.0.0.1:{dispatcher.port}/qtasks")
        operator.run("sync", "--yes")
        message_id, _ = operator.run("trigger", "report:weekend").out.split()
        script = "import sys; from tasks import report; print(report.result(sys.argv[1]).get(timeout=10))"
        dispatcher.variables |= operator.variables
        assert result_of(dispatcher, script, message_id) == "2\n"
        assert operator.run("pause", "tidy").out == "tidy paused\n"
        (tidy,) = [one for one in kept(broker.url, broker.token).values() if one["scheduleId"].startswith("tidy-")]
        assert tidy["isPaused"]
        operator.run("resume", tidy["scheduleId"])
        assert not kept(broker.url, broker.token)[tidy["scheduleId"]]["isPaused"]
        assert "confirm it with --yes" in operator.run("delete", "tidy", status=2).err
        assert json.loads(operator.run("delete", "tidy", "--dry-run", "--json").out)["deleted"] is False
        assert operator.run("delete", "tidy", "--yes").out == "tidy deleted\n"
        assert titles(kept(broker.url, broker.token)) == ["report", "report.weekend"]
        assert "did you mean 'report'" in operator.run("pause", "reprt", status=6).err


def result_of(dispatcher: Dispatcher, script: str, *arguments: str) -> str:
    """What a script prints that has the environment of a dispatcher."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=dispatcher.folder,
        env=environment(**dispatcher.variables),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


# --- production


def test_production_is_changed_only_by_who_says_so(folder: Path, broker: BrokerServer) -> None:
    operator = Operator(folder, broker)
    refused = operator.run("sync", status=2)
    assert f"this changes production at {broker.url}, for {PRODUCTION}: confirm it with --yes" in refused.err
    assert "+ report" in refused.err
    assert kept(broker.url, broker.token) == {}
    operator.run("sync", "--yes")
    operator.run("sync")  # nothing is changed, so there is no question


def test_another_environment_of_the_same_account_is_never_touched(folder: Path, broker: BrokerServer) -> None:
    Operator(folder, broker).run("sync", "--yes")
    production = kept(broker.url, broker.token)
    write(folder)
    staging = Operator(folder, broker, "https://staging.example.com/qtasks")
    told = staging.run("sync", "--prune", "--yes")
    assert told.out == "in sync: 0 schedules\n"
    assert f"not changed, of other environments: 3 for {PRODUCTION}" in told.err
    refused = staging.run("pause", next(iter(production)), status=3)
    assert "QT310" in refused.err
    assert "https://staging.example.com/qtasks" in refused.err
    assert PRODUCTION in refused.err
    assert kept(broker.url, broker.token) == production


@pytest.mark.parametrize(
    "variables",
    [
        {"QTASKS_DEV": "1"},
        {"QSTASH_URL": "https://qtasks.example.com", "QTASKS_BASE_URL": "http://127.0.0.1:8000/qtasks"},
        {"QSTASH_URL": "https://qstash.upstash.io", "QTASKS_BASE_URL": "http://localhost:8000/qtasks"},
    ],
)
def test_a_laptop_with_the_keys_of_production_syncs_nothing(
    folder: Path, broker: BrokerServer, variables: dict[str, str]
) -> None:
    operator = Operator(folder, broker)
    operator.run("sync", "--yes")
    production = kept(broker.url, broker.token)
    write(folder, REPORT.replace("0 9", "* *"))
    refused = operator.run("sync", "--prune", "--yes", status=3, **variables)
    assert refused.err.splitlines()[1].startswith(("QT311", "QT306"))
    assert kept(broker.url, broker.token) == production


def test_qtasks_dev_on_a_laptop_leaves_production_alone_whatever_the_code_says(
    folder: Path, broker: BrokerServer
) -> None:
    Operator(folder, broker).run("sync", "--yes")
    production = kept(broker.url, broker.token)
    (folder / "tasks.py").write_text(
        "from qtasks import QTasks\n"
        f"tasks = QTasks(url='{broker.url}', token='{broker.token}', base_url='{PRODUCTION}')\n"
        "@tasks.cron('* * * * *')\n"
        "def report() -> None: ...\n"
    )
    with Dev(folder, "tasks.py") as dev:
        assert "QT311 no schedule was changed: this program runs for development" in dev.wait_for("synced")
        dev.wait_for("  reload ")
        (folder / "tasks.py").write_text((folder / "tasks.py").read_text() + "# changed\n")
        dev.wait_for("reloaded tasks: 1 task, 1 schedule")
        dev.wait_for("QT311")
        assert dev.stop() == 0
    assert kept(broker.url, broker.token) == production


# --- qtasks dev


def test_dev_syncs_at_its_start_and_at_every_reload(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        assert dev.wait_for("app tasks").endswith("3 tasks, 3 schedules")
        assert dev.wait_for("synced").endswith("added report, report:weekend, tidy")
        facts = dev.started_already()
        assert titles(kept(facts["broker"], facts["token"])) == ["report", "report.weekend", "tidy"]
        paused = dev.run("from tasks import report; s = report.schedules[1]; s.pause(); print(s.id)").strip()

        write(folder, REPORT.replace("0 9", "30 9"), '\n@every("5m")\ndef tick() -> None: ...\n')
        dev.wait_for("reloaded tasks: 3 tasks, 3 schedules")
        assert dev.wait_for("synced").endswith("added tick; changed report; removed tidy")
        now = kept(facts["broker"], facts["token"])
        assert titles(now) == ["report", "report.weekend", "tick"]
        assert (now[paused]["cron"], now[paused]["isPaused"]) == ("CRON_TZ=Europe/Berlin 30 9 * * MON-FRI", True)

        write(folder)
        dev.wait_for("reloaded tasks: 1 task")
        assert dev.wait_for("synced").endswith("removed report, report:weekend, tick")
        assert kept(facts["broker"], facts["token"]) == {}
        write(folder, TIDY)
        assert dev.wait_for("synced").endswith("added tidy")
        assert dev.stop() == 0


def test_a_bad_expression_is_pointed_at_and_the_last_version_goes_on(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        facts = dev.started()
        before = kept(facts["broker"], facts["token"])
        write(folder, REPORT.replace("0 9", "0 25"), TIDY)
        dev.wait_for('hour: "25" is not 0 to 23')
        line = dev.wait_for("0 25 * * MON-FRI")
        caret = dev.wait_for("^^")
        assert line[caret.index("^") :].startswith("25 ")
        dev.wait_for("the last working version continues to run")
        write(folder, '\n@cron("0 9 * * *", args=["x"])\ndef report(days: int) -> int: ...\n')
        dev.wait_for("argument 'days' expects int")
        dev.wait_for("the last working version continues to run")
        assert kept(facts["broker"], facts["token"]) == before
        dev.stop()


def test_dev_on_another_port_takes_over_from_the_one_before(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        old = dev.started()
        dev.stop()
    with Dev(folder, "tasks.py") as dev:
        assert "nothing listens there any more" in dev.wait_for("synced")
        facts = dev.started_already()
        found = kept(facts["broker"], facts["token"])
        assert facts["base_url"] != old["base_url"]
        assert {one["destination"].rpartition("/")[0] for one in found.values()} == {facts["base_url"]}
        dev.stop()


def test_beside_a_running_dev_the_commands_need_no_configuration_and_no_flag(folder: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        dev.started()
        assert qtasks("schedules", "diff", folder=folder).out == "in sync: 3 schedules\n"
        assert qtasks("schedules", "delete", "tidy", "--yes", folder=folder).out == "tidy deleted\n"
        assert qtasks("schedules", "sync", folder=folder).out == "+ tidy\n"
        assert qtasks("schedules", "trigger", "tidy", folder=folder).status == 0
        dev.wait_for("'tidied'")
        dev.stop()


def test_beside_a_running_dev_they_mean_its_application_and_not_a_file_that_lies_about(folder: Path) -> None:
    (folder / "jobs.py").write_text(TASKS + TIDY)
    with Dev(folder, "jobs.py") as dev:
        dev.started()
        listed = qtasks("schedules", "list", folder=folder)
        assert [line.split()[0] for line in listed.out.splitlines()] == ["tidy"]
        assert listed.err == f"application jobs in {folder} (that of the running qtasks dev)\n"
        assert qtasks("schedules", "sync", "--prune", folder=folder).out == "in sync: 1 schedule\n"
        other = qtasks("schedules", "sync", "--prune", "tasks.py", folder=folder)
        assert (other.status, other.out) == (3, "")
        assert (
            f"qtasks dev serves jobs in {folder}, not tasks: --prune would remove its schedules\n"
            "  fix         leave out APP, or stop that qtasks dev\n"
        ) in other.err
        assert qtasks("schedules", "diff", folder=folder).out == "in sync: 1 schedule\n"
        assert qtasks("tasks", folder=folder).err == f"application jobs in {folder} (that of the running qtasks dev)\n"
    assert qtasks("tasks", folder=folder).err == f"application tasks in {folder} (found tasks.py)\n"


# --- the embedded broker


def embedded(path: Path) -> QTasks:
    return QTasks(embedded=Embedded(path))


def served(tasks: QTasks) -> FastAPI:
    app = FastAPI()
    app.include_router(tasks.router, prefix="/jobs")
    return app


@pytest.mark.anyio
async def test_an_embedded_home_is_told_when_its_application_starts(tmp_path: Path) -> None:
    before = embedded(tmp_path / "tasks.db")

    @before.cron("0 9 * * *")
    def report() -> None: ...

    @before.cron("0 9 * * *")
    def goes() -> None: ...

    app = served(before)
    async with app.router.lifespan_context(app):
        plan = await anyio.to_thread.run_sync(before.schedules.diff)
        assert [step.title for step in plan.unchanged] == ["goes", "report"]
        await report.schedules[0].apause()

    after = embedded(tmp_path / "tasks.db")
    after.cron("0 10 * * *", name="report")(report.function)
    app = served(after)
    async with app.router.lifespan_context(app):
        plan = await anyio.to_thread.run_sync(after.schedules.diff)
        assert plan.in_sync
        (step,) = plan.unchanged
        assert step.existing is not None
        assert (step.existing.cron, step.existing.paused) == ("0 10 * * *", True)


def test_an_embedded_home_without_an_application_is_told_nothing_by_itself(tmp_path: Path) -> None:
    with embedded(tmp_path / "tasks.db") as tasks:

        @tasks.cron("0 9 * * *")
        def report() -> int:
            return 1

        assert report.delay().get(timeout=10) == 1
        assert [step.title for step in tasks.schedules.diff().added] == ["report"]
        tasks.schedules.sync()
        assert tasks.schedules.diff().in_sync


@pytest.mark.anyio
async def test_an_application_with_a_declaration_that_cannot_work_does_not_start(tmp_path: Path) -> None:
    tasks = embedded(tmp_path / "tasks.db")

    @tasks.cron("0 9 * * *", args=["many"])
    def report(count: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    app = served(tasks)
    with pytest.raises(DefinitionError, match="'Later'"):
        async with app.router.lifespan_context(app):
            raise AssertionError("it has started")


def test_the_schedules_of_an_embedded_home_are_steered_from_inside(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        "from qtasks import Embedded, QTasks\n"
        "tasks = QTasks(embedded=Embedded('tasks.db'))\n"
        "@tasks.cron('0 9 * * *')\n"
        "def report() -> None: ...\n"
    )
    done = qtasks("schedules", "list", folder=tmp_path)
    assert done.status == 3
    assert "this application has an embedded broker" in done.err
    assert not (tmp_path / "tasks.db").exists()
