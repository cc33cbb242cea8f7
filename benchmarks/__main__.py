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
from benchmarks.peers import candidates, comparison
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.comparison import MeasureResults
from benchmarks.peers.services import POSTGRES, REDIS, Services

_BEGAN_S = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments select; 0, or 1 if something could not be measured."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        services = Services(options.redis, options.postgres)
    except ValueError as error:
        parser.error(str(error))
    # Turn SIGTERM into an exit, so that the servers of a measurement are stopped with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows: list[Row] = []
    results: list[MeasureResults] = []
    with TemporaryDirectory(prefix="qtasks-benchmarks-", dir=options.folder) as folder:
        sizes = FULL if options.full else TINY if options.tiny else USUAL
        bench = Bench(sizes, Path(folder), _say)
        facts = machine.facts(bench.folder)
        print(f"{report.heading(facts)}\n", flush=True)
        if options.peers is None:
            complete = _figures(bench, options.only or list(FIGURES), rows)
        else:
            complete = _compare(bench, options, services, results)
    if options.json is not None:
        report.as_json(options.json, facts, rows, results)
    return 0 if complete else 1


def _figures(bench: Bench, names: Sequence[str], rows: list[Row]) -> bool:
    """Measure each figure into `rows`; False if one failed. A failure loses only the rows of that figure."""
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


def _compare(bench: Bench, options: argparse.Namespace, services: Services, results: list[MeasureResults]) -> bool:
    """Compare with the peers into `results`; False if a round of any candidate failed."""
    options.venvs.mkdir(parents=True, exist_ok=True)
    with candidates.available(options.peers or list(PEERS), services, options.venvs, bench) as peers:
        compared = [candidates.this_tree(bench), *peers]
        for candidate in compared:
            print(f"{candidate.name:<10} {candidate.version:<10} {candidate.how}", flush=True)
        results += comparison.run(bench, compared, options.rounds)
    print("\n" + "\n".join(comparison.table(results)), flush=True)
    return not any(measure_results.failures for measure_results in results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What qtasks costs, measured.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="full size, including a backlog of 200,000")
    size.add_argument("--tiny", action="store_true", help="only to see that everything works; the figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=FIGURES, metavar="FIGURE", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as well")
    parser.add_argument("--folder", type=Path, help="where the stores are kept: the disk that is measured [temporary]")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, metavar="PEER", help=f"compare with {', '.join(PEERS)}, or some of them"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds with --peers [3]")
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
