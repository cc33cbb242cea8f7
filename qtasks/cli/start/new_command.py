"""`qtasks new`: a folder with tasks, their tests, and what `qtasks dev` and pytest need; both run at once."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.printing import echo_json, printable, talk
from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError

_FILES: Final = {
    "tasks.py": "tasks.py.txt",
    "tests/test_tasks.py": "test_tasks.py.txt",
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    ".gitignore": "gitignore.txt",
}
"""The files of a project, and those that they are made from: no file of another suffix is read as code of ours."""
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", re.IGNORECASE)
_OURS: Final = frozenset({"qtasks", "qstash-tasks"})
"""Names that a project would depend on itself by, or be taken for this package."""


@click.command("new")
@click.argument("folder", metavar="NAME", type=click.Path())
@as_json_option
def command(folder: str, as_json: bool) -> None:
    """Create the folder NAME with a project that runs: tasks, a test that passes, pyproject.toml and README.

    NAME may be a path; its last part is the name of the project. An existing folder is never changed.
    """
    place = Path(folder)
    name = place.name
    _check_name(name, place)
    _write(place, name)
    if as_json:
        echo_json({"name": name, "path": str(place.absolute()), "files": list(_FILES)})
        return
    click.echo(printable(f"created {place}: {', '.join(_FILES)}"))
    talk(f"next: cd {_quoted(str(place))} && qtasks dev")


def _check_name(name: str, place: Path) -> None:
    is_ours = re.sub(r"[-_.]+", "-", name).lower() in _OURS  # names that differ in these are one to an installer
    if is_ours or not _NAME.fullmatch(name):
        why = "is the name of this package" if is_ours else "is not a name for a project"
        nearest = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-")[:64].rstrip("._-")
        nearest = f"my-{nearest}" if is_ours else nearest or "my-tasks"
        raise ConfigurationError(
            f"{name!r} {why}",
            details={"expected": "letters and digits, between them also - _ and .; 64 characters at most"},
            fix=f"qtasks new {_quoted(str(place.parent / nearest))}",
            code=ErrorCode.COMMAND_OPTION_INVALID,
        )


def _write(place: Path, name: str) -> None:
    """Create the folder and its files. Raises ConfigurationError if it exists, or cannot be written."""
    sources = files("qtasks.cli.start") / "project"
    values = {"name": name, "version": version("qstash-tasks")}
    try:
        place.mkdir()
        for target, source in _FILES.items():
            file = place / target
            file.parent.mkdir(exist_ok=True)
            text = Template((sources / source).read_text(encoding="utf-8")).substitute(values)
            file.write_text(text, encoding="utf-8", newline="\n")
    except FileExistsError:
        raise ConfigurationError(
            f"{place} exists already, and nothing in it was changed",
            fix="name a folder that does not exist; `qtasks dev` also runs the tasks that a folder has",
            code=ErrorCode.COMMAND_OPTION_INVALID,
        ) from None
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no folder {place.parent}", fix="create it first", code=ErrorCode.COMMAND_OPTION_INVALID
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {place}: {error.strerror}", code=ErrorCode.COMMAND_OPTION_INVALID
        ) from None


def _quoted(path: str) -> str:
    import shlex  # it takes longer to import than all else here

    return shlex.quote(path)
