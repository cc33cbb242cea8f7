"""Checks at the receiving end that a request comes from the service (docs/protocol.md 4.2)."""

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
        current_signing_key: The key that signs now; default `QSTASH_CURRENT_SIGNING_KEY`.
        next_signing_key: The key after the next rotation; default `QSTASH_NEXT_SIGNING_KEY`. Signatures of both keys
            are accepted, so deliveries continue to verify after one rotation.
        clock: Function that returns the time in Unix seconds.

    In multi-region mode (`QSTASH_REGION`) the keys of both regions are read as well (``US_EAST_1_QSTASH_...``), and a
    delivery is verified with the keys of the region it names. Keys passed as arguments are used for every region.

    Raises ConfigurationError without keys, because a receiver never trusts unsigned requests.
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
        """Verify one delivery. Raises SignatureError, whose text says why the delivery cannot be trusted.

        Asks for the same claims as the official receiver: the issuer, the times `exp` and `nbf`, the URL and the body.

        Args:
            signature: Value of the header `Upstash-Signature`.
            body: The raw body, not parsed. A str is encoded as UTF-8.
            url: Public URL of this endpoint; None skips the check that the delivery was signed for it.
            clock_tolerance: Seconds by which the clocks of sender and receiver may differ.
            upstash_region: Value of the header `Upstash-Region`; used in multi-region mode only.
        """
        from qtasks.protocol import signing  # imports PyJWT, which a program that only publishes does not need

        signing.verify_leniently(
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
