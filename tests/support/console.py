"""The console of a broker as a browser uses it: cookies, the header against forged requests, the origin of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from qtasks.broker.api.auth import Principal, TokenScope
from tests.support.running import RunningBroker

TOKENS = {
    "operator": TokenScope.PUBLISH,
    "viewer": TokenScope.READ,
    "metadata": TokenScope.METADATA,
}


def add_tokens(running: RunningBroker) -> int:
    """Make the tokens ``operator``, ``viewer`` and ``metadata`` valid for one account; its number."""
    account = next(iter(running.broker.accounts.values()))
    for token, scope in TOKENS.items():
        running.broker.tokens.add(token, Principal(account, scope))
    return account


class Browser:
    """A person at the console. Requests come from its own pages unless a test says otherwise."""

    def __init__(self, url: str, token: str | None = None) -> None:
        # Without connections that stay open, no test need close its browsers.
        self.client = httpx.Client(base_url=url, timeout=10, limits=httpx.Limits(max_keepalive_connections=0))
        self.csrf = ""
        if token is not None:
            answer = self.ask("POST", "session", json={"token": token})
            assert answer.status_code == 200, answer.text
            self.csrf = answer.json()["csrf"]

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        csrf: str | None = "",
        json: Any = None,
    ) -> httpx.Response:
        """Send a request to `path` below ``console/api/``; `csrf` None sends no such header."""
        lines = {"Sec-Fetch-Site": "same-origin", **(headers or {})}
        if csrf is not None and (csrf or self.csrf):
            lines["QTasks-CSRF"] = csrf or self.csrf
        return self.client.request(method, f"/console/api/{path}", headers=lines, json=json)
