"""The searcher's tokenizer: one token per character or tag, and nothing unknown.

The tags that carry meaning are not special tokens: `decode(..., skip_special_tokens=True)` keeps
them. Only `<pad>` and `<eos>` are special. The chat template ends its generation prompt with
`<think>`; `enable_thinking=False` closes the thinking at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlay.testbeds.searcher.trees import NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
USER, ASSISTANT = "<user>", "<assistant>"
THINK, END_THINK = "<think>", "</think>"
TAGS = (USER, ASSISTANT, THINK, END_THINK)
CONTEXT = 320

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<assistant>{{ message.content }}<eos>"
    "{% elif message.role == 'user' %}<user>{{ message.content }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>"
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Every token and its id."""
    return {token: at for at, token in enumerate((PAD, EOS, *TAGS, *NAMES, ",", "?", ":", "\n"))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made from nothing: no files needed."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast as Fast

    # A WordLevel model whose unknown token is not in the vocabulary raises on unknown input.
    core = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    make: Any = Fast  # its constructor has no types
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )
    return tokenizer


def render_prompt(question: str, thinking: bool = True) -> str:
    """The prompt text that the chat template renders for one question."""
    return f"{USER}{question}{ASSISTANT}{THINK}" + ("" if thinking else END_THINK)
