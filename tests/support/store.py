"""A store's verbs, spoken in a test's words: one connection in memory, a clock that is set by hand."""

from __future__ import annotations

from typing import Any

import apsw

from qtasks.broker.core.rules import Evaluation, Stage, Trigger
from qtasks.broker.core.values import Claim, DeadLetterCriteria, LogCriteria, Settled, Settlement
from qtasks.broker.store import queries, verbs
from qtasks.broker.store.sqlite import connect
from qtasks.protocol.messages import DeadLetter, Message, Response, State
from tests.support.broker import ACCOUNT, START_MS, publication

OK = Response(status=200, headers=(("Content-Type", "text/plain"),), body=b"fine")
OOPS = Response(status=500, body=b"oops")


class InlineStore:
    """A store in memory and the time."""

    def __init__(self) -> None:
        self.db: apsw.Connection = connect(":memory:")
        self.now_ms = START_MS
        self._fresh = 0

    def close(self) -> None:
        self.db.close()

    def accept(self, *numbers: int, **changes: Any) -> list[str]:
        made = [publication(number, now_ms=self.now_ms, **changes) for number in numbers]
        return [one.message_id for one in verbs.accept(self.db, made, now_ms=self.now_ms)]

    def claims(self, limit: int = 100, host_limit: int = 1000, **busy: int) -> list[Claim]:
        """Everything that may start now."""
        found: list[Claim] = []
        while len(found) < limit:
            answer = verbs.claim(
                self.db, now_ms=self.now_ms, limit=limit - len(found), host_limit=host_limit, in_flight=busy
            )
            found += answer.claims
            if not answer.more:
                break
        return found

    def claim(self) -> Claim:
        """The only one that may start now."""
        [one] = self.claims()
        return one

    def next_due(self) -> int | None:
        """Milliseconds until a claim has something to look at."""
        found = verbs.claim(self.db, now_ms=self.now_ms, limit=0, host_limit=1, in_flight={}).next_due_ms
        return None if found is None else found - self.now_ms

    def end(
        self, claim: Claim, trigger: Trigger = Trigger.SUCCEED, *, after_ms: int = 0, outcome: Any = None
    ) -> Settled:
        """Settle: a retry is due `after_ms` later."""
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
        settled = verbs.settle(self.db, settlement, now_ms=self.now_ms)
        assert settled is not None
        return settled

    def cancel(self, *message_ids: str) -> int:
        return verbs.cancel(self.db, ACCOUNT, message_ids, now_ms=self.now_ms)

    def crash(self) -> None:
        verbs.recover(self.db, now_ms=self.now_ms)

    def message(self, message_id: str) -> Message:
        found = queries.message(self.db, ACCOUNT, message_id)
        assert found is not None
        return found

    def stage(self, message_id: str) -> Stage:
        return Stage(self.db.execute("SELECT stage FROM messages WHERE id = ?", (message_id,)).get)

    def states(self, message_id: str) -> list[State]:
        which = LogCriteria(message_ids=(message_id,), oldest_first=True)
        return [entry.state for entry in queries.log(self.db, ACCOUNT, which, cursor=None, count=100).items]

    def dead(self, **which: Any) -> list[DeadLetter]:
        return list(queries.dead_letters(self.db, ACCOUNT, DeadLetterCriteria(**which), cursor=None, count=100).items)


def ids(claims: list[Claim]) -> list[str]:
    """The ids of claimed messages, in order."""
    return [one.message.id for one in claims]
