"""The in-context testbed's tokenizer: one token per character, and nothing unknown.

The end of an item is also the end of text, so that a model stops after its answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast as Fast

    # A WordLevel model whose unknown token is not in the vocabulary raises on unknown input.
    core = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    make: Any = Fast  # its constructor has no types
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    return tokenizer
