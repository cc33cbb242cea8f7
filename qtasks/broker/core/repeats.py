"""A message published once more, as it was or with another body. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from qtasks.broker.core.message_builder import LLM_URL, retry_of_dead_letter
from qtasks.broker.core.values import Publication
from qtasks.protocol.labels import argument_labels
from qtasks.protocol.messages import Message, PublishOptions


class NotRepeatable(ValueError):
    """The message cannot be published again; the text says why."""


def repeat_of(
    source: Message,
    *,
    body: bytes | None,
    message_id: str,
    call_id: str,
    now_ms: int,
    searchable: Mapping[str, int | None] | None = None,
) -> Publication:
    """The publication of `source` once more, with the same options and all its retries; `body` None: as it was.

    `searchable` are the arguments by which calls of its task are found, each with its position, if that is known: they
    are those of the new body.
    A message of the framework becomes a call of its own, `call_id`: a dispatcher answers the repetition of a call that
    has ended with the result that it has, and does not run it. Raises NotRepeatable.
    """
    again = retry_of_dead_letter(source, PublishOptions(), message_id=message_id, now_ms=now_ms)
    content = source.body if body is None else body
    old = source.options.call_id
    if body is not None:
        labels = argument_labels.relabelled(again.message.options.labels, body, searchable)
        again = again._replace(message=replace(again.message, options=replace(again.message.options, labels=labels)))
    if old is None:
        return again._replace(message=replace(again.message, body=content))
    if source.url == LLM_URL:
        raise NotRepeatable("a completion of a task belongs to its call: run the task again instead")
    if _is_bound(content):
        raise NotRepeatable(
            "the arguments are encrypted, pickled or encoded for this one call: only the application can call it again"
        )
    renamed = _with_id(content, old, call_id)
    options = replace(
        again.message.options,
        call_id=None if renamed is None else call_id,
        end_callback=_renamed(source.options.end_callback, old, call_id),
        failure_callback=_renamed(source.options.failure_callback, old, call_id),
    )
    message = replace(again.message, body=content if renamed is None else renamed, options=options)
    return again._replace(message=message)


def _is_bound(body: bytes) -> bool:
    """True if the arguments in an envelope are readable under the id of their call only."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and ("coded" in document or "pickled" in document)


def _with_id(body: bytes, old: str, new: str) -> bytes | None:
    """The envelope with the id of another call; None if it does not begin as the framework writes it.

    Only these bytes change: to read and write all of it could change a number.
    """
    quoted = re.escape(json.dumps(old, ensure_ascii=False).encode())
    pattern = rb'(\s*\{\s*"v"\s*:\s*\d+\s*,\s*"id"\s*:\s*)' + quoted
    match = re.match(pattern, body)
    return None if match is None else match[1] + json.dumps(new).encode() + body[match.end() :]


def _renamed(url: str | None, old: str, new: str) -> str | None:
    """The URL of an end callback, which names the call."""
    return None if url is None else url.replace(f"call={quote(old, safe='')}", f"call={quote(new, safe='')}")
