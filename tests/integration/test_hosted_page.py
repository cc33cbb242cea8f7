"""docs/guides/hosted.md: while an application moves from one broker to another, its dispatcher serves both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from fastapi import FastAPI

from qtasks import QTasks
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import BrokerSettings
from qtasks.protocol.messages import SigningKeys
from tests.support.bundles import behind_uvicorn
from tests.support.page_code import DOCS
from tests.support.running import RunningBroker

PAGE = (DOCS / "guides" / "hosted.md").read_text(encoding="utf-8")
OLD = SigningKeys("sig_" + "a" * 28, "sig_" + "b" * 28)
NEW = SigningKeys("sig_" + "c" * 28, "sig_" + "d" * 28)


@contextmanager
def broker_with(keys: SigningKeys, token: str) -> Iterator[RunningBroker]:
    credentials = AccountCredentials("shop", token, keys)
    broker = RunningBroker(BrokerSettings(path=":memory:", credentials=(credentials,)))
    try:
        yield broker
    finally:
        broker.stop()


def test_a_dispatcher_with_a_key_of_each_broker_runs_the_calls_of_both() -> None:
    assert "`QSTASH_NEXT_SIGNING_KEY` to the current key of the old one" in PAGE
    ran: SimpleQueue[str] = SimpleQueue()
    listener = listen("127.0.0.1", 0)
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/qtasks"
    with (
        broker_with(OLD, "token-of-the-old") as old,
        broker_with(NEW, "token-of-the-new") as new,
        QTasks(
            url=new.url,
            token="token-of-the-new",
            base_url=base_url,
            results="memory://",
            current_signing_key=NEW.current,
            next_signing_key=OLD.current,
        ) as tasks,
        QTasks(url=old.url, token="token-of-the-old", base_url=base_url) as sender_of_old_calls,
    ):

        @tasks.task
        def note(text: str) -> None:
            ran.put(text)

        app = FastAPI()
        app.include_router(tasks.router, prefix="/qtasks")
        with behind_uvicorn(app, listener=listener):
            sender_of_old_calls.send_task("note", ["of the old broker"])
            note.delay("of the new broker")
            assert {ran.get(timeout=20), ran.get(timeout=20)} == {"of the old broker", "of the new broker"}
