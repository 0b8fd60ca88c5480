"""The texts that end a thinking and ask for its answer, as tokens.

Section 3.2 of arXiv 2505.13438: two lines of an ellipsis and the end tag where the thinking is cut,
then a heading. They are context only: never trained. No torch at import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from outlay.errors import InputError

FORCED = "\n...\n...\n</think>"
NATURAL = ""
HEADING = "\n\n**Final Answer**\n"
BLANK = "\n\n"


@dataclass(frozen=True)
class Templates:
    """Tokens of the templates.

    Args:
        forced: after a cut thinking, the heading included.
        natural: after a thinking that ended by itself, the heading included.
        end: end of thinking.
        eos: tokens that end an answer.
        tokenizer: that made them.
    """

    forced: tuple[int, ...]
    natural: tuple[int, ...]
    end: tuple[int, ...]
    eos: tuple[int, ...]
    tokenizer: Any = field(repr=False, compare=False)

    def thinking(self, ids: Sequence[int], most: int) -> tuple[list[int], bool]:
        """The thinking of a completion (its end tag, or an end of text, included), and whether it
        ended by itself.

        Args:
            ids: a completion.
            most: tokens that are looked at.

        Raises:
            InputError: for an empty completion.
        """
        from outlay.rl.segments import find

        if not ids:
            raise InputError("a completion is empty; there is nothing to cut")
        ids = list(ids[:most])
        at = find(ids, self.end)
        if at is not None:
            ids = ids[: at + len(self.end)]
        stop = next((i for i, token in enumerate(ids) if token in self.eos), None)
        if stop is not None:
            return ids[: stop + 1], True
        return ids, at is not None

    def count_ends(self, ids: Sequence[int]) -> int:
        """How often the end of thinking occurs."""
        from outlay.rl.segments import find

        count, at = 0, find(ids, self.end)
        while at is not None:
            count += 1
            ids = ids[at + len(self.end) :]
            at = find(ids, self.end)
        return count

    def first_block(self, ids: Sequence[int]) -> list[int]:
        """An answer up to its first blank line; the paper grades no more."""
        ids = list(ids)
        if BLANK not in self._decode(ids):
            return ids
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            if BLANK in self._decode(ids[:middle]):
                high = middle
            else:
                low = middle + 1
        return ids[:low]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


def make_templates(
    tokenizer: Any, forced: str, natural: str, heading: str, end_of_thinking: str
) -> Templates:
    """Tokens of the templates; the end tag is always spelt as the tokenizer spells it alone.

    Raises:
        InputError: for a forced template without exactly one end tag, a natural one or a heading
            with any, a tokenizer without an end of text, or a text that does not come back from
            the tokenizer as it was.
    """
    if not end_of_thinking:
        raise InputError("end_of_thinking is empty; name the text that ends the thinking")
    if forced.count(end_of_thinking) != 1:
        raise InputError(
            f"forced={forced!r} must hold end_of_thinking={end_of_thinking!r} exactly once"
        )
    for name, text in (("natural", natural), ("heading", heading)):
        if end_of_thinking in text:
            raise InputError(
                f"{name}={text!r} holds {end_of_thinking!r}, which the thinking has written already"
            )
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token; answers would never end")

    def ids(text: str) -> list[int]:
        try:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        except Exception as error:  # tokenizers raises nothing narrower
            raise InputError(f"the tokenizer cannot spell the template {text!r}") from error

    end = ids(end_of_thinking)
    before, after = forced.split(end_of_thinking)
    pieces = {
        "end_of_thinking": (end_of_thinking, end),
        "forced": (forced + heading, ids(before) + end + ids(after + heading)),
        "natural": (natural + heading, ids(natural + heading)),
    }
    for name, (text, found) in pieces.items():
        back = tokenizer.decode(found, skip_special_tokens=False) if found else ""
        if back != text:
            raise InputError(
                f"{name}={text!r} comes back from the tokenizer as {back!r}; use text that it knows"
            )
    return Templates(
        tuple(pieces["forced"][1]),
        tuple(pieces["natural"][1]),
        tuple(end),
        (int(tokenizer.eos_token_id),),
        tokenizer,
    )
