"""The receiving end accepts what the service signs and says why it refuses the rest."""

import time
from typing import Any

import pytest

from qtasks.errors import ConfigurationError, SignatureError
from qtasks.protocol import signing
from qtasks.qstash import Receiver

CURRENT = "sig_" + "c" * 28
NEXT = "sig_" + "n" * 28
OTHER = "sig_" + "o" * 28
URL = "https://app.example/hook"
NOW_S = 1_700_000_000


def token(body: bytes = b"body", *, key: str = CURRENT, url: str = URL) -> str:
    return signing.sign(key, url=url, body=body, now_s=NOW_S, jti="jwt_1")


def receiver(now_s: float = NOW_S) -> Receiver:
    return Receiver(CURRENT, NEXT, clock=lambda: now_s)


@pytest.mark.parametrize("key", [CURRENT, NEXT])
@pytest.mark.parametrize("body", ["body", b"body"])
def test_a_delivery_is_accepted_under_either_key_as_text_and_as_bytes(key: str, body: Any) -> None:
    receiver().verify(signature=token(key=key), body=body, url=URL)


def test_bytes_that_are_no_text_can_be_verified() -> None:
    receiver().verify(signature=token(b"\xff\x00"), body=b"\xff\x00")


def test_the_url_is_checked_only_when_given() -> None:
    receiver().verify(signature=token(), body="body")
    with pytest.raises(SignatureError) as caught:
        receiver().verify(signature=token(), body="body", url="http://app.example/hook")
    assert caught.value.reason == "url"
    assert "https://app.example/hook" in str(caught.value)
    assert "http://app.example/hook" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "now_s", "reason"),
    [
        ({"body": "other"}, NOW_S, "body"),
        ({"signature": token(key=OTHER)}, NOW_S, "key"),
        ({}, NOW_S + 400, "expired"),
        ({}, NOW_S - 400, "not_yet_valid"),
        ({"signature": "no.token"}, NOW_S, "malformed"),
        ({"signature": ""}, NOW_S, "malformed"),
        ({"signature": None}, NOW_S, "malformed"),
    ],
)
def test_every_way_to_fail_has_a_reason_of_its_own(given: dict[str, Any], now_s: float, reason: str) -> None:
    with pytest.raises(SignatureError) as caught:
        receiver(now_s).verify(**{"signature": token(), "body": "body", **given})
    assert caught.value.reason == reason


def test_the_clock_tolerance_works() -> None:
    late = receiver(NOW_S + 310)
    with pytest.raises(SignatureError):
        late.verify(signature=token(), body="body")
    late.verify(signature=token(), body="body", clock_tolerance=60)


def test_the_clock_is_the_real_one_by_default() -> None:
    fresh = signing.sign(CURRENT, url=URL, body=b"", now_s=int(time.time()), jti="jwt_1")
    Receiver(current_signing_key=CURRENT, next_signing_key=NEXT).verify(signature=fresh, body="")


def test_the_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSTASH_CURRENT_SIGNING_KEY", CURRENT)
    monkeypatch.setenv("QSTASH_NEXT_SIGNING_KEY", NEXT)
    Receiver(clock=lambda: NOW_S).verify(signature=token(key=NEXT), body="body")
    with pytest.raises(SignatureError):
        Receiver(OTHER, OTHER, clock=lambda: NOW_S).verify(signature=token(), body="body")


def test_a_receiver_without_keys_is_not_made() -> None:
    with pytest.raises(ConfigurationError, match="Signing keys are missing"):
        Receiver()


def test_a_single_key_does_not_open_for_an_empty_one() -> None:
    lonely = Receiver(CURRENT, clock=lambda: NOW_S)
    lonely.verify(signature=token(), body="body")
    with pytest.raises(SignatureError):
        lonely.verify(signature=token(key=OTHER), body="body")


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("QSTASH_REGION", "EU_CENTRAL_1")
    monkeypatch.setenv("QSTASH_CURRENT_SIGNING_KEY", CURRENT)
    monkeypatch.setenv("QSTASH_NEXT_SIGNING_KEY", CURRENT)
    monkeypatch.setenv("US_EAST_1_QSTASH_CURRENT_SIGNING_KEY", OTHER)
    monkeypatch.setenv("US_EAST_1_QSTASH_NEXT_SIGNING_KEY", NEXT)
    return monkeypatch


@pytest.mark.parametrize("header", ["US-EAST-1", "us-east-1", "US_EAST_1"])
def test_a_delivery_is_verified_with_the_keys_of_the_region_it_names(regions: Any, header: str) -> None:
    both = Receiver(clock=lambda: NOW_S)
    both.verify(signature=token(key=OTHER), body="body", upstash_region=header)
    with pytest.raises(SignatureError):
        both.verify(signature=token(key=CURRENT), body="body", upstash_region=header)


@pytest.mark.parametrize("header", [None, "", "EU-CENTRAL-1", "MARS-1"])
def test_a_region_without_keys_of_its_own_has_the_plain_ones(regions: Any, header: str | None) -> None:
    both = Receiver(clock=lambda: NOW_S)
    both.verify(signature=token(key=CURRENT), body="body", upstash_region=header)
    with pytest.raises(SignatureError):
        both.verify(signature=token(key=OTHER), body="body", upstash_region=header)


def test_without_multi_region_mode_the_header_is_ignored(regions: pytest.MonkeyPatch) -> None:
    regions.delenv("QSTASH_REGION")
    Receiver(clock=lambda: NOW_S).verify(signature=token(), body="body", upstash_region="US-EAST-1")


def test_keys_given_in_code_hold_for_every_region(regions: Any) -> None:
    Receiver(NEXT, NEXT, clock=lambda: NOW_S).verify(signature=token(key=NEXT), body="body", upstash_region="US-EAST-1")


def test_regional_keys_alone_are_enough(regions: pytest.MonkeyPatch) -> None:
    regions.delenv("QSTASH_CURRENT_SIGNING_KEY")
    regions.delenv("QSTASH_NEXT_SIGNING_KEY")
    only = Receiver(clock=lambda: NOW_S)
    only.verify(signature=token(key=OTHER), body="body", upstash_region="US-EAST-1")
    with pytest.raises(SignatureError) as caught:
        only.verify(signature=token(key=OTHER), body="body")
    assert caught.value.reason == "keys_missing"
