"""The pages for operators: each command that they show is run, and their alerts ask for metrics that exist."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
import yaml

from qtasks.cli import cli
from qtasks.tasks.results.postgres import PostgresResults
from tests.support.command_lines import words
from tests.support.commands import Printed, Run, in_process
from tests.support.page_code import DOCS, blocks
from tests.support.process import Done, Process, ask, qtasks
from tests.support.results import postgres
from tests.support.servers import free_port

PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((DOCS / "operations").glob("*.md"))}
SETTINGS = (DOCS / "configuration.md").read_text(encoding="utf-8")
COMMANDS = {
    line
    for text in PAGES.values()
    for block in blocks(text, "console")
    for line in block.splitlines()
    if line.startswith("qtasks ")
}
ASKING = ("qtasks broker restore", "qtasks dlq delete", "qtasks keys rotate")
"""Commands that ask for a confirmation, which a test gives beforehand."""
MAIN = """
from fastapi import FastAPI
from qtasks import QTasks

tasks = QTasks()
app = FastAPI()
app.include_router(tasks.router, prefix="/qtasks")

@tasks.task
def add(a: int, b: int) -> int:
    return a + b

@tasks.cron("0 3 * * *")
def nightly() -> None: ...
"""


@dataclass
class Operator:
    """Somebody who types the commands of the pages in one folder, in an order that makes sense."""

    folder: Path
    here: Run
    """Runs a command in this process, which spares it a start."""
    ports: dict[str, int] = field(default_factory=lambda: {"broker": free_port(), "run": free_port()})
    variables: dict[str, str] = field(default_factory=dict)
    typed: set[str] = field(default_factory=set)

    def types(self, line: str) -> str:
        """Run a command of the pages to its end; what it prints."""
        self.typed.add(line)
        arguments = words(line)[1:] + (["--yes"] if line.startswith(ASKING) else [])
        if "main:app" in arguments:  # it imports the application
            done: Done | Printed = qtasks(*arguments, folder=self.folder, **self.variables)
        else:
            done = self.here(*arguments, **self.variables)
        assert done.status == 0, (line, done.out, done.err)
        return done.out

    @contextlib.contextmanager
    def starts(self, line: str) -> Iterator[Process]:
        """Run a server of the pages, at a port that is free; it must serve, and end well.

        Only the application gets the variables of `init`: the broker has what it needs in its database.
        """
        self.typed.add(line)
        _, kind, *rest = words(line)
        if "--port" in rest:
            del rest[rest.index("--port") : rest.index("--port") + 2]
        variables = {} if kind == "broker" else self.variables
        with Process(self.folder, kind, *rest, "--port", str(self.ports[kind]), **variables) as process:
            process.wait_for("is running at" if kind == "broker" else "qtasks run main")
            yield process
            assert process.stop(signal.SIGTERM) == 0, process.output

    def reads_env(self, text: str) -> None:
        """Load what `init` has printed, with the ports that the servers have here."""
        self.variables = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
        for name, kind, port in (("QSTASH_URL", "broker", 8080), ("QTASKS_BASE_URL", "run", 8000)):
            self.variables[name] = self.variables[name].replace(f":{port}", f":{self.ports[kind]}")


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Operator:
    (tmp_path / "main.py").write_text(MAIN)
    monkeypatch.chdir(tmp_path)
    return Operator(tmp_path, in_process(monkeypatch, capfd, {}))


def work_without_a_broker(operator: Operator) -> None:
    assert "sound: 0 messages" in operator.types("qtasks broker check --db qtasks.db")
    operator.types("qtasks broker backup before-upgrade.db --db qtasks.db")
    assert "schema" in operator.types("qtasks store upgrade --db qtasks.db --yes")
    operator.types("qtasks broker restore before-upgrade.db --db qtasks.db")
    operator.types("qtasks store vacuum --db qtasks.db")
    assert "nothing was changed" in operator.types("qtasks broker repair --db qtasks.db")


def work_beside_the_broker(operator: Operator) -> None:
    assert "in use by" in operator.types("qtasks store status --db qtasks.db")
    operator.types("qtasks schedules sync main:app --yes")
    operator.types("qtasks doctor main:app")
    assert "accepted in" in operator.types("qtasks doctor main:app --db qtasks.db --probe")
    operator.types("qtasks broker token create checkout --db qtasks.db")
    operator.types("qtasks queues list")
    operator.types("qtasks failures list")
    operator.types("qtasks dlq delete before:7d")
    operator.types("qtasks broker backup qtasks-monday.db --db qtasks.db")
    operator.typed.add("qtasks logs --follow")
    with Process(operator.folder, "logs", "--follow", **operator.variables) as logs:
        operator.here("send", "add", "2", "3", **operator.variables)
        logs.wait_for("delivered")
        logs.stop()
    operator.types("qtasks keys rotate")
    operator.types("qtasks audit pause")


def test_an_operator_types_every_command_of_the_pages(operator: Operator) -> None:
    operator.reads_env(operator.types("qtasks broker init --db qtasks.db > .env"))
    work_without_a_broker(operator)
    with (
        operator.starts("qtasks broker --db qtasks.db --port 8080"),
        operator.starts("qtasks run main:app --port 8000 --workers 2"),
    ):
        work_beside_the_broker(operator)
        metrics_of_the_rules_exist(operator)
    operator.types("qtasks broker restore qtasks-monday.db --db qtasks.db")
    for line in (
        "qtasks broker --retention 3d --dlq-retention 14d --max-size 500MB",
        "qtasks broker --in-flight 1024 --per-host 512",
    ):
        with operator.starts(line):
            pass
    with operator.starts("qtasks broker --port 8080 --allow-host queue.example.com"):
        answer = ask("GET", f"{operator.variables['QSTASH_URL']}/", headers={"Host": "queue.example.com"})
        assert answer.status == 200
    assert len(COMMANDS) > 20
    assert COMMANDS - operator.typed == set()


def metrics_of_the_rules_exist(operator: Operator) -> None:
    token = operator.types("qtasks broker token create prometheus --without-payloads --db qtasks.db").strip()
    said = ask("GET", f"{operator.variables['QSTASH_URL']}/metrics", token=token).body.decode()
    existing = set(re.findall(r"^(qtasks_\w+)", said, flags=re.MULTILINE))
    _, rules = [yaml.safe_load(text) for text in blocks(PAGES["observe"], "yaml")]
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    asked = {name for text in expressions for name in re.findall(r"\bqtasks_\w+", text)}
    assert len(asked) >= 4
    assert asked - existing == set()


def test_the_set_up_of_the_page_on_postgresql_is_a_place_for_results_with_the_tables_that_it_names() -> None:
    psycopg = pytest.importorskip("psycopg")
    with postgres() as url, psycopg.connect(url, autocommit=True) as admin:
        schema = url.rpartition("%3D")[2]  # of this test alone; the role has its name
        statements = blocks(PAGES["postgresql"], "sql")[1].replace("qtasks", schema)
        admin.execute(statements.replace("CREATE SCHEMA", "CREATE SCHEMA IF NOT EXISTS"))
        admin.execute(f"ALTER SCHEMA {schema} OWNER TO {schema}")
        parts = urlsplit(url)
        results = PostgresResults(
            f"postgresql://{schema}:PASSWORD@{parts.netloc.rpartition('@')[2]}{parts.path}", ttl_ms=60_000
        )
        try:
            assert results.read("call_unknown") is None
            shown = admin.execute("SELECT application_name FROM pg_stat_activity WHERE usename = %s", (schema,))
            assert shown.fetchall() == [("qtasks results",)]
            tables = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
            named = set(re.findall(r"^\| `(\w+)` \|", PAGES["postgresql"], flags=re.MULTILINE))
            assert {name for (name,) in tables} == named
        finally:
            results.close()
            admin.execute(f"DROP OWNED BY {schema} CASCADE")
            admin.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")  # `postgres` drops it
            admin.execute(f"DROP ROLE {schema}")


def test_the_configurations_of_the_pages_can_be_read() -> None:
    for name, text in PAGES.items():
        for block in blocks(text, "yaml"):
            assert yaml.safe_load(block), name


@pytest.mark.parametrize(("command", "heading"), [("broker", "The broker"), ("run", "The dispatcher: `qtasks run`")])
def test_the_page_of_settings_has_each_option_of_a_server_with_its_default(command: str, heading: str) -> None:
    section = SETTINGS.split(f"## {heading}\n")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| `(--[a-z-]+)` \| (.*?) \|", section, flags=re.MULTILINE))
    server = cli.get_command(click.Context(cli), command)
    assert server is not None
    options = [option for option in server.params if isinstance(option, click.Option)]
    assert set(shown) == {option.opts[0] for option in options}
    for option in options:
        if isinstance(option.default, str | int | float):
            assert shown[option.opts[0]] == f"`{str(option.default).removesuffix('.0')}`"
