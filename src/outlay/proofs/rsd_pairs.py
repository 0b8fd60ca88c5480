"""The pairs of models of the RSD proof, and their prompts.

Shapes: N prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outlay.decode.plain import PlainDecoder
from outlay.decode.rsd import RSD, RSDResult, acceptance_profile
from outlay.decode.rsd.trees import Shape
from outlay.models.base import Prompt, SamplingParams
from outlay.models.local import LocalModel

CHATS = (
    "What is the capital of Portugal, and why is it famous?",
    "Explain in two sentences how a refrigerator works.",
    "Give me three ideas for a rainy Sunday.",
    "Write a haiku about autumn leaves.",
    "What is the difference between a virus and a bacterium?",
    "How do I boil an egg so that the yolk stays soft?",
    "Tell me about the discovery of penicillin.",
    "Why is the sky blue?",
    "Write a polite note that declines an invitation to dinner.",
    "What does a compiler do?",
    "List four animals that hibernate.",
    "How can I remember people's names better?",
    "Describe the taste of a lemon to someone who never had one.",
    "What happens during a solar eclipse?",
    "Name two novels by Jane Austen and say what they are about.",
    "How far away is the Sun?",
    "Write one paragraph about a lighthouse keeper.",
    "What is inflation?",
    "Give me a simple recipe for pancakes.",
    "Who was Ada Lovelace?",
    "How does a bill become a law in the United States?",
    "What are the primary colours?",
    "Write a Python function that reverses a string.",
    "Suggest a name for a small bakery and explain it.",
)


@dataclass(frozen=True)
class Pair:
    """A target, its draft and prompts.

    Args:
        name: of the pair.
        target, draft: models with one tokenizer.
        prompts: in a fixed order.
        tokens: most new tokens of a text.
    """

    name: str
    target: LocalModel
    draft: Any
    prompts: Sequence[Prompt]
    tokens: int

    def sampling(self, temperature: float, seed: int) -> list[SamplingParams]:
        """Parameters of every prompt."""
        return [
            SamplingParams(max_tokens=self.tokens, temperature=temperature, seed=seed + i)
            for i in range(len(self.prompts))
        ]

    def run(self, shape: Shape, temperature: float, seed: int) -> list[RSDResult]:
        """All prompts under one shape of trees."""
        decoder = RSD(shape.mode, shape.branching, shape.beam, shape.depth, draft=self.draft)
        return decoder.generate_many(
            self.target, self.prompts, sampling=self.sampling(temperature, seed)
        )

    def profile(self, seed: int, rows: int = 8) -> tuple[float, ...]:
        """Acceptance within k children, at temperature 1, along texts that the target samples."""
        sampling = SamplingParams(max_tokens=self.tokens, temperature=1.0, seed=seed + 999)
        chosen = self.prompts[:rows]
        made = PlainDecoder().generate_many(self.target, chosen, None, sampling)
        prompts = [self.target.prompt_ids(prompt) for prompt in chosen]
        texts = [one.token_ids for one in made]
        return acceptance_profile(self.target, self.draft.model, prompts, texts, seed=seed)


def chat_prompts(model: LocalModel, n: int) -> list[Prompt]:
    """The first n questions, as this model's template writes them."""
    return [model.render([{"role": "user", "content": text}]) for text in CHATS[:n]]


def code_prompts(model: LocalModel, n: int, tokens: int = 64) -> list[Prompt]:
    """The beginnings of n pieces of code that no draft was trained on."""
    from outlay.testbeds import text

    if not n:
        return []
    ids_NT = text.batch(model.tokenizer, n, length=tokens, kinds=("code",), seed=17)
    return [row.tolist() for row in ids_NT]


def reasoner(problems: int, device: str | None) -> Pair:
    """The reasoner with its small sibling, on chains to compute."""
    from outlay.testbeds.reasoner import ChainArith, checkpoint_path

    target, draft = (
        LocalModel.load(checkpoint_path(name), name=f"reasoner/{name}", device=device)
        for name in ("base", "small")
    )
    task = ChainArith(operations=(4, 9))
    asked = task.sample(11, problems)
    prompts = [task.prompt(problem, "") for problem in asked]
    return Pair("reasoner", target, draft, prompts, 96)


def smollm2(chats: int, code: int, tokens: int, device: str | None, folder: Path | None) -> Pair:
    """SmolLM2 with its distilled draft (of `folder`), on chats and code, in fp32."""
    from outlay.models import embedded
    from outlay.testbeds.drafts import smollm2_draft

    target = embedded.load(device=device)
    prompts = [*chat_prompts(target, chats), *code_prompts(target, code)]
    return Pair("SmolLM2", target, smollm2_draft(target, folder), prompts, tokens)


def halved(pair: Pair, folder: Path | None) -> Pair:
    """The same in bf16, several times faster on most machines: for statistics, not for equality."""
    from outlay.testbeds.drafts import smollm2_draft

    network = copy.deepcopy(pair.target.model).to(torch.bfloat16)
    # Half precision is too coarse for the angles of positions, which stay as they were.
    network.model.rotary_emb = pair.target.model.model.rotary_emb
    target = LocalModel(network, pair.target.tokenizer, pair.target.name)
    return Pair(pair.name, target, smollm2_draft(target, folder), pair.prompts, pair.tokens)
