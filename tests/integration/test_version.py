"""`qtasks version`: what a report of a defect needs, and nothing secret."""

from __future__ import annotations

import json
from pathlib import Path

from qtasks import __version__
from tests.support.process import qtasks
from tests.support.servers import SECRETS


def test_the_version_is_one_line_as_with_the_option(tmp_path: Path) -> None:
    assert qtasks("version", folder=tmp_path).out == f"qtasks {__version__}\n"
    assert __version__ in qtasks("--version", folder=tmp_path).out


def test_a_report_names_packages_and_variables_but_no_value(tmp_path: Path) -> None:
    done = qtasks("version", "--verbose", folder=tmp_path, **SECRETS)
    assert done.status == 0, done.err
    assert all(text in done.out for text in ("python", "platform", "fastapi ", "apsw ", "QSTASH_TOKEN"))
    assert not any(secret in done.out for secret in SECRETS.values())
    facts = json.loads(qtasks("version", "-v", "--json", folder=tmp_path, **SECRETS).out)
    assert facts["variables"] == sorted(SECRETS)
    assert "pytest" not in facts["packages"]
    assert facts["packages"]["click"]
