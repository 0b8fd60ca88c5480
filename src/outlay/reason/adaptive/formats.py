"""Answer formats by their tags: detect, parse, render.

A response opens with the tag of its format, may hold several blocks (code, then its output), and
carries its answer in an answer block. ("ARM: Adaptive Reasoning Model", arXiv 2505.20258, Section
3.) Only completions are parsed: a question that quotes a tag cannot change what is detected. The
paper's code takes the text between the first opening and the last closing answer tag; here it is
the last complete block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, get_args

from outlay.errors import InputError

UNKNOWN = "unknown"
MAX_FORMATS = 64
Detector = Literal["strict", "strip"]


@dataclass(frozen=True)
class Block:
    """A tagged part of a response.

    Args:
        opening, closing: the tags.

    Raises:
        InputError: for an empty tag, or one that is both.
    """

    opening: str
    closing: str

    def __post_init__(self) -> None:
        if not self.opening.strip() or not self.closing.strip():
            raise InputError(
                f"tags {self.opening!r} and {self.closing!r}: a block needs an opening and a "
                "closing tag"
            )
        if self.opening == self.closing:
            raise InputError(f"{self.opening!r} cannot both open and close a block")


@dataclass(frozen=True)
class Format:
    """One way of answering.

    Args:
        name: what `mode` and reports call it.
        blocks: parts before the answer, in order; none for an answer alone.
        ask: how the format is asked for in words, for models that were not trained on it.

    Raises:
        InputError: for a name that `mode` cannot write.
    """

    name: str
    blocks: tuple[Block, ...] = ()
    ask: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            raise InputError(f"format name {self.name!r}; use letters, digits, - and _")
        if self.name == UNKNOWN:
            raise InputError(f"{UNKNOWN!r} is what responses without a format are called; rename")


@dataclass(frozen=True)
class Parsed:
    """What was found in a response.

    Args:
        format: its name; "unknown" where the response opens with no format's tag.
        parts: contents of the format's blocks, up to the first that is not closed.
        answer: content of the last complete answer block; None without one.
        foreign: tags of other formats that occur, in the order of the formats.
    """

    format: str
    parts: tuple[str, ...]
    answer: str | None
    foreign: tuple[str, ...]


@dataclass(frozen=True)
class Formats:
    """An ordered set of formats that share an answer tag.

    Args:
        formats: cheapest first; the last one is the usual fallback.
        answer: the answer block.
        open_end: an answer at the end of the response needs no closing tag (where that is the
            end-of-text token, servers drop it).
        pad: written inside every tag and between blocks, such as a line break.
        detector: "strict": the response must begin with the tag; "strip": white space before it is
            allowed.
        code: name of the format whose first block is a program; "" for none.
        program: turns that block into Python; None where it is Python already.
        ask: opens the request for one format in words, before the format's own `ask`; "" where the
            model was trained on the tags.
        choose: opens the request to choose a format.

    Raises:
        InputError: for fewer than two formats, equal names, tags that are prefixes of each other,
            two formats that open alike, or a request that does not mention the answer tag.
    """

    formats: tuple[Format, ...]
    answer: Block
    open_end: bool = False
    pad: str = ""
    detector: Detector = "strict"
    code: str = ""
    program: Callable[[str], str] | None = None
    ask: str = ""
    choose: str = ""

    def __post_init__(self) -> None:
        if not 2 <= len(self.formats) <= MAX_FORMATS:
            raise InputError(f"{len(self.formats)} formats; give 2 to {MAX_FORMATS}")
        names = self.names
        if len(set(names)) < len(names):
            raise InputError(f"formats {names} share a name; make them distinct")
        if self.detector not in get_args(Detector):
            raise InputError(f"detector={self.detector!r}; choose strict or strip")
        if self.pad.strip():
            raise InputError(f"pad={self.pad!r}; only white space, it is not part of the text")
        openings = [self.opening(name) for name in names]
        for one, other in permutations(range(len(names)), 2):
            if openings[one] == openings[other] or openings[other].startswith(openings[one]):
                raise InputError(
                    f"the tag {openings[one]!r} of format {names[one]!r} begins that of "
                    f"{names[other]!r}, {openings[other]!r}; end tags with a delimiter such as '>'"
                )
        if self.code and self.code not in names:
            raise InputError(f"code={self.code!r} is no format; choose one of {', '.join(names)}")
        if self.code and not self[self.code].blocks:
            raise InputError(f"format {self.code!r} has no block that could hold a program")
        if bool(self.ask) != bool(self.choose):
            raise InputError("ask and choose go together: give both, or neither")
        for each in self.formats if self.ask else ():
            if self.answer.opening not in each.ask:
                raise InputError(
                    f"the answer tag {self.answer.opening!r} is missing from what format "
                    f"{each.name!r} is asked for; name it in its ask"
                )

    def __getitem__(self, name: str) -> Format:
        for each in self.formats:
            if each.name == name:
                return each
        raise InputError(f"unknown format {name!r}; choose one of {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the formats, in order."""
        return tuple(each.name for each in self.formats)

    @property
    def tags(self) -> tuple[str, ...]:
        """Every tag once: those of the formats, then those of the answer."""
        found = [tag for each in self.formats for tag in _tags(each)]
        return tuple(dict.fromkeys([*found, self.answer.opening, self.answer.closing]))

    def opening(self, name: str) -> str:
        """The tag by which a format is known: its first block's, else the answer's."""
        blocks = self[name].blocks
        return blocks[0].opening if blocks else self.answer.opening

    def prefix(self, name: str) -> str:
        """What a response is opened with to force a format."""
        return self.opening(name) + self.pad

    def request(self, name: str | None = None) -> str:
        """The request for one format in words, or to choose one; "" where there is none."""
        if not self.ask:
            return ""
        if name is not None:
            return f"{self.ask}\n{self[name].ask}"
        return "\n".join([self.choose, *(f"- {each.ask}" for each in self.formats)])

    def detect(self, response: str) -> str:
        """Name of the format whose tag opens `response`; "unknown" without one."""
        text = response.lstrip() if self.detector == "strip" else response
        for name in self.names:
            if text.startswith(self.opening(name)):
                return name
        return UNKNOWN

    def foreign(self, name: str, response: str) -> tuple[str, ...]:
        """Tags of other formats in a response of format `name`; shared tags are not foreign."""
        own = {self.answer.opening, self.answer.closing}
        own.update(_tags(self[name]) if name != UNKNOWN else ())
        return tuple(tag for tag in self.tags if tag not in own and tag in response)

    def parse(self, response: str) -> Parsed:
        """Format, blocks, answer and foreign tags of a response.

        Args:
            response: the completion alone, without its prompt.
        """
        name = self.detect(response)
        span = self._answer_span(response)
        answer = None if span is None else self._unpad(response[slice(*span)])
        return Parsed(name, self._parts(name, response), answer, self.foreign(name, response))

    def render(self, name: str, parts: Sequence[str], answer: str) -> str:
        """The response that `parse` reads as these parts and this answer.

        Raises:
            InputError: for a wrong number of parts, or a text that holds a tag.
        """
        blocks = self[name].blocks
        if len(parts) != len(blocks):
            raise InputError(f"{len(parts)} parts for format {name!r}, which has {len(blocks)}")
        for text in (*parts, answer):
            held = [tag for tag in self.tags if tag in text]
            if held:
                raise InputError(f"the text holds the tag {held[0]!r}; take it out")
        written = [
            block.opening + self.pad + part + self.pad + block.closing
            for block, part in zip(blocks, parts, strict=True)
        ]
        written.append(self.answer.opening + self.pad + answer + self.pad + self.answer.closing)
        response = self.pad.join(written)
        back = self.parse(response)
        if (back.parts, back.answer) != (tuple(parts), answer):
            raise InputError("a text and the tag beside it read as another tag; change the text")
        return response

    def answered(self, response: str, answer: str) -> str:
        """`response` with the content of its answer block replaced, or with a new block."""
        block = self.pad + answer + self.pad
        span = self._answer_span(response)
        if span is None:
            return response + self.pad + self.answer.opening + block + self.answer.closing
        return response[: span[0]] + block + response[span[1] :]

    def code_of(self, response: str) -> str | None:
        """The program in a response of the code format, as Python; None without one.

        Raises:
            InputError: if a program cannot be read (from `program`).
        """
        if not self.code or self.detect(response) != self.code:
            return None
        parts = self._parts(self.code, response)
        if not parts:
            return None
        return self.program(parts[0]) if self.program else parts[0]

    # -- inside -----------------------------------------------------------------------------------

    def _answer_span(self, response: str) -> tuple[int, int] | None:
        """Content of the last complete answer block."""
        opening, closing = self.answer.opening, self.answer.closing
        if self.open_end:
            last = response.rfind(opening)
        else:
            last = response.rfind(opening, 0, max(0, response.rfind(closing)))
        if last < 0:
            return None
        start = last + len(opening)
        end = response.find(closing, start)
        return start, len(response) if end < 0 else end

    def _parts(self, name: str, response: str) -> tuple[str, ...]:
        parts: list[str] = []
        at = 0
        for block in () if name == UNKNOWN else self[name].blocks:
            start = response.find(block.opening, at)
            end = response.find(block.closing, start + len(block.opening))
            if start < 0 or end < 0:
                break
            parts.append(self._unpad(response[start + len(block.opening) : end]))
            at = end + len(block.closing)
        return tuple(parts)

    def _unpad(self, text: str) -> str:
        """`text` without what `render` writes inside tags, once at each end."""
        return text.removeprefix(self.pad).removesuffix(self.pad)


def _tags(format: Format) -> list[str]:
    return [tag for block in format.blocks for tag in (block.opening, block.closing)]
