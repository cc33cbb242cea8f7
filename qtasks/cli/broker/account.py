"""The credentials of the broker's account, as the environment gives them."""

from __future__ import annotations

import os
from typing import Final

from qtasks.broker.core.values import AccountCredentials
from qtasks.errors import ConfigurationError
from qtasks.protocol import signing
from qtasks.protocol.messages import SigningKeys

ACCOUNT: Final = "default"
"""The name of the one account of `qtasks broker`."""


def credentials_from_environment() -> AccountCredentials:
    """The token and the signing keys of the environment. ConfigurationError if only one of the two keys is set."""
    token = os.environ.get("QSTASH_TOKEN") or None
    current = os.environ.get("QSTASH_CURRENT_SIGNING_KEY") or None
    next_key = os.environ.get("QSTASH_NEXT_SIGNING_KEY") or None
    if (current is None) != (next_key is None):
        missing = "QSTASH_NEXT_SIGNING_KEY" if next_key is None else "QSTASH_CURRENT_SIGNING_KEY"
        raise ConfigurationError(f"{missing} is not set, but the other signing key is", fix="set both or neither")
    keys = SigningKeys(current, next_key) if current and next_key else None
    if keys is not None:
        signing.check_keys(keys, dev=True)
    return AccountCredentials(ACCOUNT, token, keys)
