"""The in-context model as a black box: prompts in, answers out, in large batches.

An answer has two symbols, so two greedy steps are all. A batch holds prompts of one length, so that
nothing is padded.

Shapes: B prompts, T tokens, V vocabulary, S symbols of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from outlay.errors import InputError
from outlay.testbeds.icl.tokenizer import vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SYMBOLS = 2
_TOKENS = 16_384  # of one batch


class Answerer:
    """Greedy answers of an in-context model.

    Args:
        model: from `load` or `train`.

    Calling it with prompts gives one answer each, in order.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self._ids = vocabulary()
        self._texts = list(self._ids)
        self.tokens = 0  # prompt tokens read so far

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Answers of two symbols.

        Raises:
            InputError: for an empty prompt, or a character that the model does not know.
        """
        return [text for text, _ in self._ask(prompts)]

    def entropies(self, prompts: Sequence[str]) -> list[float]:
        """Uncertainty in nats about the first symbol of each answer."""
        return [entropy for _, entropy in self._ask(prompts)]

    def count(self, text: str) -> int:
        """Tokens of a text: its characters.

        Raises:
            InputError: for a character that the model does not know.
        """
        return len(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise InputError(
                f"the model does not know the character {error} of {text!r}"
            ) from error

    def _ask(self, prompts: Sequence[str]) -> list[tuple[str, float]]:
        rows = [self._encode(prompt) for prompt in prompts]
        if not all(rows):
            raise InputError("a prompt is empty; give at least the question")
        self.tokens += sum(map(len, rows))
        by_length: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_length.setdefault(len(row), []).append(i)
        found: list[tuple[str, float]] = [("", 0.0)] * len(rows)
        for length, members in by_length.items():
            size = max(1, _TOKENS // length)
            for start in range(0, len(members), size):
                block = members[start : start + size]
                ids_BT = torch.tensor(np.array([rows[i] for i in block]))
                for i, answer in zip(block, self._answer(ids_BT), strict=True):
                    found[i] = answer
        return found

    @torch.inference_mode()
    def _answer(self, ids_BT: torch.Tensor) -> list[tuple[str, float]]:
        entropy_B = torch.zeros(len(ids_BT))
        said: list[torch.Tensor] = []
        past = None
        for step in range(SYMBOLS):
            made = self.model(input_ids=ids_BT, cache=past, use_cache=True, logits_to_keep=1)
            logits_BV, past = made.logits[:, -1], made.cache
            if step == 0:
                entropy_B = torch.distributions.Categorical(logits=logits_BV).entropy()
            ids_BT = logits_BV.argmax(-1, keepdim=True)
            said.append(ids_BT)
        answers_BS = torch.cat(said, dim=1)
        return [
            ("".join(self._texts[token] for token in row.tolist()), float(entropy))
            for row, entropy in zip(answers_BS, entropy_B, strict=True)
        ]
