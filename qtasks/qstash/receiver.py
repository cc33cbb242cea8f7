"""The receiving end: is this request from the service? (docs/protocol.md 4.2)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from qtasks.errors import ConfigurationError
from qtasks.protocol.messages import SigningKeys
from qtasks.qstash.conversation.credentials import REGIONS, region, region_name


class Receiver:
    """Verifies the signature of deliveries.

    Args:
        current_signing_key: Default `QSTASH_CURRENT_SIGNING_KEY`.
        next_signing_key: Default `QSTASH_NEXT_SIGNING_KEY`. Both keys are accepted, so one rotation goes unnoticed.
        clock: Unix seconds.

    In multi-region mode (`QSTASH_REGION`) the keys of both regions are read as well (``US_EAST_1_QSTASH_...``), and a
    delivery is verified with those of the region it names. Keys given here are used for every region.

    Raises ConfigurationError without keys: a receiver never trusts unsigned requests.
    """

    def __init__(
        self,
        current_signing_key: str | None = None,
        next_signing_key: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        explicit = bool(current_signing_key or next_signing_key)
        self._keys = (
            SigningKeys(current_signing_key or "", next_signing_key or "") if explicit else _keys_of("", os.environ)
        )
        self._regional: Mapping[str, SigningKeys] = (
            {} if explicit or region(os.environ) is None else _regional_keys(os.environ)
        )
        self._clock = clock
        if not _usable(self._keys) and not self._regional:
            raise ConfigurationError(
                "Signing keys are missing, so no delivery can be trusted.",
                fix="set QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY",
            )

    def verify(
        self,
        *,
        signature: str,
        body: str | bytes,
        url: str | None = None,
        clock_tolerance: float = 0,
        upstash_region: str | None = None,
    ) -> None:
        """Check one delivery. Raises SignatureError, which says why it cannot be trusted.

        Args:
            signature: Value of the header `Upstash-Signature`.
            body: The raw body, before anything parses it. Text is taken as UTF-8.
            url: Public URL of this endpoint; None leaves out the check that the delivery was meant for it.
            clock_tolerance: Seconds by which the clocks of sender and receiver may differ.
            upstash_region: Value of the header `Upstash-Region`; matters in multi-region mode only.
        """
        from qtasks.protocol import signing  # brings PyJWT, which a program that only publishes never needs

        signing.verify(
            signature or "",
            body=body.encode() if isinstance(body, str) else body,
            url=url,
            keys=self._keys_for(upstash_region),
            now_s=self._clock(),
            tolerance_s=clock_tolerance,
        )

    def _keys_for(self, upstash_region: str | None) -> SigningKeys:
        return self._regional.get(region_name(upstash_region), self._keys) if upstash_region else self._keys


def _regional_keys(environ: Mapping[str, str]) -> Mapping[str, SigningKeys]:
    by_region = {name: _keys_of(f"{name}_", environ) for name in REGIONS}
    return {name: keys for name, keys in by_region.items() if _usable(keys)}


def _keys_of(prefix: str, environ: Mapping[str, str]) -> SigningKeys:
    current = environ.get(f"{prefix}QSTASH_CURRENT_SIGNING_KEY", "").strip()
    return SigningKeys(current, environ.get(f"{prefix}QSTASH_NEXT_SIGNING_KEY", "").strip())


def _usable(keys: SigningKeys) -> bool:
    return bool(keys.current or keys.next)
