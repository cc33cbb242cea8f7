"""Lots: the parking lots in which due messages wait while they may not start. Pure.

A lot is a text:

- ``host:port``: messages whose attempts all count. The attempts in flight to a host are limited.
- ``host:port/path/``: messages with an allowance for interruptions, by URL prefix: the URL without its last path
  segment and its query. While the prefix refuses, the first message of its lot is the probe, and the others wait.
- ``host:port/path/alone``: messages of a prefix that were cut in the middle of a run more than once. Each is started
  while nothing else of the prefix is in flight.
- ``host:port/crashed``: messages whose attempts the broker itself did not survive. They are started one at a time.

A prefix ends with a slash; so no two kinds share a lot.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from qtasks.protocol.messages import Message

ALONE_FROM_CUTS: Final = 2
"""A message that was cut in the middle of a run this often is next tried alone."""

_ALONE: Final = "/alone"
_CRASHED: Final = "/crashed"


def lot_of(message: Message, host: str, *, cuts: int = 0, is_allowed: bool = True) -> str:
    """The lot of a message to `host`, ``host:port``, that was cut `cuts` times.

    `is_allowed` is False once the message has used up its allowance for interruptions.
    """
    if message.options.interrupted_for_ms is None or not is_allowed:
        return host
    prefix = _prefix_of(message.url, host)
    return alone_lot(prefix) if cuts >= ALONE_FROM_CUTS else prefix


@lru_cache(maxsize=1024)
def _prefix_of(url: str, host: str) -> str:
    _, _, _, *path = url.partition("?")[0].split("/", 3)
    folder = path[0].rpartition("/")[0] if path else ""
    return f"{host}/{folder}/" if folder else f"{host}/"


def is_lot_of(lot: str, host: str, url: str, *, may_wait: bool) -> bool:
    """True if a message to `url` at `host` can be in `lot`; `may_wait`: it has an allowance for interruptions."""
    if lot in (host, crashed_lot(host)):
        return True
    return may_wait and lot in ((prefix := _prefix_of(url, host)), alone_lot(prefix))


class Lot(NamedTuple):
    """What the text of a lot says."""

    host: str
    prefix: str | None
    """The URL prefix that its messages depend on; None if only their host is limited."""
    is_alone: bool
    """Each of its messages is tried while nothing else of the prefix is in flight."""
    is_crashed: bool
    """The broker did not survive attempts of its messages."""

    @property
    def is_plain_prefix(self) -> bool:
        """True for the messages of a prefix of which none is in doubt."""
        return self.prefix is not None and not self.is_alone


@lru_cache(maxsize=4096)
def parse(lot: str) -> Lot:
    """What the text of a lot says."""
    host, is_alone = lot.partition("/")[0], lot.endswith(_ALONE)
    prefix = lot.removesuffix("alone") if is_alone else lot if lot.endswith("/") else None
    return Lot(host, prefix, is_alone, lot.endswith(_CRASHED))


def prefix_of(lot: str, url: str, *, may_wait: bool) -> str | None:
    """The URL prefix of a message to `url` that waits in `lot`; None without an allowance for interruptions."""
    if not may_wait:
        return None
    host, prefix, _, _ = parse(lot)
    return _prefix_of(url, host) if prefix is None else prefix


def alone_lot(prefix: str) -> str:
    """The lot of the messages of a prefix that are tried alone."""
    return f"{prefix}alone"


def crashed_lot(host: str) -> str:
    """The lot of the messages to a host whose attempts the broker did not survive."""
    return f"{host}{_CRASHED}"
