"""`python -m tests.support.error_page`: write docs/errors.md, an entry for each error code."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from qtasks.error_codes import ErrorCode

PAGE: Final = Path(__file__).parents[2] / "docs" / "errors.md"
_AREAS: Final = {
    "0": "Without a code of its own",
    "1": "The code of the tasks, and calls",
    "2": "Configuration and signatures",
    "3": "The QStash service",
    "4": "The run of a call, and its result",
    "5": "The broker's store",
    "6": "The command line",
}
_ABBREVIATIONS: Final = {"json": "JSON", "url": "URL", "http": "HTTP", "llm": "LLM", "dlq": "DLQ", "qstash": "QStash"}
_HEAD: Final = """# Errors

Every error of qtasks has a code, one for each situation: `error.code` in Python, and in logs, dead letters and what
commands print. `qtasks explain QT301` prints an entry of this page. A number is never used again for another situation.

"""


def text() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for digit, area in _AREAS.items():
        codes = [code for code in ErrorCode if code[2] == digit]
        parts.append(f"## {area}\n\n")
        parts += [f"### {code}\n\n**{_title(code)}.** {code.cause}\n\n**Fix:** {code.fix}\n\n" for code in codes]
    return "".join(parts).rstrip("\n") + "\n"


def _title(code: ErrorCode) -> str:
    """The name of the situation as the beginning of a sentence, with abbreviations as they are written."""
    words = [_ABBREVIATIONS.get(word, word) for word in code.title.split()]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
