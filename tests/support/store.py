"""The verbs of the SQLite store, called inline on one connection in memory, at a time that the test sets."""

from __future__ import annotations

from typing import Any

import apsw

from qtasks.broker.core.rules import Evaluation, Stage, Trigger
from qtasks.broker.core.values import Claim, DeadLetterCriteria, LogCriteria, Publication, Rooms, Settled, Settlement
from qtasks.broker.store.connection import connect
from qtasks.broker.store.verbs import accept, cancel, claim, dead_letters, settle
from qtasks.broker.store.verbs.reads import queries
from qtasks.protocol import wire
from qtasks.protocol.messages import DeadLetter, Message, Response, State
from tests.support.broker import ACCOUNT, START_MS, publication

OK = Response(status=200, headers=(("Content-Type", "text/plain"),), body=b"fine")
OOPS = Response(status=500, body=b"oops")


class InlineStore:
    """A store in memory; `now_ms` is the time that every verb gets."""

    def __init__(self) -> None:
        self.db: apsw.Connection = connect(":memory:")
        self.now_ms = START_MS
        self._fresh = 0

    def close(self) -> None:
        self.db.close()

    def accept(self, *numbers: int, **changes: Any) -> list[str]:
        publications = [publication(number, now_ms=self.now_ms, **changes) for number in numbers]
        return [accepted.message_id for accepted in accept.accept(self.db, publications, now_ms=self.now_ms)]

    def accept_all(self, messages: list[Message]) -> None:
        """Accept these messages as they are."""
        publications = [Publication(one, wire.host_of(one.url)) for one in messages]
        accept.accept(self.db, publications, now_ms=self.now_ms)

    def claims(self, limit: int = 100, room: int = 1000) -> list[Claim]:
        """Claim all messages that may start now."""
        claims: list[Claim] = []
        while len(claims) < limit:
            answer = claim.claim(self.db, now_ms=self.now_ms, limit=limit - len(claims), rooms=Rooms(room))
            claims += answer.claims
            if not answer.has_more:
                break
        return claims

    def claim(self) -> Claim:
        """Claim the only message that may start now."""
        [claim] = self.claims()
        return claim

    def next_due(self) -> int | None:
        """Milliseconds until the next message is due; None if none is."""
        due_ms = claim.claim(self.db, now_ms=self.now_ms, limit=0, rooms=Rooms(1)).next_due_ms
        return None if due_ms is None else due_ms - self.now_ms

    def end(
        self, claim: Claim, trigger: Trigger = Trigger.SUCCEED, *, after_ms: int = 0, outcome: Any = None
    ) -> Settled:
        """Settle an attempt; after a RETRY the message is due in `after_ms`."""
        evaluation = Evaluation(
            trigger,
            None if trigger is Trigger.SUCCEED else "it answered 500",
            self.now_ms + after_ms if trigger is Trigger.RETRY else None,
        )
        self._fresh += 2
        settlement = Settlement(
            claim,
            outcome or (OK if trigger is Trigger.SUCCEED else OOPS),
            evaluation,
            (f"cb_{self._fresh}", f"cb_{self._fresh + 1}"),
        )
        settled = settle.settle(self.db, settlement, now_ms=self.now_ms)
        assert settled is not None
        return settled

    def cancel(self, *message_ids: str) -> int:
        return cancel.cancel(self.db, ACCOUNT, message_ids, now_ms=self.now_ms).count

    def crash(self) -> None:
        settle.recover(self.db, now_ms=self.now_ms)

    def message(self, message_id: str) -> Message:
        message = queries.message(self.db, ACCOUNT, message_id)
        assert message is not None
        return message

    def stage(self, message_id: str) -> Stage:
        return Stage(self.db.execute("SELECT stage FROM messages WHERE id = ?", (message_id,)).get)

    def states(self, message_id: str) -> list[State]:
        which = LogCriteria(message_ids=(message_id,), oldest_first=True)
        return [entry.state for entry in queries.log(self.db, ACCOUNT, which, cursor=None, count=100).items]

    def dead(self, **which: Any) -> list[DeadLetter]:
        return list(queries.dead_letters(self.db, ACCOUNT, DeadLetterCriteria(**which), cursor=None, count=100).items)

    def dead_ids(self) -> list[str]:
        """The ids of the dead letters, without their messages, which may be damaged."""
        rows = self.db.execute("SELECT failed_ms, n FROM dead_letters ORDER BY failed_ms, n").fetchall()
        return [f"{failed_ms}-{n}" for failed_ms, n in rows]

    def delete_dead(self) -> None:
        dead_letters.delete_dead_letters(self.db, ACCOUNT, DeadLetterCriteria(), cursor=None, limit=100)


def ids(claims: list[Claim]) -> list[str]:
    """The ids of claimed messages, in order."""
    return [claim.message.id for claim in claims]
