"""The services of the peers on this machine: check that they answer, and use an empty database in each."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from benchmarks.peers.environments import UnavailableError

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

    def __post_init__(self) -> None:
        for url in (self.redis, self.postgres):
            if urlsplit(url).hostname not in _LOOPBACK:
                raise ValueError(f"{url} is not on this machine; benchmarks must not load another machine")

    def claim(self, name: str) -> None:
        """Raise UnavailableError if the service `name` does not answer, or the Redis database is in use."""
        if name == "redis":
            if self._redis("DBSIZE") != ":0" and self._redis(f"EXISTS {_MARK}") != ":1":
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

    def _redis(self, command: str) -> str:
        host, port = _address(self.redis, 6379)
        database = urlsplit(self.redis).path.strip("/") or "0"
        try:
            with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
                connection.sendall(f"SELECT {database}\r\n{command}\r\n".encode())
                with connection.makefile("rb") as answers:
                    lines = [answers.readline().decode().strip() for _ in range(2)]
        except OSError as error:
            raise UnavailableError(f"Redis does not answer at {host}:{port}: {error}") from None
        for line in lines:
            if not line or line.startswith("-"):
                raise UnavailableError(f"Redis at {host}:{port} says {line or 'nothing'}")
        return lines[1]


def _address(url: str, port: int) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or port
