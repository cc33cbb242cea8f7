"""Identifiers in the formats of the wire (docs/protocol.md 1.6), made from the random source."""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Final

from qtasks.protocol.messages import SigningKeys
from qtasks.protocol.stringify import stringify
from qtasks.randomness import Random

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_LETTERS: Final = bytes(ord(_ALPHABET[byte % 58]) for byte in range(256))
_LETTERS_OF_MESSAGE: Final = 22
_PAIRS: Final = tuple(first + second for first in _ALPHABET for second in _ALPHABET)


def base58(data: bytes, width: int) -> str:
    """`data` as base58, most significant digit first, padded to at least `width` characters."""
    number = int.from_bytes(data)
    pairs: list[str] = []
    while number:  # two digits per division: half as many divisions of a long number
        number, pair = divmod(number, 3364)
        pairs.append(_PAIRS[pair])
    return "".join(reversed(pairs)).rjust(width, "1")


def letters(data: bytes) -> str:
    """One base58 letter per byte, at a tenth of the cost of `base58`. Each letter carries more than 5.8 bits."""
    return data.translate(_LETTERS).decode("ascii")


def message_id(random: Random, now_ms: int) -> str:
    """``msg_``, the time (so that new ids are neighbours in the index), and 22 random letters: over 128 bits."""
    return _time_part(now_ms) + letters(random.token(_LETTERS_OF_MESSAGE))


def message_ids(random: Random, now_ms: int, count: int) -> list[str]:
    """As many message ids, of randomness that is read at once."""
    time_part, text = _time_part(now_ms), letters(random.token(_LETTERS_OF_MESSAGE * count))
    return [time_part + text[at : at + _LETTERS_OF_MESSAGE] for at in range(0, len(text), _LETTERS_OF_MESSAGE)]


@lru_cache(maxsize=16)
def _time_part(now_ms: int) -> str:
    return "msg_" + base58(now_ms.to_bytes(6), 8)


def schedule_id(random: Random) -> str:
    """``scd_`` and 128 random bits."""
    return "scd_" + base58(random.token(16), 22)


def signing_key(random: Random) -> str:
    """``sig_`` and 256 random bits."""
    return "sig_" + base58(random.token(32), 44)


def jwt_id(random: Random) -> str:
    """``jwt_`` and 28 random letters, unique per request."""
    return "jwt_" + letters(random.token(28))


def token_secret(random: Random) -> str:
    """An API token with 256 random bits, in the form that SDKs and consoles of QStash decode (docs/protocol.md 1.1).

    Every token begins with the same 20 letters, by which secret scanners find leaked ones. Its parts are so long that
    it needs no padding, and no character that a query would have to encode.
    """
    user = "qtk_" + letters(random.token(12))
    return base64.b64encode(stringify({"UserID": user, "Password": base58(random.token(32), 44)})).decode("ascii")


def signing_keys(random: Random) -> SigningKeys:
    """A new pair of signing keys."""
    return SigningKeys(signing_key(random), signing_key(random))
