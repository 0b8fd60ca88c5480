"""What Curriculum GRPO pays, and how pay becomes advantages (arXiv 2508.08940, section 3).

Its length signal is `outlay.rl.length_rewards.LengthReward`. Torch is imported by advantages only.

Shapes: N rollouts, Q questions, G rollouts of each.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outlay.rl.base import Judgement
from outlay.rl.curriculum_format import LONGEST, Tags, decode

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Correct:
    """`r_cor` for a right answer; warns where no completion of a batch has any answer.

    Args:
        r_cor: pay.
        soft: pay the verifier's score in [0, 1] instead of right or wrong.
    """

    r_cor: float = 1.0
    soft: bool = False

    @property
    def __name__(self) -> str:
        """In TRL's logs."""
        return "correct"

    def __call__(self, judgement: Sequence[Judgement], **_: object) -> list[float]:
        """One reward a completion."""
        if judgement and all(one.given is None for one in judgement):
            warnings.warn(
                f"the verifier found no answer in any of {len(judgement)} completions; if this "
                "goes on, it and the model do not agree on how answers are marked",
                stacklevel=2,
            )
        return [self.r_cor * (one.score if self.soft else float(one.correct)) for one in judgement]


@dataclass(frozen=True)
class FormatReward:
    """`alpha_think * I_think + alpha_answer * I_answer` (arXiv 2508.08940, section 3.3).

    Args:
        tags: the pairs.
        alpha: pay for well-formed thinking, and for a well-formed answer.
        tokenizer: reads tags from token ids; None reads them from the text as TRL decodes it, in
            which tags that are special tokens are missing.
    """

    tags: Tags = field(default_factory=Tags)
    alpha: tuple[float, float] = (0.5, 0.5)
    tokenizer: Any = None

    @property
    def __name__(self) -> str:
        """In TRL's logs."""
        return "format"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **_: object,
    ) -> list[float]:
        """One reward a completion."""
        rewards = []
        for prompt, completion, ids in zip(prompts, completions, completion_ids, strict=True):
            text = decode(self.tokenizer, ids) if self.tokenizer is not None else said(completion)
            opened = self.tags.opened
            if opened is None:
                opened = isinstance(prompt, str) and prompt.rstrip().endswith(self.tags.think[0])
            whole = (self.tags.think[0] if opened else "") + text[:LONGEST]
            think, answer = self.tags.found(whole)
            rewards.append(self.alpha[0] * think + self.alpha[1] * answer)
        return rewards


@dataclass(frozen=True)
class VerifierFormat:
    """The whole of alpha where the verifier finds its format kept, else nothing.

    Args:
        alpha: as in `FormatReward`.
    """

    alpha: tuple[float, float] = (0.5, 0.5)

    @property
    def __name__(self) -> str:
        """In TRL's logs."""
        return "format"

    def __call__(self, judgement: Sequence[Judgement], **_: object) -> list[float]:
        """One reward a completion."""
        return [sum(self.alpha) * one.format_ok for one in judgement]


def said(completion: Any) -> str:
    """The text of a completion as TRL gives it: a text, or messages of the assistant."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def population_advantages(rewards_N: Tensor, group: int, eps: float) -> Tensor:
    """`(r - mean) / sqrt(variance + eps)` within each group, in fp64 (section 3.1).

    Args:
        rewards_N: groups in a row.
        group: G.
        eps: inside the root.
    """
    rewards_QG = rewards_N.double().view(-1, group)
    centred_QG = rewards_QG - rewards_QG.mean(dim=1, keepdim=True)
    variance_Q1 = centred_QG.square().mean(dim=1, keepdim=True)
    return (centred_QG / (variance_Q1 + eps).sqrt()).view(-1)
