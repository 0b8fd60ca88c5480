"""Tokenizers made from nothing: one token per match of a pattern, and nothing unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MESSAGES = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<assistant>{{ message.content }}<eos>"
    "{% elif message.role == 'user' %}<user>{{ message.content }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only') }}"
    "{% endif %}{% endfor %}"
)
"""How a chat template begins: the messages so far."""


def word_level(
    vocabulary: Mapping[str, int],
    pattern: str,
    *,
    pad: str,
    eos: str,
    context: int,
    tags: Sequence[str] = (),
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    r"""A tokenizer that pads on the left; no files needed.

    Args:
        vocabulary: every token and its id.
        pattern: regular expression of a token; to cover any text it ends with `[\s\S]`.
        pad: special token of the padding.
        eos: special token that ends a text.
        context: most tokens of a text.
        tags: tokens that are matched first, and that decoding keeps.
        chat_template: of conversations.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast as Fast

    # A WordLevel model whose unknown token is not in the vocabulary raises on unknown input.
    core = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    template = {} if chat_template is None else {"chat_template": chat_template}
    make: Any = Fast  # its constructor has no types
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=core,
        pad_token=pad,
        eos_token=eos,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **template,
    )
    return tokenizer
