"""The URL and the token of a client: from its arguments, else from the environment (docs/protocol.md 1.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from qtasks.errors import ConfigurationError

BASE_URL = "https://qstash.upstash.io"
"""The hosted service; used if neither an argument nor a variable names another URL."""

REGIONS = ("US_EAST_1", "EU_CENTRAL_1")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The URL of a service and the token for it."""

    base_url: str
    token: str = field(repr=False)


def resolve(token: str | None, base_url: str | None, environ: Mapping[str, str]) -> Credentials:
    """The URL and token of a client. Arguments win over the variables of the region, and these over the plain ones.

    If `QSTASH_REGION` is `US_EAST_1` or `EU_CENTRAL_1`, `<REGION>_QSTASH_URL` and `<REGION>_QSTASH_TOKEN` are read. The
    ending `/v2/publish` of a base URL, a common mistake, is removed. Raises ConfigurationError for a missing
    token or an invalid value.
    """
    chosen_url, url_source = _first(base_url, "base_url", "QSTASH_URL", environ)
    chosen_token, token_source = _first(token, "token", "QSTASH_TOKEN", environ)
    if not chosen_token:
        raise ConfigurationError(
            "A token for the QStash service is missing.", fix='set QSTASH_TOKEN, or write QStash(token="...")'
        )
    if not chosen_token.isascii() or not chosen_token.isprintable() or " " in chosen_token:
        raise ConfigurationError(f"{token_source} contains characters that are not allowed in a token.")
    return Credentials(base_url=_checked_url(chosen_url or BASE_URL, url_source), token=chosen_token)


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


def _checked_url(url: str, source: str) -> str:
    repaired = re.sub(r"/v2/publish/*$", "", url).rstrip("/")
    try:
        parts = urlsplit(repaired)
        usable = parts.scheme.lower() in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # not a valid port or IPv6 address
        usable = False
    if not usable:
        shown = re.sub(r"//[^/@]*@", "//***@", url)
        raise ConfigurationError(
            f"{source} is {shown!r}",
            details={"expected": "a URL with http:// or https:// and a host"},
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{source} must be a plain URL, without user, query or fragment.", fix="put the token into QSTASH_TOKEN"
        )
    return repaired
