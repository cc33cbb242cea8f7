"""A destination as people see it has no secret of its URL."""

from __future__ import annotations

import pytest

from qtasks.broker.core.observed.shown_urls import without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.com/a/b", "https://example.com/a/b"),
        ("https://user:word@example.com/a?token=1", "https://example.com/a"),
        ("https://user@example.com", "https://example.com"),
        ("https://a@b@example.com/x", "https://example.com/x"),
        ("https://example.com/@ada/x?to=a@b", "https://example.com/@ada/x"),
        ("group-name", "group-name"),
        ("", ""),
    ],
)
def test_the_query_a_user_and_a_password_are_left_out(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
