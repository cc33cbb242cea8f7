"""Checks of a publish that need more than its headers: time, queue, destination policy, configured model."""

from __future__ import annotations

from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import HttpError
from qtasks.broker.core.message_builder import LLM_URL, callback_requests
from qtasks.protocol import service_url, wire
from qtasks.protocol.messages import MAX_DELAY_MS, PublishOptions


def split_target(raw_target: str) -> wire.Target:
    """Split the raw text after the prefix of a publish into destination and parameters. HttpError if unreadable."""
    try:
        return wire.split_target(raw_target)
    except wire.WireError as error:
        raise HttpError(error.status, str(error)) from None


def check_api(context: ApiContext, destination: str, options: PublishOptions) -> None:
    """Refuse an unknown API, a missing language model, and a missing callback, without which its answer is lost."""
    if destination != "api/llm":
        raise HttpError(400, f"{destination}: unknown API; publish to the provider's own URL")
    if not context.llm.available:
        raise HttpError(501, f"{destination}: {context.llm.MISSING}")
    if options.callback is None:
        raise HttpError(400, f"{destination} needs Upstash-Callback: the completion is sent there")


def check_not_before(options: PublishOptions, wall_ms: int) -> None:
    """Refuse a time that is too far in the future (412)."""
    if options.not_before_s is not None and options.not_before_s * 1000 > wall_ms + MAX_DELAY_MS:
        raise HttpError(412, f"Upstash-Not-Before: more than {MAX_DELAY_MS // 86_400_000} days ahead")


def check_order_of_arrival(options: PublishOptions) -> None:
    """Refuse a delay of a queue's messages or of their callbacks (docs/compatibility.md A10, A15).

    A queue delivers in order of arrival.
    """
    if options.delay_ms is not None or options.not_before_s is not None:
        raise HttpError(
            400, "Upstash-Delay and Upstash-Not-Before cannot be used with a queue: it delivers in order of arrival"
        )
    check_callbacks_of_queue(options)


def check_callbacks_of_queue(options: PublishOptions) -> None:
    """Refuse delayed callbacks of a queue's message: the next message waits for them (docs/compatibility.md A15)."""
    for nested in (options.callback_options, options.failure_callback_options):
        if nested is not None and (nested.delay_ms is not None or nested.not_before_s is not None):
            raise HttpError(400, "a callback of a queued message cannot be delayed: the queue waits for it")


def check_policy(
    context: ApiContext, *urls: str, options: PublishOptions | None = None, method: str | None = None
) -> None:
    """Refuse URLs that the destination policy refuses by their text, and those of the callbacks in `options`.

    `method` is that of the requests to `urls`: by default that of `options`, else POST.
    """
    method = method or (options and options.method) or "POST"
    for url in urls:
        _check_policy_of(context, url, method)
    for url, its_method in () if options is None else callback_requests(options):
        _check_policy_of(context, url, its_method)


def _check_policy_of(context: ApiContext, url: str, method: str) -> None:
    if url == LLM_URL:
        raise HttpError(400, f"{url} stands for the language model inside the broker: publish to api/llm")
    if (refusal := context.policy.check_url(url, method)) is not None:
        raise refused(context, url, refusal)


def refused(context: ApiContext, url: str, reason: str) -> HttpError:
    """The refusal of a destination, which is logged, too: the operator may have to allow it."""
    fields = {"action": "destination_refused", "url": service_url.shown(url)}
    context.log.warning("publishes to refused destinations", "%s: %s", fields["url"], reason, extra=fields)
    return HttpError(400, reason)
