"""The URL and the token of a client: from its arguments, else from the environment (docs/protocol.md 1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qtasks.errors import ConfigurationError
from qtasks.protocol.service_url import UrlProblem, problem_of, shown, without_api_path

BASE_URL = "https://qstash.upstash.io"
"""The hosted service; used if neither an argument nor a variable names another URL."""

REGIONS = ("US_EAST_1", "EU_CENTRAL_1")


@dataclass(frozen=True)
class Credentials:
    """The URL of a service and the token for it."""

    base_url: str
    token: str
    source: str = field(default="base_url", compare=False)
    """The argument or the variable that names the URL."""
    problem: UrlProblem | None = field(init=False, compare=False)
    """Why the URL cannot be used, or None."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "problem", problem_of(self.base_url))

    def __repr__(self) -> str:
        return f"Credentials(base_url={shown(self.base_url)!r})"

    @property
    def usable_url(self) -> str:
        """The URL, for a request. Raises ConfigurationError for one that cannot be used."""
        if self.problem is not None:
            raise ConfigurationError(
                f"{self.source} is {shown(self.base_url)!r}, which {self.problem.what}", fix=self.problem.fix
            )
        return self.base_url


def resolve(token: str | None, base_url: str | None, environ: Mapping[str, str]) -> Credentials:
    """The URL and token of a client. Arguments win over the variables of the region, and these over the plain ones.

    If `QSTASH_REGION` is `US_EAST_1` or `EU_CENTRAL_1`, `<REGION>_QSTASH_URL` and `<REGION>_QSTASH_TOKEN` are read. The
    endings `/v2` and `/v2/publish` of a base URL, a common mistake, are removed. Raises ConfigurationError for a token
    that is missing or invalid; the URL is checked when it is used.
    """
    chosen_url, url_source = _first(base_url, "base_url", "QSTASH_URL", environ)
    chosen_token, token_source = _first(token, "token", "QSTASH_TOKEN", environ)
    if not chosen_token:
        raise ConfigurationError(
            "A token for the QStash service is missing.", fix='set QSTASH_TOKEN, or write QStash(token="...")'
        )
    if not chosen_token.isascii() or not chosen_token.isprintable() or " " in chosen_token:
        raise ConfigurationError(f"{token_source} contains characters that are not allowed in a token.")
    return Credentials(without_api_path(chosen_url or BASE_URL), chosen_token, url_source)


def region(environ: Mapping[str, str]) -> str | None:
    """The region of multi-region mode, or None if that mode is off. Raises ConfigurationError for an unknown region."""
    value = environ.get("QSTASH_REGION")
    if not value:
        return None
    name = region_name(value)
    if name not in REGIONS:
        raise ConfigurationError(f"QSTASH_REGION is {value!r}", details={"expected": " or ".join(REGIONS)})
    return name


def region_name(text: str) -> str:
    """Convert the spelling of the header `Upstash-Region` to that of the variables: `US-EAST-1` to `US_EAST_1`."""
    return text.strip().upper().replace("-", "_")


def variable(name: str, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """The value of a variable, and the name of the variable that is set. The region's own variable wins."""
    where = region(environ)
    if where is not None and environ.get(f"{where}_{name}", "").strip():
        return environ[f"{where}_{name}"].strip(), f"{where}_{name}"
    return environ.get(name, "").strip() or None, name


def _first(argument_value: str | None, argument: str, name: str, environ: Mapping[str, str]) -> tuple[str | None, str]:
    return (argument_value.strip(), argument) if argument_value else variable(name, environ)
