"""`AnytimeBRPO`: training for models that may be cut at any token. No torch at import.

"Optimizing Anytime Reasoning via Budget Relative Policy Optimization" (arXiv 2505.13438). A
thinking is sampled up to the largest budget, cut at every budget, and answered A times from each
cut. The mean reward of these answers pays the thinking densely; each of its segments is compared
with what the same thinking earned before (V1) and with the group's mean (V2). Answers are compared
within their cut only (decoupled).

Where this differs from the paper and its released code: `reward_fn` is any verifier of this room
and reads the thinking as cut, the template and the answer up to its first blank line. Budgets, end
tags and templates are knobs. `leave_one_out`, `skip_flat`, `adv_norm="std"`, `decoupled=False` (the
paper's ablation) and `packing="auto"` are ours. TRL divides the summed loss by rollouts times
`max_completion_length`; the release by a padded width.

Shapes: N rollouts of all processes, G of a question, S budgets, A answers a budget.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from outlay.errors import CapabilityError, InputError
from outlay.rl.anytime.cuts import Prior, branches, check_budgets, prior_weights, spans
from outlay.rl.anytime.outcomes import KEY, TREES, Fork, ForkSampler, Outcome
from outlay.rl.anytime.templates import FORCED, HEADING, NATURAL, Templates, make_templates
from outlay.rl.base import (
    Context,
    Judgement,
    Method,
    RewardFunction,
    Row,
    Sampler,
    Segment,
    Verifier,
)

if TYPE_CHECKING:
    from torch import Tensor

Packing = Literal["auto", "tree", "rows"]
MAX_SUMMARY = 100_000
_AT_ONCE = 512  # answers sampled in one call where there is no cache to fork


@dataclass(frozen=True)
class AnytimeBRPO(Method):
    """Anytime reasoning by budget-relative policy optimisation.

    Args:
        budgets: tokens at which thinking is cut, rising.
        prior: weights of budgets in the objective: "linear", "uniform", "base" (the last only), or
            one weight a budget.
        n_traces: thinkings of a question (G).
        n_summaries: answers at each budget (A).
        lam: in V1, the weight of a budget's reward against the next one's.
        variance_reduction: "brpo", or an ablation: "v1", "v2" (as GRPO) or "none".
        summary_mode: train answers at "all" budgets, or at the "last" one.
        max_summary_tokens: of an answer.
        forced: text after a cut thinking; holds the end tag.
        natural: text after a thinking that ended by itself.
        heading: follows both.
        end_of_thinking: text that ends the thinking.
        packing: "tree" (one row a thinking, its answers as branches), "rows" (the thinking's row,
            and one for each answer), or "auto": trees where the trainer and the model can.
        adv_norm: "none" (the paper's), or "std": divide a thinking's advantages by the group's
            standard deviation.
        eps: of the clip.
        eps_high: upper eps; None is the same.
        reward_fn: judges the thinking as cut with its template and answer; 1 for a right one. None
            takes the trainer's verifier (`AnytimeTrainer`).
        require_single_think_end: an answer with a second end tag earns nothing.
        leave_one_out: V2 leaves out the thinking's own return.
        decoupled: answers weigh alike at all budgets; False weighs them by the prior.
        skip_flat: leave answers without an advantage out of the batch: the same gradient (without
            a KL term), fewer tokens.
        templates: the texts as tokens; made by `tokenized`.

    Raises:
        BudgetError: for budgets that do not rise.
        InputError: for an unknown choice, or values out of range.
    """

    budgets: tuple[int, ...] = (2000, 4000, 6000, 8000)
    prior: Prior = "linear"
    n_traces: int = 8
    n_summaries: int = 4
    lam: float = 0.5
    variance_reduction: Literal["brpo", "v1", "v2", "none"] = "brpo"
    summary_mode: Literal["all", "last"] = "all"
    max_summary_tokens: int = 128
    forced: str = FORCED
    natural: str = NATURAL
    heading: str = HEADING
    end_of_thinking: str = "</think>"
    packing: Packing = "auto"
    adv_norm: Literal["none", "std"] = "none"
    eps: float = 0.2
    eps_high: float | None = None
    reward_fn: Verifier | None = None
    require_single_think_end: bool = True
    leave_one_out: bool = False
    decoupled: bool = True
    skip_flat: bool = False
    templates: Templates | None = None

    def __post_init__(self) -> None:
        check_budgets(self.budgets)
        prior_weights(self.prior, self.budgets)
        for name, choices in (
            ("variance_reduction", ("brpo", "v1", "v2", "none")),
            ("summary_mode", ("all", "last")),
            ("packing", get_args(Packing)),
            ("adv_norm", ("none", "std")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name}={getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        for name, most in (("n_traces", 4096), ("n_summaries", 4096)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name}={getattr(self, name)}; must be in 1..{most}")
        if not 1 <= self.max_summary_tokens <= MAX_SUMMARY:
            raise InputError(
                f"max_summary_tokens={self.max_summary_tokens}; must be in 1..{MAX_SUMMARY:,}"
            )
        if not 0 <= self.lam <= 1:
            raise InputError(f"lam={self.lam}; must be in [0, 1]")
        for name in ("eps", "eps_high"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 10:
                raise InputError(f"{name}={value}; must be positive and below 10")
        if self.n_traces == 1 and self.variance_reduction in ("v2", "brpo"):
            warnings.warn(
                f"n_traces=1 leaves variance_reduction={self.variance_reduction!r} without a "
                "group: V2 is 0",
                stacklevel=3,
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """P_s."""
        return prior_weights(self.prior, self.budgets)

    def tokenized(self, tokenizer: Any) -> AnytimeBRPO:
        """This method with its templates as tokens.

        Raises:
            InputError: for templates that the tokenizer does not know, or end tags where they do
                not belong.
        """
        made = make_templates(
            tokenizer, self.forced, self.natural, self.heading, self.end_of_thinking
        )
        return replace(self, templates=made)

    @property
    def pieces(self) -> Templates:
        """The templates as tokens.

        Raises:
            InputError: before `tokenized`.
        """
        if self.templates is None:
            raise InputError(
                "templates are not tokenised; use AnytimeBRPO(...).tokenized(tokenizer)"
            )
        return self.templates

    # -- hooks ------------------------------------------------------------------------------------

    def assign(self, rows: Sequence[Row], step: int, total_steps: int, group: int) -> Sequence[Row]:
        """Thinking goes up to the largest budget."""
        for row in rows:
            row["budget"] = row["hard_cap"] = self.budgets[-1]
        return rows

    def probe(
        self,
        rows: Sequence[Row],
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        sampler: Sampler,
    ) -> None:
        """Cut every thinking at every budget, have it answered, and judge the answers."""
        trees = isinstance(sampler, ForkSampler) and sampler.trees
        if self.packing == "tree" and not trees:
            raise CapabilityError(
                "packing='tree' needs AnytimeTrainer; use it, or packing='rows' (the prefix of "
                "every answer is computed again)"
            )
        found = self.outcomes(rows, prompt_ids, completion_ids, sampler)
        for row, outcome in zip(rows, found, strict=True):
            row[KEY] = outcome
            row[TREES] = trees and self.packing != "rows"
            row["judgement"] = outcome.last  # metrics speak of answers, not of bare thinkings

    def outcomes(
        self,
        rows: Sequence[Row],
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        sampler: Sampler | ForkSampler,
    ) -> list[Outcome]:
        """One a rollout.

        Args:
            rows: what `reward_fn` reads.
            prompt_ids: as tokens.
            completion_ids: thinkings, and what may follow them.
            sampler: of answers.

        Raises:
            InputError: for an empty completion, or without `reward_fn`.
        """
        pieces = self.pieces
        if self.reward_fn is None:
            raise InputError(
                "AnytimeBRPO has no reward_fn; give it a verifier, or use AnytimeTrainer"
            )
        read = [pieces.thinking(ids, self.budgets[-1]) for ids in completion_ids]
        cuts = [branches(len(thinking), ended, self.budgets) for thinking, ended in read]
        forks = [
            Fork(
                row,
                one.cut,
                pieces.forced if one.forced else pieces.natural,
                self.n_summaries * len(one.slots),
            )
            for row, places in enumerate(cuts)
            for one in places
        ]
        thinkings = [thinking for thinking, _ in read]
        if isinstance(sampler, ForkSampler):
            answers = sampler.fork(prompt_ids, thinkings, forks, self.max_summary_tokens)
        else:
            answers = self._again(prompt_ids, thinkings, forks, sampler)
        paid = self._paid(rows, thinkings, forks, answers)
        made, at = [], 0
        for (thinking, ended), places in zip(read, cuts, strict=True):
            inside = slice(at, at + len(places))
            at += len(places)
            by_slot: dict[int, tuple[float, ...]] = {}
            for one, pay in zip(places, paid[inside], strict=True):
                for k, slot in enumerate(one.slots):
                    mine = pay[k * self.n_summaries : (k + 1) * self.n_summaries]
                    by_slot[slot] = tuple(reward for reward, _ in mine)
            made.append(
                Outcome(
                    thinking=tuple(thinking),
                    ended=ended,
                    cuts=tuple(places),
                    suffixes=tuple(fork.suffix for fork in forks[inside]),
                    summaries=tuple(tuple(map(tuple, given)) for given in answers[inside]),
                    rewards=tuple(by_slot[slot] for slot in range(len(self.budgets))),
                    last=paid[inside][-1][-1][1],
                )
            )
        return made

    def _again(
        self,
        prompt_ids: Sequence[Sequence[int]],
        thinkings: Sequence[Sequence[int]],
        forks: Sequence[Fork],
        sampler: Sampler,
    ) -> list[list[list[int]]]:
        """Answers through a sampler that reads every prefix anew (or caches it, as vLLM does)."""
        asked = [
            [*prompt_ids[fork.row], *thinkings[fork.row][: fork.cut], *fork.suffix]
            for fork in forks
            for _ in range(fork.copies)
        ]
        flat: list[list[int]] = []
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            flat += sampler(part, [self.max_summary_tokens] * len(part))
        found, at = [], 0
        for fork in forks:
            found.append(flat[at : at + fork.copies])
            at += fork.copies
        return found

    def _paid(
        self,
        rows: Sequence[Row],
        thinkings: Sequence[Sequence[int]],
        forks: Sequence[Fork],
        answers: Sequence[Sequence[Sequence[int]]],
    ) -> list[list[tuple[float, Judgement]]]:
        """Reward and judgement of every answer; equal answers of a fork are judged once."""
        assert self.reward_fn is not None
        pieces = self.pieces
        wanted = {(at, tuple(ids)): None for at, given in enumerate(answers) for ids in given}
        told, shown, single = [], [], []
        for at, ids in wanted:
            fork = forks[at]
            before = [*thinkings[fork.row][: fork.cut], *fork.suffix]
            told.append(rows[fork.row])
            shown.append([*before, *pieces.first_block(ids)])
            once = not self.require_single_think_end
            single.append(once or pieces.count_ends([*before, *ids]) == 1)
        judged = self.reward_fn.judge(told, shown)
        if len(judged) != len(shown):
            raise InputError(
                f"reward_fn judged {len(judged)} of {len(shown)} answers; return one judgement each"
            )
        found = {
            key: (float(one.correct and fine), one)
            for key, one, fine in zip(wanted, judged, single, strict=True)
        }
        return [[found[at, tuple(ids)] for ids in given] for at, given in enumerate(answers)]

    def reward_functions(self) -> list[RewardFunction]:
        """The objective."""
        return [self.objective]

    def objective(self, anytime: Sequence[Outcome], **_: object) -> list[float]:
        """Equation 3: the weighted mean reward over budgets; a reward function as TRL calls it."""
        weights = self.weights
        return [sum(p * r for p, r in zip(weights, one.means, strict=True)) for one in anytime]

    def advantages(self, context: Context) -> list[list[Segment]]:
        """Every segment of a thinking its own; what follows the thinking gets none."""
        import torch

        outcomes: list[Outcome] = context.column(KEY)
        found: list[list[Segment]] = []
        for start in range(0, len(outcomes), context.group):
            group = outcomes[start : start + context.group]
            means_GS = torch.tensor([one.means for one in group], dtype=torch.float64)
            for one, values in zip(group, self.of_thinkings(means_GS).tolist(), strict=True):
                parts = spans(len(one.thinking), self.budgets)
                found.append([(a, b, value) for (a, b), value in zip(parts, values, strict=False)])
        return found

    def of_thinkings(self, means_GS: Tensor) -> Tensor:
        """(G, S) advantages of segments; see `advantages.thinking_advantages`."""
        from outlay.rl.anytime.advantages import thinking_advantages

        return thinking_advantages(
            means_GS,
            self.weights,
            self.lam,
            self.variance_reduction,
            self.leave_one_out,
            self.adv_norm,
        )

    def of_summaries(self, outcomes: Sequence[Outcome]) -> Tensor:
        """(G, S, A) advantages of the answers to one question; see `summary_advantages`."""
        import torch

        from outlay.rl.anytime.advantages import summary_advantages

        rewards_GSA = torch.tensor([one.rewards for one in outcomes], dtype=torch.float64)
        branch_GS = torch.zeros(rewards_GSA.shape[:2], dtype=torch.long)
        for g, one in enumerate(outcomes):
            for number, place in enumerate(one.cuts):
                branch_GS[g, list(place.slots)] = number
        scale = [weight * len(self.budgets) for weight in self.weights]
        weights_S = None if self.decoupled else scale
        return summary_advantages(rewards_GSA, branch_GS, self.summary_mode, weights_S)

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        """Thinkings and their answers as training rows."""
        from outlay.rl.anytime.packing import pack

        return pack(self, batch, context)

    def at_inference(self, rows: Sequence[Row], budget: int) -> Sequence[Row]:
        """A plain prompt; `AnytimeReasoner` and `measure.curve` cut and force the answer."""
        return rows

    def config_defaults(self) -> Mapping[str, Any]:
        """Section 5: summed losses over a constant (Dr.GRPO), no KL."""
        return {
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            "num_generations": self.n_traces,
            "max_completion_length": self.budgets[-1],
            "epsilon": self.eps,
            "epsilon_high": self.eps if self.eps_high is None else self.eps_high,
            "beta": 0.0,
        }
