"""Which dispatchers take bundles, and how many deliveries each can begin (docs/protocol.md 5.16). Pure.

A dispatcher says in its answers how many deliveries it can begin. Requests that were under way meanwhile are not in
that number. So the number is combined with the deliveries that this broker has in flight: those that left after the
answered request are taken for not yet begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from qtasks.protocol.bundles import SLOTS_HEADER
from qtasks.protocol.messages import Headers

REFUSED_FOR_S: Final = 60.0 * 60.0
"""For this long a prefix gets no bundle after one has failed as a whole, or after its lines were held back."""
MAX_OFFERS: Final = 4_096
"""URL prefixes whose offers are remembered."""

_NAME: Final = SLOTS_HEADER.lower()


class SlotOffer(NamedTuple):
    """What the latest answer of a dispatcher states."""

    slots: int | None
    """How many deliveries it can begin; None: it takes no bundles."""
    refused_until_s: float
    """Until when it gets no bundle, because one has failed; in monotonic seconds, 0 if none has."""


@dataclass(slots=True)
class _Offer:
    """What is known of one prefix."""

    begun: int = 0
    """Deliveries that have started there since it is remembered."""
    folder: str = ""
    """The URL of its folder, as it was in the request that was answered."""
    has_answered: bool = False
    slots: int | None = None
    """How many deliveries it could begin when it answered last; None if it takes no bundles."""
    capacity: int | None = None
    """How many deliveries of this broker it can run at once; None if it takes no bundles."""
    refused_until_s: float = 0.0


class SlotOffers:
    """The offers of dispatchers, by URL prefix. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._offers: dict[str, _Offer] = {}
        """The latest use at the end."""

    def start(self, prefix: str, count: int = 1) -> int:
        """Count deliveries that start; their number in the order of starts, for `note_answer`."""
        offer = self._offers[prefix] = self._offers.pop(prefix, _Offer())
        if len(self._offers) > MAX_OFFERS:
            del self._offers[next(iter(self._offers))]
        offer.begun += count
        return offer.begun

    def note_answer(self, prefix: str, folder: str, slots: int | None, *, begun: int, in_flight: int) -> None:
        """A dispatcher has answered a request to `folder` that was start number `begun`; `slots` is what it said.

        `in_flight` deliveries of this broker are on their way to it or run there.
        """
        if (offer := self._offers.get(prefix)) is None:
            return
        offer.folder = folder
        offer.slots, offer.has_answered = slots, True
        offer.capacity = None if slots is None else slots + max(0, in_flight - (offer.begun - begun))

    def refuse(self, prefix: str, now_s: float) -> None:
        """The prefix gets no bundle for `REFUSED_FOR_S`."""
        if (offer := self._offers.get(prefix)) is not None:
            offer.refused_until_s = now_s + REFUSED_FOR_S

    def last(self, prefix: str) -> SlotOffer | None:
        """What its latest answer states; None if it has not answered since it is remembered."""
        offer = self._offers.get(prefix)
        return None if offer is None or not offer.has_answered else SlotOffer(offer.slots, offer.refused_until_s)

    def capacity(self, prefix: str, now_s: float) -> int | None:
        """How many deliveries the prefix can run at once; None if it takes no bundles now."""
        offer = self._offers.get(prefix)
        return None if offer is None or offer.refused_until_s > now_s else offer.capacity

    def free(self, prefix: str, folder: str, *, in_flight: int, now_s: float) -> int:
        """How many deliveries a bundle to `folder` may have now; 0 if it takes no bundles."""
        offer = self._offers.get(prefix)
        if offer is None or offer.capacity is None or offer.folder != folder or offer.refused_until_s > now_s:
            return 0
        return max(0, offer.capacity - in_flight)


def slots_of(headers: Headers) -> int | None:
    """The free slots that an answer states; None if it states none."""
    for name, value in headers:
        if len(name) == len(_NAME) and name.lower() == _NAME:
            text = value.strip()
            return int(text) if len(text) < 7 and text.isascii() and text.isdigit() else None
    return None
