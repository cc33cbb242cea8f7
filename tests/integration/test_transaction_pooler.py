"""Results in PostgreSQL behind PgBouncer in transaction mode: each transaction may get another connection."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from qtasks.tasks.results.backend import Lock, ResultRecord, ResultStatus
from qtasks.tasks.results.postgres import PostgresResults
from tests.support.process import soon
from tests.support.results import POSTGRES_URL, absent, postgres

CONFIGURATION = """
[databases]
pooled = host={host} port={port} dbname={database} user={user} {password} connect_query='SET search_path = {schema}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
"""


@pytest.fixture(scope="module")
def pooled() -> Iterator[str]:
    """The URL of an empty schema behind PgBouncer."""
    program = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    if program is None:
        absent("PgBouncer", FileNotFoundError("pgbouncer"))
    with postgres() as url, tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        own_port = free.getsockname()[1]
        free.close()
        parts = urlsplit(POSTGRES_URL)
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(
            CONFIGURATION.format(
                host=parts.hostname,
                port=parts.port or 5432,
                database=parts.path.strip("/"),
                user=parts.username,
                password=f"password={parts.password}" if parts.password else "",
                schema=url.rpartition("%3D")[2],
                own_port=own_port,
            )
        )
        Path(folder).chmod(0o755)
        as_nobody = ("-u", "nobody") if os.getuid() == 0 else ()  # it refuses to run as root
        process = subprocess.Popen([str(program), *as_nobody, str(settings)], stderr=subprocess.DEVNULL)
        try:
            soon(lambda: _answers(own_port), "PgBouncer to listen")
            yield f"postgresql://anybody@127.0.0.1:{own_port}/pooled"
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def record(name: str, number: int, *, kept: bool = False) -> ResultRecord:
    return ResultRecord(
        call_id=f"{name}-{number}",
        message_id=f"m-{name}-{number}",
        task="t",
        status=ResultStatus.SUCCEEDED,
        attempt=1,
        updated_ms=number + 1,
        value=name,
        kept=kept,
    )


def test_processes_write_lock_read_and_release_while_the_pooler_changes_their_connections(pooled: str) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(5)

    def use(name: str) -> None:
        backend = PostgresResults(pooled, ttl_ms=60_000)
        try:
            together.wait(20)
            for number in range(15):
                first, second = record(name, number), record(f"{name}-kept", number, kept=True)
                backend.write([first, second])
                assert backend.read(first.call_id) == first
                assert backend.read(first.message_id) == first
                (lock,) = backend.lock([Lock(f"l-{name}", f"{name}-{number}", number + 10)], now_ms=number + 1)
                backend.write([], [lock], [second.call_id])
                assert backend.read(second.call_id) == record(f"{name}-kept", number)
            assert backend.open_flows(5) == []
        except BaseException as error:
            failures.append(error)
        finally:
            backend.close()

    threads = [threading.Thread(target=use, args=(f"process-{n}",)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
