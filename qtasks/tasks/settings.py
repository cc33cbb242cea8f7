"""Where a program finds its engine: one frozen object, read from the environment on first use, never on import.

Each value knows where it came from. An argument wins over the environment, the environment over `.qtasks/dev.json`; but
the address and the keys of a running `qtasks dev` are those that it says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TypedDict
from urllib.parse import urlsplit

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, did_you_mean
from qtasks.protocol import development, durations
from qtasks.protocol.messages import SigningKeys
from qtasks.tasks.dev_server import DevServer, is_loopback
from qtasks.tasks.ports import Connection

HOSTED_URL = "https://qstash.upstash.io"
DEV_PORT = development.PORT
DEV_BASE_URL = "http://127.0.0.1:8000/qtasks"
"""Where `qtasks dev` puts the application when nothing else is said."""

DEV_TOKEN = development.USERS[0].token
DEV_SIGNING_KEYS = development.USERS[0].keys
"""The first of the public development users (docs/protocol.md 1.5)."""

MIN_SECRET = 32
"""Characters of a secret key."""

MAX_THREADS = 1000
DEFAULT_THREADS = min(32, (os.cpu_count() or 1) + 4)
DEFAULT_RESULT_TTL = "24h"

ARGUMENT, ENVIRONMENT, EMBEDDED, DEFAULT = "argument", "environment", "embedded", "default"
DEVELOPMENT = ".qtasks/dev.json"
DEV_SWITCH = "QSTASH_DEV"
TEST_SWITCH = "QTASKS_TEST"
"""Set by the pytest plugin: the process talks to no broker but those inside it."""


class SettingsOverrides(TypedDict, total=False):
    """What `QTasks(...)` takes in place of the environment; an absent key means "not said"."""

    url: str
    """Of the QStash service or broker. `QSTASH_URL`; the hosted service by default."""
    token: str
    """`QSTASH_TOKEN`."""
    current_signing_key: str
    """`QSTASH_CURRENT_SIGNING_KEY`."""
    next_signing_key: str
    """`QSTASH_NEXT_SIGNING_KEY`."""
    base_url: str
    """Where the dispatcher is reached, prefix included. `QTASKS_BASE_URL`."""
    results: str
    """``sqlite:///path`` or ``memory://``. `QTASKS_RESULTS`."""
    allow_dev_keys: bool
    """Trust the published development keys. `QTASKS_DEV`; a development engine switches it on."""
    threads: int
    """How many `def` tasks run at once. `QTASKS_THREADS`."""
    secret_key: str
    """What nobody but the application's own processes may know: 32 characters or more. Of several, with commas between,
    the first is used and all are good, so that it can be changed while calls are on their way. `QTASKS_SECRET_KEY`."""
    allow_pickle: bool
    """Let tasks say ``serializer="pickle"``: whoever has the secret key may then run code. `QTASKS_ALLOW_PICKLE`."""
    result_ttl: str | float | timedelta
    """How long finished results are kept; a day by default. `QTASKS_RESULT_TTL`."""


VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "url": "QSTASH_URL",
        "token": "QSTASH_TOKEN",
        "current_signing_key": "QSTASH_CURRENT_SIGNING_KEY",
        "next_signing_key": "QSTASH_NEXT_SIGNING_KEY",
        "base_url": "QTASKS_BASE_URL",
        "results": "QTASKS_RESULTS",
        "allow_dev_keys": "QTASKS_DEV",
        "threads": "QTASKS_THREADS",
        "secret_key": "QTASKS_SECRET_KEY",
        "allow_pickle": "QTASKS_ALLOW_PICKLE",
        "result_ttl": "QTASKS_RESULT_TTL",
    }
)


FREE = ("results", "threads", "result_ttl", "secret_key", "allow_pickle")
"""What does not concern the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a task application is told from outside. None means that nobody said it."""

    url: str | None = None
    token: str | None = field(default=None, repr=False)
    current_signing_key: str | None = field(default=None, repr=False)
    next_signing_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    results: str | None = None
    allow_dev_keys: bool = False
    secret_key: str | None = field(default=None, repr=False)
    allow_pickle: bool = False
    threads: int
    result_ttl_ms: int
    origins: Mapping[str, str] = field(default_factory=dict)
    """Field name to "argument", "environment", ".qtasks/dev.json", "QSTASH_DEV", "embedded" or "default"."""
    searched: tuple[str, ...] = ()
    """Where an engine was looked for, in words, when none was found."""

    def origin(self, name: str) -> str:
        """Where the value of field `name` comes from."""
        return self.origins.get(name, DEFAULT)

    @property
    def is_production(self) -> bool:
        """Whether the engine is anything but an embedded home and a server with the public development credentials."""
        return self.origin("url") != EMBEDDED and self.token not in {user.token for user in development.USERS}

    def sender(self) -> tuple[str, str, str]:
        """`url`, `token` and `base_url`, which publishing needs. Raises ConfigurationError naming what is missing."""
        if self.url is None or self.token is None:
            raise ConfigurationError(
                "no QStash service is configured, so a task has nowhere to go",
                details={"looked for": self.searched},
                fix="start `qtasks dev`, or set QSTASH_TOKEN (and QSTASH_URL for a broker of your own), "
                "or give QTasks(embedded=...)",
            )
        if self.base_url is None:
            raise ConfigurationError(
                "QTASKS_BASE_URL is not set: the broker would not know where to deliver",
                fix="set it to the public address of the tasks, prefix included, "
                "such as https://app.example.com/qtasks",
            )
        if self.url == HOSTED_URL and is_loopback(self.base_url):
            raise ConfigurationError(
                f"the hosted service cannot reach {self.base_url}: that is this machine",
                fix="set QTASKS_BASE_URL to a public address, or use `qtasks dev`",
                code=ErrorCode.BASE_URL_IS_LOCAL,
            )
        return self.url, self.token, self.base_url

    def receiver(self) -> tuple[SigningKeys, str]:
        """Signing keys and `base_url`, which the dispatcher needs. Raises ConfigurationError naming what is missing."""
        # Imported here: whoever only sends has no use for cryptography.
        from qtasks.protocol.signing import check_keys

        missing = [VARIABLES[name] for name in ("current_signing_key", "next_signing_key") if not getattr(self, name)]
        if missing:
            raise ConfigurationError(
                f"no signing keys: {' and '.join(missing)} not set, so no delivery could be trusted",
                fix="set both (the console and `GET /v2/keys` show them), or start `qtasks dev`",
            )
        keys = SigningKeys(self.current_signing_key or "", self.next_signing_key or "")
        check_keys(keys, dev=self.allow_dev_keys)
        if self.base_url is None:
            raise ConfigurationError(
                "QTASKS_BASE_URL is not set: deliveries are signed for an address this server must know",
                fix="set it to the public address of the tasks, prefix included, "
                "such as https://app.example.com/qtasks",
            )
        return keys, self.base_url

    def pickling(self) -> tuple[str, ...]:
        """The secrets of pickles, the one to use first. Raises ConfigurationError naming what is missing."""
        if not self.allow_pickle:
            raise ConfigurationError(
                "pickles are not permitted in this application",
                fix="QTasks(allow_pickle=True) or QTASKS_ALLOW_PICKLE=1, if whoever has QTASKS_SECRET_KEY "
                "may run code here",
            )
        if self.secret_key is None:
            raise ConfigurationError(
                "QTASKS_SECRET_KEY is not set, so no pickle could be told from a stranger's",
                fix="set it, alike in every process, to what `python -c 'import secrets; "
                "print(secrets.token_urlsafe(32))'` prints",
            )
        secrets = tuple(part.strip() for part in self.secret_key.split(","))
        for secret in secrets:
            if len(secret) < MIN_SECRET:
                raise ConfigurationError(
                    f"QTASKS_SECRET_KEY has {len(secret)} characters; {MIN_SECRET} random ones are the least",
                    fix="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                )
            if secret in (self.token, self.current_signing_key, self.next_signing_key) or development.is_public(secret):
                raise ConfigurationError(
                    "QTASKS_SECRET_KEY is known to the broker, which must not be able to make pickles",
                    fix="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                )
        return secrets


def in_test(environment: Mapping[str, str]) -> bool:
    """Whether this process may talk to no broker but those inside it."""
    return _flag(environment.get(TEST_SWITCH, ""), TEST_SWITCH)


def resolve(
    environment: Mapping[str, str],
    overrides: SettingsOverrides,
    find_dev: Callable[[str | None], DevServer | str],
) -> Settings:
    """Decide on the engine and everything around it.

    `find_dev` is asked only when nobody gave a token: it gets the URL that was given (or None) and returns the
    running development server or, in words, why there is none. Raises ConfigurationError for a malformed value.
    """
    if in_test(environment):
        raise ConfigurationError(
            "a test talks to no broker but its own, and there is none here",
            fix="ask for the fixture `qtasks`, and see that it finds this application (fixture "
            "`qtasks_app`); or let all tests out with `qtasks_network = true` in pytest's settings",
            code=ErrorCode.NO_TEST_BROKER,
        )
    found = _Found()
    found.take_overrides(overrides)
    found.take_environment(environment, {name: VARIABLES[name] for name in ("url", "token")})
    searched: list[str] = []
    if "token" in found.values:
        found.take_environment(environment, VARIABLES)
        found.take({"url": HOSTED_URL}, DEFAULT)
        return found.settings()
    searched.append("QSTASH_TOKEN (not set)")
    server = find_dev(found.url("url"))
    if isinstance(server, DevServer):
        # Before the environment, whose address and keys may be those of production.
        found.take(_of_dev_server(server), DEVELOPMENT)
        found.take_environment(environment, VARIABLES)
        found.take({"results": server.results}, DEVELOPMENT)
        return found.settings(tuple(searched))
    found.take_environment(environment, VARIABLES)
    if _flag(environment.get(DEV_SWITCH, ""), DEV_SWITCH):
        found.take(_of_dev_switch(environment), DEV_SWITCH)
    else:
        searched += [f"{DEVELOPMENT} ({server})", f"{DEV_SWITCH} (not set)"]
    return found.settings(tuple(searched))


def embedded(connection: Connection, environment: Mapping[str, str], overrides: SettingsOverrides) -> Settings:
    """Settings of a program with a home of its own: only what does not concern the engine may be set from outside."""
    found = _Found()
    engine = {
        "url": connection.url,
        "token": connection.token,
        "current_signing_key": connection.keys.current,
        "next_signing_key": connection.keys.next,
        "base_url": connection.base_url,
        "allow_dev_keys": True,
    }
    found.take(engine, EMBEDDED)
    found.take_overrides(overrides)
    found.take_environment(environment, {name: VARIABLES[name] for name in FREE})
    found.take({"results": connection.results}, EMBEDDED)
    return found.settings()


class _Found:
    """Values as they are found, the first of a name winning, each with its origin."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.origins: dict[str, str] = {}

    def take(self, offered: Mapping[str, object], origin: str) -> None:
        for name, value in offered.items():
            if name not in self.values and value is not None:
                self.values[name] = value
                self.origins[name] = origin

    def take_overrides(self, overrides: SettingsOverrides) -> None:
        if unknown := sorted(set(overrides) - set(VARIABLES)):
            raise ConfigurationError(
                f"QTasks has no setting {unknown[0]!r}{did_you_mean(unknown[0], VARIABLES)}",
                details={"known": ", ".join(VARIABLES)},
            )
        self.take(dict(overrides), ARGUMENT)

    def take_environment(self, environment: Mapping[str, str], variables: Mapping[str, str]) -> None:
        given = {name: environment.get(variable, "").strip() or None for name, variable in variables.items()}
        self.take(given, ENVIRONMENT)

    def url(self, name: str) -> str | None:
        return _http_url(self.values[name], name, self.origins[name]) if name in self.values else None

    def text(self, name: str) -> str | None:
        return str(self.values[name]) if name in self.values else None

    def settings(self, searched: tuple[str, ...] = ()) -> Settings:
        """Bring each value, text or not, into its one form. Raises ConfigurationError."""
        url, base_url = self.url("url"), self.url("base_url")
        if "allow_dev_keys" in self.values:
            allow_dev_keys = _flag(self.values["allow_dev_keys"], VARIABLES["allow_dev_keys"])
        else:
            # Whoever talks to a broker on this machine about a dispatcher on this machine is developing.
            allow_dev_keys = bool(url and base_url and is_loopback(url) and is_loopback(base_url))
        return Settings(
            url=url,
            token=self.text("token"),
            current_signing_key=self.text("current_signing_key"),
            next_signing_key=self.text("next_signing_key"),
            base_url=base_url,
            results=self.text("results"),
            allow_dev_keys=allow_dev_keys,
            secret_key=self.text("secret_key"),
            allow_pickle=_flag(self.values.get("allow_pickle", ""), VARIABLES["allow_pickle"]),
            threads=_count(self.values.get("threads", DEFAULT_THREADS)),
            result_ttl_ms=_span_ms(self.values.get("result_ttl", DEFAULT_RESULT_TTL)),
            origins=MappingProxyType(dict(self.origins)),
            searched=searched,
        )


def _of_dev_server(server: DevServer) -> dict[str, object]:
    return {
        "url": server.url,
        "token": server.token,
        "current_signing_key": server.keys.current,
        "next_signing_key": server.keys.next,
        "base_url": server.base_url,
        "allow_dev_keys": True,
    }


def _of_dev_switch(environment: Mapping[str, str]) -> dict[str, object]:
    port = environment.get("QSTASH_DEV_PORT", "")
    number = int(port) if port.isascii() and port.isdigit() and 0 < int(port) < 65536 else DEV_PORT
    return {
        "url": f"http://127.0.0.1:{number}",
        "token": DEV_TOKEN,
        "current_signing_key": DEV_SIGNING_KEYS.current,
        "next_signing_key": DEV_SIGNING_KEYS.next,
        "base_url": DEV_BASE_URL,
        "allow_dev_keys": True,
    }


def _http_url(value: object, name: str, origin: str) -> str:
    """An http(s) URL without query, fragment, credentials or trailing slash."""
    text = str(value).rstrip("/")
    if name == "url":
        text = text.removesuffix("/v2/publish")  # a mistake that the JavaScript SDK repairs as well
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and text.isascii()
    except ValueError:  # a port or an IPv6 address that is none
        parts, usable = urlsplit(""), False
    if not usable or parts.username is not None or parts.query or parts.fragment:
        shown = re.sub(r"//[^/@]*@", "//***@", text)[:200]
        raise ConfigurationError(
            f"{VARIABLES[name]} (from {origin}) is not an address: {shown!r}",
            fix="write one such as https://app.example.com/qtasks, without query or user name",
        )
    return text


def _flag(value: object, name: str) -> bool:
    text = str(value).strip().lower()
    if text in ("1", "true"):
        return True
    if text in ("", "0", "false"):
        return False
    raise ConfigurationError(f"{name} is {value!r}", fix="write 1 or 0")


def _count(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_THREADS):
        raise ConfigurationError(f"QTASKS_THREADS is {value!r}", fix=f"a number from 1 to {MAX_THREADS}")
    return int(text)


def _span_ms(value: object) -> int:
    try:
        return durations.to_ms(value)  # type: ignore[arg-type]  # anything else is refused there
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"QTASKS_RESULT_TTL is {value!r}: {error}") from None
