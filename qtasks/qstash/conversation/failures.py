"""The errors of the client, made from the request and the reply of a failed operation."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qtasks.errors import (
    ApiError,
    BrokerUnreachable,
    ChatRateLimitExceededError,
    DailyMessageLimitExceededError,
    RateLimitExceededError,
)
from qtasks.protocol.loopback import is_loopback_url
from qtasks.qstash.conversation.transport import Reply, Request

if TYPE_CHECKING:
    from qtasks.qstash.conversation.proxies import Proxy

_SHOWN_BODY = 1000
"""Characters of a reply that an error text quotes; `ApiError.detail` has the whole text."""

_FIXES = {
    401: "the token was rejected: compare QSTASH_TOKEN with the token of your account at the service",
    407: "a proxy asks for a name and a password: write HTTP_PROXY=http://name:password@host:port",
    412: "raise the limit of the account that this would exceed",
    413: "send less: the message is too large for this service",
}
_WRONG_REGION = "user not found in this region"
_PLAIN_HTTP = re.compile(
    r"plain HTTP request was sent to|HTTP request to an HTTPS server|plain HTTP to an SSL-enabled", re.IGNORECASE
)
"""How nginx, Go and Apache answer a request in http on a port for https."""


def unreachable(
    url: str, why: str, *, sent: bool, fix: str | None = None, proxy: Proxy | None = None
) -> BrokerUnreachable:
    """The error of a request to `url` without a reply. `sent` is True if the request may have arrived.

    `fix` is None if it is not known why. `proxy` is the one through which it was sent.
    """
    details = {} if proxy is None else {"through": f"the proxy {proxy} (from {proxy.source})"}
    return BrokerUnreachable(
        f"No answer from {origin(url)}: {why}", sent=sent, details=details, fix=fix or usual_fix(url)
    )


def usual_fix(url: str) -> str:
    """What to do if a service does not answer, and it is not known why."""
    if is_loopback_url(url):
        return "start a broker with `qtasks dev`, or set QSTASH_URL to a running broker"
    return "check that QSTASH_URL is correct and that this machine can reach it"


def fix_for_cut(url: str) -> str:
    """What to do if a service ends the connection without an answer, as those do that expect https."""
    may_expect_tls = not url.lower().startswith("https:")
    return usual_fix(url) + ("; if it speaks https there, write https:// in QSTASH_URL" if may_expect_tls else "")


def after_attempts(last: BrokerUnreachable, made: int) -> BrokerUnreachable:
    """The error of the last attempt, with `made`, the number of attempts, in its text."""
    if made == 1:
        return last
    error = last.reworded(f"{last.message} ({made} attempts)")
    error.__cause__, error.__context__ = last.__cause__, last.__context__
    error.__suppress_context__ = True
    return error


def refused(request: Request, reply: Reply) -> ApiError:
    """The error of a reply with a status outside 200 to 299."""
    text = reply.body.decode("utf-8", "replace")
    detail = _error_text(text)
    if reply.status == 429:
        return _rate_limit(reply, detail)
    return ApiError(
        f"Request failed with status: {reply.status}, body: {_shortened(text)}",
        status=reply.status,
        detail=detail,
        fix=_fix(request, reply.status, detail),
    )


def not_understood(request: Request, reply: Reply, why: Exception) -> ApiError:
    """The error of a reply with status 200 to 299 whose body the operation cannot read."""
    text = reply.body.decode("utf-8", "replace")
    problem = f"{type(why).__name__}: {why}"
    return ApiError(
        f"{origin(request.url)} answered {reply.status}, but the reply is not that of a QStash service ({problem}): "
        f"{_shortened(text)}",
        status=reply.status,
        detail=text,
        fix="check that QSTASH_URL names a QStash service",
    )


def quota_is_spent(reply: Reply) -> bool:
    """True if a 429 means that the daily quota is used up, so that a retry is useless."""
    return reply.header("RateLimit-Limit") is not None and not _is_chat_limit(reply)


def origin(url: str) -> str:
    """Scheme, host and port of a URL. Error texts show only these, because the path may contain secrets."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def _rate_limit(reply: Reply, detail: str) -> ApiError:
    if _is_chat_limit(reply):
        kinds = ("limit", "remaining", "reset")
        values = [reply.header(f"x-ratelimit-{kind}-{of}") for kind in kinds for of in ("requests", "tokens")]
        return ChatRateLimitExceededError(*values, detail=detail)
    if quota_is_spent(reply):
        return DailyMessageLimitExceededError(
            reply.header("RateLimit-Limit"),
            reply.header("RateLimit-Remaining"),
            reply.header("RateLimit-Reset"),
            detail=detail,
        )
    return RateLimitExceededError(
        reply.header("Burst-RateLimit-Limit"),
        reply.header("Burst-RateLimit-Remaining"),
        reply.header("Burst-RateLimit-Reset"),
        detail=detail,
    )


def _is_chat_limit(reply: Reply) -> bool:
    return reply.header("x-ratelimit-limit-requests") is not None


def _error_text(text: str) -> str:
    """The error text in a body: the member `error` of its JSON, else the whole body."""
    try:
        content = json.loads(text)
    except ValueError:
        return text
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, str) else text


def _fix(request: Request, status: int, detail: str) -> str | None:
    if status == 404 and _WRONG_REGION in detail:
        return f"set QSTASH_URL to the region of the token: it belongs to another one than {origin(request.url)}"
    if status == 400 and _PLAIN_HTTP.search(detail):
        return "write https:// in QSTASH_URL"
    if 300 <= status < 400:
        return "correct QSTASH_URL (a proxy in front, or http instead of https?): a QStash service never redirects"
    return _FIXES.get(status)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_BODY else f"{text[:_SHOWN_BODY]}... ({len(text)} characters)"
