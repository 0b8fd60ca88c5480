"""The reasoner's tokenizer: one token per number, tag, word or character, and nothing unknown.

Numbers 0..99 are single tokens, so a step `p+q=r;` costs exactly six. All printable ASCII and the
line break are in the vocabulary; any other character raises instead of becoming an unknown token,
because a silently lost character removes a whole style from training. Tags that carry meaning are
*not* special tokens: `decode(..., skip_special_tokens=True)` keeps them. Only `<pad>` and `<eos>`
are special.

The chat template ends its generation prompt with `<think>`. Its arguments: `format="short"` opens
that format, `enable_thinking=False` closes the thinking at once and opens the answer.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from outlay.testbeds.reasoner.facts import RELATIONS
from outlay.testbeds.word_level import MESSAGES, word_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
USER, ASSISTANT = "<user>", "<assistant>"
THINK, END_THINK, ANSWER = "<think>", "</think>", "<answer>"
FORMATS = ("direct", "short", "long", "code")
BUDGET_TAGS = ("<b1>", "<b2>", "<b3>", "<b4>")
TAGS = (
    USER,
    ASSISTANT,
    THINK,
    END_THINK,
    ANSWER,
    *(f"<{name}>" for name in FORMATS),
    *BUDGET_TAGS,
)
WAIT = "Wait"
HEADINGS = ("[1]", "[2]", "[3]", "[4]", "[5]", "[+]")
CONTEXT = 640

CHAT_TEMPLATE = (
    MESSAGES + "{% if add_generation_prompt %}<assistant><think>"
    "{% if enable_thinking is defined and not enable_thinking %}</think><answer>"
    "{% elif format is defined and format %}<{{ format }}>{% endif %}{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Every token and its id."""
    tokens = [PAD, EOS, *TAGS, WAIT, *HEADINGS, *RELATIONS, *(str(i) for i in range(100))]
    tokens += [c for c in string.printable[:95] if c not in string.digits] + ["\n"]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made from nothing: no files needed."""
    words = "|".join([WAIT, *RELATIONS])
    return word_level(
        vocabulary(),
        rf"\[[1-5+]\]|{words}|[1-9][0-9]|[0-9]|[\s\S]",
        pad=PAD,
        eos=EOS,
        context=CONTEXT,
        tags=TAGS,
        chat_template=CHAT_TEMPLATE,
    )


def render_prompt(question: str, format: str | None = None, thinking: bool = True) -> str:
    """The prompt text that the chat template renders for one question."""
    opened = f"{USER}{question}{ASSISTANT}{THINK}"
    if not thinking:
        return opened + END_THINK + ANSWER
    return opened + (f"<{format}>" if format else "")
