"""Finding and reading lists of moves in generated text.

The last `moves = [...]` of the answer counts. A reader with its own grammar takes what models
write: JSON and Python lists over any number of lines, tuples, quotes of all kinds, trailing commas
and `#` comments; the lenient parser also bare words (`[R, 0, 1]`), quoted numbers, a missing name
(`[[...]]`), `moves:` and names in bold. What cannot be read in one way only is refused with the
position: a missing comma, a list that is not closed, a flat list. Lists are never cut short to make
them readable. Nothing raises: what cannot be read is a `Failure`, scored as a wrong answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Parser = Literal["strict", "lenient"]
Moves = list[list[Any]]

LONGEST = 100_000_000
"""Characters of an answer that are read; longer ones fail."""

_CLAIM = 10_000  # characters, from the end, in which a claim of impossibility is looked for
# The name comes first, so that the search for it is one for plain text.
_NAMES = {
    "strict": r"%s(?<![\w.]%s)[ \t]*=\s*",
    "lenient": r"%s(?<!\w%s)[\"'\u201d\u2019`*]*\s*[=:]\s*[`*]*\s*",
}
_NESTED = re.compile(r"\[(?:\s|#[^\n]*\n)*[\[(]")
_FLAT = re.compile(r"\[")
_TOKEN = re.compile(
    r"(?P<skip>\s+|\#[^\n]*)|(?P<mark>[\[\](),])"
    r"|(?P<number>[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?)(?![\w.])"
    r"|\"(?P<double>[^\"\n]*)\"|'(?P<single>[^'\n]*)'"
    r"|\u201c(?P<curly>[^\u201c\u201d\n]*)\u201d|\u2018(?P<bent>[^\u2018\u2019\n]*)\u2019"
    r"|`(?P<tick>[^`\n]*)`|(?P<word>[A-Za-z_]\w*)"
)
_WHOLE = re.compile(r"[-+]?\d{1,18}")
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)^[ \t]*```", re.S | re.M | re.I
)
_IMPOSSIBLE = re.compile(
    r"\b(?:is|are|was|it's|proven|provably|be)\s+(?:\w+\s+)?(?:impossible|unsolvable)\b"
    r"|^\W*(?:(?:answer|so|thus|hence|therefore|final answer)\W+)?"
    r"(?:impossible|unsolvable|no solution)\W*$"
    r"|\b(?:there\s+is|there's|there\s+exists|has)\s+no\s+(?:\w+\s+)?(?:solution|sequence|plan)s?\b"
    r"|\bno\s+(?:\w+\s+)?(?:solution|sequence|plan)s?\s+(?:exists?|(?:is|are)\s+possible)\b"
    r"|\b(?:cannot|can't|can not)\s+be\s+(?:solved|done)\b",
    re.IGNORECASE | re.MULTILINE,
)
_DENIED = re.compile(
    r"\b(?:not|isn't|never)\s+(?:\w+\s+)?(?:impossible|unsolvable)\b|\bnot true that\b",
    re.IGNORECASE,
)
_SHAPES = {
    1: re.compile(r"\[[^][{}]*+\]"),
    2: re.compile(r"\[\s*+(?:\[[^][{}]*+\]\s*+,?\s*+)*+\]"),
}


@dataclass(frozen=True)
class Parsed:
    """A list that was read: its moves and the characters it takes."""

    moves: Moves
    start: int
    end: int


@dataclass(frozen=True)
class Failure:
    """Why nothing could be read, and where."""

    reason: str
    position: int


def split_thinking(text: str) -> tuple[str, str]:
    """Thinking and answer of a reply whose thinking ends with `</think>`; ("", text) without one.

    A reply that opens `<think>` and never closes it is all thinking.
    """
    head, marker, rest = text.rpartition("</think>")
    if marker:
        return head.removeprefix("<think>"), rest
    if text.lstrip().startswith("<think>"):
        return text.lstrip().removeprefix("<think>"), ""
    return "", text


def parse_moves(
    text: str, parser: Parser = "lenient", *, exclude: Sequence[Moves] = ()
) -> Parsed | Failure:
    """The last list of moves of a reply, after its thinking.

    Args:
        text: the reply.
        parser: "strict" takes `moves = ` and a Python or JSON list; "lenient" see above.
        exclude: lists that do not count: the example of the prompt, echoed.
    """
    _, answer = split_thinking(text)
    offset = len(text) - len(answer)
    if not answer.strip():
        return Failure("the answer is empty", offset)
    if len(answer) > LONGEST:
        return Failure(f"the answer has more than {LONGEST} characters", offset)
    failure: Failure | None = None
    for start in reversed(_starts(answer, "moves", parser)):
        found = read_list(answer, start, parser)
        if isinstance(found, Failure):
            # The last list that is not an echo decides; an earlier one is no substitute.
            return Failure(found.reason, offset + found.position)
        if found.moves in exclude:
            failure = Failure("the only list is the example of the prompt", offset + start)
            continue
        return Parsed(found.moves, offset + found.start, offset + found.end)
    if parser == "lenient":
        bare = [found for found in nested_lists(answer) if found.moves not in exclude]
        if bare:
            last = bare[-1]
            return Parsed(last.moves, offset + last.start, offset + last.end)
    return failure or Failure("there is no list of moves", offset)


def nested_lists(text: str) -> Iterator[Parsed]:
    """Every list of lists in a text, from the first to the last, named or not."""
    at = 0
    while match := _NESTED.search(text, at):
        found = read_list(text, match.start(), "lenient")
        if isinstance(found, Parsed):
            yield found
            at = found.end
        else:
            at = match.start() + 1


def parse_named(text: str, name: str, depth: int, parser: Parser = "lenient") -> Any:
    """The value of the last `name = ...` of a reply, after its thinking: a list of `depth`, or a
    quoted or bare word for depth 0; a `Failure` where there is none.

    The lenient parser takes the last list of that depth where the name is missing.
    """
    _, answer = split_thinking(text)
    starts = _starts(answer, name, parser)
    if depth == 0:
        token = _TOKEN.match(answer, starts[-1]) if starts else None
        value = "" if token is None else _text(token)
        return value or Failure(f"there is no {name} = ...", len(text))
    if not starts and parser == "lenient":
        if depth == 2:
            starts = [found.start for found in nested_lists(answer)]
        else:
            starts = [match.start() for match in _FLAT.finditer(answer)]
    if not starts:
        return Failure(f"there is no {name} = [...]", len(text))
    found = read_list(answer, starts[-1], parser, depth=depth)
    return found.moves if isinstance(found, Parsed) else found


def parse_program(text: str) -> str | Failure:
    """The last fenced block of Python in a reply; the whole answer where it is one program."""
    _, answer = split_thinking(text)
    if blocks := _FENCE.findall(answer):
        return str(blocks[-1])
    if "```" in answer:
        return Failure("the block of code is not closed", len(text))
    if "print(" in answer or "yield" in answer:
        return answer
    return Failure("there is no program", len(text))


def claims_impossible(text: str) -> bool:
    """True if the answer says that there is no solution, and gives no list of moves."""
    _, answer = split_thinking(text)
    end = answer[-_CLAIM:]
    if not _IMPOSSIBLE.search(end) or _DENIED.search(end):
        return False
    return isinstance(parse_moves(answer), Failure)


def read_list(
    text: str, start: int, parser: Parser = "lenient", *, depth: int = 2
) -> Parsed | Failure:
    """The list that begins at `start`; its items are lists (depth 2) or plain values (depth 1)."""
    # Plain JSON is found by one linear match and read in C; the rest, and whatever is wrong with a
    # position to report, is for the reader of tokens.
    if match := _SHAPES[depth].match(text, start):
        try:
            value = json.loads(match[0])
        except ValueError:
            return _read_slowly(text, start, parser, depth)
        if depth == 1 or all(type(item) is list for item in value):
            plain = _plain(value, parser) if '"' in match[0] else value
            return Parsed(plain, start, match.end())
    return _read_slowly(text, start, parser, depth)


def _read_slowly(text: str, start: int, parser: Parser, depth: int) -> Parsed | Failure:
    stack: list[tuple[str, list[Any]]] = []
    ready = True  # for an item; False after one, until a comma
    at = start
    while True:
        token = _TOKEN.match(text, at)
        if token is None:
            if at >= len(text):
                return Failure(f"the list at character {start} is not closed", at)
            return Failure(f"{text[at]!r} at character {at} belongs to no list of moves", at)
        at = token.end()
        if token["skip"]:
            continue
        mark = token["mark"]
        if not stack and mark != "[":
            return Failure(f"there is no list at character {start}", token.start())
        if mark == ",":
            if ready:
                return Failure(f"a comma without an item at character {token.start()}", at)
            ready = True
        elif mark in ("]", ")"):
            opened, items = stack.pop()
            if (opened, mark) not in (("[", "]"), ("(", ")")):
                return Failure(f"{mark!r} at character {token.start()} closes {opened!r}", at)
            if not stack:
                return Parsed(_plain(items, parser), start, at)
            stack[-1][1].append(items)
            ready = False
        elif not ready:
            return Failure(f"a comma is missing before character {token.start()}", token.start())
        elif mark:
            if len(stack) == depth:
                return Failure(f"lists are nested too deeply at character {token.start()}", at)
            stack.append((mark, []))
        else:
            if len(stack) != depth:
                return Failure(f"the item at character {token.start()} is not a list", at)
            value = _value(token, parser)
            if isinstance(value, Failure):
                return value
            stack[-1][1].append(value)
            ready = False


def _value(token: re.Match[str], parser: Parser) -> Any:
    if (number := token["number"]) is not None:
        return int(number) if _WHOLE.fullmatch(number) else float(number)
    if (word := token["word"]) is not None:
        if word in ("True", "False"):
            return word == "True"
        if parser == "strict":
            return Failure(f"{word!r} at character {token.start()} has no quotes", token.start())
        return word
    if parser == "strict" and token["double"] is None and token["single"] is None:
        return Failure(f"the quotes at character {token.start()} are no quotes", token.start())
    return _text(token)


def _text(token: re.Match[str]) -> str:
    kinds = ("double", "single", "curly", "bent", "tick", "word")
    return next((token[kind] for kind in kinds if token[kind] is not None), "")


def _plain(items: list[Any], parser: Parser) -> list[Any]:
    """Strings without outer blanks and, leniently, quoted whole numbers as numbers."""
    return [
        _plain(item, parser)
        if isinstance(item, list)
        else _word(item, parser)
        if isinstance(item, str)
        else item
        for item in items
    ]


def _word(text: str, parser: Parser) -> Any:
    text = text.strip()
    return int(text) if parser == "lenient" and _WHOLE.fullmatch(text) else text


def _starts(text: str, name: str, parser: Parser) -> list[int]:
    """Where the values of `name = ...` begin."""
    if parser == "lenient":
        small = text.lower()
        # A few letters grow when they are made small; such a text is searched as it is.
        text = small if len(small) == len(text) else text
    after = r"(?=[\[(\"'\u201c\u2018`\w])" if name == "state" else r"(?=\[)"
    return [match.end() for match in re.finditer(_NAMES[parser] % (name, name) + after, text)]


def print_moves(moves: Sequence[Sequence[Any]]) -> str:
    """`moves = [[...], ...]`, as the prompts ask for it."""
    return "moves = " + json.dumps([list(move) for move in moves], ensure_ascii=False)
