"""Tokens: kept as digests under names of their own, and looked up while another process adds and revokes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from qtasks.broker.api.api_request import ApiRequest, HttpError
from qtasks.broker.api.auth import STALE_S, Principal, Tokens, TokenScope
from qtasks.broker.core.values import StoredToken
from qtasks.broker.store.connection import connect
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import accounts
from qtasks.errors import StoreError
from tests.support.broker import START_MS, VirtualClock

NOW = START_MS


@pytest.fixture
def db() -> Iterator[apsw.Connection]:
    connection = connect(":memory:")
    yield connection
    connection.close()


# -- in the store


def test_a_token_is_kept_as_its_digest_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    connection = connect(str(path))
    assert accounts.add_token(connection, "qtk_secret", 1, "ci", read_only=True, now_ms=NOW)
    [kept] = accounts.tokens(connection)
    connection.close()
    assert kept == StoredToken(accounts.token_digest("qtk_secret"), 1, "ci", True, NOW)
    assert not [file for file in tmp_path.iterdir() if b"qtk_secret" in file.read_bytes()]


def test_names_are_unique_in_an_account_and_only_there(db: apsw.Connection) -> None:
    assert accounts.add_token(db, "one", 1, "ci", read_only=False, now_ms=NOW)
    assert not accounts.add_token(db, "two", 1, "ci", read_only=False, now_ms=NOW)
    assert accounts.add_token(db, "three", 2, "ci", read_only=False, now_ms=NOW)
    assert [(one.account, one.digest) for one in accounts.tokens(db)] == [
        (1, accounts.token_digest("one")),
        (2, accounts.token_digest("three")),
    ]


def test_a_token_is_revoked_by_its_name_in_its_account(db: apsw.Connection) -> None:
    accounts.add_token(db, "one", 1, "ci", read_only=False, now_ms=NOW)
    assert not accounts.remove_token(db, 2, "ci")
    assert not accounts.remove_token(db, 1, "CI")
    assert accounts.remove_token(db, 1, "ci")
    assert not accounts.remove_token(db, 1, "ci")
    assert accounts.tokens(db) == []
    assert accounts.add_token(db, "two", 1, "ci", read_only=False, now_ms=NOW)


def test_tokens_are_listed_oldest_first(db: apsw.Connection) -> None:
    for name, age_ms in (("b", 2), ("c", 1), ("a", 1)):
        accounts.add_token(db, name, 1, name, read_only=False, now_ms=NOW - age_ms)
    assert [one.name for one in accounts.tokens(db)] == ["b", "a", "c"]


@pytest.mark.anyio
async def test_another_connection_s_tokens_are_seen_at_once(tmp_path: Path) -> None:
    store, _ = await SqliteStore.open(str(tmp_path / "t.db"), VirtualClock())
    other = connect(str(tmp_path / "t.db"))
    assert await store.read(accounts.tokens) == []
    accounts.add_token(other, "one", 1, "ci", read_only=False, now_ms=NOW)
    assert [one.name for one in await store.read(accounts.tokens)] == ["ci"]
    other.close()
    await store.close()


# -- looked up


class ScriptedTokenStore:
    """A store of tokens that counts its reads; a read waits while `gate` is clear."""

    def __init__(self) -> None:
        self.kept: list[StoredToken] = []
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    def put(self, token: str, *, read_only: bool = False) -> None:
        self.kept.append(StoredToken(accounts.token_digest(token), 7, token, read_only, NOW))

    async def read(self) -> list[StoredToken]:
        self.reads += 1
        kept = list(self.kept)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return kept


async def body(_: int) -> bytes:
    return b""


def call(token: str) -> ApiRequest:
    return ApiRequest("GET", "/v2/logs", "", (("Authorization", f"Bearer {token}"),), "127.0.0.1", body)


async def admitted(known: Tokens, token: str) -> Principal | None:
    try:
        return await known.authenticate(call(token))
    except HttpError:
        return None


@pytest.mark.anyio
async def test_a_new_token_is_found_at_its_first_use_and_says_what_it_may() -> None:
    token_store = ScriptedTokenStore()
    known = Tokens(VirtualClock(), token_store.read)
    token_store.put("writer")
    token_store.put("reader", read_only=True)
    assert await admitted(known, "writer") == Principal(7, TokenScope.PUBLISH)
    assert await admitted(known, "reader") == Principal(7, TokenScope.READ)
    assert token_store.reads == 1


@pytest.mark.anyio
async def test_a_revoked_token_works_for_a_second_at_most() -> None:
    clock, token_store = VirtualClock(), ScriptedTokenStore()
    known = Tokens(clock, token_store.read)
    token_store.put("mine")
    assert await admitted(known, "mine")
    token_store.kept.clear()
    clock.advance(int(STALE_S * 1000) - 1)
    assert await admitted(known, "mine")
    clock.advance(1)
    assert await admitted(known, "mine") is None


@pytest.mark.anyio
async def test_strangers_do_not_make_us_read_again_and_again() -> None:
    clock, token_store = VirtualClock(), ScriptedTokenStore()
    known = Tokens(clock, token_store.read)
    for number in range(100):
        assert await admitted(known, f"guess-{number}") is None
    assert token_store.reads == 1
    clock.advance(101)
    assert await admitted(known, "another") is None
    assert token_store.reads == 2


@pytest.mark.anyio
async def test_whoever_comes_during_a_read_waits_for_it() -> None:
    """A token's first two requests may come together: neither is a stranger."""
    token_store = ScriptedTokenStore()
    known = Tokens(VirtualClock(), token_store.read)
    token_store.put("fresh")
    token_store.gate.clear()
    both = [asyncio.ensure_future(admitted(known, "fresh")) for _ in range(2)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(one.done() for one in both)
    token_store.gate.set()
    assert await asyncio.gather(*both) == [Principal(7, TokenScope.PUBLISH)] * 2
    assert token_store.reads == 1


@pytest.mark.anyio
async def test_a_caller_that_goes_away_during_a_read_leaves_it_to_the_others() -> None:
    token_store = ScriptedTokenStore()
    known = Tokens(VirtualClock(), token_store.read)
    token_store.put("fresh")
    token_store.gate.clear()
    first, second = (asyncio.ensure_future(admitted(known, "fresh")) for _ in range(2))
    for _ in range(3):
        await asyncio.sleep(0)
    first.cancel()
    token_store.gate.set()
    assert await second == Principal(7, TokenScope.PUBLISH)
    assert first.cancelled()


@pytest.mark.anyio
async def test_a_store_that_cannot_be_read_is_no_stranger_s_fault_and_is_asked_again() -> None:
    token_store = ScriptedTokenStore()
    known = Tokens(VirtualClock(), token_store.read)
    token_store.put("mine")
    token_store.error = StoreError("disk")
    with pytest.raises(StoreError):
        await known.authenticate(call("mine"))
    token_store.error = None
    assert await admitted(known, "mine")


@pytest.mark.anyio
async def test_a_configured_token_needs_no_store() -> None:
    token_store = ScriptedTokenStore()
    known = Tokens(VirtualClock(), token_store.read)
    known.add("configured", Principal(1, TokenScope.PUBLISH))
    assert await admitted(known, "configured") == Principal(1, TokenScope.PUBLISH)
    assert token_store.reads == 0


@pytest.mark.anyio
async def test_the_last_use_of_a_token_is_noted_once_a_minute(tmp_path: Path) -> None:
    clock = VirtualClock()
    store, _ = await SqliteStore.open(str(tmp_path / "store.db"), clock)
    noted = asyncio.Event()

    async def note(digest: bytes) -> None:
        await store.write(accounts.note_token_use, digest, now_ms=clock.now_ms())
        noted.set()

    await store.write(accounts.add_token, "writer", 7, "writer", read_only=False, now_ms=START_MS)
    known = Tokens(clock, lambda: store.read(accounts.tokens), note)

    async def used_ms() -> int | None:
        return (await store.read(accounts.tokens))[0].used_ms

    assert await used_ms() is None
    await admitted(known, "writer")
    await noted.wait()
    assert await used_ms() == START_MS
    noted.clear()
    clock.advance(59_000)
    await admitted(known, "writer")
    clock.advance(2_000)
    await admitted(known, "writer")
    await noted.wait()
    assert await used_ms() == START_MS + 61_000
    await store.close()
