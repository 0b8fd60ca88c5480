"""Ada-GRPO: group-relative RL that keeps several ways of answering alive.

The training of "ARM: Adaptive Reasoning Model" (arXiv 2505.20258, section 3.2). Plain GRPO moves to
the most accurate format within tens of steps and forgets the cheap ones. Here a rollout's reward is
scaled by how rare its format is in its group, alpha = G/F at the first step, and the scaling decays
to 1, so that accuracy alone decides in the end:

    r' = alpha(t) r,   alpha(t) = 1 + (G/F - 1) (1 + cos(pi t / T)) / 2

F counts all rollouts of the group with the same format, wrong ones too; rollouts without a format
are a format of their own. A right answer pays only if it opens with a format's tag and holds no tag
of another format.

Where this differs from the paper's code: only completions are parsed, so a question that quotes a
tag changes nothing; t is clamped at T (the cosine would rise again); the answer is the last
complete block. `alpha_cap`, `scale_on="advantage"` and the decays "linear" and "hold" are ours.
Inference (adaptive, guided, consensus, votes) is `outlay.reason.adaptive`.

Shapes: N rollouts of all processes, Q questions, G rollouts of each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from outlay.errors import InputError
from outlay.reason.adaptive.formats import UNKNOWN, Formats
from outlay.rl.base import Context, Judgement, Method, RewardFunction, Row

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

Decay = Literal["cosine", "linear", "hold", "none"]
ScaleOn = Literal["reward", "advantage"]
JUDGED = "judged"


@dataclass(frozen=True)
class AdaGRPO(Method):
    """Rewards scaled by the rarity of their format.

    Args:
        formats: "judged" takes the style that the verifier names and its verdict on the format
            (the testbed's); or a set of tags, by name ("arm", "reasoner") or as `Formats`.
        group_size: G.
        decay: of the scaling: "cosine" (the paper's), "linear", "hold" (full until `hold_steps`,
            then none), "none" (full to the end).
        t_total: step at which the scaling has decayed; None is the run's last.
        hold_steps: for "hold".
        alpha_cap: most that a reward is scaled by; None is G.
        scale_on: "reward" (the paper's), or "advantage".
        kl: weight of the KL penalty.
        clip: of the ratio.
        eps: added to the standard deviation.
        tokenizer: decodes completions, for tags; given by `tokenized`.

    Raises:
        InputError: for an unknown choice, or values out of range.
    """

    formats: str | Formats = JUDGED
    group_size: int = 8
    decay: Decay = "cosine"
    t_total: int | None = None
    hold_steps: int = 0
    alpha_cap: float | None = None
    scale_on: ScaleOn = "reward"
    kl: float = 1e-3
    clip: float = 0.2
    eps: float = 1e-6
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, kind in (("decay", Decay), ("scale_on", ScaleOn)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise InputError(f"{name}={getattr(self, name)!r}; choose one of {choices}")
        if self.group_size < 2:
            raise InputError(
                f"group_size={self.group_size}; a format's share needs at least 2 rollouts"
            )
        if self.t_total is not None and self.t_total < 1:
            raise InputError(f"t_total={self.t_total}; must be at least 1 step, or None")
        if self.decay == "hold" and self.hold_steps < 1:
            raise InputError(f"hold_steps={self.hold_steps}; decay='hold' needs at least 1")
        if self.alpha_cap is not None and not self.alpha_cap >= 1:
            raise InputError(f"alpha_cap={self.alpha_cap}; must be at least 1, or None")
        if not self.kl >= 0 or not self.clip > 0 or not self.eps >= 0:
            raise InputError(
                f"kl={self.kl}, clip={self.clip}, eps={self.eps}; kl and eps must be >= 0, clip > 0"
            )
        self.tags()

    def tags(self) -> Formats | None:
        """The formats' tags; None where the verifier names styles.

        Raises:
            InputError: for an unknown set.
        """
        if isinstance(self.formats, Formats):
            return self.formats
        if self.formats == JUDGED:
            return None
        from outlay.reason.adaptive.presets import PRESETS

        if self.formats not in PRESETS:
            known = ", ".join((JUDGED, *PRESETS))
            raise InputError(f"formats={self.formats!r}; choose one of {known}, or give Formats")
        return PRESETS[self.formats]

    def tokenized(self, tokenizer: Any) -> AdaGRPO:
        """This method with what decodes completions.

        Raises:
            InputError: for a tokenizer that drops or changes a tag when it decodes.
        """
        tags = self.tags()
        for tag in () if tags is None else tags.tags:
            ids = tokenizer(tag, add_special_tokens=False)["input_ids"]
            back = tokenizer.decode(ids, skip_special_tokens=False)
            if back != tag:
                raise InputError(
                    f"the tag {tag!r} comes back from the tokenizer as {back!r}; add it to the "
                    "vocabulary, or choose other tags"
                )
        return replace(self, tokenizer=tokenizer)

    # -- scaling ----------------------------------------------------------------------------------

    @property
    def needs_total_steps(self) -> bool:  # type: ignore[override]  # knobs decide
        """Decays run over the whole training, unless `t_total` ends them."""
        return self.t_total is None and self.decay in ("cosine", "linear")

    def alpha(self, group: int, same: int, step: int, total_steps: int) -> float:
        """What a reward is scaled by.

        Args:
            group: G.
            same: F, rollouts of the group with this format.
            step: t.
            total_steps: T, where `t_total` does not say it.

        Raises:
            InputError: for counts that cannot be.
        """
        if not 1 <= same <= group:
            raise InputError(f"{same} of {group} rollouts have a format; that cannot be")
        last = self.t_total or total_steps
        alpha = 1 + (group / same - 1) * self._weight(step, last)
        return alpha if self.alpha_cap is None else min(alpha, self.alpha_cap)

    def _weight(self, step: int, last: int) -> float:
        """1 at the first step; 0 from T on."""
        if self.decay == "none":
            return 1.0
        if self.decay == "hold":
            return float(step < self.hold_steps)
        if step >= last:
            return 0.0
        if self.decay == "linear":
            return 1 - step / last
        return 0.5 * (1 + math.cos(math.pi * step / last))

    def formats_of(self, context: Context) -> list[str]:
        """The format of every rollout; "unknown" without one."""
        tags = self.tags()
        if tags is None:
            return [one.style or UNKNOWN for one in context.judgements]
        return [tags.detect(text) for text in self._texts(context.completion_ids)]

    def _texts(self, completion_ids: Sequence[Sequence[int]]) -> list[str]:
        if self.tokenizer is None:
            raise InputError("tags are read from text; use AdaGRPO(...).tokenized(tokenizer)")
        return [
            str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
            for ids in completion_ids
        ]

    # -- hooks ------------------------------------------------------------------------------------

    def assign(self, rows: Sequence[Row], step: int, total_steps: int, group: int) -> Sequence[Row]:
        """Nothing is told; the group is checked."""
        if group != self.group_size:
            raise InputError(
                f"num_generations={group} and group_size={self.group_size} differ; make them equal"
            )
        return rows

    def reward_functions(self) -> list[RewardFunction]:
        """1 for a right answer in a format of its own, else 0."""
        return [self.formatted]

    def formatted(
        self,
        judgement: Sequence[Judgement],
        completion_ids: Sequence[Sequence[int]],
        **_: object,
    ) -> list[float]:
        """The reward of every completion; a reward function as TRL calls it."""
        tags = self.tags()
        if tags is None:
            return [float(one.correct and one.format_ok) for one in judgement]
        rewards = []
        for one, text in zip(judgement, self._texts(completion_ids), strict=True):
            parsed = tags.parse(text)
            kept = parsed.format != UNKNOWN and parsed.answer is not None and not parsed.foreign
            rewards.append(float(one.correct and kept))
        return rewards

    def advantages(self, context: Context) -> Tensor:
        """(N,) Scaled by rarity, then normalised over the question (or the other way round).

        Computed in the rewards' own precision, with TRL's own operations.
        """
        import torch
        from trl.trainer.utils import nanstd

        rewards_QG = context.rewards.view(-1, context.group)
        alphas_QG = torch.tensor(
            self._alphas(context), dtype=rewards_QG.dtype, device=rewards_QG.device
        ).view_as(rewards_QG)
        scaled_QG = rewards_QG * alphas_QG if self.scale_on == "reward" else rewards_QG
        mean_Q1 = torch.nanmean(scaled_QG, dim=1, keepdim=True)
        std_Q1 = nanstd(scaled_QG, dim=1).unsqueeze(1)
        found_QG = (scaled_QG - mean_Q1) / (std_Q1 + self.eps)
        if self.scale_on == "advantage":
            found_QG = found_QG * alphas_QG
        return torch.nan_to_num(found_QG, nan=0.0).view(-1)

    def _alphas(self, context: Context) -> list[float]:
        formats = self.formats_of(context)
        alphas: list[float] = []
        for start in range(0, len(formats), context.group):
            inside = formats[start : start + context.group]
            counts = Counter(inside)
            alphas += [
                self.alpha(context.group, counts[name], context.step, context.total_steps)
                for name in inside
            ]
        return alphas

    def config_defaults(self) -> Mapping[str, Any]:
        """Section 4.1."""
        return {"num_generations": self.group_size, "epsilon": self.clip, "beta": self.kl}


def all_formats(solutions: Iterable[tuple[str, Mapping[str, str]]]) -> Dataset:
    """The data of the first stage: every question with its solution in every format.

    For `trl.SFTTrainer` (columns prompt and completion; the loss covers completions).

    Args:
        solutions: prompts, each with its completions by format.

    Raises:
        InputError: for a question without one of the formats that others have, or no question.
    """
    from datasets import Dataset

    rows: list[dict[str, str]] = []
    names: set[str] | None = None
    for prompt, by_format in solutions:
        names = set(by_format) if names is None else names
        if set(by_format) != names or len(names) < 2:
            raise InputError(
                f"{prompt[:60]!r} has formats {', '.join(sorted(by_format))}; every question needs "
                f"the same two or more ({', '.join(sorted(names))})"
            )
        rows += [
            {"prompt": prompt, "completion": text, "format": name}
            for name, text in by_format.items()
        ]
    if not rows:
        raise InputError("no solutions were given")
    return Dataset.from_list(rows)
