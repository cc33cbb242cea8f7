"""Turns criteria into SQL conditions. Fields are ANDed, the values of one field ORed; values are always bound."""

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

_AFTER_SCHEME: Final = "substr(m.url, instr(m.url, '://') + 3)"
_BEFORE_QUERY: Final = f"substr({_AFTER_SCHEME}, 1, instr({_AFTER_SCHEME} || '?', '?') - 1)"
_PATH: Final = (
    f"CASE instr({_BEFORE_QUERY}, '/') WHEN 0 THEN '/' ELSE substr({_BEFORE_QUERY}, instr({_BEFORE_QUERY}, '/')) END"
)


class Where:
    """The conditions of a query and their parameters."""

    def __init__(self, condition: str, *values: object) -> None:
        self._conditions = [condition]
        self.values: list[Any] = [*values]

    def add(self, condition: str, *values: object) -> None:
        """Add a condition."""
        self._conditions.append(condition)
        self.values.extend(values)

    def any_of(self, column: str, values: tuple[Any, ...]) -> None:
        """Require that `column` has one of `values`; without values, require nothing."""
        if values:
            self.add(f"{column} IN ({_marks(values)})", *values)

    def between(self, column: str, low: int | None, high: int | None) -> None:
        """Require that `column` is from `low` to `high`, both included; None: no limit."""
        if low is not None:
            self.add(f"{column} >= ?", low)
        if high is not None:
            self.add(f"{column} <= ?", high)

    @property
    def text(self) -> str:
        """All conditions as one, without its values."""
        return f"({' AND '.join(self._conditions)})"

    def __str__(self) -> str:
        return " WHERE " + " AND ".join(self._conditions)


def messages(condition: str, account: int, criteria: MessageCriteria, *, time: str = "m.created_ms") -> Where:
    """The conditions on table ``messages m``, after `condition` on the account; dates are compared with `time`."""
    where = Where(condition, account)
    for field, column in _COLUMNS:
        where.any_of(column, getattr(criteria, field))
    if criteria.labels:
        where.add(
            "EXISTS (SELECT 1 FROM labels t WHERE t.account = m.account AND t.seq = m.seq"
            f" AND t.label IN ({_marks(criteria.labels)}))",
            *criteria.labels,
        )
    if criteria.hosts:
        # Column `host` is host:port. A host with a port must be equal to it, one without a port to its first part.
        hosts = tuple(host.lower() for host in criteria.hosts)
        where.add(
            f"(m.host IN ({_marks(hosts)}) OR rtrim(m.host, '0123456789') IN ({_marks(hosts)}))",
            *hosts,
            *(f"{host}:" for host in hosts),
        )
    if criteria.paths:
        where.any_of(_PATH, criteria.paths)
    where.between(time, criteria.from_ms, criteria.to_ms)
    return where


def _marks(values: tuple[Any, ...]) -> str:
    """A placeholder for each value."""
    return ", ".join("?" * len(values))
