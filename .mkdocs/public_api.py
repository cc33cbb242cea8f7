"""What the pages of the API leave out, and what they show in another way than the source.

Left out are the names that a class keeps for qtasks itself (it lists them in `_internal`, as `qtasks.api_names`
describes), attributes whose text begins with "Internal", and parameters that nobody can pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import griffe

_TEXT: Final = re.compile(r"'(\w+)'|\"(\w+)\"")


class PublicApi(griffe.Extension):
    """Looks at every class once all modules are loaded, when the base classes are known."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change the classes of the package."""
        for cls in list(_classes(pkg)):
            kept = _kept_back(cls)
            for each in (cls, *cls.mro()):
                for name in kept & set(each.members):
                    each.del_member(name)
            for name, member in list(cls.members.items()):
                if isinstance(member, griffe.Function):
                    _leave_out(member, kept)
                    if any("lazy_property" in str(each.value) for each in member.decorators):
                        cls.set_member(name, _as_property(member))


def _classes(place: griffe.Object) -> Iterator[griffe.Class]:
    for member in place.members.values():
        if isinstance(member, griffe.Class):
            yield member
        if isinstance(member, (griffe.Class, griffe.Module)):
            yield from _classes(member)


def _kept_back(cls: griffe.Class) -> set[str]:
    """The names that `cls` and its base classes keep for qtasks, own and inherited ones."""
    found: set[str] = set()
    for each in (cls, *cls.mro()):
        attribute = each.members.get("_internal")
        if isinstance(attribute, griffe.Attribute) and attribute.value is not None:
            found |= {one or other for one, other in _TEXT.findall(str(attribute.value))}
    for name, member in cls.members.items():
        if member.docstring is not None and member.docstring.value.startswith("Internal"):
            found.add(name)
    return found


def _leave_out(function: griffe.Function, kept: set[str]) -> None:
    """Remove parameters of what is kept back, and those that exist so that a wrong call gets an error that helps."""
    for parameter in list(function.parameters):
        if parameter.name in kept or str(parameter.annotation) == "Never":
            del function.parameters[parameter.name]


def _as_property(function: griffe.Function) -> griffe.Attribute:
    shown = griffe.Attribute(
        function.name, annotation=function.returns, docstring=function.docstring, lineno=function.lineno
    )
    shown.labels |= {"property"}
    return shown
