"""Settings of a task application: one frozen object, read from the environment on first use, never on import.

`Settings.origins` says where each value comes from. An argument wins over the environment, and the environment over
`.qtasks/dev.json`. Exception: the address and the keys of a running `qtasks dev` win over the environment, which may
hold those of production.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TypedDict
from urllib.parse import urlsplit

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, did_you_mean
from qtasks.protocol import development, durations
from qtasks.protocol.loopback import is_loopback_url
from qtasks.protocol.messages import MAX_DELAY_MS, SigningKeys
from qtasks.protocol.service_url import UrlProblem, problem_of, shown, without_api_path
from qtasks.tasks.dev_server import DevServer
from qtasks.tasks.ports import Connection

HOSTED_URL = "https://qstash.upstash.io"
HOSTED_DOMAIN = ".upstash.io"
DEV_PORT = development.PORT
DEV_BASE_URL = "http://127.0.0.1:8000/qtasks"
"""Where `qtasks dev` serves the application by default."""

DEV_TOKEN = development.USERS[0].token
DEV_SIGNING_KEYS = development.USERS[0].keys
"""The first of the public development users (docs/protocol.md 1.5)."""

MIN_SECRET = 32
"""Least number of characters of a secret key."""

MAX_THREADS = 1000
DEFAULT_THREADS = min(32, (os.cpu_count() or 1) + 4)
DEFAULT_RESULT_TTL = "24h"
DEFAULT_INTERRUPTED_FOR = "24h"

ARGUMENT, ENVIRONMENT, EMBEDDED, DEFAULT = "argument", "environment", "embedded", "default"
DEVELOPMENT = ".qtasks/dev.json"
DEV_SWITCH = "QSTASH_DEV"
TEST_SWITCH = "QTASKS_TEST"
"""Set by the pytest plugin: the process may only use brokers inside itself."""


class SettingsOverrides(TypedDict, total=False):
    """Settings that `QTasks(...)` takes as arguments. An absent key leaves the environment variable, or the default."""

    url: str
    """URL of the QStash service or broker: `QSTASH_URL`; the hosted service by default."""
    token: str
    """API token of the service: `QSTASH_TOKEN`; without one, a running `qtasks dev` is used."""
    current_signing_key: str
    """Key that signs deliveries: `QSTASH_CURRENT_SIGNING_KEY`. Required for the dispatcher."""
    next_signing_key: str
    """Key that will sign deliveries after the next rotation: `QSTASH_NEXT_SIGNING_KEY`. Required for the dispatcher."""
    base_url: str
    """Public URL of the dispatcher, prefix included, such as ``https://app.example.com/qtasks``: `QTASKS_BASE_URL`."""
    results: str
    """URL of the result store: ``sqlite:///relative/path``, ``sqlite:////absolute/path``, ``postgresql://...``,
    ``redis://...``, or ``memory://`` for one process. `QTASKS_RESULTS`; in development and with an embedded broker a
    file by default, elsewhere none."""
    allow_dev_keys: bool
    """Accept the public development keys: `QTASKS_DEV`. By default True with `qtasks dev`, with an embedded broker, and
    if service and dispatcher both have loopback addresses."""
    threads: int
    """How many `def` tasks run at the same time, 1 to 1000: `QTASKS_THREADS`; the number of processors plus 4 by
    default, 32 at most."""
    secret_key: str
    """Secret of the application's own processes, 32 characters or more: `QTASKS_SECRET_KEY`; none by default. It
    authenticates pickles, and encrypts where a task says ``encrypt=True``. Several keys are separated by commas: the
    first one signs and encrypts, all are accepted, so that the key can be changed while calls are on their way."""
    allow_pickle: bool
    """Allow ``serializer="pickle"``: every process with the secret key can then run any code here.
    `QTASKS_ALLOW_PICKLE`; False by default."""
    result_ttl: str | float | timedelta
    """How long finished results are kept: ``"1h30m"``, seconds, or a timedelta. `QTASKS_RESULT_TTL`; 24 hours by
    default."""
    interrupted_for: str | float | timedelta
    """For how long interrupted attempts spend no retry (nothing listens, the connection is cut, the process drains), on
    our broker: ``"1h30m"``, seconds, or a timedelta; a year at most. ``"0"``: they count at once.
    `QTASKS_INTERRUPTED_FOR`; 24 hours by default."""


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
        "interrupted_for": "QTASKS_INTERRUPTED_FOR",
    }
)


SERVICE_INDEPENDENT = ("results", "threads", "result_ttl", "interrupted_for", "secret_key", "allow_pickle")
"""Settings that do not describe the service: they can be set with an embedded broker, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a task application. None: not set."""

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
    interrupted_for_ms: int
    """For how long interrupted attempts spend no retry; 0: they count."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Field name to "argument", "environment", ".qtasks/dev.json", "QSTASH_DEV", "embedded" or "default"."""
    searched: tuple[str, ...] = ()
    """The places where no service was configured, as texts for an error."""

    def origin(self, name: str) -> str:
        """Where the value of field `name` comes from."""
        return self.origins.get(name, DEFAULT)

    @property
    def is_production(self) -> bool:
        """False with an embedded broker and with a server that uses the public development credentials."""
        return self.origin("url") != EMBEDDED and self.token not in {user.token for user in development.USERS}

    @property
    def is_hosted(self) -> bool:
        """True if the broker is the hosted service, in any of its regions."""
        return (urlsplit(self.url or "").hostname or "").endswith(HOSTED_DOMAIN)

    def sender(self) -> tuple[str, str, str]:
        """`url`, `token` and `base_url`, which publishing needs. Raises ConfigurationError naming what is missing."""
        if self.url is None or self.token is None:
            raise ConfigurationError(
                "no QStash service is configured, so tasks cannot be sent",
                details={"looked for": self.searched},
                fix="start `qtasks dev`, or set QSTASH_TOKEN (and QSTASH_URL for a broker of your own), "
                "or give QTasks(embedded=...)",
            )
        if self.base_url is None:
            raise ConfigurationError(
                "QTASKS_BASE_URL is not set: the broker needs the address of the tasks to deliver calls",
                fix="set it to the public address of the tasks, prefix included, "
                "such as https://app.example.com/qtasks",
            )
        if self.is_hosted and is_loopback_url(self.base_url):
            raise ConfigurationError(
                f"the hosted service cannot reach {self.base_url}: that address is this machine",
                fix="set QTASKS_BASE_URL to a public address, or use `qtasks dev`",
                code=ErrorCode.BASE_URL_IS_LOCAL,
            )
        return self.url, self.token, self.base_url

    def receiver(self) -> tuple[SigningKeys, str]:
        """Signing keys and `base_url`, which the dispatcher needs. Raises ConfigurationError naming what is missing."""
        # Imported here: a process that only sends does not need cryptography.
        from qtasks.protocol.signing import check_keys

        missing = [VARIABLES[name] for name in ("current_signing_key", "next_signing_key") if not getattr(self, name)]
        if missing:
            raise ConfigurationError(
                f"no signing keys: {' and '.join(missing)} not set, so no delivery can be verified",
                fix="set both (the console and `GET /v2/keys` show them), or start `qtasks dev`",
            )
        keys = SigningKeys(self.current_signing_key or "", self.next_signing_key or "")
        check_keys(keys, dev=self.allow_dev_keys)
        if self.base_url is None:
            raise ConfigurationError(
                "QTASKS_BASE_URL is not set: it is part of the signature of every delivery",
                fix="set it to the public address of the tasks, prefix included, "
                "such as https://app.example.com/qtasks",
            )
        return keys, self.base_url

    def pickling(self) -> tuple[str, ...]:
        """The secrets of pickles; the first one signs. Raises ConfigurationError naming what is missing."""
        if not self.allow_pickle:
            raise ConfigurationError(
                "pickles are not permitted in this application",
                fix="QTasks(allow_pickle=True) or QTASKS_ALLOW_PICKLE=1, if every process with QTASKS_SECRET_KEY "
                "may run code here",
            )
        return self._secrets("pickles cannot be authenticated", "make pickles")

    def encrypting(self) -> tuple[str, ...]:
        """The secrets that encrypt; the first one does. Raises ConfigurationError naming what is missing."""
        return self._secrets("nothing can be encrypted or decrypted", "read what is encrypted")

    def _secrets(self, consequence: str, forbidden: str) -> tuple[str, ...]:
        """The secrets of the application's own processes. `forbidden` is what the broker must not be able to do."""
        if self.secret_key is None:
            raise ConfigurationError(
                f"QTASKS_SECRET_KEY is not set, so {consequence}",
                fix="set it, in every process to the same value, to the output of `python -c 'import secrets; "
                "print(secrets.token_urlsafe(32))'`",
            )
        secrets = tuple(part.strip() for part in self.secret_key.split(","))
        for secret in secrets:
            if len(secret) < MIN_SECRET:
                raise ConfigurationError(
                    f"QTASKS_SECRET_KEY has {len(secret)} characters; at least {MIN_SECRET} random ones are required",
                    fix="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                )
            if secret in (self.token, self.current_signing_key, self.next_signing_key) or development.is_public(secret):
                raise ConfigurationError(
                    f"QTASKS_SECRET_KEY is known to the broker, which must not be able to {forbidden}",
                    fix="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                )
        return secrets


def in_test(environment: Mapping[str, str]) -> bool:
    """True if this process may only use brokers inside itself."""
    return _flag(environment.get(TEST_SWITCH, ""), TEST_SWITCH)


def resolve(
    environment: Mapping[str, str],
    overrides: SettingsOverrides,
    find_dev: Callable[[str | None], DevServer | str],
) -> Settings:
    """Find the service, and read all other settings.

    `find_dev` is called only if no token is set. Its argument is the URL that is set, or None; it returns the running
    development server, or a text that says why there is none. Raises ConfigurationError for a malformed value.
    """
    if in_test(environment):
        raise ConfigurationError(
            "a test may only use its own test broker, and this application has none",
            fix="use the fixture `qtasks`, and check that it finds this application (fixture `qtasks_app`); or allow "
            "all tests to use the network with `qtasks_network = true` in pytest's settings",
            code=ErrorCode.NO_TEST_BROKER,
        )
    sources = _SettingsSources()
    sources.take_overrides(overrides)
    sources.take_environment(environment, {name: VARIABLES[name] for name in ("url", "token")})
    searched: list[str] = []
    if "token" in sources.values:
        sources.take_environment(environment, VARIABLES)
        sources.take({"url": HOSTED_URL}, DEFAULT)
        return sources.settings()
    searched.append("QSTASH_TOKEN (not set)")
    server = find_dev(sources.url("url"))
    if isinstance(server, DevServer):
        # Before the environment, whose address and keys may be those of production.
        sources.take(_of_dev_server(server), DEVELOPMENT)
        sources.take_environment(environment, VARIABLES)
        sources.take({"results": server.results}, DEVELOPMENT)
        return sources.settings(tuple(searched))
    sources.take_environment(environment, VARIABLES)
    if _flag(environment.get(DEV_SWITCH, ""), DEV_SWITCH):
        sources.take(_of_dev_switch(environment), DEV_SWITCH)
    else:
        searched += [f"{DEVELOPMENT} ({server})", f"{DEV_SWITCH} (not set)"]
    return sources.settings(tuple(searched))


def embedded(connection: Connection, environment: Mapping[str, str], overrides: SettingsOverrides) -> Settings:
    """Settings with an embedded broker: only those that do not describe the service can be set from outside."""
    sources = _SettingsSources()
    service = {
        "url": connection.url,
        "token": connection.token,
        "current_signing_key": connection.keys.current,
        "next_signing_key": connection.keys.next,
        "base_url": connection.base_url,
        "allow_dev_keys": True,
    }
    sources.take(service, EMBEDDED)
    sources.take_overrides(overrides)
    sources.take_environment(environment, {name: VARIABLES[name] for name in SERVICE_INDEPENDENT})
    sources.take({"results": connection.results}, EMBEDDED)
    return sources.settings()


class _SettingsSources:
    """Raw values from several sources, each with its origin. The first value of a name wins."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.origins: dict[str, str] = {}

    def take(self, values: Mapping[str, object], origin: str) -> None:
        for name, value in values.items():
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
        values = {name: environment.get(variable, "").strip() or None for name, variable in variables.items()}
        self.take(values, ENVIRONMENT)

    def url(self, name: str) -> str | None:
        return _http_url(self.values[name], name, self.origins[name]) if name in self.values else None

    def text(self, name: str) -> str | None:
        return str(self.values[name]) if name in self.values else None

    def _span_ms(self, name: str, default: str, *, limit_ms: float = math.inf) -> int:
        value = self.values.get(name, default)
        try:
            span_ms = durations.to_ms(value)  # type: ignore[arg-type]  # raises TypeError for any other type
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{VARIABLES[name]} is {value!r}: {error}") from None
        if span_ms > limit_ms:
            raise ConfigurationError(f"{VARIABLES[name]} is {value!r}: expected a year at most")
        return span_ms

    def settings(self, searched: tuple[str, ...] = ()) -> Settings:
        """Validate and convert every value. Raises ConfigurationError."""
        url, base_url = self.url("url"), self.url("base_url")
        if "allow_dev_keys" in self.values:
            allow_dev_keys = _flag(self.values["allow_dev_keys"], VARIABLES["allow_dev_keys"])
        else:
            # A broker and a dispatcher that are both on this machine are used for development.
            allow_dev_keys = bool(url and base_url and is_loopback_url(url) and is_loopback_url(base_url))
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
            threads=_thread_count(self.values.get("threads", DEFAULT_THREADS)),
            result_ttl_ms=self._span_ms("result_ttl", DEFAULT_RESULT_TTL),
            interrupted_for_ms=self._span_ms("interrupted_for", DEFAULT_INTERRUPTED_FOR, limit_ms=MAX_DELAY_MS),
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
    text = without_api_path(str(value)) if name == "url" else str(value).rstrip("/")
    problem = problem_of(text)
    if problem is None and not text.isascii():
        problem = UrlProblem("contains a character that is not ASCII", "write its host in ASCII, xn--...")
    if problem is not None:
        raise ConfigurationError(
            f"{VARIABLES[name]} (from {origin}) is not an address: {shown(text)!r} {problem.what}", fix=problem.fix
        )
    return text


def _flag(value: object, name: str) -> bool:
    text = str(value).strip().lower()
    if text in ("1", "true"):
        return True
    if text in ("", "0", "false"):
        return False
    raise ConfigurationError(f"{name} is {value!r}; expected 1 or 0", fix="write 1 or 0")


def _thread_count(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_THREADS):
        raise ConfigurationError(f"QTASKS_THREADS is {value!r}; expected a number from 1 to {MAX_THREADS}")
    return int(text)
