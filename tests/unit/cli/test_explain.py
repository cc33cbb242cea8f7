"""`qtasks explain`: every code of the table can be looked up."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from qtasks.cli import cli
from qtasks.error_codes import ErrorCode


def explain(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["explain", *arguments])


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_is_explained_by_its_cause_and_its_fix(code: ErrorCode) -> None:
    result = explain(code)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{code}  {code.title}",
        f"  cause       {code.cause}",
        f"  fix         {code.fix}",
    ]


def test_without_a_code_all_codes_are_listed_one_a_line() -> None:
    lines = explain().output.splitlines()
    assert [line[:5] for line in lines] == [str(code) for code in ErrorCode]
    assert "QT301  broker unreachable" in lines


@pytest.mark.parametrize("spelling", ["qt301", "Qt301", " QT301 "])
def test_upper_and_lower_case_are_the_same(spelling: str) -> None:
    assert explain(spelling).output == explain("QT301").output


def test_an_unknown_code_is_answered_with_the_nearest_one_and_exit_code_2() -> None:
    result = explain("qt3001")
    assert result.exit_code == 2
    assert "there is no error code 'qt3001'; did you mean 'QT301'?" in result.output
    assert "`qtasks explain` lists all codes" in explain("nonsense").output
