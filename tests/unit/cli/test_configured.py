"""Settings with their sources: those a broker was started with, and those of an application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from qtasks.broker.settings import HIDDEN, ConfiguredValue
from qtasks.cli import cli
from qtasks.cli.configured import configuration
from qtasks.cli.option_types import Duration, Size

VARIABLES = {"QSTASH_TOKEN": "none", "QTASKS_BASE_URL": "none"}


def configured(*arguments: str, **environment: str) -> dict[str, ConfiguredValue]:
    """What a server with some options tells of its start, by name."""
    found: list[ConfiguredValue] = []

    @click.command()
    @click.argument("app", required=False)
    @click.option("--db", envvar="SHOP_DB", default="shop.db")
    @click.option("--keep", type=Duration(), default="7d")
    @click.option("--most", type=Size(), default="1GB")
    @click.option("--allow", multiple=True)
    @click.option("--strict", is_flag=True)
    @click.option("--reach", default=None)
    @click.pass_context
    def serve(context: click.Context, /, **options: Any) -> None:
        found.extend(configuration(context, VARIABLES, {"reach": "local"}))

    done = CliRunner().invoke(serve, arguments, env=environment)
    assert done.exit_code == 0, done.output
    return {value.name: value for value in found}


def test_without_options_every_value_is_its_default() -> None:
    values = configured()
    assert {value.source for value in values.values()} == {"default"}
    assert values["--keep"] == ("--keep", "7d", "7d", "default")
    assert values["--most"].value == "1GB"
    assert values["--allow"][1:3] == values["APP"][1:3] == ("none", "none")
    assert values["--reach"].value == "local", "what the command decides itself"


def test_an_option_and_a_variable_are_named() -> None:
    options = ["--keep", "1h30m", "--most", "500MB", "--allow", "a", "--allow", "b", "--strict"]
    values = configured(*options, SHOP_DB="x.db")
    assert values["--db"] == ("--db", "x.db", "shop.db", "environment SHOP_DB")
    assert values["--keep"][1:2] + values["--keep"][3:] == ("1h30m", "option --keep")
    assert values["--most"][1:] == ("500MB", "1GB", "option --most")
    assert values["--allow"].value == "a, b"
    assert values["--strict"][1:] == ("yes", "no", "option --strict")


def test_secrets_are_hidden() -> None:
    values = configured(QSTASH_TOKEN="s3cret", QTASKS_BASE_URL="http://a/qtasks")
    assert values["QSTASH_TOKEN"][1:] == (HIDDEN, "none", "environment QSTASH_TOKEN")
    assert values["QTASKS_BASE_URL"].value == "http://a/qtasks"


def config(*arguments: str, **environment: str) -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(cli, ["config", *arguments, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    return {row["name"]: row for row in json.loads(done.stdout)["settings"]}


@pytest.fixture(autouse=True)
def outside_a_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("QTASKS_TEST", "QSTASH_TOKEN", "QSTASH_URL", "QSTASH_DEV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_settings_of_an_environment_have_their_sources() -> None:
    rows = config(QSTASH_TOKEN="s3cret", QTASKS_RESULTS="postgresql://ada:pass@db/results", QTASKS_RESULT_TTL="90m")
    assert (rows["token"]["value"], rows["token"]["source"]) == ("***", "environment")
    assert rows["results"]["value"] == "postgresql://ada:***@db/results"
    assert (rows["result_ttl"]["value"], rows["result_ttl"]["variable"]) == ("1h30m", "QTASKS_RESULT_TTL")
    assert (rows["threads"]["source"], rows["secret_key"]["value"]) == ("default", None)


@pytest.mark.parametrize(
    ("results", "shown"),
    [
        ("postgresql://h/db?user=u&password=hunter2", "postgresql://h/db?user=u&password=***"),
        ("host=h password=hunter2 dbname=x", "host=h password=*** dbname=x"),
        ("host=h password='hunter 2'", "host=h password=***"),
    ],
)
def test_a_password_is_masked_wherever_an_address_has_it(results: str, shown: str) -> None:
    assert config(QTASKS_RESULTS=results)["results"]["value"] == shown


def test_the_arguments_of_an_application_win(tmp_path: Path) -> None:
    (tmp_path / "threaded_app.py").write_text("from qtasks import QTasks\ntasks = QTasks(threads=3)\n")
    rows = config("threaded_app.py", QTASKS_THREADS="9", QSTASH_TOKEN="s3cret")
    assert (rows["threads"]["value"], rows["threads"]["source"]) == (3, "argument")
