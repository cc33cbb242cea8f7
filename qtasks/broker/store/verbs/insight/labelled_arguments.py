"""Which destinations have messages with labels of their arguments, and from which message on all of them have.

So a search by an argument reads only messages that may have the argument without a label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import apsw
import orjson

from qtasks.broker.store.verbs.rows import fetch, write_each
from qtasks.protocol.labels.argument_labels import PREFIX, name_in

MAX_NAMES: Final = 32
"""Names that are known of a destination; messages are read for further ones."""
_AFTER_PREFIX: Final = f"{PREFIX[:-1]}{chr(ord(PREFIX[-1]) + 1)}"
"""The first text behind all that begin with the prefix."""
LABELS: Final = f"SELECT label FROM labels WHERE seq = ? AND label >= '{PREFIX}' AND label < '{_AFTER_PREFIX}'"
"""The labels of arguments that a message has."""
_AMONG: Final = "IN (SELECT value FROM json_each(?))"
_LABELS_OF: Final = (
    f"SELECT seq, label FROM labels WHERE seq {_AMONG} AND label >= '{PREFIX}' AND label < '{_AFTER_PREFIX}'"
)
_KNOWN: Final = f"SELECT destination, name FROM insight_searchable WHERE destination {_AMONG}"
_HAS_EARLIER: Final = "SELECT EXISTS (SELECT 1 FROM insight_messages WHERE account = ? AND destination = ? AND seq < ?)"
_NOTE: Final = (
    "INSERT INTO insight_searchable (destination, name, unlabelled) VALUES (?, ?, ?)"
    " ON CONFLICT DO UPDATE SET unlabelled = excluded.unlabelled"
)
_UNLABELLED: Final = f"SELECT destination, unlabelled FROM insight_searchable WHERE name = ? AND destination {_AMONG}"


def note(db: apsw.Connection, destinations: Mapping[int, tuple[int, int]]) -> None:
    """Note which of some new messages have labels, before they are indexed.

    `destinations` are the account and the destination of each by `seq`.
    """
    numbers = sorted({number for _, number in destinations.values()})
    noted: defaultdict[int, dict[str, int | None]] = defaultdict(dict)
    for number, name in fetch(db, _KNOWN, (_json(numbers),)):
        noted[number][name] = None
    labelled: defaultdict[int, set[str]] = defaultdict(set)
    for seq, label in fetch(db, _LABELS_OF, (_json([*destinations]),)):
        labelled[seq].add(name_in(label))
    if not noted and not labelled:
        return
    seen: set[int] = set()
    for seq in sorted(destinations):
        account, number = destinations[seq]
        of_destination, names = noted[number], labelled.get(seq, set())
        for name in sorted(names - of_destination.keys())[: MAX_NAMES - len(of_destination)]:
            has_earlier = number in seen or db.execute(_HAS_EARLIER, (account, number, seq)).get
            of_destination[name] = seq - 1 if has_earlier else 0
        of_destination.update(dict.fromkeys(of_destination.keys() - names, seq))
        seen.add(number)
    changes = [
        (number, name, unlabelled)
        for number, of_destination in noted.items()
        for name, unlabelled in of_destination.items()
        if unlabelled is not None
    ]
    write_each(db, _NOTE, changes)


def unlabelled(db: apsw.Connection, name: str, numbers: Iterable[int]) -> dict[int, int]:
    """The newest message without a label of the argument, 0 for none, of those destinations that have such labels."""
    return dict(fetch(db, _UNLABELLED, (name, _json(sorted(numbers)))))


def _json(numbers: list[int]) -> str:
    return orjson.dumps(numbers).decode()
