"""The bars of the house, and that each check finds what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.house import __main__ as command
from tests.house import citations, idioms, imports, names, sizes, trace
from tests.house.report import LONGEST_FUNCTION, MEASURES, Measure, Row
from tests.house.source import ROOT, Modules, read


@pytest.fixture(scope="module")
def package() -> Modules:
    return read(ROOT / "qtasks")


@pytest.mark.parametrize("measure", MEASURES)
def test_the_house_holds_its_bars(measure: Measure, package: Modules) -> None:
    row = measure(package)
    assert row.value <= (row.bar or 0), "\n".join(command.lines([row]))


Tree = Callable[..., Modules]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Write a package `house` with these files, and read it."""

    def write(**files: str) -> Modules:
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "house" / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(text)
        return read(tmp_path / "house")

    return write


@pytest.fixture
def contract(tmp_path: Path) -> Callable[[str], list[imports.Layers]]:
    """The contracts of a pyproject.toml with one contract of type `layers`, whose other lines are given."""

    def write(lines: str) -> list[imports.Layers]:
        path = tmp_path / "pyproject.toml"
        path.write_text(f'[[tool.importlinter.contracts]]\nname = "floors"\ntype = "layers"\n{lines}\n')
        return imports.contracts(path)

    return write


@pytest.mark.parametrize(
    "late",
    [
        "from house import upper",
        "import house.upper",
        "from . import upper",
        "from .upper import name",
        "def f():\n    from house.upper import name",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.upper import Name",
        "from importlib import import_module\ndef f():\n    return import_module('house.upper')",
    ],
)
def test_a_circle_of_any_kind_of_import_is_seen(tree: Tree, late: str) -> None:
    modules = tree(upper="from house import middle", middle="from house.lower import name", lower=late)
    assert imports.circles(modules) == [["house.lower", "house.middle", "house.upper"]]


def test_imports_that_run_one_way_are_no_circle(tree: Tree) -> None:
    modules = tree(upper="import house.lower\nfrom house.lower import name", lower="import json")
    assert imports.circles(modules) == []


def test_a_name_from_a_package_is_an_import_of_its_init_and_a_submodule_is_not(tree: Tree) -> None:
    menu = "from house.room.low import name"
    modules = tree(room__in____init__=menu, room__in__low="from house.room import other", room__in__other="")
    assert imports.circles(modules) == []
    modules = tree(room__in____init__=menu, room__in__low="from house.room import name")
    assert imports.circles(modules) == [["house.room", "house.room.low"]]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("from house.upper import Name", "(house.upper is above house.left)"),
        ("if TYPE_CHECKING:\n    from house.upper import Name", "(house.upper is above house.left)"),
        ("def f():\n    import house.upper", "(house.upper is above house.left)"),
        ("from house import right", "(house.right is beside house.left)"),
        ("from house import NAME", "which is above its layers"),
    ],
)
def test_an_import_against_the_floors_is_seen(
    tree: Tree, contract: Callable[[str], list[imports.Layers]], source: str, reason: str
) -> None:
    layers = contract('layers = ["house.upper", "house.left | house.right", "house.base"]')
    modules = tree(__init__="from house.upper import NAME", upper="", left=source, right="", base="")
    (line,) = imports.upward(modules, layers)
    assert line.endswith(reason)
    assert f"left.py:{source.count(chr(10)) + 1}" in line


def test_imports_down_the_floors_and_within_a_room_are_right(
    tree: Tree, contract: Callable[[str], list[imports.Layers]]
) -> None:
    layers = contract('containers = ["house"]\nlayers = ["upper", "(lower)"]')
    modules = tree(upper__in__a="from house.upper import b", upper__in__b="import house.lower", lower="import house")
    assert imports.upward(modules, layers) == []
    assert imports.uncovered(modules, layers) == []


def test_a_module_without_a_floor_and_an_ignored_import_are_seen(
    tree: Tree, contract: Callable[[str], list[imports.Layers]], tmp_path: Path
) -> None:
    layers = contract('layers = ["house.upper", "house.lower"]\nignore_imports = ["house.lower -> house.upper"]')
    modules = tree(upper="", lower="", attic="")
    assert imports.uncovered(modules, layers) == ["house.attic is in no layer of 'floors'"]
    (ignored,) = imports.exceptions(tmp_path / "pyproject.toml")
    assert ignored.endswith("ignores house.lower -> house.upper")


def test_a_class_name_for_two_things_is_seen_nested_and_private_too(tree: Tree) -> None:
    modules = tree(a="class Call: ...\nclass _Row: ...", b="class Other:\n    class Call: ...", c="class _Row: ...")
    assert names.classes_in_two_uses(modules) == [
        "class Call: house.a:1, house.b:2",
        "class _Row: house.a:2, house.c:1",
    ]


def test_a_module_name_for_two_things_is_seen_unless_the_glossary_has_it(tree: Tree, tmp_path: Path) -> None:
    modules = tree(a__in__flow_controls="", b__in__flow_controls="", a__in__queue="", b__in__queue="")
    glossary = tmp_path / "glossary.md"
    assert len(names.modules_in_two_uses(modules, glossary)) == 2
    glossary.write_text("# Words\n\n**flow control, flow-control key**: rates and parallelism of a **queue**.\n")
    assert names.modules_in_two_uses(modules, glossary) == ["module queue: house.a.queue, house.b.queue"]


@pytest.mark.parametrize("name", ["class Verdict: ...", "class StandInServer: ...", "def _wanted_of(): ..."])
def test_a_retired_word_in_a_name_is_seen(tree: Tree, name: str) -> None:
    assert len(names.retired_names(tree(a=name))) == 1
    assert names.retired_names(tree(a="class ThresholdKey: ...\ndef outstanding_rows(): ...")) == []


def test_a_retired_word_as_the_name_of_a_module_is_seen(tree: Tree) -> None:
    (place,) = names.retired_names(tree(stand_in=""))
    assert place.text == "stand_in: use fake"


@pytest.mark.parametrize(
    "code",
    [
        "found = 1",
        "def f(*, known): ...",
        "lambda one: 1",
        "for said in (): ...",
        "if (told := 1): ...",
        "class Row:\n    more: bool",
        "self._left = 1",
        "match x:\n    case [wanted]: ...",
    ],
)
def test_a_variable_with_a_vague_name_is_seen(tree: Tree, code: str) -> None:
    assert len(names.vague_names(tree(a=code))) == 1


def test_left_beside_right_is_a_side(tree: Tree) -> None:
    assert names.vague_names(tree(a="def divide(left, right): ...")) == []


def test_a_function_is_measured_without_its_decorators_and_docstring(tree: Tree) -> None:
    body = "    x = 1\n" * LONGEST_FUNCTION
    modules = tree(a=f'@staticmethod\n@property\nasync def f():\n    """One.\n\n    Two.\n    """\n{body}')
    ((lines, place),) = sizes.functions(modules)
    assert (lines, place.text) == (LONGEST_FUNCTION + 1, "f")


def test_rooms_and_modules_are_measured(tree: Tree) -> None:
    modules = tree(a="x = 1\n" * 7, room__in__b="x = 1\n", room__in__c="", room__in__d="")
    assert [(count, folder.name) for count, folder in sizes.rooms(modules)] == [(3, "room"), (1, "house")]
    assert [lines for lines, _ in sizes.lengths(modules)][:2] == [7, 1]


@pytest.mark.parametrize(
    "text",
    [
        "The order is kept by whoever takes it.",
        "Nobody would know.",
        "It belongs to somebody else.",
        "Whatever it was.",
        "Have it known that the run should end.",
        "A failure would only have it told once more.",
        "Raises ValueError for a flow that is none.",
        "What is no number is left out.",
        "`watch` is told of every step.",
        "The loop is\n    told when there is work.",
        "What is said.",
        "a datetime with a time zone is wanted",
        "A key as it stands.",
        "What a task may say besides.",
        "The call was called off.",
        "Let go of every connection.",
        "A stand-in for language models.",
        "The policy's verdict.",
        "The embedded home.",
        "Queues (protocol reference 2.6).",
        "Read without surprises (D29, T10).",
    ],
)
@pytest.mark.parametrize(
    "form", ['"""{}"""', "def f():\n    raise ValueError('''{}''')", "x = f'''{{x}}: {}'''", "# {}"]
)
def test_an_idiom_is_seen_in_docstrings_texts_and_comments(tree: Tree, form: str, text: str) -> None:
    written = text.replace("\n", "\n# ") if form.startswith("#") else text
    assert idioms.idioms(tree(a=form.format(written)))


@pytest.mark.parametrize(
    "text",
    [
        "None where there is none.",
        "There is no task of that name.",
        "Raised where there\n    is no URL group named x.",
        "It is no longer possible, and is no more than 5.",
        "`limit` is None on the last page.",
        "The tasks have to run the same version; it has run before.",
        "Use `whatever` or ``nobody``.",
        "See docs/protocol.md 2.6.",
    ],
)
def test_plain_english_is_left_alone(tree: Tree, text: str) -> None:
    assert idioms.idioms(tree(a=f'"""{text}"""')) == []


def test_an_idiom_is_shown_with_its_line_and_what_to_write(tree: Tree) -> None:
    (place,) = idioms.idioms(tree(a='x = 1\n"""One.\n\n    It is for\n    nobody.\n    """'))
    assert (place.path.name, place.line) == ("a.py", 5)
    assert place.text.startswith("'nobody': ")


def test_a_citation_of_what_is_not_there_is_seen(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "wire.md").write_text("# Wire\n\n## 2. Requests\n\n### 2.9 Dead letters\n\n| A3 | yes |\n")
    right = '"""See docs/wire.md 2.9, A3; `docs/wire.md`, and docs/wire.md 2 to 2.9."""'
    assert citations.broken_citations(tree(a=right), tmp_path) == []
    wrong = 'x = 1\n"""See docs/wire.md 2.9,\n2.1 and A4; docs/other.md 1."""'
    assert [(place.line, place.text) for place in citations.broken_citations(tree(a=wrong), tmp_path)] == [
        (2, "docs/wire.md has no section 2.1"),
        (2, "docs/wire.md has no section A4"),
        (3, "docs/other.md does not exist"),
    ]


def test_the_ways_of_a_call_and_of_its_delivery_are_traced() -> None:
    delay, delivery = trace.trace()
    assert {file.partition("/")[0] for file in delay.calls} >= {"tasks", "qstash", "embedded.py"}
    assert not any(file.startswith(("broker/", "embedded.py")) for file in delivery.calls)
    assert {"tasks/run", "tasks/web", "tasks/encode"} < {file.rpartition("/")[0] for file in delivery.calls}


def test_moves_are_the_runs_of_calls_in_one_file() -> None:
    way = trace.Way(("a.py", "a.py", "b.py", "a.py"))
    assert (way.moves, way.files) == (3, 2)


def test_the_table_shows_what_misses_its_bar_and_only_that() -> None:
    table = [Row("circles", 1, 0, ["a and b"]), Row("rooms", 3, 4, ["hidden"], ["shown"]), Row("moves", 41)]
    assert list(command.lines(table)) == [
        "         value   bar",
        "circles      1     0  MISSED",
        "    a and b",
        "rooms        3     4  ok",
        "    shown",
        "moves       41",
    ]


def test_the_command_prints_the_table_and_fails_when_a_bar_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "reported", lambda: iter([Row("moves", 41)]))
    monkeypatch.setattr(command, "rows", lambda: [Row("circles", 0, 0)])
    assert command.main() == 0
    monkeypatch.setattr(command, "rows", lambda: [Row("circles", 1, 0)])
    assert command.main() == 1
