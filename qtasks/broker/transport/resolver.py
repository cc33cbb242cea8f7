"""Name lookup: from a host name to the addresses that the broker may connect to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

from qtasks.broker.transport.destination_policy import DestinationPolicy

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the addresses of a host name, as text. Raises OSError if it has none."""

LOOKUP_TIMEOUT_S = 4.0
"""Limit for one name lookup, seconds. Below the limit for connecting, so that the error names the name server."""

MAX_ADDRESSES = 8
"""Addresses of one name to which a connection is tried; the policy checks all of them."""

RESOLVER_THREADS = 16
"""Concurrent name lookups. They block in the system's resolver, so they need threads and cannot be interrupted."""


lookup_cut: Final[ContextVar[bool]] = ContextVar("lookup_cut", default=False)
"""True if a name lookup of this task was cancelled while it waited for its name server."""


class LookupUnansweredError(OSError):
    """A name server did not answer, or the lookup could not start: nothing is known about the name."""


class DestinationBlockedError(OSError):
    """The destination policy refuses an address. The only argument is the text of the refusal.

    An OSError, so that aiohttp reports it like every other reason why a connection fails.
    """


def check(policy: DestinationPolicy, address: str, host: str, port: int) -> str | None:
    """The reason why the policy refuses `address`, or None. Checks whether it is this machine's if that matters."""
    here = policy.listens_everywhere(port) and _is_on_this_machine(address, port)
    return policy.check_address(address, host, port, on_this_machine=here)


class CheckedResolver(AbstractResolver):
    """The name lookup that aiohttp uses: it returns addresses only if the policy allows every one of them."""

    def __init__(self, policy: DestinationPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - the connector gets every family
    ) -> list[ResolveResult]:
        """Addresses to connect to.

        Raises OSError: LookupUnansweredError without an answer, DestinationBlockedError if the policy refuses any
        address of the name.
        """
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                addresses = await self._resolve(host)
        except TimeoutError as error:
            raise LookupUnansweredError(f"no answer from the name server within {LOOKUP_TIMEOUT_S:g}s") from error
        except asyncio.CancelledError:
            lookup_cut.set(True)
            raise
        if not addresses:
            raise OSError("the name has no address")
        for address in addresses:
            if refusal := check(self._policy, address, host, port):
                raise DestinationBlockedError(refusal)
        return [_resolved(host, address, port) for address in addresses[:MAX_ADDRESSES]]

    async def close(self) -> None:
        """Nothing to release: the caller that passed `resolve` closes it."""


def _resolved(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)


def _is_on_this_machine(address: str, port: int) -> bool:
    """Ask the routing table, sending nothing: traffic to an address of this machine comes from that same address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            return str(probe.getsockname()[0]) == address
    except OSError:
        return False


class SystemResolver:
    """The system's name lookup, in a thread pool of its own so that a dead name server blocks nothing else.

    Concurrent lookups of one name share one system call.
    """

    def __init__(self, *, threads: int = RESOLVER_THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="qtasks-resolve")
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    async def __call__(self, host: str) -> list[str]:
        """Addresses of `host` in the system's order of preference. Raises OSError."""
        lookup = self._running.get(host)
        if lookup is None:
            lookup = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
            self._running[host] = lookup
            lookup.add_done_callback(lambda done: self._finish(host, done))
        return await asyncio.shield(lookup)

    def close(self) -> None:
        """Start no further lookup. Running lookups end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _finish(self, host: str, lookup: asyncio.Future[list[str]]) -> None:
        del self._running[host]
        if not lookup.cancelled():
            lookup.exception()  # retrieved here, because every waiting attempt may have ended


def _look_up(host: str) -> list[str]:
    # Bytes, because a str would pass through Python's IDNA codec, and the name is ASCII already.
    entries = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in entries))
