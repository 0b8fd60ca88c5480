"""A tokenizer that counts as the recording upstream does: one token a word."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def word_tokenizer(folder: Path) -> Path:
    """Write `tokenizer.json` and `tokenizer_config.json`; the path of the first."""
    words = (
        "[UNK]",
        "word",
        "user",
        "assistant",
        "hi",
        "you",
        "</think>",
        "<think>",
        "Final",
        "Answer:",
    )
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    settings = {"chat_template": TEMPLATE, "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path
