"""What a newcomer meets when something is missing or in the way: one sentence, and the line to paste."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qtasks.cli import main
from qtasks.errors import missing_extra
from tests.support.dev import Dev
from tests.support.process import PATIENCE_S, Done, environment, qtasks
from tests.support.servers import SECRETS, BrokerServer

TASKS = "from qtasks import task\n\n@task\ndef add(a: int, b: int) -> int:\n    return a + b\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def without(package: str, program: str, folder: Path) -> Done:
    """Run a Python program in which `package` is not installed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules[{package!r}] = None\n{program}"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("dev", "watchfiles"),
        ("dev", "apsw"),
        ("broker", "aiohttp"),
        ("console --url http://127.0.0.1:9 --token-env HOME", "aiohttp"),
    ],
)
def test_without_the_extra_a_command_is_one_sentence_with_the_line_to_paste(
    folder: Path, command: str, package: str
) -> None:
    program = f"sys.argv = {['qtasks', *command.split()]!r}\nfrom qtasks.cli import main\nmain()"
    done = without(package, program, folder)
    assert done.err == (
        f"QT212 `qtasks {command.split()[0]}` needs {package}, which is not installed\n"
        '  fix         pip install "qstash-tasks[broker]"\n'
    )
    assert (done.status, done.out) == (3, "")


def test_without_the_extra_a_test_with_the_fixture_fails_in_one_sentence(folder: Path) -> None:
    (folder / "test_add.py").write_text("def test_add(qtasks):\n    pass\n")
    program = "import pytest\nsys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'test_add.py']))"
    done = without("apsw", program, folder)
    assert done.status == 1
    assert "the fixture qtasks needs apsw, which is not installed" in done.out
    assert 'fix         pip install "qstash-tasks[broker]"' in done.out
    assert "Traceback" not in done.out
    assert "ModuleNotFoundError" not in done.out


def test_another_module_that_is_missing_is_not_blamed_on_an_extra() -> None:
    assert missing_extra(ImportError(name="socket"), "it") is None
    assert missing_extra(ImportError(), "it") is None


def test_a_taken_port_names_its_option_and_who_has_it(folder: Path) -> None:
    with Dev(folder, "--memory") as dev:
        facts = dev.started()
        port = facts["broker"].rpartition(":")[2]
        app_port = facts["base_url"].split(":")[2].split("/")[0]
        second = qtasks("dev", "--port", port, "--memory", folder=folder)
        assert f"port {port} on 127.0.0.1 is in use by another program\n" in second.err
        assert f"used by     qtasks dev of this folder (process {dev.process.pid})\n" in second.err
        assert "choose another port with --port (0 picks a free one)" in second.err
        third = qtasks("dev", "--port", "0", "--app-port", app_port, "--memory", folder=folder)
        assert f"used by     qtasks dev of this folder (process {dev.process.pid})\n" in third.err
        assert "choose another port with --app-port (0 picks a free one)" in third.err
    with BrokerServer(folder, "--db", "b.db") as broker:
        broker.started()
        taken = qtasks("broker", "--db", "c.db", "--port", str(broker.port), folder=folder, **SECRETS)
        if sys.platform == "linux":
            assert f"used by     process {broker.process.pid} (" in taken.err
            assert "qtasks broker" in taken.err
        assert "with --port" in taken.err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which no process can create a file")
@pytest.mark.parametrize("arguments", [("dev",), ("broker", "init"), ("broker", "--port", "0")])
def test_a_folder_that_cannot_be_written_is_a_sentence(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qtasks", *arguments])
    monkeypatch.setattr(os, "environ", environment(**SECRETS))
    before = Path.cwd()
    os.chdir("/proc/self")
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        os.chdir(before)
    assert ended.value.code != 0
    error = capfd.readouterr().err
    assert "cannot" in error
    assert len(error.splitlines()) <= 3, error
