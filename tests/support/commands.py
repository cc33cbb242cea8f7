"""Commands that run inside the process of the test: without a terminal, 80 columns wide."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from qtasks.cli import main
from tests.support.process import environment

WIDTH = 80


@dataclass(frozen=True)
class Printed:
    """What a command printed, and its exit code."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Run(Protocol):
    def __call__(self, *arguments: str, **variables: str) -> Printed: ...


def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], service: Mapping[str, str]) -> Run:
    """What runs a command with the environment variables `service`, or others that a call names."""
    before = environment()

    def command(*arguments: str, **variables: str) -> Printed:
        monkeypatch.setattr(sys, "argv", ["qtasks", *arguments])
        monkeypatch.setattr(os, "environ", {**before, "COLUMNS": str(WIDTH), **service, **variables})
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return Printed(status, out, err)

    return command
