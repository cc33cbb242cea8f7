from __future__ import annotations

import ast
import math
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qtasks
from qtasks.protocol import expressions

DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("text", "delays"),
    [
        ("1000", [1000, 1000, 1000]),
        ("1000 * (1 + retried)", [1000, 2000, 3000]),
        ("pow(2, retried) * 1000", [1000, 2000, 4000]),
        ("max(1000, pow(2, retried) * 100)", [1000, 1000, 1000]),
        ("7000 * retried", [0, 7000, 14000]),
        ("pow(retried, 2) * 1000", [0, 1000, 4000]),
        ("2 + 3 * 4 - 5", [9, 9, 9]),
        ("20 - 5 - 5", [10, 10, 10]),
        ("80 / 4 / 2", [10, 10, 10]),
        ("-(-5)", [5, 5, 5]),
        ("+-+-7", [7, 7, 7]),
        (".5 + 1.", [2, 2, 2]),
        ("2.5", [3, 3, 3]),
        ("round(2.5) * 100 + round(-1.5) * 10", [280, 280, 280]),
        ("floor(1.9) + ceil(1.1) + abs(-3) + sqrt(16) + exp(0)", [11, 11, 11]),
        ("min(5, retried)", [0, 1, 2]),
        ("\t1000\t", [1000, 1000, 1000]),
    ],
)
def test_delays_follow_the_expression(text: str, delays: list[int]) -> None:
    expression = expressions.parse(text)
    assert [expression.delay_ms(retried) for retried in range(3)] == delays
    assert expression.text == text


@pytest.mark.parametrize(
    ("text", "retried", "ms"),
    [
        ("-1000", 0, 0),
        ("1000 - 600 * retried", 2, 0),
        ("86400000", 0, DAY_MS),
        ("86400001", 0, DAY_MS),
        ("exp(200 * retried)", 10, DAY_MS),  # infinite: wait a day
        ("0 - exp(200 * retried)", 10, 0),
        ("1000 / (2 - retried)", 2, DAY_MS),
        ("sqrt(1 - retried)", 2, 0),  # not a number
        ("floor(exp(200 * retried))", 10, DAY_MS),
    ],
)
def test_results_are_kept_between_now_and_a_day(text: str, retried: int, ms: int) -> None:
    assert expressions.parse(text).delay_ms(retried) == ms


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ends where a number is expected"),
        ("   ", "ends where a number is expected"),
        ("1 +", "ends where a number is expected"),
        ('__import__("os")', "unexpected"),
        ("foo(1)", "unknown name 'foo'"),
        ("Pow(1,2)", "unknown name 'Pow'"),
        ("pow(1)", "pow takes 2 arguments, not 1"),
        ("exp(1, 2)", "exp takes 1 argument, not 2"),
        ("min(1,2,3)", "min takes 2 arguments, not 3"),
        ("pow", "'\\(' expected, but the expression ends"),
        ("pow 1", "'\\(' expected, but '1'"),
        ("(1", "'\\)' expected"),
        ("1)", "unexpected '\\)'"),
        ("1 1", "unexpected '1'"),
        ("retried(1)", "unexpected '\\('"),
        ("retried.__class__", "unexpected '.'"),
        ("1e3", "unexpected 'e'"),
        ("1..2", "unexpected"),
        ("2 ** 3", "unexpected '\\*'"),
        ("5 % 2", "unexpected '%'"),
        ("2 ^ 2", "unexpected '\\^'"),
        ("١", "unexpected"),
        ("1\n", "unexpected"),
        ("1/0", "not a finite number when retried is 0"),
        ("0/0", "not a finite number when retried is 0"),
        ("1/(1-retried)", "not a finite number when retried is 1"),
        ("pow(-1,0.5)", "not a finite number"),
        ("pow(10,pow(10,10))", "not a finite number"),
        ("exp(exp(exp(9)))", "not a finite number"),
        ("9" * 257, "257 characters, more than 256"),
        ("(" * 17 + "1" + ")" * 17, "nested deeper than 16"),
        ("-" * 17 + "1", "nested deeper than 16"),
        ("(" * 10_000, "10000 characters"),
        ("+".join("1" * 33), "more than 64"),
    ],
)
def test_what_cannot_be_a_delay_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        expressions.parse(text)


def test_the_limits_themselves_are_allowed() -> None:
    assert expressions.parse("+".join("1" * 32)).delay_ms(0) == 32
    assert expressions.parse("(" * 15 + "7" + ")" * 15).delay_ms(0) == 7
    assert expressions.parse("1".rjust(256)).delay_ms(0) == 1


numbers = st.integers(0, 10**6).map(str) | st.decimals(0, 1000, places=2).map(str)
trees = st.recursive(
    numbers | st.just("retried"),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | inner.map(lambda t: f"(-{t})")
        | st.tuples(st.sampled_from(["sqrt", "abs", "floor", "ceil"]), inner).map(lambda t: f"{t[0]}({t[1]})")
        | st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]},{t[2]})")
    ),
    max_leaves=8,
)


def oracle(node: ast.expr, retried: int) -> float:
    """The same text as Python's own parser reads it."""
    operators: dict[type[Any], Any] = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
    }
    functions: dict[str, Any] = {
        "sqrt": math.sqrt,
        "abs": abs,
        "floor": math.floor,
        "ceil": math.ceil,
        "min": min,
        "max": max,
    }
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name("retried"):
            return float(retried)
        case ast.UnaryOp(ast.USub(), inner):
            return -oracle(inner, retried)
        case ast.BinOp(left, sign, right):
            return float(operators[type(sign)](oracle(left, retried), oracle(right, retried)))
        case ast.Call(ast.Name(name), arguments):
            return float(functions[name](*(oracle(argument, retried) for argument in arguments)))
    raise AssertionError(ast.dump(node))


@given(trees, st.integers(0, 5))
def test_python_reads_the_same_numbers(text: str, retried: int) -> None:
    try:
        expression = expressions.parse(text)
    except ValueError:
        return
    try:
        expected = oracle(ast.parse(text, mode="eval").body, retried)
    except (ZeroDivisionError, ValueError, OverflowError):
        return
    assert expression.delay_ms(retried) == math.floor(min(max(expected, 0), DAY_MS) + 0.5)


@given(st.text() | st.text("0123456789.+-*/(), retidpowxs", max_size=60), st.integers(0, 999))
def test_any_text_is_an_expression_or_refused(text: str, retried: int) -> None:
    try:
        expression = expressions.parse(text)
    except ValueError:
        return
    assert 0 <= expression.delay_ms(retried) <= DAY_MS


def test_no_code_of_ours_evaluates_text() -> None:
    package = Path(qtasks.__path__[0])
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, f"{path}:{node.lineno}"
