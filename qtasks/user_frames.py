"""Where in the user's code an exception was raised: no frames of Python, of installed packages and of qtasks."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from qtasks.causes import cause_chain

MAX_FRAMES: Final = 6
"""Frames of one exception: the innermost ones."""
MAX_CAUSES: Final = 3
_LONGEST: Final = 200
"""Characters of a line: code that is made at run time has names of any length."""
_LIBRARIES: Final = tuple(
    str(Path(path).resolve()) + os.sep
    for path in (
        str(Path(__file__).parent),
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
    )
)
_OURS: Final = (str(Path(__file__).parent) + os.sep, *map(sysconfig.get_path, ("stdlib", "platstdlib")))
"""Where the code of frames is that say nothing to a user. Applications may be installed packages, too."""
_PLACE: Final = re.compile(r"(?P<path>.+):(?P<line>[0-9]{1,7}) in (?P<function>\w+)")
_PARTS_OUTSIDE: Final = 3
"""Parts of a path outside of the folder that are shown: an absolute one tells more of a machine than of the code."""


E = TypeVar("E", bound=BaseException)


class UserFrame(NamedTuple):
    """One line of the user's code, as ``tasks.py:31 in charge``."""

    place: str
    source: str
    """The text of that line; empty if it is not known, or was not asked for."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that caused it: three at most."""
    return islice(cause_chain(error, with_suppressed=False), MAX_CAUSES)


def user_frames(error: BaseException, folder: str, *, with_source: bool = False) -> Iterator[UserFrame]:
    """The frames of one exception, the innermost last. Paths are relative to `folder` where they are in it.

    An exception without a frame of the user has its innermost frame. Source lines are read from files only if
    `with_source`.
    """
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=with_source)
    own = [frame for frame in frames if not _is_of_library(frame.filename)]
    for frame in own[-MAX_FRAMES:] or frames[-1:]:
        source = (frame.line or "") if with_source else ""
        yield UserFrame(f"{_shown(frame.filename, folder)}:{frame.lineno} in {frame.name}", source)


def without_our_frames(error: E) -> E:
    """An error whose text says everything, without its traceback if that has only frames of qtasks and of Python.

    Raised again, its traceback begins where it is raised.
    """
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_ours = all(file.startswith(_OURS) and "site-packages" not in file.removeprefix(_OURS[0]) for file in files)
    return error.with_traceback(None) if is_ours else error


def places_of(error: BaseException) -> list[str]:
    """Where an exception and its causes were raised, such as ``["tasks.py:31 in charge"]``: no text of theirs."""
    places: list[str] = []
    # Every error: the folder may be gone, and a traceback or a cause may be a property that raises. The places are an
    # addition to an error that must arrive in any case.
    with contextlib.suppress(Exception):
        folder = str(Path.cwd())
        for cause in causes(error):
            if places:
                places.append(f"caused by {type(cause).__name__}")
            places += [one_line(frame.place) for frame in user_frames(cause, folder)]
    return places


class CodePlace(NamedTuple):
    """The parts of a place."""

    path: str
    line: int
    function: str


def read_place(text: str) -> CodePlace | None:
    """The parts of a place such as ``tasks.py:31 in charge``; None for another text."""
    if (match := _PLACE.fullmatch(text)) is None:
        return None
    return CodePlace(match["path"], int(match["line"]), match["function"])


def loaded_file(shown: str, folder: str) -> str | None:
    """The source file of a loaded module of the user that places show as `shown`; None if there is none."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if (
            isinstance(file, str)
            and file.endswith(".py")
            and not _is_of_library(file)
            and _shown(file, folder) == shown
        ):
            return file
    return None


def one_line(text: str) -> str:
    """The text in one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _is_of_library(filename: str) -> bool:
    return filename.startswith(("<frozen", *_LIBRARIES)) or "site-packages" in filename


def _shown(filename: str, folder: str) -> str:
    path = Path(filename)
    if path.is_relative_to(folder):
        return str(path.relative_to(folder))
    return "/".join(path.parts[-_PARTS_OUTSIDE:])
