"""The drop-in receiver accepts and refuses what the official one does, over mutations of a good token (4.2)."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any, Final

import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qstash import Receiver as OfficialReceiver

from qtasks.errors import SignatureError
from qtasks.protocol import signing
from qtasks.protocol.messages import SigningKeys
from qtasks.qstash import Receiver

CURRENT, NEXT, OTHER = ("sig_" + letter * 28 for letter in "cno")
URL = "https://app.example/hook?x=1"
BODY = '{"hello":"wörld"}'
HASH = base64.urlsafe_b64encode(hashlib.sha256(BODY.encode()).digest()).decode()
ABSENT: Final = "<absent>"


def times(*offsets: int) -> list[Any]:
    """Times at these distances from now, as numbers and as texts, and what is none."""
    now_s = int(time.time())
    given = [form(now_s + offset) for offset in offsets for form in (int, float, lambda second: second + 0.9, str)]
    return [*given, ABSENT, None, "soon", "", [], {}, True, False, 0, -1, 1e300, "9" * 400, "1_0"]


ODD: Final[dict[str, list[Any]]] = {
    "aud": [ABSENT, None, [], "me", ["me"], 0, {"a": 1}],
    "body": [HASH.rstrip("="), HASH + "==", ABSENT, None, "", "é", 5, [HASH], HASH.lower()],
    "exp": times(-60, 60, 86_400),
    "iat": times(-86_400, -5, 60),
    "iss": [ABSENT, None, "", "upstash", "Other", ["Upstash"], 1],
    "jti": [ABSENT, ""],
    "nbf": times(-60, 60),
    "sub": [ABSENT, None, "", URL + "/", 7, [URL]],
    "more": ["", None, {"a": [1]}],
}
"""By claim, what may stand in the place of the good value."""
changes_of_claims = st.lists(
    st.one_of([st.tuples(st.just(name), st.sampled_from(values)) for name, values in ODD.items()]), max_size=2
).map(dict)
headers_of_tokens = st.fixed_dictionaries(
    {},
    optional={
        "typ": st.sampled_from(["JWT", "jwt", "JWS", None, 3]),
        "kid": st.just("k"),
        "x": st.integers(-(2**53), 2**53),
    },
)


def minted(claims: dict[str, Any], key: str = CURRENT, headers: dict[str, Any] | None = None) -> str:
    present = {name: value for name, value in claims.items() if value is not ABSENT}
    return jwt.api_jws.encode(jwt.PyJWT()._encode_payload(present), key, "HS256", headers)


def good(**changes: Any) -> dict[str, Any]:
    now_s = int(time.time())
    usual = {"aud": "", "body": HASH, "exp": now_s + 300, "iat": now_s - 5, "iss": "Upstash", "jti": "j", "nbf": 0}
    return {**usual, "sub": URL, **changes}


def accepts(receiver: Any, **delivery: Any) -> bool:
    # The official one also lets KeyError and AttributeError out, for a claim that is no text.
    refusals = SignatureError if receiver is OURS else Exception
    try:
        receiver.verify(**delivery)
    except refusals:
        return False
    return True


OURS, OFFICIAL = Receiver(CURRENT, NEXT), OfficialReceiver(CURRENT, NEXT)


@settings(max_examples=250)
@given(
    changes=changes_of_claims,
    headers=headers_of_tokens,
    key=st.sampled_from([CURRENT, CURRENT, NEXT, OTHER]),
    body=st.sampled_from([BODY, BODY, BODY, ""]),
    url=st.sampled_from([None, URL, "https://app.example/hook"]),
)
@example({"jti": ABSENT, "iat": ABSENT}, {}, NEXT, BODY, None)
@example({"exp": 2**40}, {"typ": "at+jwt"}, CURRENT, BODY, URL)
def test_both_accept_or_both_refuse(
    changes: dict[str, Any], headers: dict[str, Any], key: str, body: str, url: str | None
) -> None:
    delivery = {"signature": minted(good(**changes), key, headers), "body": body, "url": url}
    assert accepts(OURS, **delivery) == accepts(OFFICIAL, **delivery)


@pytest.mark.parametrize("name", list(ODD))
def test_both_agree_about_every_odd_value_of_every_claim(name: str) -> None:
    for value in ODD[name]:
        delivery = {"signature": minted(good(**{name: value})), "body": BODY, "url": URL}
        assert accepts(OURS, **delivery) == accepts(OFFICIAL, **delivery), value


@given(st.text(max_size=40) | st.text("ab.-_=", max_size=30))
def test_a_text_that_is_no_token_is_refused_by_both(text: str) -> None:
    delivery = {"signature": text, "body": BODY}
    assert accepts(OURS, **delivery) == accepts(OFFICIAL, **delivery) == False  # noqa: E712


@pytest.mark.parametrize("jti", [7, 1.5, True, None, ["a"]])
def test_exception_a_jti_that_is_no_text_is_accepted_as_older_official_receivers_do(jti: object) -> None:
    assert accepts(OURS, signature=minted(good(jti=jti)), body=BODY, url=URL)


def test_exception_the_tolerance_works_here() -> None:
    late = minted(good(exp=int(time.time()) - 10))
    assert accepts(OURS, signature=late, body=BODY, clock_tolerance=60)
    assert not accepts(OFFICIAL, signature=late, body=BODY, clock_tolerance=60)


@pytest.mark.parametrize("claims", [{"exp": 2**60}, {"more": "\x00"}])
def test_exception_the_json_is_read_strictly_here(claims: dict[str, Any]) -> None:
    token = minted(good(**claims))
    assert accepts(OFFICIAL, signature=token, body=BODY)
    assert not accepts(OURS, signature=token, body=BODY)


@pytest.mark.parametrize("claims", [{"jti": ABSENT}, {"jti": 7}, {"iat": ABSENT}, {"exp": 2**40}, {"exp": "300"}])
def test_the_dispatchers_check_stays_strict(claims: dict[str, Any]) -> None:
    with pytest.raises(SignatureError):
        signing.verify(
            minted(good(**claims)),
            body=BODY.encode(),
            url=URL,
            keys=SigningKeys(CURRENT, NEXT),
            now_s=time.time(),
        )
