"""`qtasks dev` and strangers: its tokens and keys are public, so pages and loops must be stopped in another way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qtasks.protocol import development
from tests.support.dev import Dev
from tests.support.process import Answer, ask
from tests.support.tasks import envelope, signature

APPLICATION = """
from fastapi import FastAPI
from qtasks import QTasks

app = FastAPI()
tasks = QTasks()
app.include_router(tasks.router, prefix="/qtasks")
app.include_router(tasks.router, prefix="/again")

@tasks.task
def note(text: str) -> str:
    return text

@app.get("/page")
def page() -> str:
    return "mine"
"""
PUBLIC = development.USERS[0]


@dataclass(frozen=True)
class Running:
    """A running `qtasks dev`: the origins of its two ports."""

    broker: str
    app: str

    def deliver(self, prefix: str = "/qtasks", **headers: str) -> Answer:
        """Deliver a call as a stranger can: signed with the public key, for the URL that the broker would use."""
        body, url = envelope("stranger"), f"{self.app}/qtasks/note"
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        lines["Upstash-Signature"] = signature(url, body, key=PUBLIC.keys.current)
        return ask("POST", f"{self.app}{prefix}/note", body=body, headers=lines)

    def publish(self, destination: str, **headers: str) -> Answer:
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask("POST", f"{self.broker}/v2/publish/{destination}", token=PUBLIC.token, body=b"", headers=lines)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("dev")
    (folder / "main.py").write_text(APPLICATION)
    with Dev(folder, "main.py", "--memory", "--allow-host", "Tunnel.example") as process:
        facts = process.started()
        yield Running(facts["broker"], facts["base_url"].removesuffix("/qtasks"))
        assert process.stop() == 0


def test_a_page_that_rebinds_its_name_runs_no_task_and_reads_no_page(dev: Running) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", "127.1"):
        answer = dev.deliver(Host=host)
        assert answer.status == 421, host
        assert "qtasks dev answers to 127.0.0.1, [::1], localhost" in answer.json["error"]
        assert ask("GET", f"{dev.app}/page", headers={"Host": host}).status == 421
    assert dev.deliver().status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost.evil.example", "null", "http://[::2]"])
def test_a_page_of_another_site_runs_no_task(dev: Running, origin: str) -> None:
    answer = dev.deliver(Origin=origin)
    assert answer.status == 403
    assert "--allow-host" in answer.json["error"]


@pytest.mark.parametrize("origin", ["http://localhost:5173", "http://127.0.0.1:3000", "http://app.localhost:3000"])
def test_a_page_of_the_developer_calls_the_application(dev: Running, origin: str) -> None:
    assert ask("GET", f"{dev.app}/page", headers={"Origin": origin}).status == 200


def test_a_tunnel_that_was_allowed_reaches_the_pages_and_no_task(dev: Running) -> None:
    """Everybody on the internet knows the signing keys of `qtasks dev`."""
    allowed = {"Host": "tunnel.example", "Origin": "https://tunnel.example"}
    assert ask("GET", f"{dev.app}/page", headers=allowed).status == 200
    assert dev.deliver("/again").status == 200
    for answer in (dev.deliver(Host="tunnel.example"), dev.deliver("/again", Host="tunnel.example")):
        assert answer.status == 421
        assert "keys of qtasks dev are public" in answer.json["error"]


@pytest.mark.parametrize("line", ["X_Forwarded_For", "X_Forwarded_Host", "X_Real_IP", "Forwarded"])
def test_a_tunnel_that_hides_its_name_reaches_no_task_either(dev: Running, line: str) -> None:
    """Some tunnels write the name of this machine into `Host`; what they add gives them away."""
    assert ask("GET", f"{dev.app}/page", headers={line.replace("_", "-"): "203.0.113.1"}).status == 200
    answer = dev.deliver(**{line: "203.0.113.1"})
    assert (answer.status, "came through a proxy" in answer.json["error"]) == (421, True)


def test_tasks_without_a_prefix_leave_the_pages_of_the_application_to_a_tunnel(tmp_path: Path) -> None:
    changes = {', prefix="/qtasks"': "", ', prefix="/again"': "", '"/page"': '"/my/page"'}
    text = APPLICATION
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "main.py").write_text(text)
    with Dev(tmp_path, "main.py", "--memory", "--allow-host", "tunnel.example") as process:
        facts = process.started()
        assert ask("GET", f"{facts['base_url']}/my/page", headers={"Host": "tunnel.example"}).status == 200


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST.", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "127.0.0.2", "x.localhost"],
)
def test_a_message_to_the_broker_itself_is_refused_at_publish(dev: Running, host: str) -> None:
    """Each such delivery would publish the next message, or two."""
    itself = f"http://{host}:{dev.broker.rpartition(':')[2]}/v2/publish/http://127.0.0.1:1/"
    answers = {
        "message": dev.publish(itself),
        "callback": dev.publish("http://127.0.0.1:1/", Upstash_Callback=itself),
        "failure callback": dev.publish("http://127.0.0.1:1/", Upstash_Failure_Callback=itself),
        "schedule": dev.publish(itself, Upstash_Cron="* * * * *"),
    }
    for kind, answer in answers.items():
        assert answer.status == 400, kind
        assert "this broker's own address" in answer.json["error"], kind
    endpoints = f'{{"endpoints":[{{"url":"{itself}"}}]}}'.encode()
    answer = ask("POST", f"{dev.broker}/v2/topics/loop/endpoints", token=PUBLIC.token, body=endpoints)
    assert (answer.status, "own address" in answer.json["error"]) == (400, True)


def test_an_application_that_answers_to_its_own_host_and_scheme_only_runs_its_tasks(tmp_path: Path) -> None:
    checks = (
        "from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware\n"
        "from starlette.middleware.trustedhost import TrustedHostMiddleware\n"
        "app.add_middleware(HTTPSRedirectMiddleware)\n"
        "app.add_middleware(TrustedHostMiddleware, allowed_hosts=['shop.example.com'])\n"
    )
    (tmp_path / "main.py").write_text(APPLICATION + checks)
    with Dev(tmp_path, "main.py", "--memory") as process:
        process.started()
        shown = process.run("from main import note; print(note.delay('hello').get(timeout=20))")
        assert shown == "hello\n"
        assert process.stop() == 0
