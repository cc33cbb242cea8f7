"""From a results URL to the backend that it names."""

from __future__ import annotations

from qtasks.errors import ConfigurationError
from qtasks.tasks.results.backend import ResultBackend


def open_results(url: str, *, ttl_ms: int) -> ResultBackend:
    """The backend that `url` names.

    ``memory://``, ``sqlite:///relative/path``, ``sqlite:////absolute/path``, ``postgresql://...``, ``redis://...``
    (``rediss://`` for TLS). Raises ConfigurationError for any other, and for one whose client is not installed.
    """
    scheme, separator, rest = url.partition("://")
    # Each is imported only if it is named: an application needs one of them.
    if url == "memory://":
        from qtasks.tasks.results.memory import MemoryResults

        return MemoryResults(ttl_ms=ttl_ms)
    if scheme == "sqlite" and separator and rest.startswith("/") and len(rest) > 1 and rest != "/:memory:":
        from qtasks.tasks.results.sqlite import SQLiteResults

        return SQLiteResults(rest[1:], ttl_ms=ttl_ms)
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
