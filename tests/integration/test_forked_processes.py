"""Processes that are forked from one that uses tasks: each has threads, locks and connections of its own.

The parent runs as a script, because the processes of the tests have threads of their own.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dev import Dev
from tests.support.process import PATIENCE_S, environment
from tests.support.results import BACKENDS, place_for_results, postgres

HELPERS = """
import asyncio, contextvars, gc, os, signal, sys, threading

def forked(works):
    "Run each work in a process of its own, beside this one; a process that hangs or raises ends with another status."
    children = []
    for work in works:
        if (child := os.fork()) == 0:
            signal.alarm(15)
            try:
                work()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    return children

def join(children):
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)
"""


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the helpers above it; it must succeed."""
    flags = ("-W", "error", "-W", "ignore::DeprecationWarning")  # Python 3.12 warns of a fork with threads
    done = subprocess.run(
        [sys.executable, *flags, "-c", HELPERS + textwrap.dedent(script)],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


BACKEND = """
from qtasks.tasks.results import redis
from qtasks.tasks.results.backend import Lock, ResultRecord, ResultStatus
from qtasks.tasks.results.open_backend import open_results

redis.PREFIX = os.environ["PREFIX"]
backend = open_results(os.environ["RESULTS"], ttl_ms=60_000)

def use(name, times):
    for number in range(times):
        key = f"{name}-{number}"
        record = ResultRecord(call_id=key, message_id=f"m-{key}", task="t", status=ResultStatus.SUCCEEDED, attempt=1,
            updated_ms=number + 1, value=key)
        backend.write([record])
        assert backend.read(key) == record, (key, backend.read(key))
        assert backend.read(f"m-{key}") == record
        (lock,) = backend.lock([Lock(f"l-{key}", name, 60_000)], now_ms=1)
        assert lock.owner == name

stop = threading.Event()

def load(name):
    turn = 0
    while not stop.is_set():
        use(f"{name}-{(turn := turn + 1)}", 1)

use("before", 1)
threads = [threading.Thread(target=load, args=(f"thread-{n}",)) for n in range(2)]
for thread in threads:
    thread.start()
for turn in range(TURNS):
    children = forked([lambda n=n: use(f"child-{turn}-{n}", 8) for n in range(3)])
    use(f"parent-{turn}", 8)
    join(children)
stop.set()
for thread in threads:
    thread.join()
backend.close()
"""


@contextlib.contextmanager
def results(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    """The variables that name an empty backend."""
    with pytest.MonkeyPatch.context() as patch, place_for_results(kind, folder, patch) as url:
        from qtasks.tasks.results import redis

        yield {"RESULTS": url, "PREFIX": redis.PREFIX}


@pytest.mark.parametrize("kind", BACKENDS)
def test_parent_and_children_use_a_backend_at_once_and_read_what_they_have_written(kind: str, tmp_path: Path) -> None:
    with results(kind, tmp_path) as variables:
        run(BACKEND.replace("TURNS", "1"), tmp_path, **variables)


@pytest.mark.release
@pytest.mark.parametrize("kind", BACKENDS)
def test_no_moment_of_a_fork_makes_a_backend_hang_or_mix_up_answers(kind: str, tmp_path: Path) -> None:
    with results(kind, tmp_path) as variables:
        run(BACKEND.replace("TURNS", "10"), tmp_path, **variables)


def test_results_in_memory_say_that_another_process_does_not_share_them(tmp_path: Path) -> None:
    done = run(
        """
        from qtasks.tasks.results.memory import MemoryResults
        backend = MemoryResults(ttl_ms=1000)
        backend.read("a")
        def read():
            backend.read("a")
            backend.read("a")
        print(os.getpid())
        join(forked([read]))
        """,
        tmp_path,
    )
    assert done.stderr == (
        f"results in memory are not shared with process {done.stdout.strip()}, from which this one was forked: "
        "set QTASKS_RESULTS to sqlite:///results.db\n"
    )


TASKS = """
from pathlib import Path
from qtasks import task

@task
def add(a: int, b: int) -> int:
    return a + b

@task
def note(name: str) -> str:
    with Path("notes").open("a") as notes:
        notes.write(f"{name}\\n")
    return name
"""

IN_EVERY_FORM = """
from qtasks.tasks.default import default_app
from tasks import add, note

def use(number):
    "Each form of a call; each gets its own result."
    assert add.delay(number, 1).get(timeout=10) == number + 1
    assert [one.get(timeout=10) for one in add.starmap([(number, 2), (number, 3)])] == [
        number + 2, number + 3]

    async def calls():
        handles = await asyncio.gather(*(add.adelay(number, step) for step in range(12)))
        assert [await handle.aget(timeout=10) for handle in handles] == [number + step for step in range(12)]

    asyncio.run(calls())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def dev(folder: Path) -> Iterator[Dev]:
    """A development server whose results are in PostgreSQL."""
    with postgres() as url, Dev(folder, "tasks.py", QTASKS_RESULTS=url) as dev:
        dev.started()
        yield dev
        dev.stop()


def test_calls_after_a_fork(dev: Dev) -> None:
    """One server for all of them, because its start is what takes time."""
    run(
        IN_EVERY_FORM
        + """
use(100)
stop = threading.Event()
def load():
    while not stop.is_set():
        use(50_000)
thread = threading.Thread(target=load)
thread.start()
children = forked([lambda n=n: use(1000 * n) for n in (1, 2, 3)])
use(100)
join(children)
stop.set()
thread.join()

# Another thread holds every lock of the package at the moment of the fork.
kinds = (type(threading.Lock()), type(threading.RLock()))
locks = [
    part
    for one in gc.get_objects()
    if str(type(one).__module__).startswith("qtasks")
    for part in getattr(one, "__dict__", {}).values()
    if isinstance(part, kinds)
]
assert len(locks) > 5
held, forked_already = threading.Event(), threading.Event()
def hold():
    for lock in locks:
        lock.acquire()
    held.set()
    forked_already.wait()
    for lock in locks:
        lock.release()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
children = forked([lambda: use(7000)])
forked_already.set()
join(children)
thread.join()
use(100)

# A batch that is open at the fork is that of the parent; the child sends its own calls at once.
def in_the_child():
    assert note.delay("child").get(timeout=10) == "child"
def leaves_the_block_too():
    batch.__exit__(None, None, None)
with default_app.batch() as batch:
    handle = note.delay("parent")
    join(forked([in_the_child, leaves_the_block_too]))
assert handle.get(timeout=10) == "parent"
default_app.close()
""",
        dev.folder,
    )
    assert sorted((dev.folder / "notes").read_text().split()) == ["child", "parent"]
