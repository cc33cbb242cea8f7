"""The Dockerfile, the compose file and the units of systemd without an engine of theirs.

They are read, and what they start is started here, in a folder.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from qtasks.cli.exit_codes import exit_code_of
from qtasks.errors import ConfigurationError, StoreError
from qtasks.protocol import development
from tests.support.command_lines import unknown_parts
from tests.support.process import PATIENCE_S, environment
from tests.support.servers import CURRENT, NEXT, free_port

ROOT = Path(__file__).parents[2]
NOBODY = 65534
PORT = "8080"


@dataclass
class Stage:
    """From one FROM to the next: the instructions in order."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [arguments for step, arguments in self.steps if step == name]

    def last(self, name: str) -> str:
        return self.all(name)[-1]

    @property
    def variables(self) -> dict[str, str]:
        pairs = [pair for line in self.all("ENV") for pair in shlex.split(line)]
        return dict(pair.split("=", 1) for pair in pairs)


def dockerfile() -> list[Stage]:
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#") and line.strip()]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[Stage] = []
    for line in joined.splitlines():
        name, arguments = line.split(maxsplit=1)
        if name == "FROM":
            stages.append(Stage(arguments.split()[0]))
        else:
            stages[-1].steps.append((name, arguments))
    return stages


BUILD, IMAGE = dockerfile()
SERVE: list[str] = json.loads(IMAGE.last("CMD"))
HEALTH: list[str] = json.loads(IMAGE.last("HEALTHCHECK").partition(" CMD ")[2])


# -- what is written there


def test_the_image_is_slim_and_runs_as_nobody_in_particular() -> None:
    assert all(re.fullmatch(r"python:3\.\d+-slim", stage.base) for stage in (BUILD, IMAGE))
    minor = int(IMAGE.base.removeprefix("python:3.").removesuffix("-slim"))
    assert minor >= 11
    assert int(IMAGE.last("USER")) > 0
    assert f"-o {IMAGE.last('USER')} /data" in IMAGE.all("RUN")[0]
    assert IMAGE.last("VOLUME") == "/data"
    names = [step for step, _ in IMAGE.steps]
    assert names.index("USER") > names.index("RUN")  # nothing is installed as that user
    assert IMAGE.variables["QTASKS_DB"].startswith("/data/")


def test_the_commands_are_processes_of_their_own_and_hear_signals() -> None:
    assert SERVE[:2] == ["sh", "-c"]
    assert SERVE[2].startswith("exec qtasks broker ")  # so that the signals reach it, and not the shell
    assert HEALTH[:2] == ["python", "-c"]
    assert IMAGE.all("ENTRYPOINT") == []
    assert f"EXPOSE {PORT}" in (ROOT / "Dockerfile").read_text()
    assert IMAGE.variables["PORT"] == PORT
    # docker stop sends SIGTERM and kills after ten seconds.
    words = SERVE[2].split()
    assert float(words[words.index("--drain") + 1]) < 9


def test_an_image_made_from_it_can_install_what_its_tasks_need() -> None:
    [copied] = IMAGE.all("COPY")
    assert f"--chown={IMAGE.last('USER')} " in copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extras] = re.findall(r"\.\[([\w,]+)\]", BUILD.all("RUN")[0])
    assert {*extras.split(","), "dev", "docs"} == {*project["optional-dependencies"]}


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    sources = [source for line in BUILD.all("COPY") for source in line.split()[:-1]]
    assert sorted(sources) == sorted(allowed)
    for source in sources:
        assert (ROOT / source).exists(), source


def test_nothing_else_is_in_the_build() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def sent(path: str) -> bool:
        verdict = True
        for line in ignored:
            pattern = line.removeprefix("!")
            if fnmatch(path, pattern) or fnmatch(path, f"{pattern}/*") or fnmatch(path, pattern.replace("**/", "*/")):
                verdict = line.startswith("!")
        return verdict

    assert sent("qtasks/cli/__init__.py")
    for path in (".env", "qtasks.db", ".git/config", "tests/conftest.py", "qtasks/cli/__pycache__/run.cpython-311.pyc"):
        assert not sent(path), path


def test_no_secret_is_in_the_image_or_the_example() -> None:
    for name in ("Dockerfile", ".dockerignore", ".env.example"):
        text = (ROOT / name).read_text()
        assert not re.search(r"sig_\w{10,}|qtk_\w{10,}|eyJ\w{10,}", text), name
        for user in development.USERS:
            assert user.token not in text
    values = dict(line.split("=", 1) for line in variables_of_the_example())
    for name in ("QSTASH_TOKEN", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY"):
        assert values[name] == ""


def variables_of_the_example() -> list[str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return [line.removeprefix("#") for line in lines if re.match(r"#?[A-Z]", line) and "=" in line]


def test_the_example_explains_every_variable_that_is_read_and_no_other() -> None:
    text = (ROOT / ".env.example").read_text()
    named = [line.partition("=")[0] for line in variables_of_the_example()]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "qtasks").rglob("*.py"))
    read = set(re.findall(r"(?<![A-Z_])Q(?:STASH|TASKS)_[A-Z_]*[A-Z](?![A-Z_])", code))
    assert sorted(named) == sorted(read)
    for name in named:
        [comment] = re.findall(rf"^# (.+)\n#?{name}=", text, re.MULTILINE)
        assert len(comment) <= 120, name
        assert comment.endswith("."), name


# -- what comes of it


@dataclass(frozen=True)
class Container:
    """The image as a folder: what is at /opt/qtasks, /data and /app in it is below `root` here."""

    root: Path
    port: int
    variables: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    """Names in the network of a container, with their ports, and where they are here."""

    def placed(self, text: str) -> str:
        """A text of the Dockerfile with the places and the port of this folder."""
        for name, here in self.hosts.items():
            text = text.replace(name, here)
        moved = re.sub(r"(?<![\w.])/(opt/qtasks|data|app)\b", rf"{self.root}/\1", text)
        return re.sub(rf"(?<![\d:]){PORT}\b", str(self.port), moved)

    def start(self, command: list[str], **streams: int) -> subprocess.Popen[str]:
        """Run a command of the image as an unprivileged user."""
        given = {name: self.placed(value) for name, value in IMAGE.variables.items()}
        path = given.pop("PATH").replace("$PATH", os.environ["PATH"])
        given |= {name: self.placed(value) for name, value in self.variables.items()}
        return subprocess.Popen(
            [*unprivileged(), *map(self.placed, command)],
            cwd=self.root / "app",
            env={**environment(**given), "PATH": path, "HOME": "/nonexistent"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, command: list[str]) -> tuple[int, str]:
        process = self.start(command)
        out, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out

    def healthy(self) -> bool:
        return self.run(HEALTH)[0] == 0


def unprivileged() -> list[str]:
    """The prefix with which root runs a command as the user `nobody`, which may write only where it was allowed to."""
    if os.geteuid() != 0:
        return []
    # The interpreter of this machine may lie where only root reads; in the image it does not.
    allow = (
        [] if all(_open_to_all(Path(place)) for place in (sys.base_prefix, sys.prefix, ROOT)) else ["dac_read_search"]
    )
    caps = ",".join(["-all", *(f"+{one}" for one in allow)])
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *ids, f"--inh-caps={caps}", f"--ambient-caps={caps}", f"--bounding-set={caps}"]


def _open_to_all(place: Path) -> bool:
    return all(part.stat().st_mode & stat.S_IXOTH for part in (place, *place.parents))


def copied(root: Path) -> Path:
    """What COPY brings into the build."""
    build = root / "build"
    build.mkdir()
    for line in BUILD.all("COPY"):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, build / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, build / target)
    return build


def linked(root: Path, build: Path) -> None:
    """A prefix of the copied package beside the dependencies that are installed here: all but pip's own work."""
    prefix = root / "opt" / "qtasks"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    [packages] = prefix.glob("lib/python*/site-packages")
    installed = sysconfig.get_path("purelib")
    (packages / "here.pth").write_text(f"{build}\nimport site; site.addsitedir({installed!r})\n")
    module, _, function = tomllib.loads((build / "pyproject.toml").read_text())["project"]["scripts"][
        "qtasks"
    ].partition(":")
    script = prefix / "bin" / "qtasks"
    script.write_text(f"#!{prefix}/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)


def installed(root: Path, build: Path) -> None:
    """What RUN does, with the packages of the index."""
    [line] = BUILD.all("RUN")
    command = line.replace("/opt/qtasks", f"{root}/opt/qtasks").replace("python -m venv", f"{sys.executable} -m venv")
    subprocess.run(["bash", "-ec", command], cwd=build, check=True, capture_output=True)


Install = Callable[[Path, Path], None]


@pytest.fixture(params=[linked, pytest.param(installed, marks=pytest.mark.release)])
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    """The image, where every user may go (pytest's own folders are for one user alone)."""
    install: Install = request.param
    root = Path(tempfile.mkdtemp(prefix="qtasks-image-"))
    root.chmod(0o755)
    try:
        install(root, copied(root))
        (root / "app").mkdir()
        (root / "data").mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(root / "data", NOBODY, NOBODY)
        yield Container(root, free_port())
    finally:
        shutil.rmtree(root)


def until_healthy(container: Container, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not container.healthy():
        assert server.poll() is None, server.communicate()[0]
        assert time.monotonic() < deadline, "not healthy in time"


def test_the_broker_starts_as_its_user_with_what_init_made_and_is_healthy_until_it_stops(container: Container) -> None:
    status, text = container.run(SERVE)
    assert (status, "has no token" in text) == (3, True), text
    status, text = container.run(["qtasks", "broker", "init"])
    assert status == 0, text
    assert "QSTASH_TOKEN=eyJVc2VySUQiOiJxdGtf" in text
    server = container.start(SERVE)
    try:
        until_healthy(container, server)
        held = Path(f"/proc/{server.pid}/status").read_text()
        assert re.search(r"^Uid:\t0\t", held, re.MULTILINE) is None
        assert sorted(file.name for file in (container.root / "data").glob("*.db")) == ["qtasks.db"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == 0
    finally:
        server.kill()
        out, _ = server.communicate()
    assert "destinations public" in out
    assert not container.healthy()


def test_the_dispatcher_is_another_command_of_the_same_image(container: Container) -> None:
    (container.root / "app" / "tasks.py").write_text("from qtasks import task\n@task\ndef nothing() -> None: ...\n")
    container.variables.update(
        QSTASH_CURRENT_SIGNING_KEY=CURRENT,
        QSTASH_NEXT_SIGNING_KEY=NEXT,
        QTASKS_BASE_URL="https://app.example.com/qtasks",
    )
    [command] = re.findall(r"sh -c '(exec qtasks run .*?)'", (ROOT / "Dockerfile").read_text())
    server = container.start(["sh", "-c", command])
    try:
        until_healthy(container, server)
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_S) == 0
    finally:
        server.kill()
        server.communicate()
    assert not container.healthy()


COMPOSE = yaml.safe_load((ROOT / "docs" / "deploy" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def test_the_services_of_the_compose_file_reach_each_other(container: Container) -> None:
    ports = {name: free_port() for name in ("broker", "dispatcher")}
    hosts = {f"{name}:{SERVICES[name]['environment']['PORT']}": f"127.0.0.1:{port}" for name, port in ports.items()}

    def started(name: str, **variables: str) -> Container:
        given = {key: _resolved(value) for key, value in SERVICES[name]["environment"].items()}
        return Container(container.root, ports[name], {**variables, **given, "PORT": str(ports[name])}, hosts)

    (container.root / "app" / "tasks.py").write_text(
        "from qtasks import task\n@task\ndef add(a: int, b: int) -> int:\n    return a + b\n"
    )
    broker = started("broker")
    status, text = broker.run(["qtasks", "broker", "init"])
    assert status == 0, text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    dispatcher = started("dispatcher", **dict(line.split("=", 1) for line in lines))
    servers = [
        broker.start(SERVE),
        dispatcher.start([part.replace("$$", "$") for part in SERVICES["dispatcher"]["command"]]),
    ]
    try:
        until_healthy(broker, servers[0])
        until_healthy(dispatcher, servers[1])
        status, text = dispatcher.run(["qtasks", "send", "add", "2", "3", "--wait"])
        assert (status, text.splitlines()[-1]) == (0, "5")
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def _resolved(value: str) -> str:
    """A value of the compose file without variables: what it has by default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_what_the_compose_file_names_it_defines() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source.startswith("./") or source in COMPOSE["volumes"], (name, volume)
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert [name for name, service in SERVICES.items() if service.get("profiles")] == ["postgres"]


def test_the_commands_in_the_comments_of_these_files_exist() -> None:
    files = [ROOT / "Dockerfile", *(ROOT / "docs" / "deploy").iterdir()]
    comments = re.findall(r"^#  .*", "\n".join(file.read_text() for file in files), flags=re.MULTILINE)
    commands = re.findall(r" (?:/\S+/)?(qtasks (?:broker|send) .*)", "\n".join(comments))
    assert len(commands) >= 4
    assert [line for line in commands if unknown_parts(line)] == []


UNITS = sorted((ROOT / "docs" / "deploy").glob("*.service"))


def unit_settings(unit: Path) -> dict[str, str]:
    lines = [line for line in unit.read_text().splitlines() if re.match(r"\w+=", line)]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_a_unit_starts_a_command_that_is_known_and_lets_it_drain(unit: Path) -> None:
    settings = unit_settings(unit)
    program, *arguments = settings["ExecStart"].split()
    assert program == "/opt/qtasks/bin/qtasks"
    status = subprocess.run(
        [Path(sys.executable).parent / "qtasks", *arguments, "--help"], capture_output=True, check=False
    ).returncode
    assert status == 0, arguments
    assert int(settings["TimeoutStopSec"]) > float(arguments[arguments.index("--drain") + 1])
    assert settings["NoNewPrivileges"] == "yes"


@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_a_unit_starts_again_after_a_failure_of_the_storage_and_not_after_a_wrong_setting(unit: Path) -> None:
    settings = unit_settings(unit)
    final = {int(status) for status in settings["RestartPreventExitStatus"].split()}
    assert settings["Restart"] == "always"
    assert exit_code_of(StoreError("a page cannot be read")) not in final
    assert exit_code_of(ConfigurationError("a setting is missing")) in final


def test_the_broker_of_a_unit_or_of_the_compose_file_gets_no_token_that_stays_valid_after_its_revocation() -> None:
    [broker] = [unit for unit in UNITS if "broker" in unit.stem]
    made = re.search(r"broker init .* > (\S+)", broker.read_text())
    assert made is not None
    assert unit_settings(broker)["EnvironmentFile"].removeprefix("-") != made[1]
    compose = yaml.safe_load((ROOT / "docs" / "deploy" / "compose.yaml").read_text())
    assert "env_file" not in compose["services"]["broker"]
    assert "QSTASH_TOKEN" not in compose["services"]["broker"]["environment"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_systemd_accepts_a_unit(unit: Path, tmp_path: Path) -> None:
    for each in UNITS:  # one names the other
        text = each.read_text().replace("/opt/qtasks/bin/qtasks", sys.executable)
        (tmp_path / each.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit.name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
