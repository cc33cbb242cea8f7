"""`--json`: every command that has it is described in docs/cli.md, and every list has the members that stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qtasks.cli import cli
from tests.support.commands import Printed, Run, in_process
from tests.support.process import qtasks, soon
from tests.support.servers import SECRETS, TOKEN, BrokerServer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`[^|]+) \| (.*) \|$", PAGE[PAGE.index("## Shapes") :], flags=re.MULTILINE)
SHAPES = {name: shape for names, shape in reversed(ROWS) for name in re.findall(r"`([a-z]+(?: [a-z]+)*)", names)}
"""What the page says of each command."""
LIMITED = {"Upstash_Flow_Control_Key": "k", "Upstash_Flow_Control_Value": "parallelism=1"}
SAME = ("check", "backup", "restore", "repair")
"""Commands of `qtasks broker` that are those of `qtasks store`."""
WITHOUT = {
    "dev", "run", "broker", "broker init", "broker token create", "broker token revoke", "send", "console", "mcp",
    "completion",
}  # fmt: skip
"""Commands that serve, or print a text that is made for a program already."""
TASKS = """
from qtasks import QTasks

tasks = QTasks()

@tasks.cron("0 9 * * *")
def report() -> None: ...
"""


def leaves(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that can be run, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, *path, name)
            if not command.invoke_without_command:
                continue
        yield " ".join((*path, name)), command


def members(shape: str) -> set[str]:
    """The members of the first object of a shape: ``{ok, checks: [{check, level}]}`` has `ok` and `checks`."""
    inside, depth = "", 0
    for char in shape[shape.index("{") :]:
        depth -= char in "}])"
        inside += char if depth == 1 else ""
        depth += char in "{[("
        if depth == 0:
            break
    return set(re.findall(r"\w+(?=[:,]|$)", inside))


def test_every_command_with_json_is_on_the_page_and_every_other_is_known() -> None:
    commands = dict(leaves(cli))
    with_json = {
        name for name, command in commands.items() if any(parameter.name == "as_json" for parameter in command.params)
    }
    assert with_json - {f"broker {name}" for name in SAME} == set(SHAPES)
    assert set(commands) - with_json == WITHOUT


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerServer]:
    """A broker with a dead letter, a queue and a flow-control key."""
    with BrokerServer(tmp_path_factory.mktemp("shapes"), "--db", "qtasks.db") as running:
        running.started()
        dead = running.publish("http://127.0.0.1:9/gone", b"{}", Upstash_Retries="0")
        running.publish("http://127.0.0.1:9/x", b"", Upstash_Delay="1h", **LIMITED)
        queue = b'{"queueName": "email", "parallelism": 1}'
        assert running.ask("POST", "/v2/queues", queue, Content_Type="application/json").status == 200
        soon(lambda: running.states(dead)[-1] == "FAILED", "it has failed")
        made = qtasks("broker", "token", "create", "reader", "--db", "qtasks.db", folder=running.folder)
        assert made.status == 0, made.err
        yield running


@pytest.fixture
def run(
    broker: BrokerServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.chdir(tmp_path)
    db = str(broker.folder / "qtasks.db")
    return in_process(monkeypatch, capfd, {"QSTASH_URL": broker.url, "QSTASH_TOKEN": TOKEN, "QTASKS_DB": db})


@pytest.mark.parametrize(
    "command",
    [
        "messages list",
        "dlq list",
        "failures list",
        "queues list",
        "flow list",
        "logs",
        "keys show",
        "store status",
        "store check",
        "doctor",
        "audit",
        "config",
        "explain",
        "version",
        "broker token list",
    ],
)
def test_a_list_has_the_members_that_the_page_says(run: Run, command: str) -> None:
    done: Printed = run(*command.split(), "--json")
    assert set(done.json) == members(SHAPES[command])
    lists = [value for name, value in done.json.items() if isinstance(value, list) and name != "findings"]
    assert all(lists), "an empty list shows nothing of its rows"


def test_one_thing_has_the_members_that_the_page_says(run: Run, broker: BrokerServer) -> None:
    [letter] = run("dlq", "list", "--json").json["deadLetters"]
    queue = b'{"queueName": "unused", "parallelism": 1}'
    assert broker.ask("POST", "/v2/queues", queue, Content_Type="application/json").status == 200
    for command, *arguments in (
        ("messages show", letter["messageId"]),
        ("keys rotate", "--dry-run"),
        ("queues delete", "unused", "--yes"),
        ("dlq retry", letter["deadLetterId"], "--dry-run"),
        ("dlq delete", letter["deadLetterId"], "--dry-run"),
        ("messages cancel", letter["messageId"], "--dry-run"),
        ("messages again", letter["messageId"]),
        ("queues purge", "email", "--dry-run"),
        ("failures retry", run("failures", "--json").json["failures"][0]["fingerprint"], "--dry-run"),
        ("store backup", "copy.db"),
        ("new", "shop"),
    ):
        done = run(*command.split(), *arguments, "--json")
        assert set(done.json) == members(SHAPES[command]), command
    assert set(run("explain", "QT101", "--json").json) == {"code", "title", "cause", "fix"}
    verbose = {"version", "python", "platform", "encoding", "packages", "variables"}
    assert set(run("version", "--verbose", "--json").json) == verbose


def test_lists_of_an_application_have_them_too(broker: BrokerServer, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    variables = {**SECRETS, "QSTASH_URL": broker.url, "QTASKS_BASE_URL": "https://app.example.com/qtasks"}
    for command in ("tasks", "schedules list"):
        done = qtasks(*command.split(), "--json", folder=tmp_path, **variables)
        [row] = Printed(done.status, done.out, done.err).json
        assert set(row) == members(SHAPES[command])


def test_what_changes_schedules_says_what_it_has_changed(broker: BrokerServer, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    variables = {**SECRETS, "QSTASH_URL": broker.url, "QTASKS_BASE_URL": "https://app.example.com/qtasks"}
    plan = members(SHAPES["schedules diff"])
    for command, shown in (
        (("diff",), plan),
        (("sync", "--yes"), plan),
        (("sync", "--yes", "--prune"), plan - {"left_over"} | {"removed"}),
        (("trigger", "report"), members(SHAPES["schedules trigger"])),
        (("pause", "report"), members(SHAPES["schedules pause"])),
        (("resume", "report"), {"name", "id", "resumed"}),
        (("delete", "report", "--yes"), {"name", "id", "deleted"}),
    ):
        done = qtasks("schedules", *command, "--json", folder=tmp_path, **variables)
        assert set(Printed(done.status, done.out, done.err).json) == shown, command


def test_a_queue_shows_how_it_gets_on_where_the_service_knows(run: Run, broker: BrokerServer) -> None:
    assert broker.ask("POST", "/v2/enqueue/slow/http://127.0.0.1:9/x", b"", Upstash_Retries="0").status == 201
    assert run("queues", "pause", "slow").status == 0
    queue = run("queues", "show", "slow", "--json").json
    assert {"oldestMs", "perMinute", "timeToEmptyS"} <= set(queue)
    title, *rows = run("queues").out.splitlines()
    assert title.split() == ["QUEUE", "STATE", "PARALLELISM", "UNFINISHED", "OLDEST", "PER", "MINUTE", "EMPTY", "IN"]
    # Below a paused queue stands who has paused it.
    assert [row.split()[:2] for row in rows if row[0] != " "] == [["email", "running"], ["slow", "paused"]]
    assert max(map(len, (title, *rows))) <= 80
