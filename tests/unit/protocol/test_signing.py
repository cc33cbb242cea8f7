"""Tokens of deliveries: what we make verifies everywhere, and nothing else verifies here (catalogue J1 to J9)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
import qstash
from hypothesis import given, settings
from hypothesis import strategies as st

from qtasks.errors import ConfigurationError, SignatureError
from qtasks.protocol import signing
from qtasks.protocol.messages import SigningKeys
from qtasks.protocol.signing import Claims, Reason

CURRENT = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r"
NEXT = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
OTHER = "sig_7GVPjvuwsfqF65iC8fSrs1dfYruM"
KEYS = SigningKeys(CURRENT, NEXT)
URL = "http://localhost:3000/api/task?x=1"
BODY = b'{"hello":"world"}'
NOW = 1_700_000_000
VECTOR = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiIiLCJib2R5IjoiazZJNWNha1U1ZXJMOEtqU1VWVE5vd25Ed2NjdnU"
    "1a1UxSHhnODh0b0ZZZz0iLCJleHAiOjE3MDAwMDAzMDAsImlhdCI6MTcwMDAwMDAwMCwiaXNzIjoiVXBzdGFzaCIsImp0aSI6Imp"
    "3dF82N2t4WEQ2VUJBazdEcVU2aHp1SE1EZFhGWGZQIiwibmJmIjoxNzAwMDAwMDAwLCJzdWIiOiJodHRwOi8vbG9jYWxob3N0OjM"
    "wMDAvYXBpL3Rhc2s_eD0xIn0.SEB1Sh72U-i8A646iBwkfC18_-gMFaTYVhVl0dDnmVg"
)
HASH = "k6I5cakU5erL8KjSUVTNownDwccvu5kU1Hxg88toFYg="


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good token with `changes`; a value of ... takes the claim away."""
    good: dict[str, Any] = {
        "aud": "",
        "body": HASH,
        "exp": NOW + 300,
        "iat": NOW,
        "iss": "Upstash",
        "jti": "jwt_1",
        "nbf": 0,
        "sub": URL,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


def mint(
    payload: dict[str, Any] | str | bytes, *, header: dict[str, Any] | str | None = None, key: str = CURRENT
) -> str:
    """A validly signed token with the given claims, made without the code under test."""
    header_text = header if isinstance(header, str) else json.dumps(header or {"alg": "HS256", "typ": "JWT"})
    if not isinstance(payload, bytes):
        payload = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
    signed = f"{encode(header_text.encode())}.{encode(payload)}"
    return f"{signed}.{encode(hmac.digest(key.encode(), signed.encode(), hashlib.sha256))}"


def verify(token: str, **changes: Any) -> Claims:
    return signing.verify(token, **{"body": BODY, "url": URL, "keys": KEYS, "now_s": NOW, **changes})


def refusal(token: str, **changes: Any) -> SignatureError:
    with pytest.raises(SignatureError) as caught:
        verify(token, **changes)
    return caught.value


def sign(**changes: Any) -> str:
    return signing.sign(**{"key": CURRENT, "url": URL, "body": BODY, "now_s": NOW, "jti": "jwt_1", **changes})


# What we sign


def test_the_published_vector_verifies() -> None:
    assert verify(VECTOR) == Claims(
        URL, NOW, NOW + 300, "jwt_67kxXD6UBAk7DqU6hzuHMDdXFXfP", HASH.rstrip("="), "current"
    )


def test_a_token_has_the_protocol_claims_in_alphabetical_order_and_no_others() -> None:
    header, payload, _ = sign().split(".")
    assert header == VECTOR.split(".")[0]
    assert list(json.loads(base64.urlsafe_b64decode(payload + "==")).items()) == [
        ("aud", ""),
        ("body", HASH),
        ("exp", NOW - 5 + 300),  # 300 s after iat
        ("iat", NOW - 5),  # receivers without tolerance have a clock up to 5 s behind
        ("iss", "Upstash"),
        ("jti", "jwt_1"),
        ("nbf", 0),
        ("sub", URL),
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="),
        (b"Hello World", "pZGm1Av0IEBKARczz7exkNYsZb8LzaMrV7J32a2fFG4="),
    ],
)
def test_the_body_hash_is_padded_base64url(body: bytes, expected: str) -> None:
    assert jwt.decode(sign(body=body), options={"verify_signature": False})["body"] == expected


@pytest.mark.parametrize("body", ["", BODY.decode(), "snow ☃ and \U0001f600"])
@pytest.mark.parametrize("url", [URL, "https://example.com", "https://e.com/a%2Fb?x=%20&y"])
def test_the_official_receiver_accepts_our_tokens(url: str, body: str) -> None:
    token = sign(url=url, body=body.encode(), now_s=int(time.time()))
    qstash.Receiver(current_signing_key=CURRENT, next_signing_key=NEXT).verify(signature=token, body=body, url=url)


@given(
    url=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200),
    body=st.binary(max_size=200),
)
def test_what_we_sign_we_verify_and_pyjwt_agrees(url: str, body: bytes) -> None:
    token = sign(url=url, body=body)
    assert verify(token, url=url, body=body).url == url
    options: Any = {"verify_exp": False, "verify_iat": False}
    assert jwt.decode(token, CURRENT, algorithms=["HS256"], issuer="Upstash", options=options)["sub"] == url


def test_the_longest_url_fits_into_a_token() -> None:
    url = "https://example.com/" + "x" * 4076
    assert verify(sign(url=url), url=url).url == url


# Keys


def test_either_key_is_accepted_and_named() -> None:
    assert verify(sign()).key == "current"
    assert verify(sign(key=NEXT)).key == "next"
    assert verify(sign(key=NEXT), keys=SigningKeys(NEXT, OTHER)).key == "current"


def test_a_foreign_key_is_refused() -> None:
    error = refusal(sign(key=OTHER))
    assert (error.reason, error.code) == (Reason.KEY, "QT203")


def test_a_good_signature_never_fails_for_its_key() -> None:
    """The official receiver reports the second key's failure and hides that the token has expired."""
    assert refusal(sign(), now_s=NOW + 3600).reason == Reason.EXPIRED
    assert refusal(sign(key=NEXT), now_s=NOW + 3600).reason == Reason.EXPIRED


@pytest.mark.parametrize("token", ["", "x", VECTOR])
def test_without_keys_nothing_is_trusted(token: str) -> None:
    error = refusal(token, keys=SigningKeys("", ""))
    assert (error.reason, error.code) == (Reason.KEYS_MISSING, "QT208")


def test_one_missing_key_does_not_open_the_door() -> None:
    """HMAC takes an empty key: it must never be tried."""
    forged = mint(claims(), key="")
    assert refusal(forged, keys=SigningKeys(CURRENT, "")).reason == Reason.KEY
    assert refusal(forged, keys=SigningKeys("", NEXT)).reason == Reason.KEY


def test_keys_are_not_shown() -> None:
    assert "sig_" not in repr(KEYS)
    assert CURRENT not in str(refusal(sign(key=OTHER)))


@pytest.mark.parametrize(
    ("current", "following", "dev", "words"),
    [
        ("", NEXT, True, "QSTASH_CURRENT_SIGNING_KEY is not set"),
        (CURRENT, "", True, "QSTASH_NEXT_SIGNING_KEY is not set"),
        ("x", NEXT, True, "1 characters"),
        (CURRENT, NEXT, False, "published development key"),
        ("-----BEGIN PUBLIC KEY-----" * 2, NEXT, True, "not a signing key"),
        ('{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAA"}', NEXT, True, "not a signing key"),
        ("é" * 32, NEXT, True, "not a signing key"),
    ],
)
def test_j3_bad_keys_are_refused_at_start(current: str, following: str, dev: bool, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        signing.check_keys(SigningKeys(current, following), dev=dev)


@pytest.mark.parametrize(
    "public",
    [
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "\n-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "ssh-rsa AAAA of@everyone",
        "ecdsa-sha2-nistp256 AAAA of@everyone",
    ],
)
def test_what_is_signed_with_a_public_key_is_trusted_by_no_receiver(public: str) -> None:
    token = mint(claims(), key=public)
    for keys in (SigningKeys(public, NEXT), SigningKeys(CURRENT, public)):
        error = refusal(token, keys=keys)
        assert error.reason == Reason.KEYS_MISSING
        assert public not in str(error)


def test_good_keys_pass_and_development_keys_pass_in_development() -> None:
    signing.check_keys(SigningKeys("sig_" + "a" * 28, "sig_" + "b" * 28))
    signing.check_keys(KEYS, dev=True)


# The catalogue


@pytest.mark.parametrize(
    "alg", ["none", "None", "nOnE", "NONE", "HS384", "HS512", "RS256", "hs256", ["HS256"], None, ...]
)
def test_j1_only_hs256_is_accepted_even_with_a_good_signature(alg: object) -> None:
    header = {"typ": "JWT"} if alg is ... else {"alg": alg, "typ": "JWT"}
    assert refusal(mint(claims(), header=header)).reason == Reason.MALFORMED


@pytest.mark.parametrize("signature", ["", "AAAA", "A" * 43])
def test_j1_unsigned_tokens_are_refused(signature: str) -> None:
    head = encode(b'{"alg":"none","typ":"JWT"}')
    assert refusal(f"{head}.{encode(json.dumps(claims()).encode())}.{signature}").reason in {
        Reason.MALFORMED,
        Reason.KEY,
    }


def test_j1_a_duplicate_alg_is_refused() -> None:
    assert refusal(mint(claims(), header='{"alg":"none","alg":"HS256","typ":"JWT"}')).reason == Reason.MALFORMED


@pytest.mark.parametrize(
    "extra",
    [{"crit": ["b64"], "b64": False}, {"b64": False}, {"b64": True}, {"crit": []}, {"typ": "at+jwt"}, {"typ": None}],
)
def test_j2_headers_that_change_the_meaning_are_refused(extra: dict[str, Any]) -> None:
    assert refusal(mint(claims(), header={"alg": "HS256", "typ": "JWT", **extra})).reason == Reason.MALFORMED


@pytest.mark.parametrize("name", ["kid", "jku", "jwk", "x5u", "x5c", "cty"])
def test_j2_other_headers_mean_nothing(name: str) -> None:
    assert verify(mint(claims(), header={"alg": "HS256", name: "../../dev/null"})).url == URL


@pytest.mark.parametrize("issuer", [..., "Upst", "upstash", "Upstash ", ["Upstash"], None, 1])
def test_j4_another_issuer_is_refused(issuer: object) -> None:
    assert refusal(mint(claims(iss=issuer))).reason == Reason.ISSUER


@pytest.mark.parametrize(
    "other",
    [
        URL + "/",
        "http://localhost:3000/api/task",
        "http://localhost:3000/api/task?x=2",
        "http://localhost:3000/api/tas?x=1",
        "http://localhost:3001/api/task?x=1",
        "https://localhost:3000/api/task?x=1",
        "http://LOCALHOST:3000/api/task?x=1",
    ],
)
def test_j4_another_url_is_refused(other: str) -> None:
    assert refusal(sign(url=other)).reason == Reason.URL


@pytest.mark.parametrize("value", [1, None, [], "", ...])
@pytest.mark.parametrize("name", ["sub", "jti", "body"])
def test_j4_j6_texts_must_be_texts(name: str, value: object) -> None:
    assert refusal(mint(claims(**{name: value})), url=None).reason == Reason.MALFORMED


@pytest.mark.parametrize("value", [..., None, "1700000300", True, 1700000300.0, 1700000300.5, -1, [], {}])
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
def test_j5_times_must_be_whole_seconds(name: str, value: object) -> None:
    assert refusal(mint(claims(**{name: value}))).reason == Reason.MALFORMED


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1" + "0" * 400, "1e400", "9007199254740993"])
def test_j5_numbers_outside_json_are_refused(text: str) -> None:
    payload = json.dumps(claims(exp="@")).replace('"@"', text)
    assert refusal(mint(payload)).reason == Reason.MALFORMED


@pytest.mark.parametrize("name", ["exp", "nbf", "iat", "sub", "body", "iss"])
def test_j5_duplicate_claims_are_refused(name: str) -> None:
    payload = json.dumps(claims())[:-1] + f", {json.dumps(name)}: {json.dumps(claims()[name])}}}"
    assert refusal(mint(payload)).reason == Reason.MALFORMED


@pytest.mark.parametrize(
    ("changes", "now_s", "tolerance_s", "expected"),
    [
        ({}, NOW + 299, 0, None),
        ({}, NOW + 300, 0, Reason.EXPIRED),
        ({}, NOW + 329, 30, None),
        ({}, NOW + 330, 30, Reason.EXPIRED),
        ({}, NOW - 30, 30, None),
        ({}, NOW - 31, 30, Reason.NOT_YET_VALID),
        ({}, NOW - 0.5, 0, Reason.NOT_YET_VALID),
        ({"nbf": NOW + 31}, NOW, 30, Reason.NOT_YET_VALID),
        ({"nbf": NOW + 30}, NOW, 30, None),
        ({"exp": 0}, NOW, 30, Reason.EXPIRED),
        ({"exp": NOW + 900}, NOW, 30, None),
        ({"exp": NOW + 901}, NOW, 30, Reason.MALFORMED),
        ({"exp": NOW + 7200}, NOW, 30, Reason.MALFORMED),
    ],
)
def test_j5_a_token_lives_between_its_times(
    changes: dict[str, Any], now_s: float, tolerance_s: float, expected: Reason | None
) -> None:
    token = mint(claims(**changes))
    if expected is None:
        assert verify(token, now_s=now_s, tolerance_s=tolerance_s).url == URL
    else:
        assert refusal(token, now_s=now_s, tolerance_s=tolerance_s).reason == expected


@pytest.mark.parametrize("audience", ["someone", [], None, 0])
def test_a_token_for_an_audience_is_refused(audience: object) -> None:
    assert refusal(mint(claims(aud=audience))).reason == Reason.MALFORMED


def test_a_token_without_audience_is_accepted() -> None:
    assert verify(mint(claims(aud=...))).url == URL


def test_j6_the_hash_may_be_padded_or_not() -> None:
    assert verify(mint(claims(body=HASH))).body_hash == verify(mint(claims(body=HASH.rstrip("=")))).body_hash


@pytest.mark.parametrize(
    "text", [HASH + "=", "A" * 43, HASH[:-2] + "h=", HASH.replace("k", "é"), HASH + "\n", "x" * 5000]
)
def test_j6_a_wrong_hash_is_refused(text: str) -> None:
    assert refusal(mint(claims(body=text))).reason in {Reason.BODY, Reason.MALFORMED}


@pytest.mark.parametrize(
    "payload", ["[]", '"x"', "null", "", "{", "[" * 3000, b"\xff\xfe", b"\xef\xbb\xbf{}", '{"iss":"\\ud800"}', "{}" * 2]
)
def test_j7_a_payload_that_is_no_object_is_refused(payload: str | bytes) -> None:
    assert refusal(mint(payload)).reason in {Reason.MALFORMED, Reason.ISSUER}


def test_j7_a_huge_token_is_refused_before_any_work() -> None:
    assert refusal("A" * 1_000_000).reason == Reason.MALFORMED
    assert refusal(VECTOR + "A" * 8192).reason == Reason.MALFORMED


def test_j8_a_token_has_one_spelling() -> None:
    head, payload, signature = VECTOR.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    flipped = last[last.index(signature[-1]) ^ 1]  # the two lowest bits of the last character carry nothing
    other = [
        f"{head}.{payload}.{signature[:-1]}{flipped}",
        *(VECTOR + end for end in ("=", "==", "\n", " ", ".", ".AAAA", "\x00", "A")),
        *(start + VECTOR for start in (" ", "\n", ".")),
        f"{head}=.{payload}.{signature}",
        f"{head}.{payload}=.{signature}",
        f"{head}.{payload}.{signature.replace('-', '+').replace('_', '/')}",
        f"{head}..{signature}",
        f"{payload}.{signature}",
        json.dumps({"payload": payload, "protected": head, "signature": signature}),
        VECTOR.replace("e", "е"),  # a Cyrillic letter
    ]
    for token in other:
        assert refusal(token).reason == Reason.MALFORMED, token


def test_j8_a_signed_part_with_stray_bits_is_refused() -> None:
    """A signature over a sloppy spelling is good; the spelling still is not."""
    payload = encode(json.dumps(claims(sub=URL + "&padding=1")).encode() + b" ")
    assert len(payload) % 4
    sloppy = payload[:-1] + chr(ord(payload[-1]) + 1)
    signed = f"{VECTOR.split('.', maxsplit=1)[0]}.{sloppy}"
    token = f"{signed}.{encode(hmac.digest(CURRENT.encode(), signed.encode(), hashlib.sha256))}"
    assert refusal(token, url=None).reason == Reason.MALFORMED


@pytest.mark.parametrize("body", [b"", BODY + b" ", b'{"hello": "world"}', b"\xff", b"\x1f\x8b\x08"])
def test_j9_another_body_is_refused(body: bytes) -> None:
    error = refusal(sign(), body=body)
    assert (error.reason, error.code) == (Reason.BODY, "QT202")


@settings(max_examples=300)
@given(data=st.data())
def test_any_mutation_of_a_valid_token_is_refused(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(VECTOR) - 1))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete", "cut"]))
    character = data.draw(st.characters())
    token = {
        "replace": VECTOR[:position] + character + VECTOR[position + 1 :],
        "insert": VECTOR[:position] + character + VECTOR[position:],
        "delete": VECTOR[:position] + VECTOR[position + 1 :],
        "cut": VECTOR[:position],
    }[kind]
    if token != VECTOR:
        assert refusal(token).reason in set(Reason)


@given(st.text(max_size=300))
def test_any_text_is_refused_without_another_exception(token: str) -> None:
    assert refusal(token).reason in {Reason.MALFORMED, Reason.KEY}


@given(
    st.dictionaries(
        st.sampled_from(sorted(claims())), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_any_signed_claims_are_judged_without_another_exception(changes: dict[str, Any]) -> None:
    with contextlib.suppress(SignatureError):
        verify(mint(claims(**changes)))


# What a refusal says


def test_a_wrong_url_shows_both_and_names_the_difference() -> None:
    error = refusal(sign(url="https://api.example.com/qtasks"), url="http://api.example.com/qtasks")
    assert str(error).splitlines() == [
        "signature rejected: the signed URL does not match this server's URL",
        "  signed for  https://api.example.com/qtasks",
        "  received    http://api.example.com/qtasks   (scheme differs)",
        "  likely      TLS ends at a proxy, a prefix is added or removed on the way, or the public URL is set wrongly",
        "  fix         set QTASKS_BASE_URL so that it begins https://api.example.com",
    ]


@pytest.mark.parametrize(
    ("signed", "received", "difference"),
    [
        ("http://a/x", "http://b/x", "host differs"),
        ("http://a:1/x", "http://a/x", "host differs"),
        ("http://a/x", "http://a/y", "path differs"),
        ("http://a/x/", "http://a/x", "trailing slash differs"),
        ("http://a/x?p=1", "http://a/x?p=2", "query differs"),
        ("x", "http://a/x?p=2", "differs"),
    ],
)
def test_the_difference_of_two_urls_is_named(signed: str, received: str, difference: str) -> None:
    assert difference in str(refusal(sign(url=signed), url=received))


def test_urls_in_refusals_keep_their_secrets() -> None:
    text = str(
        refusal(sign(url="https://user:hunter2@a.example/x?token=s3cret\x1b"), url="https://a.example/x?token=s3cret")
    )
    assert "hunter2" not in text
    assert "s3cret" not in text
    assert "\x1b" not in text


def test_the_eight_reasons_have_eight_codes() -> None:
    assert [reason.code for reason in Reason] == [f"QT20{number}" for number in range(1, 9)]


def test_a_missing_header_is_said_to_be_missing() -> None:
    error = refusal("")
    assert (error.reason, error.code) == (Reason.MALFORMED, "QT207")
    assert "the Upstash-Signature header is missing" in str(error)


@pytest.mark.parametrize(("now_s", "words"), [(NOW + 360, "expired 65 s ago"), (NOW - 100, "valid only in 95 s")])
def test_clock_trouble_is_told_in_seconds(now_s: float, words: str) -> None:
    assert words in str(refusal(sign(), now_s=now_s))
