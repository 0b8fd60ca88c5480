"""The tokens that SwiReasoning needs to know: think markers, a newline, and those of formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from outlay.decode import delimiters as tags
from outlay.errors import InputError

CLOSE = "</think>"  # in the signals' texts: the model's own marker, whatever it is called
OFFICIAL_NEWLINE = "\\n"  # the published code looks up backslash and n, not the newline

_SIGNS = "+ - * / ^ = < > ( ) [ ] { } | _"
_COMMANDS = """
leq geq neq approx sim equiv to implies iff in notin subset supset subseteq supseteq cup cap
emptyset varnothing forall exists wedge vee neg because therefore perp parallel angle mid vert Vert
alpha beta gamma delta epsilon zeta theta lambda mu nu pi infty circ prime ast star triangle
triangleleft triangleright sin cos tan cot cotg sec csc arcsin arccos arctan log ln exp lim min max
arg deg gcd operatorname sum prod int frac dfrac sqrt binom choose cdot dots ldots cdots vdots ddots
mathbb mathbf mathrm text mbox boxed overline underline lceil rceil lfloor rfloor left right left(
right) left[ right] left\\{ right\\} sqrt[] begin{pmatrix} end{pmatrix}
"""


@dataclass(frozen=True)
class Markers:
    """The tokens around thinking.

    Args:
        think_id, end_think_id: open and close it.
        delimiters: the same as text.
    """

    think_id: int
    end_think_id: int
    delimiters: tags.Delimiters


def resolve(tokenizer: Any, think: str | int | None, end: str | int | None, name: str) -> Markers:
    """The markers given, else those that the tokenizer knows.

    Raises:
        InputError: unless each marker is one token and the two differ.
    """
    if (think is None) != (end is None):
        raise InputError("give both think_token= and end_think_token=, or neither to detect them")
    size = len(tokenizer)
    texts: list[str | None] = []
    for knob, marker in (("think_token", think), ("end_think_token", end)):
        if isinstance(marker, int):
            if not 0 <= marker < size:
                raise InputError(f"{knob}={marker} is outside the vocabulary of {size} of {name}")
            texts.append(tags.decode(tokenizer, [marker]))
        else:
            texts.append(marker)
    try:
        found = tags.resolve(tokenizer, texts[0], texts[1], "", "", name=name)
    except InputError as error:
        raise InputError(
            f"{error} (here the knobs are think_token= and end_think_token=; two reserved tokens "
            "of the vocabulary will do)"
        ) from error
    ids = []
    for knob, marker, text in (
        ("think_token", think, found.open),
        ("end_think_token", end, found.close),
    ):
        each = [marker] if isinstance(marker, int) else tags.encode(tokenizer, text)
        if len(each) != 1:
            raise InputError(
                f"{knob}={text!r} takes {len(each)} tokens of {name}; SwiReasoning needs one token "
                "each to open and close thinking: name two that the vocabulary has"
            )
        ids.append(each[0])
    if ids[0] == ids[1]:
        raise InputError(
            f"think_token and end_think_token are the same token ({ids[0]}); name two that differ"
        )
    return Markers(ids[0], ids[1], found)


def newline_id(tokenizer: Any, newline: str, name: str) -> int | None:
    """The token that is mixed in at the first step; None for none.

    Args:
        tokenizer: of the model.
        newline: "auto" is the newline where it is one token; "official" the entry of a backslash
            and an n; "none" nothing; other text must be one token.
        name: of the model.

    Raises:
        InputError: for text that is not one token.
    """
    if newline == "none":
        return None
    text = {"auto": "\n", "official": OFFICIAL_NEWLINE}.get(newline, newline)
    ids = _pieces(tokenizer, text)
    if len(ids) == 1:
        return ids[0]
    if newline == "auto":
        return None
    raise InputError(
        f"newline_token={newline!r}: {text!r} is not one token of {name}; use 'auto' or 'none'"
    )


def signal_ids(tokenizer: Any, knob: str, text: str, end_think_id: int, name: str) -> list[int]:
    """Tokens of a signal's text, `CLOSE` in it standing for the model's own marker.

    Raises:
        InputError: naming `knob`, for text that does not survive the tokenizer.
    """
    ids: list[int] = []
    for at, piece in enumerate(text.split(CLOSE)):
        if at:
            ids.append(end_think_id)
        ids += tags.check(tokenizer, knob, piece, name)
    return ids


def formula_ids(tokenizer: Any) -> frozenset[int]:
    """Pieces of digits, letters, operators, brackets and LaTeX commands, each encoded alone."""
    symbols = [*_SIGNS.split(), *("\\" + command for command in _COMMANDS.split())]
    symbols += [chr(code) for code in range(128) if chr(code).isalnum()]
    return _formula_ids(tokenizer, tuple(symbols))


@lru_cache(maxsize=8)
def _formula_ids(tokenizer: Any, symbols: tuple[str, ...]) -> frozenset[int]:
    return frozenset(token for symbol in symbols for token in _pieces(tokenizer, symbol))


def text_ids(tokenizer: Any, texts: Sequence[str]) -> frozenset[int]:
    """Pieces of given texts."""
    return frozenset(token for text in texts for token in _pieces(tokenizer, text))


def _pieces(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text; none where the tokenizer cannot write it."""
    try:
        ids = tags.encode(tokenizer, text)
    except Exception:  # tokenizers raise bare Exceptions on unknown characters
        return []
    unknown = getattr(tokenizer, "unk_token_id", None)
    return [] if unknown is not None and unknown in ids else ids
