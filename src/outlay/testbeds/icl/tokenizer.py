"""The in-context testbed's tokenizer: one token per character, and nothing unknown.

The end of an item is also the end of text, so that a model stops after its answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlay.testbeds.icl.world import (
    ARROW,
    CIRCLE,
    END,
    FILLERS,
    IMAGES,
    LETTERS,
    MAX_ITEMS,
    SIGNS,
)
from outlay.testbeds.word_level import word_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<pad>"
CONTEXT = 8 * MAX_ITEMS  # an item with a filler has seven tokens


def vocabulary() -> dict[str, int]:
    """Every token and its id."""
    return {
        token: i
        for i, token in enumerate(
            [PAD, END, ARROW, *SIGNS, *"".join(IMAGES.values()), *CIRCLE, *LETTERS, *FILLERS]
        )
    }


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made from nothing: no files needed."""
    return word_level(vocabulary(), r"[\s\S]", pad=PAD, eos=END, context=CONTEXT)
