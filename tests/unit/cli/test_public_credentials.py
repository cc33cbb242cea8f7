"""Where the public development credentials may be used."""

from __future__ import annotations

import pytest

from qtasks.cli.public_credentials import refuse_public_credentials
from qtasks.errors import ConfigurationError
from qtasks.protocol import development


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "app.localhost"])
def test_addresses_of_this_machine(host: str) -> None:
    refuse_public_credentials([development.USERS[0].token], host, fix="")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.1", "10.0.0.1", "localhost.example.com", "example.com", ""]
)
def test_addresses_that_others_reach(host: str) -> None:
    for user in development.USERS:
        for secret in (user.token, user.keys.current, user.keys.next):
            with pytest.raises(ConfigurationError) as refused:
                refuse_public_credentials([None, "mine", secret], host, fix="unset them")
            assert secret not in str(refused.value)
            assert "unset them" in str(refused.value)
    refuse_public_credentials([None, "mine"], host, fix="")
