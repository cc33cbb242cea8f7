"""What attempts need, single ones and those in bundles."""

from __future__ import annotations

from dataclasses import dataclass

from qtasks.broker import ids
from qtasks.broker.loops.host_limits import HostLimits
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.loops.outcome_recorder import OutcomeRecorder
from qtasks.clock import Clock
from qtasks.protocol.messages import SigningKeys
from qtasks.randomness import Random


@dataclass(frozen=True, slots=True)
class AttemptParts:
    """The parts of the delivery loop that every attempt uses."""

    clock: Clock
    random: Random
    key_ring: KeyRing
    limits: HostLimits
    recorder: OutcomeRecorder
    region: str

    async def keys_of(self, account: int, message_id: str) -> SigningKeys:
        """The signing keys of an account; it waits until the store can tell."""
        if (keys := self.key_ring.known(account)) is not None:
            return keys
        return await self.recorder.until_stored(
            lambda: self.key_ring.of(account), f"read the signing keys for {message_id}"
        )

    def signing_time_s(self) -> int:
        """The wall time of a signature, Unix seconds."""
        return self.clock.wall_ms() // 1000

    def token_id(self) -> str:
        """A fresh id for a signature."""
        return ids.jwt_id(self.random)
