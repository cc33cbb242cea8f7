"""Filters as SQL: fields are ANDed, the values of one field ORed; values never enter the SQL text."""

from __future__ import annotations

from typing import Any, Final

from qtasks.broker.core.values import MessageCriteria

_COLUMNS: Final = (
    ("message_ids", "m.id"),
    ("urls", "m.url"),
    ("url_groups", "m.url_group"),
    ("queues", "m.queue"),
    ("schedule_ids", "m.schedule_id"),
    ("flow_keys", "m.flow_key"),
    ("caller_ips", "m.caller_ip"),
)

_REST: Final = "substr(m.url, instr(m.url, '://') + 3)"
_BEFORE_QUERY: Final = f"substr({_REST}, 1, instr({_REST} || '?', '?') - 1)"
_PATH: Final = (
    f"CASE instr({_BEFORE_QUERY}, '/') WHEN 0 THEN '/' ELSE substr({_BEFORE_QUERY}, instr({_BEFORE_QUERY}, '/')) END"
)


class Where:
    """The conditions of a query and their parameters."""

    def __init__(self, condition: str, *values: object) -> None:
        self._conditions = [condition]
        self.values: list[Any] = [*values]

    def add(self, condition: str, *values: object) -> None:
        """AND one more."""
        self._conditions.append(condition)
        self.values.extend(values)

    def any_of(self, column: str, values: tuple[Any, ...]) -> None:
        """AND that the column has one of the values, if there are any."""
        if values:
            self.add(f"{column} IN ({', '.join('?' * len(values))})", *values)

    def between(self, column: str, low: int | None, high: int | None) -> None:
        """AND that the column is in the range, both ends included."""
        if low is not None:
            self.add(f"{column} >= ?", low)
        if high is not None:
            self.add(f"{column} <= ?", high)

    def __str__(self) -> str:
        return " WHERE " + " AND ".join(self._conditions)


def messages(condition: str, account: int, which: MessageCriteria, *, time: str = "m.created_ms") -> Where:
    """The conditions of `which` on the table ``messages m``; dates are compared with the column `time`."""
    where = Where(condition, account)
    for field, column in _COLUMNS:
        where.any_of(column, getattr(which, field))
    if which.labels:
        marks = ", ".join("?" * len(which.labels))
        where.add(
            f"EXISTS (SELECT 1 FROM labels t WHERE t.account = m.account AND t.seq = m.seq AND t.label IN ({marks}))",
            *which.labels,
        )
    if which.hosts:
        # With a port it is compared with the host and port that a delivery goes to, without one with the host alone.
        hosts = [host.lower() for host in which.hosts]
        marks = ", ".join("?" * len(hosts))
        where.add(
            f"(m.host IN ({marks}) OR rtrim(m.host, '0123456789') IN ({marks}))",
            *hosts,
            *(f"{host}:" for host in hosts),
        )
    if which.paths:
        where.any_of(_PATH, which.paths)
    where.between(time, which.from_ms, which.to_ms)
    return where
