"""docs/guides/dead-letters.md: its commands, with its application under `qtasks dev`, as a reader runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import page_code
from tests.support.process import Done, Process, qtasks
from tests.support.servers import free_port

PAGE = (page_code.DOCS / "guides" / "dead-letters.md").read_text(encoding="utf-8")
COMMANDS = [line for block in page_code.blocks(PAGE, "console") for line in block.splitlines()]


class Reader:
    """A reader in a folder with the files of the page, and with `qtasks dev` in the first terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        page_code.write_files(PAGE, folder)
        self.dev = Process(folder, "dev", "payments.py", "--port", str(free_port()), "--app-port", str(free_port()))
        self.dev.wait_for("  store ")

    def runs(self, line: str, **values: str) -> Done:
        """Run a command of the page, with `values` in the place of words such as ID."""
        assert line in COMMANDS
        words = [values.get(word, word) for word in line.split()[1:]]
        return qtasks(*words, folder=self.folder)

    def open_the_bank(self) -> None:
        file = self.folder / "payments.py"
        file.write_text(file.read_text().replace("bank_is_open = False", "bank_is_open = True"))
        self.dev.wait_for("reloaded ")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    with reader.dev:
        yield reader
        reader.dev.stop()


def test_a_call_that_failed_is_found_sent_again_and_changed(reader: Reader) -> None:
    assert "ConnectionError: the bank does not answer" in reader.runs("qtasks send charge 7 --wait").err
    reader.dev.wait_for("dead letters")
    (dlq_id,) = re.findall(r"^\d+-\d+", reader.runs("qtasks dlq").out, flags=re.MULTILINE)
    shown = reader.runs("qtasks dlq show ID", ID=dlq_id).out
    assert re.search(r"arguments +7$", shown, flags=re.MULTILINE)

    reader.open_the_bank()
    assert reader.runs("qtasks dlq retry task:charge --yes").out == "published 1 message\n"
    reader.dev.wait_for("order 7 charged")

    qtasks("send", "charge", "--", "-1", folder=reader.folder)
    reader.dev.wait_for("there is no order -1")
    (letter,) = json.loads(qtasks("dlq", "--json", folder=reader.folder).out)["deadLetters"]
    body = json.loads(qtasks("dlq", "show", letter["deadLetterId"], "--json", folder=reader.folder).out)["body"]
    (reader.folder / "fixed.json").write_text(json.dumps({**json.loads(body), "args": [1]}))
    assert reader.runs("qtasks dlq edit ID --body fixed.json", ID=letter["deadLetterId"]).status == 0
    reader.dev.wait_for("order 1 charged")
    assert json.loads(qtasks("dlq", "--json", folder=reader.folder).out)["deadLetters"] == []
