"""From a results URL to the backend that it names."""

from __future__ import annotations

from qtasks.errors import ConfigurationError
from qtasks.tasks.results.backend import ResultBackend
from qtasks.tasks.results.memory import MemoryResults
from qtasks.tasks.results.sqlite import SQLiteResults


def open_results(url: str, *, ttl_ms: int) -> ResultBackend:
    """The backend that `url` names.

    ``memory://``, ``sqlite:///relative/path``, ``sqlite:////absolute/path``, ``postgresql://...``, ``redis://...``
    (``rediss://`` for TLS). Raises ConfigurationError for any other, and for one whose client is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if url == "memory://":
        return MemoryResults(ttl_ms=ttl_ms)
    if scheme == "sqlite" and separator and rest.startswith("/") and len(rest) > 1 and rest != "/:memory:":
        return SQLiteResults(rest[1:], ttl_ms=ttl_ms)
    # Imported only if named: an application needs at most one of these clients.
    if scheme in ("postgresql", "postgres") and separator:
        from qtasks.tasks.results.postgres import PostgresResults

        return PostgresResults(url, ttl_ms=ttl_ms)
    if scheme in ("redis", "rediss") and separator:
        from qtasks.tasks.results.redis import RedisResults

        return RedisResults(url, ttl_ms=ttl_ms)
    raise ConfigurationError(
        f"QTASKS_RESULTS does not name a result backend: {scheme}://...",
        fix="sqlite:///relative/path, sqlite:////absolute/path, postgresql://..., redis://..., or "
        "memory:// for one process",
    )
