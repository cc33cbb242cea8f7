"""Actions on many dead letters: by id, or all of a list that the viewer has seen the size of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qtasks.broker.api.api_request import ApiResponse, HttpError, json_response

PORTION: Final = 1_000
"""Dead letters that one request acts on, at most."""


def expected_of(body: Mapping[str, Any]) -> int:
    """Member ``expected``: how many dead letters the viewer agreed to. HttpError 400 without it."""
    expected = body.get("expected")
    if not isinstance(expected, int) or isinstance(expected, bool) or expected < 0:
        raise HttpError(400, "expected: how many dead letters does this mean? A whole number")
    return expected


def too_many(matching: int) -> ApiResponse:
    """409: there are more dead letters than the viewer agreed to."""
    text = f"there are {matching} of them now, more than expected: look again"
    return json_response({"error": text, "matching": matching}, 409)


def rest_of(matching: int, done: int) -> int:
    """How many are still to be done; 0 if nothing could be done, because those that remain are damaged."""
    return matching - done if done else 0
