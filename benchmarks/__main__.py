"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Final

from benchmarks import machine, report
from benchmarks.bench import FULL, QUICK, USUAL, Bench
from benchmarks.comparison import rounds, tree_session, trees
from benchmarks.comparison.candidate import Candidate
from benchmarks.comparison.measures import MeasureResults
from benchmarks.comparison.nginx import NoNginxError
from benchmarks.comparison.rounds import Kept
from benchmarks.comparison.steps import STEPS
from benchmarks.comparison.table import as_data, table
from benchmarks.comparison.trees import THIS_TREE, NoRevisionError
from benchmarks.figure import Row
from benchmarks.figures import FIGURES
from benchmarks.peers import session as peer_session
from benchmarks.peers.catalogue import PEERS, USUAL_PEERS
from benchmarks.peers.environments import UnavailableError
from benchmarks.peers.services import POSTGRES, REDIS, Services, synced_redis

_BEGAN_S = time.monotonic()

_KEPT: Final[dict[str, Kept]] = {"off": (False,), "on": (True,), "both": (False, True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the arguments select; 0, or 1 if something could not be measured."""
    parser = _parser()
    options = parser.parse_args(arguments)
    compares = options.against is not None or options.peers is not None or options.proxy is not None
    names = STEPS if compares else FIGURES
    if unknown := [name for name in options.only or () if name not in names]:
        parser.error(f"--only {unknown[0]}: here it takes {', '.join(names)}")
    try:
        services = Services(options.redis, options.postgres)
    except ValueError as error:
        parser.error(str(error))
    # Turn SIGTERM into an exit, so that the servers of a measurement are stopped with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows: list[Row] = []
    compared: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="qtasks-benchmarks-", dir=options.folder) as folder:
        sizes = FULL if options.full else QUICK if options.quick else USUAL
        bench = Bench(sizes, Path(folder), _say)
        facts = machine.facts(bench.folder)
        print(f"{report.heading(facts)}\n", flush=True)
        selected = options.only or list(names)
        try:
            if compares:
                complete = _compare(bench, options, services, selected, compared)
            else:
                complete = _figures(bench, selected, rows)
        except (NoRevisionError, NoNginxError, UnavailableError) as error:
            parser.error(str(error))
        finally:
            if options.json is not None and (rows or compared):
                report.as_json(options.json, facts, rows, compared)
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


def _compare(
    bench: Bench, options: argparse.Namespace, services: Services, names: Sequence[str], compared: list[dict[str, Any]]
) -> bool:
    """Compare into `compared`; False if a round of any candidate failed. What is interrupted is shown so far."""
    results: list[MeasureResults] = []
    count = options.rounds or (1 if options.quick else 3)
    with _candidates(bench, options, services) as candidates:
        for candidate in candidates:
            print(f"{candidate.name:<10} {candidate.version:<10} {candidate.how}", flush=True)
        try:
            rounds.run(bench, candidates, count, names=names, kept=_KEPT[options.results], into=results)
        finally:
            print("\n" + "\n".join(table(results, THIS_TREE, judged=not options.quick)), flush=True)
            compared += as_data(results, THIS_TREE)
    return not any(row.failures for row in results)


@contextlib.contextmanager
def _candidates(bench: Bench, options: argparse.Namespace, services: Services) -> Iterator[list[Candidate]]:
    """This tree and what it is compared with. Raises NoRevisionError, NoNginxError, UnavailableError."""
    own = tree_session.of(trees.this_tree(), bench)
    if options.against is not None:
        yield [tree_session.of(trees.checkout(options.against, bench.folder), bench), own]
    elif options.proxy is not None:
        yield [own, tree_session.of(trees.this_tree(), bench, behind_nginx=True)]
    else:
        options.venvs.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if options.synced:
                services = stack.enter_context(synced_redis(services, bench.folder))
            names = options.peers or USUAL_PEERS
            peers = stack.enter_context(
                peer_session.available(names, services, options.venvs, bench, python=options.python)
            )
            yield [own, *peers]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What qtasks costs, measured.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--against", metavar="REV", help="compare with another revision, in turns")
    mode.add_argument(
        "--peers", nargs="*", choices=PEERS, metavar="PEER", help=f"compare with some of {', '.join(PEERS)}"
    )
    mode.add_argument("--proxy", choices=("nginx",), help="compare with the dispatcher behind a proxy")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="figures at full size, including a backlog of 200,000")
    size.add_argument("--quick", action="store_true", help="small counts, one round: to see that everything works")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(FIGURES)}; of a comparison {', '.join(STEPS)}",
    )
    parser.add_argument("--rounds", type=_count, help="rounds of a comparison [3]")
    parser.add_argument("--results", choices=_KEPT, default="off", help="keep results of tasks in a comparison [off]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as well")
    parser.add_argument("--folder", type=Path, help="where the stores are kept: the disk that is measured [temporary]")
    parser.add_argument(
        "--venvs",
        type=Path,
        default=Path(gettempdir(), "qtasks-peers"),
        help="where the peers' virtual environments are made and kept [%(default)s]",
    )
    parser.add_argument("--python", default="python3", help="for peers that need a newer Python [%(default)s]")
    parser.add_argument("--redis", default=REDIS, help="an empty database [%(default)s]")
    parser.add_argument("--postgres", default=POSTGRES, help="a database for a schema of ours [%(default)s]")
    parser.add_argument("--synced", action="store_true", help="peers use a Redis that syncs every write to disk")
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError
    return count


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN_S:6.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
