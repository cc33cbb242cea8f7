"""`python -m tests.planted [WORD ...]`: plant every sabotage, or those whose names contain a word; print N of N.

The exit code is 1 if one of them survives.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tests.planted.plant import Outcome, Verdict, copied_project, plant
from tests.planted.sabotages import SABOTAGES, Sabotage

_AT_ONCE: Final = 2


def _tried(sabotage: Sabotage) -> tuple[Outcome, float]:
    start_s = time.monotonic()
    with copied_project() as copy:
        return plant(sabotage, copy), time.monotonic() - start_s


def main(words: list[str]) -> int:
    """Print a line for each sabotage and the count; return the exit code."""
    chosen = [sabotage for sabotage in SABOTAGES if not words or any(word in sabotage.name for word in words)]
    caught = 0
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for outcome, spent_s in threads.map(_tried, chosen):
            caught += outcome.verdict is Verdict.CAUGHT
            _print(f"{outcome.verdict:<11} {spent_s:5.1f} s  {outcome.sabotage.name}")
            if outcome.verdict is not Verdict.CAUGHT:
                _print(f"            {outcome.sabotage.tests}: {outcome.detail}")
    _print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
