"""What a method of budget-aware RL is: the room's one protocol. No torch at import.

All methods of this room differ from GRPO in four places only: what each rollout is told (budget,
prompt, forced prefix), where it is cut, how it is paid, and how pay becomes advantages of tokens.
A method is a frozen dataclass that inherits from `Method` and overrides the places that it changes;
`BudgetGRPOTrainer` calls them. `Method` itself changes nothing: with it, training equals TRL's.

Shapes: B rollouts of this process, N of all processes, G of one question, T tokens of a completion,
F reward functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from outlay.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

Row = dict[str, Any]
"""One rollout's columns: those of the data set, and what a planner adds (see `PLAN_KEYS`)."""

Prefix = Literal["trained", "masked", "prompt"]
"""Where forced tokens go: into the completion and the loss, into the completion only, or into the
prompt."""

Segment = tuple[int, int, float]
"""Tokens start..end-1 of a completion and their advantage."""

RewardFunction = Callable[..., "list[float] | list[float | None]"]
"""As TRL calls it: `f(prompts, completions, completion_ids, **columns) -> list`. Columns hold
`judgement`, `budget`, `prefix_ids`, `hard_cap`, `member` and those of the data set; `trainer_state`
has `global_step` and `max_steps`."""

Sampler = Callable[["Sequence[Sequence[int]]", "Sequence[int]"], "list[list[int]]"]
"""Samples one completion a prompt: `(prompts as ids, most new tokens of each) -> ids`."""

PLAN_KEYS = ("budget", "prefix_ids", "hard_cap", "member")
ADDED_KEYS = ("judgement", "member")
"""Columns that the trainer writes; a data set must not have them."""

MAX_BUDGET = 10_000_000


@dataclass(frozen=True)
class Judgement:
    """One completion, judged once; every reward function reads it from the column `judgement`.

    Args:
        correct: the answer is right.
        score: in [0, 1], for verifiers that know partial credit; else 1 or 0.
        format_ok: it follows the format that the verifier knows.
        tokens: all tokens, an end token included, padding not.
        thinking_tokens: before the end of thinking (all of them if it never ended).
        answer_tokens: the rest, delimiter and end token included.
        truncated: it did not end by itself.
        given: the answer that was read, None if there was none.
        style: of the thinking, where the verifier knows styles.
        failed: the verifier raised or took too long; the answer counts as wrong.
    """

    correct: bool
    score: float
    format_ok: bool
    tokens: int
    thinking_tokens: int
    answer_tokens: int
    truncated: bool
    given: str | None = None
    style: str | None = None
    failed: bool = False


class Verifier:
    """Judges completions. Subclasses implement `judge`; it must not raise for bad completions."""

    def judge(
        self, rows: Sequence[Row], completion_ids: Sequence[Sequence[int]]
    ) -> list[Judgement]:
        """One judgement a row, from token ids (special tokens kept).

        Args:
            rows: columns of the data set, the answer among them.
            completion_ids: of each row.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Context:
    """All rollouts of one generation batch, gathered over processes, groups whole and in order.

    Args:
        rows: N rows; rows `g*G .. g*G+G-1` answer one question.
        completion_ids: of each row, a trained or masked prefix included.
        rewards_NF: what every reward function paid; NaN where it returned None.
        weights_F: of the reward functions.
        advantages_N: what TRL made of them.
        group: G.
        step: optimiser steps done.
        total_steps: of the run; 0 where unknown (evaluation outside training).
        local: this process's rows.
        mode: "train" or "eval".
        trained_from: index of each row's first trained token (after a masked prefix).
    """

    rows: list[Row]
    completion_ids: list[list[int]]
    rewards_NF: Tensor
    weights_F: Tensor
    advantages_N: Tensor
    group: int
    step: int
    total_steps: int
    local: slice
    mode: Literal["train", "eval"] = "train"
    trained_from: list[int] = field(default_factory=list)

    @property
    def rewards(self) -> Tensor:
        """Weighted sum of the rewards; a row that nobody paid has NaN."""
        import torch

        total_N = (self.rewards_NF * self.weights_F).nansum(dim=1)
        return total_N.masked_fill(torch.isnan(self.rewards_NF).all(dim=1), float("nan"))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [len(ids) for ids in self.completion_ids]

    @property
    def width(self) -> int:
        """T of a dense (N, T) answer: the longest completion of all processes."""
        return max(self.lengths, default=0)

    @property
    def judgements(self) -> list[Judgement]:
        """One a row.

        Raises:
            InputError: if the trainer was built without a verifier.
        """
        if not self.rows or self.rows[0].get("judgement") is None:
            raise InputError(
                "this method reads judgements; give the trainer a verifier, "
                "as BudgetGRPOTrainer(..., verifier=...)"
            )
        return [row["judgement"] for row in self.rows]

    def column(self, name: str) -> list[Any]:
        """A column of the rows.

        Raises:
            InputError: if a row lacks it.
        """
        missing = [index for index, row in enumerate(self.rows) if name not in row]
        if missing:
            raise InputError(
                f"row {missing[0]} has no column {name!r}; it has: {', '.join(self.rows[0])}"
            )
        return [row[name] for row in self.rows]


class Method:
    """Changes nothing: the base of all methods, and the plain baseline.

    Subclasses are frozen dataclasses whose fields are their knobs.
    """

    prefix: Prefix = "trained"
    """Where `prefix_ids` go."""

    needs_total_steps: bool = False
    """A schedule of this method runs over the whole training."""

    @property
    def name(self) -> str:
        """In ledgers and manifests."""
        return type(self).__name__

    def assign(self, rows: Sequence[Row], step: int, total_steps: int, group: int) -> Sequence[Row]:
        """What each rollout is told. Return as many rows, in the same order.

        Args:
            rows: copies, free to be changed; `member` (0..G-1) says which rollout of its
                question a row is. May set `budget` (> 0 tokens; None for none), `prompt`,
                `prefix_ids` (forced start of the answer) and `hard_cap` (most tokens of the
                completion, forced ones included unless they go to the prompt).
            step: optimiser steps done.
            total_steps: of the run.
            group: G.
        """
        return rows

    def reward_functions(self) -> list[RewardFunction]:
        """Called by TRL, in this order; each needs a `__name__` of its own."""
        return []

    def reward_weights(self) -> list[float] | None:
        """One a reward function; None for all 1."""
        return None

    def probe(
        self,
        rows: Sequence[Row],
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        sampler: Sampler,
    ) -> None:
        """Sample more before rewards are paid (this process's rows only).

        Write what came out into new keys of `rows`: reward functions get them as columns, and
        `advantages` and `expand` find them in `Context.rows`. With several processes every one
        must call `sampler` equally often. Its tokens are counted in the ledger.
        """

    def advantages(self, context: Context) -> Tensor | Sequence[Sequence[Segment]] | None:
        """Advantages of all N gathered rows.

        Returns:
            None to keep TRL's; (N,); (N, T) with T = `context.width`, zero after each row's end;
            or a list of segments a row (tokens outside of them get 0).
        """
        return None

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        """Replace this process's training rows, for methods that train on more than rollouts.

        Args:
            batch: `prompt_ids`, `prompt_mask` (left-padded), `completion_ids`, `completion_mask`
                (right-padded), `advantages` (B,) or (B, T), and what TRL added.
            context: gathered rollouts; `context.local` are this process's.

        Returns:
            The same keys with any number of rows; the trainer pads with rows without loss and
            recomputes `num_items_in_batch`. Scalars are kept.
        """
        return batch

    def at_inference(self, rows: Sequence[Row], budget: int) -> Sequence[Row]:
        """What rows are told when the trained model answers under `budget` (see `evaluate`).

        Defaults to the plain prompt.
        """
        return rows

    def schedule_table(self, total_steps: int) -> list[Mapping[str, Any]]:
        """What changes during the run, for the manifest: `[{"step": 0, "budget": 256}, ...]`."""
        return []

    def callbacks(self) -> list[TrainerCallback]:
        """Of transformers, that the method brings to its training."""
        return []

    def config_defaults(self) -> Mapping[str, Any]:
        """Settings of `GRPOConfig` that the method asks for (`loss_type`, `beta`, ...)."""
        return {}


@dataclass(frozen=True)
class Plain(Method):
    """GRPO as TRL has it, with the rewards given: the baseline of every method.

    Args:
        rewards: reward functions as TRL calls them; empty for 1 for a right answer, else 0.
        weights: one a reward function; None for all 1.
        hard_cap: most tokens of every completion; None for `max_completion_length` alone.

    Raises:
        InputError: for a weight list of another length, or a cap below 1.
    """

    rewards: tuple[RewardFunction, ...] = ()
    weights: tuple[float, ...] | None = None
    hard_cap: int | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != max(1, len(self.rewards)):
            raise InputError(
                f"weights has {len(self.weights)} values for {max(1, len(self.rewards))} reward "
                "functions; give one each"
            )
        if self.hard_cap is not None and self.hard_cap < 1:
            raise InputError(f"hard_cap={self.hard_cap}; must be at least 1, or None")

    def assign(self, rows: Sequence[Row], step: int, total_steps: int, group: int) -> Sequence[Row]:
        """Sets the cap, if there is one."""
        if self.hard_cap is None:
            return rows
        return [{**row, "hard_cap": self.hard_cap} for row in rows]

    def reward_functions(self) -> list[RewardFunction]:
        """Those given, else `rewards.accuracy`."""
        from outlay.rl.rewards import accuracy

        return list(self.rewards) or [accuracy]

    def reward_weights(self) -> list[float] | None:
        """Those given."""
        return None if self.weights is None else list(self.weights)
