"""The shape of a flow as JSON.

Calls in sequence are a list, in which a node is a call or a group. A group is the list of its members, and a member is
a call or again a sequence. A group after which the flow goes on with what worked is an object:

    [call, [call, [call, call]], call]                              a group of a call and of a sequence of two
    [{"members": [call, call], "collect": "successes"}, call]       the last call gets the results that there are
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

Collect = Literal["all", "successes"]
"""Which results of a group the next call gets: of all members, or it is not sent; or of those that succeeded."""

SUCCESSES: Final = "successes"


def group_node(members: Sequence[Any], collect: Collect) -> Any:
    """A group as a node of a sequence."""
    return {"members": list(members), "collect": collect} if collect == SUCCESSES else list(members)


def members_of(node: Any) -> Sequence[Any] | None:
    """The members of a group, or None for a call."""
    if isinstance(node, list):
        return node
    members: Sequence[Any] | None = node.get("members") if isinstance(node, dict) else None
    return members


def with_members(node: Any, members: Sequence[Any], **notes: Any) -> Any:
    """A group with other members; `notes` are added to one after which the flow goes on with what worked."""
    return {**node, "members": list(members), **notes} if isinstance(node, dict) else list(members)


def collects_successes(node: Any) -> bool:
    """True for a group after which the flow goes on with what worked."""
    return isinstance(node, dict) and node.get("collect") == SUCCESSES


def sequence_of(member: Any) -> Sequence[Any]:
    """A member of a group as a sequence."""
    return member if isinstance(member, list) else [member]


def has_calls(sequence: Sequence[Any]) -> bool:
    """False for a sequence of empty groups."""
    for node in sequence:
        members = members_of(node)
        if members is None or any(has_calls(sequence_of(member)) for member in members):
            return True
    return False


def empty_value(group: Any) -> list[Any]:
    """The result of a group without calls: an empty list, or a list of such lists."""
    return [empty_value(sequence_of(member)[-1]) for member in members_of(group) or ()]
