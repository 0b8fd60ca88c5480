"""The searcher's tokenizer: one token per character or tag, and nothing unknown.

The tags that carry meaning are not special tokens: `decode(..., skip_special_tokens=True)` keeps
them. Only `<pad>` and `<eos>` are special. The chat template ends its generation prompt with
`<think>`; `enable_thinking=False` closes the thinking at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlay.testbeds.searcher.trees import NAMES
from outlay.testbeds.word_level import MESSAGES, word_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
USER, ASSISTANT = "<user>", "<assistant>"
THINK, END_THINK = "<think>", "</think>"
TAGS = (USER, ASSISTANT, THINK, END_THINK)
CONTEXT = 320

CHAT_TEMPLATE = (
    MESSAGES + "{% if add_generation_prompt %}<assistant><think>"
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Every token and its id."""
    return {token: at for at, token in enumerate((PAD, EOS, *TAGS, *NAMES, ",", "?", ":", "\n"))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made from nothing: no files needed."""
    return word_level(
        vocabulary(),
        r"[\s\S]",
        pad=PAD,
        eos=EOS,
        context=CONTEXT,
        tags=TAGS,
        chat_template=CHAT_TEMPLATE,
    )


def render_prompt(question: str, thinking: bool = True) -> str:
    """The prompt text that the chat template renders for one question."""
    return f"{USER}{question}{ASSISTANT}{THINK}" + ("" if thinking else END_THINK)
