"""The guide of periodic tasks: its commands, run in their order against a `qtasks dev` with the tasks of the guide."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.support import page_code
from tests.support.dev import Dev
from tests.support.process import qtasks

PAGE = (page_code.DOCS / "guides" / "periodic.md").read_text(encoding="utf-8")
EMBEDDED = 'QTasks(embedded=Embedded(":memory:"))'


def test_the_commands_of_the_guide_do_what_it_shows(tmp_path: Path) -> None:
    declarations, _, rest = page_code.script(PAGE).partition("print(")
    assert rest
    assert EMBEDDED in declarations
    (tmp_path / "tasks.py").write_text(declarations.replace(EMBEDDED, "QTasks()"), encoding="utf-8")
    ran, shown = 0, ""
    with Dev(tmp_path) as dev:
        dev.started()
        for language, block in re.findall(r"```(console|text)\n(.*?)```", PAGE, flags=re.DOTALL):
            for line in block.splitlines():
                if language == "console":
                    done = qtasks(*shlex.split(line)[1:], folder=tmp_path)
                    assert done.status == 0, f"{line}: {done.out}{done.err}"
                    ran, shown = ran + 1, done.out
                else:
                    pattern = ".*".join(map(re.escape, line.split("...")))
                    assert re.search(pattern, shown), f"{line!r} is not in {shown!r}"
        dev.stop()
    assert ran == len(re.findall("^qtasks ", PAGE, flags=re.MULTILINE)) > 5
