"""Result backends for tests: files, and databases on this machine; each test gets an empty one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qtasks.tasks.results.redis as results_in_redis

BACKENDS = ("memory", "sqlite", "postgres", "redis")
POSTGRES_URL = os.environ.get("QTASKS_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
REDIS_URL = os.environ.get("QTASKS_TEST_REDIS", "redis://127.0.0.1:6379/0")


def absent(what: str, error: Exception) -> Any:
    """Skip the test where a database is missing; fail in CI, which must have all of them."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"there is no {what} here: {error}")
    pytest.skip(f"there is no {what} here: {error}")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty schema, dropped afterwards."""
    psycopg = pytest.importorskip("psycopg")
    name = f"qtasks_test_{secrets.token_hex(6)}"
    try:
        admin = psycopg.connect(POSTGRES_URL, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        absent("PostgreSQL", error)
    with admin:
        admin.execute(f"CREATE SCHEMA {name}")
        try:
            yield f"{POSTGRES_URL}?options=-csearch_path%3D{name}"
        finally:
            admin.execute(f"DROP SCHEMA {name} CASCADE")


@contextlib.contextmanager
def redis_prefix(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of Redis, where the keys of the backend get a unique prefix and are deleted afterwards."""
    redis = pytest.importorskip("redis")
    prefix = f"qtasks-test-{secrets.token_hex(6)}:"
    monkeypatch.setattr("qtasks.tasks.results.redis.PREFIX", prefix)
    with redis.Redis.from_url(REDIS_URL, socket_connect_timeout=3) as client:
        try:
            client.ping()
        except redis.ConnectionError as error:
            absent("Redis", error)
        yield REDIS_URL
        if keys := redis_keys(client, "*"):
            client.delete(*keys)


def redis_keys(client: Any, pattern: str) -> list[bytes]:
    """The keys that match, of those with the prefix of this test: others may use the same server."""
    return list(client.scan_iter(f"{results_in_redis.PREFIX}{pattern}"))


@contextlib.contextmanager
def place_for_results(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty backend; `kind` is one of `BACKENDS`."""
    if kind == "postgres":
        with postgres() as url:
            yield url
    elif kind == "redis":
        with redis_prefix(monkeypatch) as url:
            yield url
    else:
        yield "memory://" if kind == "memory" else f"sqlite:///{folder}/r.db"
