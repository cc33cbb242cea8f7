"""The system's name lookup: silent name servers hold few threads, and none that another name needs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from qtasks.broker.transport import resolver
from qtasks.broker.transport.resolver import LookupUnansweredError, SystemResolver

pytestmark = pytest.mark.anyio


class NameServers:
    """A system call for lookups: names that begin with ``silent`` are not answered before the test lets them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.answer = threading.Event()
        self.result: OSError | None = None

    def __call__(self, host: str) -> list[str]:
        self.calls[host] += 1
        if host.startswith("silent"):
            self.answer.wait()
        if self.result is not None:
            raise self.result
        return ["192.0.2.1"]


@pytest.fixture
def servers() -> Iterator[NameServers]:
    servers = NameServers()
    yield servers
    servers.answer.set()


@pytest.fixture
def system(servers: NameServers) -> SystemResolver:
    return SystemResolver(servers)


def limit(monkeypatch: pytest.MonkeyPatch, *, lookups: int, reserved: int, silent: int = 16) -> None:
    monkeypatch.setattr(resolver, "MAX_LOOKUPS", lookups)
    monkeypatch.setattr(resolver, "RESERVED_LOOKUPS", reserved)
    monkeypatch.setattr(resolver, "MAX_SILENT_LOOKUPS", silent)


async def hang(system: SystemResolver, *hosts: str) -> list[asyncio.Task[list[str]]]:
    """Lookups that wait for silent name servers."""
    waiting = [asyncio.ensure_future(system(host)) for host in hosts]
    await asyncio.sleep(0)
    return waiting


async def timers_have_fired() -> None:
    """Return once every timer that is due has fired."""
    fired = asyncio.Event()
    asyncio.get_running_loop().call_later(0, fired.set)
    await fired.wait()


async def test_concurrent_lookups_of_a_name_share_one_call_and_later_ones_its_answer(
    system: SystemResolver, servers: NameServers
) -> None:
    assert await asyncio.gather(*(system("a.test") for _ in range(9))) == [["192.0.2.1"]] * 9
    assert await system("a.test") == ["192.0.2.1"]
    assert servers.calls == {"a.test": 1}


async def test_an_answer_is_used_for_a_short_time_only(
    monkeypatch: pytest.MonkeyPatch, system: SystemResolver, servers: NameServers
) -> None:
    monkeypatch.setattr(resolver, "CACHE_S", 0.0)
    await system("a.test")
    await timers_have_fired()
    await system("a.test")
    assert servers.calls == {"a.test": 2}


async def test_a_name_that_does_not_exist_is_asked_for_again(system: SystemResolver, servers: NameServers) -> None:
    servers.result = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await system("a.test")
    assert servers.calls == {"a.test": 2}


async def test_a_silent_name_has_one_thread_and_once_it_is_overdue_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, system: SystemResolver, servers: NameServers
) -> None:
    monkeypatch.setattr(resolver, "LOOKUP_TIMEOUT_S", 0.0)
    waiting = await hang(system, "silent.test")
    for _ in range(9):
        with pytest.raises(LookupUnansweredError, match="its name server does not answer"):
            await system("silent.test")
    assert servers.calls == {"silent.test": 1}
    servers.answer.set()
    assert await waiting[0] == ["192.0.2.1"]
    assert await system("silent.test") == ["192.0.2.1"]


async def test_names_that_were_answered_have_threads_that_no_silent_name_may_take(
    monkeypatch: pytest.MonkeyPatch, system: SystemResolver
) -> None:
    limit(monkeypatch, lookups=6, reserved=2)
    monkeypatch.setattr(resolver, "CACHE_S", 0.0)
    await system("a.test")
    waiting = await hang(system, *(f"silent{number}.test" for number in range(120)))
    await timers_have_fired()
    assert await system("a.test") == ["192.0.2.1"]
    refused = [lookup for lookup in waiting if lookup.done()]
    assert len(refused) == 116
    assert {str(lookup.exception()) for lookup in refused} == {"too many name lookups wait for an answer"}


async def test_names_known_as_silent_have_few_threads(
    monkeypatch: pytest.MonkeyPatch, system: SystemResolver, servers: NameServers
) -> None:
    limit(monkeypatch, lookups=99, reserved=2, silent=3)
    silent = [f"silent{number}.test" for number in range(20)]
    servers.answer.set()
    servers.result = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    await asyncio.gather(*(system(host) for host in silent), return_exceptions=True)
    servers.answer.clear()
    servers.result = None
    waiting = await hang(system, *silent)
    assert sum(not lookup.done() for lookup in waiting) == 3
    assert await system("new.test") == ["192.0.2.1"]
    servers.answer.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await system(silent[19]) == ["192.0.2.1"]


async def test_a_lookup_without_a_thread_has_no_answer(monkeypatch: pytest.MonkeyPatch, system: SystemResolver) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(LookupUnansweredError, match="no thread for the name lookup: can't start new thread"):
            await system("a.test")
    assert await system("a.test") == ["192.0.2.1"]


async def test_a_waiting_lookup_does_not_hold_up_the_end_of_the_process(system: SystemResolver) -> None:
    await hang(system, "silent.test")
    [thread] = [thread for thread in threading.enumerate() if thread.name == "qtasks-lookup"]
    assert thread.daemon


async def test_it_is_remembered_for_a_limited_number_of_names_whether_they_were_answered(
    monkeypatch: pytest.MonkeyPatch, system: SystemResolver
) -> None:
    monkeypatch.setattr(resolver, "MAX_NAMES", 2)
    for host in ("a.test", "b.test", "c.test"):
        await system(host)
    assert list(system._answered) == ["b.test", "c.test"]


async def test_an_answer_after_the_end_of_the_loop_is_dropped(servers: NameServers) -> None:
    def look_up() -> None:
        async def start() -> None:
            await hang(SystemResolver(servers), "silent.test")

        asyncio.run(start())

    await asyncio.to_thread(look_up)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "qtasks-lookup"]
    servers.answer.set()
    await asyncio.to_thread(thread.join)
