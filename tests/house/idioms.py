"""Idioms that a stranger cannot read at the first reading, each with plain English to write instead.

They are looked for in docstrings, comments and string literals. A false alarm is mended by a better pattern; there is
no list of exceptions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tests.house.prose import passages
from tests.house.source import Modules, Place


@dataclass(frozen=True)
class Idiom:
    """A pattern in which a space stands for any blank or line break, and what to write instead."""

    pattern: str
    instead: str
    any_case: bool = True

    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern.replace(" ", r"[ \n]"), re.IGNORECASE if self.any_case else 0)


_BE: Final = r"(?:is|are|was|were|be|been|being)"
_COMPARATIVE: Final = (
    r"(?:longer|later|larger|older|newer|earlier|shorter|bigger|smaller|higher|lower|greater|faster|slower"
    r"|more|less|other)"
)

IDIOMS: Final = (
    # People who are not there.
    Idiom(r"\bwho(?:m|se)?(?:so)?ever\b", "the caller, every X that"),
    Idiom(r"\b(?:nobody|no one)\b", "no caller, no process; or turn the sentence round"),
    Idiom(r"\bsomebody\b", "another caller, the user, a process"),
    Idiom(r"\b(?:any|every)body\b", "any caller, every process, all users"),
    Idiom(r"\bwhatever\b", "any X, every X; 'even if'"),
    # Somebody made to do something.
    Idiom(r"\bHave\b", "an imperative: 'Run', 'Send', 'Mark'", any_case=False),
    Idiom(
        r"\b(?:have|has|had|having) (?:it|them|him|her|us|(?:the|a|an|every|each|all|another|its|their) \w+) "
        r"(?:be )?(?:known|told|run|kept|sent|made|done|said|called|tried|go|goes|know|looked)\b",
        "a verb in the active voice: 'runs it', 'tells the caller'",
    ),
    # Negation.
    Idiom(r"(?<![Tt]here )\b(?:is|are|was|were) none\b", "'is not a valid X', 'is not one'", any_case=False),
    Idiom(
        rf"(?<![Tt]here )\b(?:is|are|was|were) no (?!{_COMPARATIVE}\b|one\b|such\b|[A-Z])[a-z][\w-]*",
        "'is not a valid X', 'is not an X'",
        any_case=False,
    ),
    # Telling and hearing.
    Idiom(r"\b(?:told|tells?|telling|heard|hears?) of\b", "reports, notifies, receives"),
    Idiom(rf"\b{_BE} (?:\w+ly )?told\b", "is notified, receives, gets the answer"),
    Idiom(r"\bwhat (?:is|was|has been|may be|can be) said\b", "the text, the options"),
    Idiom(r"\bsaid (?:of|so|last|besides)\b", "set, reported; name what was set"),
    Idiom(r"\b(?:let it be|make it) known\b", "report, mark, publish"),
    # Wanting and standing.
    Idiom(rf"\b{_BE} wanted\b", "expected, required"),
    Idiom(r"\bas (?:it stands|they stand)\b", "as it is, unchanged; the current X"),
    Idiom(r"\bbesides\b", "in addition, other than, apart from"),
    Idiom(r"\b(?:put|called|let) off\b", "postponed, snoozed; cancelled"),
    Idiom(r"\blet(?:s|ting)? go of\b", "close, release"),
    Idiom(r"\bas far as (?:that|it|this) can be had\b", "best effort"),
    # Words for which the field has another.
    Idiom(r"\bstand-?ins?\b", "fake"),
    Idiom(r"\bcargo(?:es)?\b", "arguments, values"),
    Idiom(r"\bledgers?\b", "call log"),
    Idiom(r"\bverdicts?\b", "decision"),
    Idiom(r"\btickets?\b", "callback URL"),
    Idiom(r"\bdialects?\b", "provider API"),
    Idiom(r"\bembedded homes?\b|\bhomes? (?:of|for) (?:the )?(?:broker|tasks)\b", "embedded broker"),
    # Documents that are not in the repository.
    Idiom(r"\b(?:protocol|reliability) reference\b(?!s)", "docs/protocol.md n.n; or the reason in words"),
    Idiom(r"\berror catalogue\b", "the reason in words"),
    Idiom(r"(?<=[(\s,])[DFT]\d{1,2}(?=[),\s;])", "the reason in words", any_case=False),
)


def idioms(modules: Modules) -> list[Place]:
    """Every idiom in a docstring, a comment or a string literal."""
    patterns = [(idiom, idiom.compiled()) for idiom in IDIOMS]
    places = {
        Place(module.path, passage.line_of(hit.start()), f"{_one_line(hit.group())!r}: {idiom.instead}")
        for module in modules.values()
        for passage in passages(module)
        for idiom, pattern in patterns
        for hit in pattern.finditer(passage.text)
    }
    return sorted(places, key=lambda place: (place.path, place.line, place.text))


def _one_line(text: str) -> str:
    return text.replace("\n", " ")
