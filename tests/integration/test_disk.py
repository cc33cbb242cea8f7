"""A disk that is full while the broker runs, and files that cannot be written when it starts: real processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.full_disk import SmallDisk, small_disk
from tests.support.process import ask, qtasks, soon
from tests.support.running import Answer, Endpoint, Received
from tests.support.servers import SECRETS, BrokerServer

TASKS = "from qtasks import task\n\n@task\ndef work() -> None: ...\n"
LARGE = bytes(1_000_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 120) as mounted:
        (mounted.folder / "tasks.py").write_text(TASKS)
        yield mounted


def test_on_a_full_disk_deliveries_go_on_and_messages_are_accepted_again_soon_after_there_is_room(
    disk: SmallDisk,
) -> None:
    may_answer = threading.Event()

    def answer(received: Received) -> Answer:
        assert may_answer.wait(30)
        return 200, {}, b"done"

    endpoint = Endpoint(answer)
    with BrokerServer(disk.folder, "--db", str(disk.folder / "b.db")).started() as broker:
        waiting = [broker.publish(endpoint.url, b"%d" % n) for n in range(20)]
        delayed = broker.publish(endpoint.url, Upstash_Delay="1h")
        disk.fill(leave=500_000)
        while (refused := broker.ask("POST", f"/v2/publish/{endpoint.url}", LARGE)).status == 201:
            waiting.append(refused.json["messageId"])
        assert refused.status == 507
        ready = ask("GET", broker.url + "/readyz")
        assert (ready.status, "no space is left" in ready.json["error"]) == (503, True)
        may_answer.set()
        endpoint.wait_for(len(waiting))
        soon(lambda: all(broker.states(one)[-1] == "DELIVERED" for one in waiting), "all are delivered")
        assert broker.ask("DELETE", f"/v2/messages/{delayed}").status == 200
        assert broker.ask("POST", f"/v2/publish/{endpoint.url}").status == 507
        disk.free()
        soon(lambda: ask("GET", broker.url + "/readyz").status == 200, "messages are accepted again", within_s=5)
        broker.publish(endpoint.url)
    endpoint.close()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("broker", "--port", "0", "--db", "b.db"), 2),
        (("run", "tasks.py", "--port", "0", "--embedded", "b.db"), 2),
        (("dev",), 3),
    ],
)
def test_a_read_only_file_system_is_one_sentence_at_the_start(
    disk: SmallDisk, command: tuple[str, ...], status: int
) -> None:
    disk.make_read_only()
    ended = qtasks(*command, folder=disk.folder, **SECRETS)
    assert ended.status == status
    assert "Traceback" not in ended.err
    assert "read-only" in ended.err.lower()
    assert len(ended.err.strip().splitlines()) == 2, "the sentence, and what to do"
