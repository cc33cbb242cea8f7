"""Name lookup: from a host name to the addresses that the broker may connect to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

from qtasks.broker.transport.destination_policy import DestinationPolicy, Rules
from qtasks.counted_log import CountedLog

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the addresses of a host name, as text. Raises OSError if it has none."""

LOOKUP_TIMEOUT_S = 4.0
"""Limit for one name lookup, seconds. Below the limit for connecting, so that the error names the name server."""

MAX_ADDRESSES = 8
"""Addresses of one name to which a connection is tried; the policy checks all of them."""

MAX_LOOKUPS = 256
"""Lookups that may run at a time. Each blocks a thread in the system's resolver, which cannot be interrupted."""
RESERVED_LOOKUPS = 64
"""Of these, for names whose last lookup was answered."""
MAX_SILENT_LOOKUPS = 16
"""Of these, at most, for names whose last lookup was not answered."""

CACHE_S = 1.0
"""How long the addresses of a name are used again, seconds."""
MAX_NAMES = 4096
"""Names of which it is remembered whether their last lookup was answered."""


_UNANSWERED: Final = frozenset({socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM})
"""Results of a system call that say nothing about the name."""

lookup_cut: Final[ContextVar[bool]] = ContextVar("lookup_cut", default=False)
"""True if a name lookup of this task was cancelled while it waited for its name server."""


class LookupUnansweredError(OSError):
    """A name server did not answer, or the lookup could not start: nothing is known about the name."""


class DestinationBlockedError(OSError):
    """The destination policy refuses an address. The only argument is the text of the refusal.

    An OSError, so that aiohttp reports it like every other reason why a connection fails.
    """


def check(policy: DestinationPolicy, address: str, host: str, port: int, limited: Rules = ()) -> str | None:
    """The reason why the policy refuses `address`, or None. Checks whether it is this machine's if that matters."""
    here = policy.listens_everywhere(port) and _is_on_this_machine(address, port)
    return policy.check_address(address, host, port, limited, on_this_machine=here)


class CheckedResolver(AbstractResolver):
    """The name lookup that aiohttp uses: it returns addresses only if the policy allows every one of them.

    `limited` are the rules that count for all requests which use it, in addition to those that always do.
    """

    def __init__(self, policy: DestinationPolicy, resolve: Resolve, refusals: CountedLog, limited: Rules = ()) -> None:
        self._policy = policy
        self._resolve = resolve
        self._refusals = refusals
        self._limited = limited

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
            if refusal := check(self._policy, address, host, port, self._limited):
                # The publisher must not learn the address; the operator needs it.
                self._refusals.warning(
                    "deliveries to addresses that are not allowed",
                    "%s:%d resolves to %s: %s",
                    host,
                    port,
                    address,
                    refusal,
                )
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


@dataclass(frozen=True, slots=True)
class _Lookup:
    """A lookup in the system's resolver, and afterwards for a while its answer."""

    addresses: asyncio.Future[list[str]]
    overdue_s: float
    """When the name server should have answered, in the loop's time."""


class SystemResolver:
    """The system's name lookup, each in a thread of its own, so that no name waits for the name server of another.

    Concurrent lookups of one name share one system call, and its answer is used for a second. A silent name server
    keeps a thread for as long as the system waits for it, up to half a minute. Therefore names that were answered have
    threads that no other name may take, and names known as silent have few. A lookup without a thread fails at once.
    """

    def __init__(self, look_up: Callable[[str], list[str]] | None = None) -> None:
        self._look_up = look_up or _look_up
        self._lookups: dict[str, _Lookup] = {}
        self._running: set[str] = set()
        self._answered: dict[str, bool] = {}
        """Whether the last lookup of a name was answered; the latest at the end."""

    async def __call__(self, host: str) -> list[str]:
        """Addresses of `host` in the system's order of preference. Raises OSError; see LookupUnansweredError."""
        loop = asyncio.get_running_loop()
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._start(host, loop)
        elif not lookup.addresses.done() and loop.time() >= lookup.overdue_s:
            raise LookupUnansweredError("its name server does not answer")
        return await asyncio.shield(lookup.addresses)

    def _start(self, host: str, loop: asyncio.AbstractEventLoop) -> _Lookup:
        answered = self._answered.get(host)
        limit = MAX_LOOKUPS if answered else MAX_LOOKUPS - RESERVED_LOOKUPS
        silent = sum(self._answered.get(running) is False for running in self._running)
        if len(self._running) >= limit or (answered is False and silent >= MAX_SILENT_LOOKUPS):
            raise LookupUnansweredError("too many name lookups wait for an answer")
        # A daemon: a thread that waits for a name server must not hold up the end of the process.
        thread = threading.Thread(target=self._run, args=(host, loop), name="qtasks-lookup", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise LookupUnansweredError(f"no thread for the name lookup: {error}") from error
        self._running.add(host)
        lookup = self._lookups[host] = _Lookup(loop.create_future(), loop.time() + LOOKUP_TIMEOUT_S)
        loop.call_later(LOOKUP_TIMEOUT_S, self._expire, host, lookup)
        return lookup

    def _run(self, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: look `host` up and hand the result to the loop, if it still runs."""
        result: list[str] | OSError
        try:
            result = self._look_up(host)
        except OSError as error:
            result = error
        except Exception as error:
            result = OSError(f"{type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._finish, host, result)

    def _finish(self, host: str, result: list[str] | OSError) -> None:
        self._running.discard(host)
        lookup = self._lookups[host]
        if isinstance(result, OSError):
            del self._lookups[host]
            self._note(host, is_answered=not is_unanswered(result))
            lookup.addresses.set_exception(result)
            lookup.addresses.exception()  # retrieved here, because every waiting attempt may have ended
        else:
            self._note(host, is_answered=True)
            lookup.addresses.set_result(result)
            asyncio.get_running_loop().call_later(CACHE_S, self._lookups.pop, host)

    def _expire(self, host: str, lookup: _Lookup) -> None:
        if not lookup.addresses.done():
            self._note(host, is_answered=False)

    def _note(self, host: str, *, is_answered: bool) -> None:
        self._answered.pop(host, None)
        self._answered[host] = is_answered
        if len(self._answered) > MAX_NAMES:
            del self._answered[next(iter(self._answered))]


def is_unanswered(error: OSError) -> bool:
    """True if a lookup failed without an answer: the error says nothing about the name."""
    return isinstance(error, LookupUnansweredError) or (
        isinstance(error, socket.gaierror) and error.errno in _UNANSWERED
    )


def _look_up(host: str) -> list[str]:
    # Bytes, because a str would pass through Python's IDNA codec, and the name is ASCII already.
    entries = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in entries))
