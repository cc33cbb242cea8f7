"""The services of the peers on this machine: check that they answer, and use an empty database in each."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks import processes
from benchmarks.peers.environments import UnavailableError
from benchmarks.processes import HOST, Program

REDIS: Final = "redis://127.0.0.1:6379/15"
POSTGRES: Final = "postgresql://127.0.0.1:5432/test"

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_ANSWER_S: Final = 10.0
_MARK: Final = "qtasks-benchmarks"


@dataclass(frozen=True, slots=True)
class Services:
    """URLs of the services. Raises ValueError for another machine, which must not get the load."""

    redis: str
    """With the number of an empty database: it is emptied after every measurement."""
    postgres: str
    """A database in which a schema may be created."""
    synced: bool = False
    """Whether Redis syncs each write to disk; otherwise it has the settings of this machine."""

    @property
    def redis_how(self) -> str:
        """How durable Redis is, in words."""
        if self.synced:
            return "Redis, every write synced to disk"
        kept = self._redis("CONFIG GET appendonly")[-1:] == ["yes"]
        return "Redis, written to disk" if kept else "Redis in memory: a crash of it loses tasks"

    @property
    def postgres_how(self) -> str:
        """How durable PostgreSQL is, in words."""
        return "PostgreSQL with its settings here, fsync by default"

    def __post_init__(self) -> None:
        for url in (self.redis, self.postgres):
            if urlsplit(url).hostname not in _LOOPBACK:
                raise ValueError(f"{url} is not on this machine; benchmarks must not load another machine")

    def claim(self, name: str) -> None:
        """Raise UnavailableError if the service `name` does not answer, or the Redis database is in use."""
        if name == "redis":
            if self._redis("DBSIZE") != [":0"] and self._redis(f"EXISTS {_MARK}") != [":1"]:
                raise UnavailableError(f"{self.redis} is in use: name an empty database with --redis")
            self.empty_redis()
            return
        host, port = _address(self.postgres, 5432)
        try:
            socket.create_connection((host, port), timeout=_ANSWER_S).close()
        except OSError as error:
            raise UnavailableError(f"PostgreSQL does not answer at {host}:{port}: {error}") from None

    def empty_redis(self) -> None:
        """Remove everything from the database, except a mark that it belongs to the benchmarks."""
        self._redis("FLUSHDB")
        self._redis(f"SET {_MARK} 1")

    def release(self, name: str) -> None:
        """Leave the service `name` as it was: Redis empty."""
        if name == "redis":
            self._redis("FLUSHDB")

    def redis_cpu_s(self) -> float:
        """Processor time of Redis so far."""
        used = dict(line.split(":", 1) for line in self._redis("INFO cpu") if ":" in line)
        return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])

    def _redis(self, command: str) -> list[str]:
        """The lines of the answer to a command, without those that give lengths. Raises UnavailableError."""
        host, port = _address(self.redis, 6379)
        database = urlsplit(self.redis).path.strip("/") or "0"
        try:
            with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
                connection.sendall(f"SELECT {database}\r\n{command}\r\nQUIT\r\n".encode())
                with connection.makefile("rb") as answers:
                    selected, *lines, _ = answers.read().decode().splitlines() or ["", ""]
        except OSError as error:
            raise UnavailableError(f"Redis does not answer at {host}:{port}: {error}") from None
        for line in (selected, *lines[:1]):
            if not line or line.startswith("-"):
                raise UnavailableError(f"Redis at {host}:{port} says {line or 'nothing'}")
        return [line for line in lines if not line.startswith(("$", "*"))]


@contextlib.contextmanager
def synced_redis(services: Services, folder: Path) -> Iterator[Services]:
    """The services with a Redis of their own, which syncs each write to disk. Raises UnavailableError."""
    program = shutil.which("redis-server")
    if program is None:
        raise UnavailableError("--synced starts a Redis of its own, and redis-server is not installed")
    port = processes.free_port()
    command = (
        program, "--port", str(port), "--bind", HOST, "--dir", folder, "--save", "",
        "--appendonly", "yes", "--appendfsync", "always",
    )  # fmt: skip
    with processes.running(Program("redis", command, processes.environment(), log=folder / "redis.log")) as redis:
        redis.wait_until(lambda: processes.listens(port))
        yield replace(services, redis=f"redis://{HOST}:{port}/15", synced=True)


def _address(url: str, port: int) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or port
