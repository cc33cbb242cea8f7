"""Concurrent calls of a process share requests to a real broker; each call is stored once."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.integration.test_forked_processes import run
from tests.support.api_client import ApiClient
from tests.support.tasks import BASE_URL, KEYS

PROGRAM = """
import asyncio, atexit
from qtasks import QTasks

tasks = QTasks()

@tasks.task
def work(n: int) -> None: ...

later = work.using(delay="1d")

def in_threads(first):
    "Begin 60 calls, in six threads that call at once."
    def some(numbers):
        for n in numbers:
            assert later.delay(n).message_id
    begun = [threading.Thread(target=some, args=(range(first + place, first + 60, 6),)) for place in range(6)]
    for thread in begun:
        thread.start()
    return begun

def end(begun):
    for thread in begun:
        thread.join()

async def on_a_loop(first):
    handles = await asyncio.gather(*(later.adelay(n) for n in range(first, first + 60)))
    assert len({handle.message_id for handle in handles}) == 60

later.delay(-1)
"""


def stored_after(script: str, api: ApiClient, folder: Path) -> list[int]:
    """The arguments of the calls that the broker has after the script, sorted."""
    variables = {
        "QSTASH_URL": f"http://127.0.0.1:{api.port}",
        "QSTASH_TOKEN": str(api.user.token),
        "QSTASH_CURRENT_SIGNING_KEY": KEYS.current,
        "QSTASH_NEXT_SIGNING_KEY": str(KEYS.next),
        "QTASKS_BASE_URL": BASE_URL,
    }
    run(PROGRAM + script, folder, **variables)
    logs = api.ask("GET", "/v2/logs?count=1000&state=CREATED").json["logs"]
    return sorted(json.loads(base64.b64decode(entry["body"]))["args"][0] for entry in logs)


def test_threads_and_event_loops_store_each_call_once(api: ApiClient, tmp_path: Path) -> None:
    script = """
begun = in_threads(0)
asyncio.run(on_a_loop(100))
end(begun)
later.map(range(200, 500))
"""
    assert stored_after(script, api, tmp_path) == [-1, *range(60), *range(100, 160), *range(200, 500)]


def test_a_process_that_is_forked_in_the_middle_sends_its_own_calls(api: ApiClient, tmp_path: Path) -> None:
    script = """
begun = in_threads(0)
children = forked([lambda: end(in_threads(100)), lambda: asyncio.run(on_a_loop(200))])
end(begun)
join(children)
"""
    assert stored_after(script, api, tmp_path) == [-1, *range(60), *range(100, 160), *range(200, 260)]


def test_calls_at_the_end_of_a_process_are_stored(api: ApiClient, tmp_path: Path) -> None:
    script = """
atexit.register(later.delay, 100)
in_threads(0)
"""
    assert stored_after(script, api, tmp_path) == [-1, *range(60), 100]


def test_an_interrupt_stores_no_call_twice_and_stops_no_other_thread(api: ApiClient, tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts beside it
begun = in_threads(0)
n, interrupted = 100, 0
while n < 130:
    try:
        while n < 130:
            n += 1
            timer = threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            later.delay(n)
            timer.join()
            sum(range(1000))  # here at the latest the signal arrives
    except KeyboardInterrupt:
        interrupted += 1
assert interrupted
end(begun)
"""
    stored = stored_after(script, api, tmp_path)
    assert stored == sorted(set(stored))
    assert set(stored) >= {-1, *range(60)}
