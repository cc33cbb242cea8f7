"""How errors show a value and the path that leads to it. What may be secret is not shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qtasks.masking import mask_pairs

_SHOWN = 80
"""Characters of a value in an error."""
_READ = 1000
"""Characters of a value that are searched for secrets, of which the first `_SHOWN` are shown."""


def path_of(location: tuple[int | str, ...], values: object) -> str:
    """The path of a value in the arguments: ``user.created``, ``rows[3]``.

    pydantic inserts names of its own, such as those of union members; the values show which names are theirs.
    """
    text = ""
    here: object = values
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
            here = here[step] if isinstance(here, Sequence) and step < len(here) else None
        elif isinstance(here, Mapping):
            if step in here or step == location[-1]:
                text += f".{step}" if text else step
                here = here.get(step)
        elif hasattr(here, step):
            text += f".{step}" if text else step
            here = getattr(here, step)
    return text


def shown(value: object) -> str:
    """A value and its type, as an error shows them."""
    try:
        return f"{cut(mask_pairs(repr(value)[:_READ]))} ({type(value).__name__})"
    except Exception:  # `repr` of the user's class may raise anything, and an integer may have too many digits
        return f"a {type(value).__name__}"


def cut(text: str) -> str:
    """A text as errors show it: its beginning, if it is long."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
