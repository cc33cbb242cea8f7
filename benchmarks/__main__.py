"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from benchmarks import machine, report
from benchmarks.bench import FULL, TINY, USUAL, Bench
from benchmarks.figure import Row
from benchmarks.figures import FIGURES
from benchmarks.peers import contest, contestants
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.contest import Standing
from benchmarks.peers.services import POSTGRES, REDIS, Services

_BEGAN_S = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; 0, or 1 when something could not be measured."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        services = Services(options.redis, options.postgres)
    except ValueError as error:
        parser.error(str(error))
    # The servers of a measurement end with it, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows: list[Row] = []
    standings: list[Standing] = []
    with TemporaryDirectory(prefix="qtasks-benchmarks-", dir=options.folder) as folder:
        sizes = FULL if options.full else TINY if options.tiny else USUAL
        bench = Bench(sizes, Path(folder), _say)
        facts = machine.facts(bench.folder)
        print(f"{report.heading(facts)}\n", flush=True)
        if options.peers is None:
            complete = _figures(bench, options.only or list(FIGURES), rows)
        else:
            complete = _contest(bench, options, services, standings)
    if options.json is not None:
        report.as_json(options.json, facts, rows, standings)
    return 0 if complete else 1


def _figures(bench: Bench, names: Sequence[str], rows: list[Row]) -> bool:
    """Measure figure after figure into `rows`; False when one failed, which costs its own rows only."""
    complete = True
    for name in names:
        try:
            for row in FIGURES[name](bench):
                rows.append(row)
                print(report.line(row), flush=True)
        except Exception as error:
            complete = False
            print(f"{name}: not measured: {type(error).__name__}: {error}", flush=True)
    return complete


def _contest(bench: Bench, options: argparse.Namespace, services: Services, standings: list[Standing]) -> bool:
    """Compare with the peers into `standings`; False when a round of anyone failed."""
    options.venvs.mkdir(parents=True, exist_ok=True)
    with contestants.admitted(options.peers or list(PEERS), services, options.venvs, bench) as peers:
        everyone = [contestants.ours(bench), *peers]
        for contestant in everyone:
            print(f"{contestant.name:<10} {contestant.version:<10} {contestant.how}", flush=True)
        standings += contest.run(bench, everyone, options.rounds)
    print("\n" + "\n".join(contest.table(standings)), flush=True)
    return not any(standing.failures for standing in standings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What qtasks costs, measured.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="everything at full size, a backlog of 200,000 included")
    size.add_argument("--tiny", action="store_true", help="only to see that it works: the figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=FIGURES, metavar="FIGURE", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as well")
    parser.add_argument("--folder", type=Path, help="where the stores are kept: the disk that is measured [temporary]")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, metavar="PEER", help=f"compare with {', '.join(PEERS)}, or some of them"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns that everyone takes with --peers [3]")
    parser.add_argument(
        "--venvs",
        type=Path,
        default=Path(gettempdir(), "qtasks-peers"),
        help="where the peers' virtual environments are made and kept [%(default)s]",
    )
    parser.add_argument("--redis", default=REDIS, help="an empty database [%(default)s]")
    parser.add_argument("--postgres", default=POSTGRES, help="a database for a schema of ours [%(default)s]")
    return parser


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN_S:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
