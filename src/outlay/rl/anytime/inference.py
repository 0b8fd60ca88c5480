"""Think, cut anywhere, have the cut answered, and go on thinking as if nothing had happened.

Section 3.2 of arXiv 2505.13438: an answer is a branch of the thinking's cached state. Dropping the
branch and going on costs nothing, and gives the tokens that an undisturbed thinking would have.

Shapes: V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.ledger import Ledger
from outlay.rl.anytime.method import AnytimeBRPO

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS = 1_000_000


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        cut: tokens of thinking that it was given from.
        forced: the thinking was cut; else it had ended by itself.
        ids: tokens.
        text: of these, without the end of text.
    """

    cut: int
    forced: bool
    ids: tuple[int, ...]
    text: str


@dataclass
class Thought:
    """A thinking under way; made by `AnytimeReasoner.begin`.

    Args:
        prompt: tokens of the question.
        ids: thinking so far.
        ended: the thinking has ended by itself.
    """

    prompt: list[int]
    reasoner: AnytimeReasoner = field(repr=False)
    cache: Any = field(repr=False)
    generator: torch.Generator = field(repr=False)
    ids: list[int] = field(default_factory=list)
    ended: bool = False

    def think(self, tokens: int) -> list[int]:
        """Think on for at most `tokens`, and return them.

        Raises:
            BudgetError: for fewer than 1, or more than the context holds.
        """
        return self.reasoner._think(self, tokens)

    def answer(
        self, at: int | None = None, *, max_tokens: int | None = None, seed: int = 0
    ) -> Answer:
        """Answer from the first `at` tokens of the thinking (None: from all of it).

        The thinking is left as it was, and can go on.

        Args:
            at: tokens of thinking to answer from.
            max_tokens: of the answer; None takes the method's.
            seed: of the sampling.

        Raises:
            InputError: for a cut outside the thinking.
            BudgetError: for an answer of no tokens, or one beyond the context.
        """
        return self.reasoner._answer(self, at, max_tokens, seed)


class AnytimeReasoner:
    """A model that may be interrupted at any token.

    Args:
        model: causal model of transformers whose layers keep all tokens.
        tokenizer: its tokenizer.
        method: templates and the answers' length.
        temperature: of thinking and answers; 0 is greedy.

    Raises:
        InputError: for a negative temperature, or templates that the tokenizer does not know.
        CapabilityError: for a model whose cache cannot be cropped.
    """

    def __init__(
        self, model: Any, tokenizer: Any, method: AnytimeBRPO, temperature: float = 0.6
    ) -> None:
        if not temperature >= 0:
            raise InputError(f"temperature={temperature}; must be >= 0")
        self.method = method if method.templates is not None else method.tokenized(tokenizer)
        self.temperature = temperature
        self.ledger = Ledger()
        self._model, self._tokenizer = model, tokenizer
        layers = DynamicCache(config=model.config).layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            raise CapabilityError(
                "this model's layers drop tokens, so that a thinking cannot be cut afterwards; use "
                "a model with full attention"
            )

    def begin(self, prompt: str | Sequence[int], seed: int = 0) -> Thought:
        """A thinking about a question, with no tokens yet.

        Args:
            prompt: text (or tokens) that ends where thinking begins.
            seed: of the sampling.

        Raises:
            InputError: for an empty prompt.
        """
        if isinstance(prompt, str):
            prompt = list(self._tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if not prompt:
            raise InputError("the prompt is empty; there is nothing to think about")
        generator = torch.Generator(device=self._model.device).manual_seed(seed)
        cache = DynamicCache(config=self._model.config)
        return Thought(list(prompt), self, cache, generator)

    def _room(self, used: int, wanted: int, what: str) -> None:
        context = getattr(self._model.config, "max_position_embeddings", None) or MAX_TOKENS
        if not 1 <= wanted <= context - used:
            raise BudgetError(
                f"{what}={wanted} after {used} tokens; must be at least 1 and fit into the "
                f"context of {context}"
            )

    @torch.inference_mode()
    def _read(self, ids: Sequence[int], cache: Any) -> Tensor:
        ids_1T = torch.tensor([list(ids)], device=self._model.device)
        logits: Tensor = self._model(ids_1T, cache=cache, use_cache=True, logits_to_keep=1).logits
        return logits[0, -1].float()

    def _draw(self, logits_V: Tensor, generator: torch.Generator) -> int:
        if not self.temperature:
            return int(logits_V.argmax())
        probs_V = (logits_V / self.temperature).softmax(0)
        return int(torch.multinomial(probs_V, 1, generator=generator))

    def _think(self, thought: Thought, tokens: int) -> list[int]:
        self._room(len(thought.prompt) + len(thought.ids), tokens, "tokens")
        pieces = self.method.pieces
        new: list[int] = []
        while len(new) < tokens and not thought.ended:
            known = thought.cache.get_seq_length()
            logits_V = self._read([*thought.prompt, *thought.ids][known:], thought.cache)
            token = self._draw(logits_V, thought.generator)
            new.append(token)
            thought.ids.append(token)
            tail = tuple(thought.ids[-len(pieces.end) :])
            thought.ended = token in pieces.eos or tail == pieces.end
        fresh = len(thought.prompt) if len(thought.ids) == len(new) and new else 0
        self.ledger.record(
            "think", "target", prompt_new=fresh, generated=len(new), method=self.method.name
        )
        return new

    def _answer(
        self, thought: Thought, at: int | None, max_tokens: int | None, seed: int
    ) -> Answer:
        cut = len(thought.ids) if at is None else at
        if not 1 <= cut <= len(thought.ids):
            raise InputError(
                f"at={at}; the thinking has {len(thought.ids)} tokens, and a cut needs at least 1"
            )
        pieces = self.method.pieces
        forced = not (thought.ended and cut == len(thought.ids))
        suffix = pieces.forced if forced else pieces.natural
        most = self.method.max_summary_tokens if max_tokens is None else max_tokens
        self._room(len(thought.prompt) + cut + len(suffix), most, "max_tokens")
        kept = len(thought.prompt) + cut - 1
        branch = DynamicCache(config=self._model.config)
        for number, layer in enumerate(thought.cache.layers):
            branch.update(layer.keys[:, :, :kept], layer.values[:, :, :kept], number)
        generator = torch.Generator(device=self._model.device).manual_seed(seed)
        asked = [thought.ids[cut - 1], *suffix]
        logits_V = self._read(asked, branch)
        ids: list[int] = []
        while len(ids) < most:
            ids.append(self._draw(logits_V, generator))
            if ids[-1] in pieces.eos or len(ids) == most:
                break
            logits_V = self._read(ids[-1:], branch)
        self.ledger.record(
            "answer",
            "target",
            prompt_new=1,
            prompt_cached=kept,
            forced=len(suffix),
            generated=len(ids),
            method=self.method.name,
        )
        shown = ids[:-1] if ids[-1] in pieces.eos else ids
        text = self._tokenizer.decode(shown, skip_special_tokens=False)
        return Answer(cut, forced, tuple(ids), str(text))
