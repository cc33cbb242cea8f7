"""The retry-delay expression: ``pow(2, retried) * 1000`` is 1 s, 2 s, 4 s ... (docs/protocol.md 3.4).

    expr    := term (("+" | "-") term)*
    term    := factor (("*" | "/") factor)*
    factor  := ("+" | "-") factor | primary
    primary := NUMBER | "retried" | NAME "(" expr ("," expr)* ")" | "(" expr ")"

A hand-written parser makes a small tree of functions over floats. Length, depth and number of nodes are bounded, and
the text has no access to the host language.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

MAX_LENGTH = 256
MAX_NODES = 64
MAX_DEPTH = 16
"""Brackets, calls and signs inside each other."""

MAX_DELAY_MS = 86_400_000
"""One day: the cap of every retry delay (docs/compatibility.md A14)."""

_BLANKS = " \t"
_TOKEN = re.compile(r"[ \t]*(?:(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(?P<name>[A-Za-z_]+)|(?P<mark>[-+*/(),]))")

_Node = Callable[[float], float]
"""A part of the tree: from `retried` to a number."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression; `text` is what the caller wrote."""

    text: str
    _value: _Node = field(repr=False, compare=False)

    def delay_ms(self, retried: int) -> int:
        """Milliseconds to wait after `retried` retries (0 before the first): 0 to one day, halves away from zero.

        `parse` has checked only the first two retries. For a later one, an infinite result means one day, and NaN
        means no wait.
        """
        value = self._value(float(retried))
        if math.isnan(value) or value <= 0:
            return 0
        return MAX_DELAY_MS if value >= MAX_DELAY_MS else int(value + 0.5)


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Read an expression and try it for the first two retries.

    Raises ValueError, one sentence, for bad syntax, unknown names, wrong numbers of arguments, more than 256
    characters, 64 numbers and operations or 16 levels, and for a first or second delay that is not a finite number.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(text)} characters, more than {MAX_LENGTH}")
    value = _Parser(text).whole()
    for retried in (0, 1):
        if not math.isfinite(value(float(retried))):
            raise ValueError(f"the expression is not a finite number when retried is {retried}")
    return Expression(text, value)


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._position = 0
        self._nodes = 0
        self._depth = 0

    def whole(self) -> _Node:
        value = self._expr()
        if (extra := self._peek()) is not None:
            raise ValueError(f"unexpected {extra!r} in the expression")
        return value

    def _peek(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self, *tokens: str) -> str | None:
        """The next token if it is one of `tokens`; None, and nothing is taken, for any other."""
        token = self._peek()
        if token is None or token not in tokens:
            return None
        self._position += 1
        return token

    def _expect(self, expected: str) -> None:
        if not self._take(expected):
            token = self._peek()
            raise ValueError(f"{expected!r} expected, but {'the expression ends' if token is None else repr(token)}")

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ValueError(f"the expression has more than {MAX_NODES} numbers and operations")

    def _expr(self) -> _Node:
        left = self._term()
        while mark := self._take("+", "-"):
            left = self._binary(_OPERATORS[mark], left, self._term())
        return left

    def _term(self) -> _Node:
        left = self._factor()
        while mark := self._take("*", "/"):
            left = self._binary(_OPERATORS[mark], left, self._factor())
        return left

    def _binary(self, apply: Callable[[float, float], float], left: _Node, right: _Node) -> _Node:
        self._count()
        return lambda retried: apply(left(retried), right(retried))

    def _factor(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"the expression is nested deeper than {MAX_DEPTH} levels")
        if sign := self._take("+", "-"):
            self._count()
            inner = self._factor()
            node: _Node = inner if sign == "+" else lambda retried: -inner(retried)
        else:
            node = self._primary()
        self._depth -= 1
        return node

    def _primary(self) -> _Node:
        self._count()
        if self._take("("):
            inner = self._expr()
            self._expect(")")
            return inner
        token = self._peek()
        if token is None:
            raise ValueError("the expression ends where a number is expected")
        self._position += 1
        if token[0] in "0123456789.":
            number = float(token)
            return lambda _: number
        if token == "retried":  # noqa: S105 - a word of the grammar
            return lambda retried: retried
        if token.isalpha():
            return self._call(token)
        raise ValueError(f"unexpected {token!r} in the expression")

    def _call(self, name: str) -> _Node:
        if name not in _FUNCTIONS:
            names = ", ".join(_FUNCTIONS)
            raise ValueError(f"unknown name {name!r} in the expression; known are retried, {names}")
        arity, apply = _FUNCTIONS[name]
        self._expect("(")
        arguments = [self._expr()]
        while self._take(","):
            arguments.append(self._expr())
        self._expect(")")
        if len(arguments) != arity:
            raise ValueError(f"{name} takes {arity} argument{'s' * (arity > 1)}, not {len(arguments)}")
        return lambda retried: apply(*(argument(retried) for argument in arguments))


def _tokens(text: str) -> list[str]:
    tokens = []
    position, end = 0, len(text.rstrip(_BLANKS))
    while position < end:
        if (match := _TOKEN.match(text, position)) is None:
            raise ValueError(f"unexpected {text[position:].lstrip(_BLANKS)[0]!r} in the expression")
        tokens.append(match["number"] or match["name"] or match["mark"])
        position = match.end()
    return tokens


def _divide(left: float, right: float) -> float:
    if right == 0:
        return math.nan if left == 0 or math.isnan(left) else math.copysign(math.inf, left)
    return left / right


def _total(apply: Callable[..., float]) -> Callable[..., float]:
    """`apply` by the rules of IEEE arithmetic: too large is infinite, undefined is NaN, and it never raises."""

    def total(*arguments: float) -> float:
        try:
            return apply(*arguments)
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    return total


def _whole(apply: Callable[[float], float]) -> Callable[[float], float]:
    """A rounding `apply` that leaves infinity and NaN alone."""
    return lambda value: float(apply(value)) if math.isfinite(value) else value


def _round_half_away(value: float) -> float:
    return math.copysign(math.floor(abs(value) + 0.5), value)


_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
}
_FUNCTIONS: dict[str, tuple[int, Callable[..., float]]] = {
    "pow": (2, _total(math.pow)),
    "exp": (1, _total(math.exp)),
    "sqrt": (1, _total(math.sqrt)),
    "abs": (1, abs),
    "floor": (1, _whole(math.floor)),
    "ceil": (1, _whole(math.ceil)),
    "round": (1, _whole(_round_half_away)),
    "min": (2, min),
    "max": (2, max),
}
