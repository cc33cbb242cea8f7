"""`qtasks broker`, `run`, `send` and `tasks`: what an operator types, sees and relies on."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from click.testing import CliRunner

from qtasks.broker.api.auth import STALE_S
from qtasks.cli import cli, main
from qtasks.protocol import development, signing
from tests.support.process import Process, ask, environment, qtasks, soon
from tests.support.running import Endpoint
from tests.support.servers import CURRENT, NEXT, SECRETS, TOKEN, BrokerServer, Dispatcher, free_port

TASKS = '''
import os
import time
from qtasks import NonRetryable, task

@task
def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    And say no more."""
    return a + b

@task
def refuse() -> None:
    raise NonRetryable("never")

@task
async def who(file: str) -> None:
    time.sleep(0.05)  # and takes no other delivery meanwhile
    with open(file, "a") as seen:
        seen.write(f"{os.getpid()}\\n")
'''
DEV = development.USERS[0]
DEV_KEYS = {"QSTASH_CURRENT_SIGNING_KEY": DEV.keys.current, "QSTASH_NEXT_SIGNING_KEY": DEV.keys.next}
SENTENCES = 6
"""Lines that an error of ours has at most."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrokerServer, Dispatcher]]:
    """A broker and a dispatcher that several tests use."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "tasks.py").write_text(TASKS)
    with BrokerServer(folder, "--db", "pair.db") as broker:
        broker.started()
        with Dispatcher(folder, broker=broker) as dispatcher:
            yield broker, dispatcher.started()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    running = Endpoint()
    yield running
    running.close()


class Done(Protocol):
    def __call__(self, *arguments: str, **variables: str) -> list[str]: ...


@pytest.fixture
def done(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Done:
    """The lines that a command prints, which ends well. In this process, as `refused`."""
    monkeypatch.chdir(folder)
    before = environment()

    def run(*arguments: str, **variables: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["qtasks", *arguments])
        monkeypatch.setattr(os, "environ", {**before, **variables})
        main()
        out, err = capfd.readouterr()
        assert err == ""
        return out.splitlines()

    return run


class Refused(Protocol):
    def __call__(self, *arguments: str, **variables: str) -> str: ...


@pytest.fixture
def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """The sentence in which a command refuses: no traceback, and the exit code of wrong usage or configuration."""
    monkeypatch.chdir(folder)
    before = environment()

    def run(*arguments: str, **variables: str) -> str:
        # In this process, which spares each case the start of another; others run what needs a process of its own.
        monkeypatch.setattr(sys, "argv", ["qtasks", *arguments])
        monkeypatch.setattr(os, "environ", {**before, **variables})
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert ended.value.code in (2, 3), err
        assert out == ""
        assert "Traceback" not in err
        assert len(err.splitlines()) <= SENTENCES, err
        return err

    return run


def turned_away(folder: Path, *arguments: str, **variables: str) -> str:
    """As `refused`, by a process of its own: for what imports an application."""
    done = qtasks(*arguments, folder=folder, **variables)
    assert done.status in (2, 3), done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= SENTENCES, done.err
    return done.err


# -- init and tokens


def test_init_prints_the_secrets_once_and_never_again(folder: Path, refused: Refused) -> None:
    made = qtasks("broker", "init", "--db", "new.db", folder=folder)
    assert made.status == 0
    lines = dict(line.split("=", 1) for line in made.out.splitlines() if not line.startswith("#"))
    assert set(lines) == {"QSTASH_URL", *SECRETS, "QTASKS_BASE_URL", "QTASKS_DB"}
    assert (lines["QTASKS_BASE_URL"], lines["QTASKS_DB"]) == ("http://127.0.0.1:8000/qtasks", "new.db")
    assert (folder / "new.db").stat().st_mode & 0o077 == 0
    again = refused("broker", "init", "--db", "new.db")
    assert "is already initialised" in again
    for secret in (lines[name] for name in SECRETS):
        assert secret not in again
        # The keys must be there in clear to sign with; the token need not, so it is not.
    assert lines["QSTASH_TOKEN"].encode() not in (folder / "new.db").read_bytes()

    with BrokerServer(folder, "--db", "new.db", secrets=False, token=lines["QSTASH_TOKEN"]) as broker:
        broker.started()
        assert broker.ask("GET", "/v2/keys").json == {
            "current": lines["QSTASH_CURRENT_SIGNING_KEY"],
            "next": lines["QSTASH_NEXT_SIGNING_KEY"],
        }
        assert broker.stop() == 0
        for secret in (lines[name] for name in SECRETS):
            assert secret not in broker.output


def test_a_database_may_be_named_before_or_after_the_command(folder: Path) -> None:
    assert qtasks("broker", "--db", "a.db", "init", folder=folder).status == 0
    assert qtasks("broker", "init", folder=folder, QTASKS_DB="b.db").status == 0
    assert qtasks("broker", "--db", "a.db", "token", "create", "x", folder=folder).status == 0
    assert "x" in qtasks("broker", "token", "list", "--db", "a.db", folder=folder).out
    assert "x" not in qtasks("broker", "token", "list", "--db", "b.db", folder=folder).out.split()
    assert sorted(path.name for path in folder.glob("*.db")) == ["a.db", "b.db"]


def test_a_running_broker_knows_a_new_token_at_once_and_a_revoked_one_no_more(folder: Path) -> None:
    qtasks("broker", "init", "--db", "t.db", folder=folder)
    with BrokerServer(folder, "--db", "t.db", secrets=False) as broker:
        broker.started()
        assert broker.ask("GET", "/v2/logs").status == 401
        broker.token = qtasks("broker", "token", "create", "ci", "--db", "t.db", folder=folder).out.strip()
        assert broker.ask("GET", "/v2/logs").status == 200
        listed = qtasks("broker", "token", "list", "--db", "t.db", folder=folder).out.splitlines()
        assert [line.split()[0] for line in listed] == ["first", "ci"]
        assert broker.token not in "".join(listed)
        assert qtasks("broker", "token", "revoke", "ci", "--db", "t.db", folder=folder).out == "revoked ci\n"
        soon(lambda: broker.ask("GET", "/v2/logs").status == 401, "the token is worthless", STALE_S + 0.5)


def test_a_revocation_says_that_a_broker_with_the_token_in_its_environment_still_accepts_it(folder: Path) -> None:
    made = qtasks("broker", "init", "--db", "t.db", folder=folder).out
    variables = dict(line.split("=", 1) for line in made.splitlines() if not line.startswith("#"))
    other = qtasks("broker", "token", "create", "ci", "--db", "t.db", folder=folder).out.strip()
    token = variables["QSTASH_TOKEN"]
    with BrokerServer(folder, "--db", "t.db", token=token, secrets=False, QSTASH_TOKEN=token) as broker:
        broker.started()
        assert qtasks("broker", "token", "revoke", "ci", folder=folder, QTASKS_DB="t.db", QSTASH_TOKEN=token).err == ""
        said = qtasks("broker", "token", "revoke", "first", folder=folder, QTASKS_DB="t.db", QSTASH_TOKEN=token)
        assert (said.out, said.status) == ("revoked first\n", 0)
        assert "a broker that was started with this variable still accepts it" in said.err
        soon(
            lambda: ask("GET", f"{broker.url}/v2/logs", token=other).status == 401,
            "the other token is gone",
            STALE_S + 0.5,
        )
        assert broker.ask("GET", "/v2/logs").status == 200


def test_a_token_to_read_with_changes_nothing(folder: Path) -> None:
    qtasks("broker", "init", "--db", "t.db", folder=folder)
    reader = qtasks("broker", "token", "create", "eye", "--read-only", "--db", "t.db", folder=folder).out.strip()
    with BrokerServer(folder, "--db", "t.db", token=reader, QSTASH_TOKEN=TOKEN, secrets=False) as broker:
        broker.started()
        assert broker.ask("GET", "/v2/logs").status == 200
        assert broker.ask("GET", "/v2/dlq").status == 200
        assert broker.ask("POST", "/v2/publish/http://127.0.0.1:9/").status == 403
        assert broker.ask("DELETE", "/v2/messages/msg_1").status == 403
        # A process that has the keys can sign deliveries, and so run tasks.
        assert broker.ask("GET", "/v2/keys").status == 403
    assert "read only" in qtasks("broker", "token", "list", "--db", "t.db", folder=folder).out


def test_tokens_are_made_under_names_of_their_own_in_a_database_that_exists(folder: Path, refused: Refused) -> None:
    assert "there is no database at none.db" in refused("broker", "token", "create", "a", "--db", "none.db")
    assert not (folder / "none.db").exists()
    qtasks("broker", "init", "--db", "t.db", folder=folder)
    assert "a token named 'first' already exists" in refused("broker", "token", "create", "first", "--db", "t.db")
    assert "there is no token named 'x'" in refused("broker", "token", "revoke", "x", "--db", "t.db")


# -- what a broker refuses to start with


@pytest.mark.parametrize(
    "variables",
    [
        {"QSTASH_TOKEN": DEV.token},
        {
            "QSTASH_TOKEN": TOKEN,
            "QSTASH_CURRENT_SIGNING_KEY": CURRENT,
            "QSTASH_NEXT_SIGNING_KEY": development.USERS[3].keys.next,
        },
    ],
)
def test_the_public_credentials_stay_on_this_machine(refused: Refused, variables: dict[str, str]) -> None:
    text = refused("broker", "--host", "0.0.0.0", "--port", "0", **variables)
    assert "the public development credentials must not be used on 0.0.0.0" in text
    for secret in variables.values():
        assert secret not in text


def test_public_keys_in_the_database_stay_on_this_machine_too(folder: Path, refused: Refused) -> None:
    with BrokerServer(folder, "--db", "k.db", secrets=False, QSTASH_TOKEN=TOKEN, **DEV_KEYS) as broker:
        broker.started()
    text = refused("broker", "--db", "k.db", "--host", "0.0.0.0", "--port", "0", QSTASH_TOKEN=TOKEN)
    assert "the public development credentials must not be used on 0.0.0.0" in text
    assert "the signing keys in k.db are the public ones" in refused("broker", "init", "--db", "k.db")


def test_init_refuses_the_public_keys_and_makes_nothing(folder: Path, refused: Refused) -> None:
    for name, key in DEV_KEYS.items():
        text = refused("broker", "init", "--db", "new.db", **{**SECRETS, name: key})
        assert "the signing keys in the environment are the public ones of `qtasks dev`" in text
        assert key not in text
    assert not list(folder.glob("*.db*"))


def test_init_says_where_its_signing_keys_come_from(done: Done) -> None:
    keys = {name: SECRETS[name] for name in DEV_KEYS}
    made = done("broker", "init", "--db", "made.db")
    assert "# The signing keys were made now." in made
    given = done("broker", "init", "--db", "given.db", **keys)
    names = "QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY"
    assert f"# The signing keys are those of {names} in the environment." in given
    assert {f"{name}={key}" for name, key in keys.items()} < set(given)
    done("broker", "token", "revoke", "first", "--db", "made.db")
    again = done("broker", "init", "--db", "made.db", **keys)
    assert "# The signing keys were in the database already; those in the environment are not used." in again
    assert again[-2:] == made[-2:]


def test_a_database_without_a_token_is_of_no_use(refused: Refused) -> None:
    text = refused("broker", "--db", "empty.db", "--port", "0")
    assert "empty.db has no token" in text
    assert "qtasks broker init --db empty.db" in text


def test_a_taken_port_is_told(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} on 127.0.0.1 is in use" in turned_away(folder, "broker", "--port", port, **SECRETS)
        base_url = {"QTASKS_BASE_URL": "http://127.0.0.1:1/qtasks"}
        assert f"port {port} on 127.0.0.1 is in use" in turned_away(
            folder, "run", "--port", port, **SECRETS, **base_url
        )


def test_a_database_has_one_broker_and_the_second_is_told_which(folder: Path, refused: Refused) -> None:
    with BrokerServer(folder, "--db", "one.db") as first:
        first.started()
        text = refused("broker", "--db", "one.db", "--port", "0", **SECRETS)
        assert f"one.db is in use by process {first.process.pid} (qtasks)" in text


def test_a_database_of_a_newer_program_is_left_alone(folder: Path, refused: Refused) -> None:
    with sqlite3.connect(folder / "new.db") as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    assert "schema version 999" in refused("broker", "--db", "new.db", "--port", "0", **SECRETS)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--db", "postgresql://u:p@h/d"), "QTASKS_DB names PostgreSQL"),
        (("--max-size", "many"), "'many' is not a size; write it as 500MB or 1GB"),
        (("--retention", "soon"), "write it as 30s, 12h or 7d"),
        (("--dlq-retention", "-1d"), "write it as 30s, 12h or 7d"),
        (("--max-size", "1"), "1 is too small: at least 10MB, or 0 for no limit"),
        (("--retention", "0s"), "0s is too short: at least 1m"),
        (("--dlq-retention", "10m"), "10m is too short: at least 1h"),
        (("--port", "70000"), "70000 is not in the range 0<=x<=65535"),
        (("--in-flight", "0"), "0 is not in the range x>=1"),
        (("--drain", "-1"), "-1.0 is not in the range"),
        (("--allow-destination", "http://"), "--allow-destination"),
        (("--host", "256.0.0.1"), "cannot listen on 256.0.0.1:0"),
        (("--db", "no/../tasks.py"), "is not a qtasks database"),
    ],
)
def test_a_wrong_option_is_a_sentence(refused: Refused, arguments: tuple[str, ...], text: str) -> None:
    assert text in refused("broker", "--port", "0", *arguments, **SECRETS)


def test_a_password_in_the_name_of_a_database_is_not_repeated(refused: Refused) -> None:
    assert "hunter2" not in refused("broker", QTASKS_DB="postgresql://me:hunter2@db/x", **SECRETS)


def test_one_key_of_two_is_not_enough(refused: Refused) -> None:
    text = refused("broker", "--port", "0", QSTASH_TOKEN=TOKEN, QSTASH_NEXT_SIGNING_KEY=NEXT)
    assert "QSTASH_CURRENT_SIGNING_KEY is not set" in text


def test_keys_of_ones_own_seed_the_store_which_is_the_truth_from_then_on(folder: Path) -> None:
    with BrokerServer(folder, "--db", "own.db") as broker:
        assert broker.started().ask("GET", "/v2/keys").json == {"current": CURRENT, "next": NEXT}
        broker.stop()
        assert "signing keys" not in broker.output
    with BrokerServer(folder, "--db", "own.db", QSTASH_CURRENT_SIGNING_KEY="sig_" + "x" * 28) as broker:
        broker.wait_for("the signing keys configured for default differ from those in the store")
        assert broker.started().ask("GET", "/v2/keys").json == {"current": CURRENT, "next": NEXT}
        broker.stop()
        assert "x" * 28 not in broker.output


# -- a running broker


def test_health_needs_no_token_and_says_no_more_than_it_must(pair: tuple[BrokerServer, Dispatcher]) -> None:
    broker, _ = pair
    alive = ask("GET", broker.url + "/healthz", headers={"Host": "probe.internal"})
    assert (alive.status, alive.json) == (200, {"status": "alive"})
    ready = ask("GET", broker.url + "/readyz", headers={"Host": "probe.internal"})
    assert (ready.status, ready.json) == (200, {"status": "ready", "storage": "sqlite: fsync per commit"})
    assert ask("HEAD", broker.url + "/readyz").status == 200
    assert ask("POST", broker.url + "/readyz", body=b"").status == 405


def test_a_name_that_was_allowed_is_served_and_no_other(folder: Path) -> None:
    with BrokerServer(folder, "--allow-host", "Broker.internal") as broker:
        broker.started()
        for host, status in [
            ("broker.internal", 200),
            (f"BROKER.internal:{broker.port}", 200),
            ("localhost:1", 200),
            ("evil.test", 421),
            ("x.broker.internal", 421),
        ]:
            assert broker.ask("GET", "/v2/keys", Host=host).status == status, host


def test_a_public_broker_reaches_this_machine_only_where_it_was_told(folder: Path, endpoint: Endpoint) -> None:
    with BrokerServer(folder, "--destinations", "public") as broker:
        answer = broker.started().ask("POST", f"/v2/publish/{endpoint.url}/x", b"1")
        assert answer.status == 400
        assert "--allow-destination" in answer.json["error"]
    with BrokerServer(folder, "--destinations", "public", "--allow-destination", endpoint.url) as broker:
        broker.started().publish(f"{endpoint.url}/x", b"1")
        assert endpoint.wait_for(1)[0].path == "/x"
        broker.stop()
    with BrokerServer(folder, "--destinations", "public", QTASKS_BASE_URL=f"{endpoint.url}/qtasks") as broker:
        broker.started().publish(f"{endpoint.url}/qtasks/task", b"1")
        assert endpoint.wait_for(2)[1].path == "/qtasks/task"


def test_names_are_looked_up_at_publish_only_when_asked_for(folder: Path, endpoint: Endpoint) -> None:
    unknown = "/v2/publish/http://unknown.invalid/"
    with BrokerServer(folder) as broker:
        assert broker.started().ask("POST", unknown).status == 201
    with BrokerServer(folder, "--resolve-on-publish") as broker:
        answer = broker.started().ask("POST", unknown)
        assert answer.status == 400
        assert "unable to resolve host: lookup unknown.invalid" in answer.json["error"]
        broker.publish(endpoint.url.replace("127.0.0.1", "localhost"))
        endpoint.wait_for(1)


class NarrowBrokerServer(BrokerServer):
    """A broker whose parent may open 256 files, as on some systems."""

    program = ("sh", "-c", 'ulimit -Sn 256; exec "$0" "$@"', *BrokerServer.program)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the limits of another process from /proc")
def test_a_server_may_open_as_many_files_as_the_system_allows(folder: Path) -> None:
    with NarrowBrokerServer(folder).started() as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert int(soft) == (10_240 if hard == "unlimited" else min(int(hard), 10_240))


def test_a_broker_that_nobody_configured_says_where_it_is_and_what_it_promises(folder: Path) -> None:
    with BrokerServer(folder) as broker:
        line = broker.wait_for("qtasks broker is running at http://127.0.0.1:")
        assert "store qtasks.db (sqlite: fsync per commit)  destinations local  0 waiting" in line
        assert broker.stop() == 0
        assert TOKEN not in broker.output


# -- run, send, tasks


def test_a_task_goes_from_send_through_the_broker_to_the_dispatcher_and_back(
    pair: tuple[BrokerServer, Dispatcher],
) -> None:
    _, dispatcher = pair
    assert dispatcher.send("add", "2", "3", "--wait") == "5\n"
    assert dispatcher.send("add", "-2", "--wait") == "-1\n"
    assert dispatcher.send("add", "--kwargs", '{"a": 40, "b": 2}', "--wait") == "42\n"


def test_send_prints_the_ids_and_the_delay_holds(pair: tuple[BrokerServer, Dispatcher]) -> None:
    broker, dispatcher = pair
    message_id, call_id = dispatcher.send("add", "1", "--delay", "1h").split()
    assert call_id.startswith("call_")
    [created] = broker.log(message_id)
    assert created["nextDeliveryTime"] - created["time"] == 3_600_000


def test_a_task_that_failed_is_exit_code_1_and_its_own_words(pair: tuple[BrokerServer, Dispatcher]) -> None:
    _, dispatcher = pair
    done = qtasks("send", "refuse", "--wait", folder=dispatcher.folder, **dispatcher.variables)
    assert (done.status, done.out) == (1, "")
    assert "NonRetryable: never" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("add", "--kwargs", "{"), "--kwargs is not JSON"),
        (("add", "--kwargs", "[]"), "--kwargs is not a JSON object"),
        (("add", "--delay", "soon"), "soon"),
        (("a b",), "a b"),
        (("add", "1", "--wiat"), "No such option"),
        (("add", "1", "-w"), "No such option"),
    ],
)
def test_what_cannot_be_sent_is_told_before_anything_is(
    refused: Refused, arguments: tuple[str, ...], text: str
) -> None:
    base_url = {"QTASKS_BASE_URL": "http://127.0.0.1:1/qtasks", "QSTASH_URL": "http://127.0.0.1:1"}
    assert text in refused("send", *arguments, **SECRETS, **base_url)


def test_several_workers_share_the_port_and_end_together(folder: Path, pair: tuple[BrokerServer, Dispatcher]) -> None:
    broker, _ = pair
    with Dispatcher(folder, "--workers", "2", broker=broker) as dispatcher:
        dispatcher.started()
        seen = folder / "seen"
        for number in range(20):
            envelope = {"v": 1, "id": f"call_{number}", "args": [str(seen)], "kwargs": {}}
            broker.publish(dispatcher.url("who"), json.dumps(envelope).encode())
        soon(lambda: seen.exists() and len(seen.read_text().split()) == 20, "twenty tasks have run")
        pids = set(seen.read_text().split())
        assert len(pids) == 2
        assert str(dispatcher.process.pid) not in pids
        assert dispatcher.stop() == 0
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", dispatcher.port))


def test_a_dispatcher_without_keys_or_address_does_not_start(folder: Path) -> None:
    base_url = {"QTASKS_BASE_URL": "https://app.example.com/qtasks"}
    run = ("run", "--port", "0")
    assert "no signing keys" in turned_away(folder, *run, **base_url)
    assert "QSTASH_NEXT_SIGNING_KEY not set" in turned_away(
        folder, *run, QSTASH_CURRENT_SIGNING_KEY=CURRENT, **base_url
    )
    assert "QTASKS_BASE_URL is not set" in turned_away(folder, *run, **SECRETS)


def test_a_dispatcher_does_not_trust_the_public_keys(folder: Path) -> None:
    keys = {
        "QSTASH_TOKEN": DEV.token,
        "QSTASH_CURRENT_SIGNING_KEY": DEV.keys.current,
        "QSTASH_NEXT_SIGNING_KEY": DEV.keys.next,
    }
    text = turned_away(folder, "run", "--port", "0", **keys, QTASKS_BASE_URL="https://app.example.com/qtasks")
    assert "development" in text
    local = {"QTASKS_BASE_URL": "http://127.0.0.1:8000/qtasks", "QSTASH_URL": "http://127.0.0.1:8080"}
    text = turned_away(folder, "run", "--port", "0", "--host", "0.0.0.0", **keys, **local)
    assert "the public development credentials must not be used on 0.0.0.0" in text
    text = turned_away(folder, "run", "--port", "0", "--host", "0.0.0.0", QSTASH_DEV="1")
    assert "the public development credentials must not be used on 0.0.0.0" in text


def test_a_dispatcher_needs_an_application(folder: Path) -> None:
    variables = {**SECRETS, "QTASKS_BASE_URL": "http://127.0.0.1:1/qtasks"}
    assert "did you mean 'tasks.py'?" in turned_away(folder, "run", "taks.py", **variables)
    (folder / "tasks.py").write_text("x = 1\n")
    assert "no tasks found in tasks" in turned_away(folder, "run", "--workers", "2", **variables)
    (folder / "tasks.py").write_text("raise SystemExit(0)\n")
    assert "SystemExit" in turned_away(folder, "run", **variables)


def test_an_application_that_refuses_to_start_is_no_success(folder: Path) -> None:
    (folder / "tasks.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from fastapi import FastAPI\n"
        "from qtasks import QTasks\n"
        "@asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    raise RuntimeError('no database')\n"
        "    yield\n"
        "app = FastAPI(lifespan=lifespan)\n"
        "tasks = QTasks()\n"
        "app.include_router(tasks.router, prefix='/qtasks')\n"
        "@tasks.task\n"
        "def nothing() -> None: ...\n"
    )
    for workers in ("1", "2"):
        with Dispatcher(folder, "--workers", workers) as dispatcher:
            assert dispatcher.finish() == 2
            assert "no database" in dispatcher.output
            assert "qtasks run tasks" not in dispatcher.output


def test_tasks_lists_what_an_application_offers(folder: Path) -> None:
    shown = qtasks("tasks", folder=folder)
    assert shown.out.splitlines() == [
        "add(a: int, b: int = 1) -> int",
        "    Add two numbers.",
        "refuse() -> None",
        "who(file: str) -> None",
    ]
    document = json.loads(qtasks("tasks", "tasks.py", "--json", folder=folder).out)
    assert document[0] == {
        "name": "add",
        "signature": "(a: int, b: int = 1) -> int",
        "summary": "Add two numbers.",
        "searchable": [],
        "schedules": [],
    }
    assert [entry["name"] for entry in document] == ["add", "refuse", "who"]


def test_tasks_shows_of_a_signature_what_a_caller_gives(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        "from fastapi import Depends\n"
        "from qtasks import TaskContext, injected, task\n\n"
        "@task\n"
        "def pay(order: int, *, ctx: TaskContext = injected, db: object = Depends(dict)) -> str:\n"
        "    return 'paid'\n"
    )
    assert qtasks("tasks", folder=tmp_path).out == "pay(order: int) -> str\n"


# -- what a dispatcher says of a delivery that it does not trust


def test_refused_signatures_are_told_apart_in_the_log_and_nowhere_else(
    pair: tuple[BrokerServer, Dispatcher],
) -> None:
    _, dispatcher = pair
    url, body, now_s = dispatcher.url("who"), b'{"v":1}', int(time.time())

    def made(key: str = CURRENT, url: str = url, body: bytes = body, age_s: int = 0) -> str:
        return signing.sign(key, url=url, body=body, now_s=now_s - age_s, jti="jwt_test")

    forged = {
        "QT201": made(url=url.replace("http:", "https:")),
        "QT202": made(body=body + b" "),
        "QT203": made(key="sig_" + "x" * 28),
        "QT204": made(age_s=3600),
        "QT205": made(age_s=-3600),
        "QT206": _by_another_issuer(url, body, now_s),
        "QT207": "not a token",
    }
    for code, signature in forged.items():
        answer = ask("POST", url, body=body, headers={"Upstash-Signature": signature})
        assert (answer.status, answer.json) == (401, {"error": "invalid signature"}), code
        line = dispatcher.wait_for(code)
        assert re.match(r"\d{4}-\d\d-\d\d [\d:,]+ WARNING " + code, line), line
    for secret in (CURRENT, NEXT):
        assert secret not in dispatcher.output


def _by_another_issuer(url: str, body: bytes, now_s: int) -> str:
    import base64
    import hashlib

    import jwt

    digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode()
    claims = {"iss": "Another", "sub": url, "exp": now_s + 300, "nbf": 0, "iat": now_s, "jti": "x", "body": digest}
    return jwt.encode(claims, CURRENT, algorithm="HS256")


# -- the command itself


def test_help_is_quick_and_names_every_command(folder: Path) -> None:
    began = time.perf_counter()
    shown = qtasks("--help", folder=folder)
    assert time.perf_counter() - began < 1.0  # 50 ms on a machine with nothing else to do
    assert shown.status == 0
    for name in ("dev", "broker", "run", "send", "tasks"):
        assert re.search(rf"^  {name} +\w", shown.out, re.MULTILINE), name
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_a_misspelt_command_is_met_with_the_nearest(refused: Refused) -> None:
    assert "there is no command 'brokr'; did you mean 'broker'?" in refused("brokr")
    assert "there is no command 'xyzzy'; known: new, dev, broker, run, send, tasks, schedules, messages" in refused(
        "xyzzy"
    )


def test_what_a_terminal_cannot_show_is_no_reason_to_fail(folder: Path) -> None:
    (folder / "tasks.py").write_text(TASKS.replace("Add two numbers", "Zwei Zahlen → Summe"), encoding="utf-8")
    shown = qtasks("tasks", folder=folder, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert shown.status == 0
    assert "Zwei Zahlen ? Summe." in shown.out


def test_ctrl_c_is_not_a_traceback(folder: Path) -> None:
    with Process(folder, "broker", "--port", str(free_port()), **SECRETS) as broker:
        broker.wait_for("running")
        assert broker.stop() == 0
        assert "Traceback" not in broker.output


def test_a_token_without_payloads_opens_the_console_only(folder: Path) -> None:
    assert qtasks("broker", "init", "--db", "t.db", folder=folder).status == 0
    token = qtasks(
        "broker", "token", "create", "guest", "--without-payloads", "--db", "t.db", folder=folder
    ).out.strip()
    assert "without payloads" in qtasks("broker", "token", "list", "--db", "t.db", folder=folder).out
    with BrokerServer(folder, "--db", "t.db", token=token, secrets=False).started() as server:
        server.wait_for(f"console at {server.url}/")
        assert server.ask("GET", "/v2/logs").status == 403
        assert server.ask("GET", "/console/api/session").json["role"] == "metadata"
