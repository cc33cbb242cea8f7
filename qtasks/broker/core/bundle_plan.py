"""Which claims leave together (docs/protocol.md 5.16). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from qtasks.broker.core import lots
from qtasks.broker.core.bundle_items import item_line_of
from qtasks.broker.core.delivery_requests import address_of
from qtasks.broker.core.values import Claim
from qtasks.protocol.bundles import MAX_BYTES, MAX_ITEMS


class BundleKey(NamedTuple):
    """What all deliveries of a bundle have in common."""

    account: int
    lot: str
    folder: str
    """Their URLs up to the last path segment."""


@dataclass(slots=True)
class Bundle:
    """Deliveries that leave in one request, with the line of each."""

    key: BundleKey
    claims: list[Claim] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    """Bytes of all lines."""

    def takes(self, line: bytes) -> bool:
        """True if there is room for one more delivery with this line."""
        return len(self.lines) < MAX_ITEMS and self.size + len(line) <= MAX_BYTES

    def add(self, claim: Claim, line: bytes) -> None:
        """Add a delivery."""
        self.claims.append(claim)
        self.lines.append(line)
        self.size += len(line)


class BundlePlan(NamedTuple):
    """What leaves now."""

    bundles: list[Bundle]
    singles: list[Claim]


def plan(claims: Iterable[Claim], *, region: str, free: Callable[[BundleKey], int]) -> BundlePlan:
    """Put claims that may leave together into bundles, as long as `free` says that there are free slots.

    A bundle has at least two deliveries. The other claims leave singly.
    """
    groups: dict[BundleKey, list[tuple[Claim, str]]] = {}
    taken: dict[str, int] = {}
    planned = BundlePlan([], [])
    for claim in claims:
        if (place := _key_of(claim)) is None:
            planned.singles.append(claim)
        else:
            groups.setdefault(place[0], []).append((claim, place[1]))
    for key, members in groups.items():
        slots = free(key) - taken.get(key.lot, 0) if len(members) > 1 else 0
        together = members[:slots] if slots > 1 else []
        taken[key.lot] = taken.get(key.lot, 0) + len(members)
        planned.singles.extend(claim for claim, _ in members[len(together) :])
        for bundle in _filled(key, together, region, planned.singles):
            if len(bundle.claims) > 1:
                planned.bundles.append(bundle)
            else:
                planned.singles.extend(bundle.claims)
    return planned


def _filled(key: BundleKey, members: list[tuple[Claim, str]], region: str, singles: list[Claim]) -> Iterator[Bundle]:
    """Bundles of the members. Those that no bundle takes are added to `singles`."""
    bundle = Bundle(key)
    for claim, target in members:
        line = item_line_of(claim.row, claim.body, target=target, region=region)
        if line is None or len(line) > MAX_BYTES:
            singles.append(claim)
            continue
        if not bundle.takes(line):
            yield bundle
            bundle = Bundle(key)
        bundle.add(claim, line)
    yield bundle


def _key_of(claim: Claim) -> tuple[BundleKey, str] | None:
    """The bundles that may take a claim, and its target there; None if it is to be tried by itself."""
    row = claim.row
    if (
        row.method != "POST"
        or claim.situation.is_probe
        or row.interrupted_for_ms is None
        or not lots.parse(claim.lot).is_plain_prefix
        or (address := address_of(row.url)) is None
    ):
        return None
    return BundleKey(row.account, claim.lot, address.folder), address.target
