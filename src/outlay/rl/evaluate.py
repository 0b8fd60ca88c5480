"""Evaluation at several inference budgets: greedy and sampled, with fixed seeds, no side effects.

TRL's own evaluation samples at the training temperature, pays rewards and advances the training's
random state. This one leaves all that alone: it answers held-out problems under budgets of
`scales` times a base budget, and gives every metric of `outlay.rl.metrics` in each cell.

A budget cuts the completion. With `forced_ids` it cuts the thinking instead: where the model is
still thinking at the cut, these tokens are appended and it answers with `answer_tokens` more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from outlay.errors import BudgetError, InputError
from outlay.rl.base import Method, Row, Verifier
from outlay.rl.metrics import Value, budget_curve, by_bin, samples_of, summarise
from outlay.rl.segments import find

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_ROWS = 100_000


@dataclass(frozen=True)
class Inference:
    """How a trained model is asked.

    Args:
        budget: base budget in tokens.
        scales: budgets as multiples of it; rounded, at least 1.
        temperatures: 0 is greedy.
        seeds: of the sampled ones.
        forced_ids: tokens that end the thinking where the budget does; empty for a plain cut.
        end_of_thinking: tokens by which thinking that ended is recognised; needed by `forced_ids`.
        answer_tokens: most tokens after the forced ones.
        batch_size: prompts at once.

    Raises:
        BudgetError: for a budget, scale or number of tokens that is not positive.
        InputError: for a negative temperature, no temperature or seed, or forced tokens without
            `end_of_thinking`.
    """

    budget: int
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    temperatures: tuple[float, ...] = (0.0, 1.0)
    seeds: tuple[int, ...] = (0,)
    forced_ids: tuple[int, ...] = ()
    end_of_thinking: tuple[int, ...] = ()
    answer_tokens: int = 16
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.budget < 1 or not self.scales or min(self.scales) <= 0:
            raise BudgetError(
                f"budget={self.budget}, scales={self.scales}; all must be positive, with at least "
                "one scale"
            )
        if self.answer_tokens < 1 or self.batch_size < 1:
            raise BudgetError(
                f"answer_tokens={self.answer_tokens}, batch_size={self.batch_size}; both must be "
                "at least 1"
            )
        if not self.temperatures or min(self.temperatures) < 0 or not self.seeds:
            raise InputError(
                f"temperatures={self.temperatures}, seeds={self.seeds}; give at least one each, "
                "temperatures >= 0"
            )
        if self.forced_ids and not self.end_of_thinking:
            raise InputError("forced_ids needs end_of_thinking, the tokens that end a thought")

    @property
    def budgets(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(max(1, round(scale * self.budget)) for scale in self.scales)


@dataclass(frozen=True)
class Cell:
    """One budget at one temperature and seed.

    Args:
        scale: of the base budget.
        budget: in tokens.
        temperature: 0 for greedy.
        seed: None for greedy.
        metrics: over all problems.
        bins: by difficulty.
        right: of each problem.
        tokens: of each problem.
    """

    scale: float
    budget: int
    temperature: float
    seed: int | None
    metrics: dict[str, Value]
    bins: dict[str, dict[str, Value]]
    right: list[bool]
    tokens: list[int]


@dataclass(frozen=True)
class Evaluation:
    """All cells."""

    cells: list[Cell] = field(default_factory=list)

    def curve(self, temperature: float = 0.0) -> tuple[list[tuple[float, float]], float]:
        """Accuracy over budgets (mean of the seeds), and its mean over them.

        Raises:
            InputError: if nothing was evaluated at that temperature.
        """
        found: dict[float, list[float]] = {}
        for cell in self.cells:
            if cell.temperature == temperature:
                found.setdefault(float(cell.budget), []).append(float(cell.metrics["acc"] or 0.0))
        return budget_curve([(budget, sum(a) / len(a)) for budget, a in found.items()])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"cells": [asdict(cell) for cell in self.cells]}


def evaluate_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    verifier: Verifier,
    inference: Inference,
    *,
    method: Method | None = None,
    difficulty: str | None = None,
    metrics_bins: Sequence[float] = (),
) -> Evaluation:
    """Answer every problem in every cell.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        rows: problems with a `prompt`, and what the verifier reads.
        verifier: judges the answers.
        inference: budgets, temperatures, seeds.
        method: whose `at_inference` may change prompts and prefixes; None for plain prompts.
        difficulty: column of the bins.
        metrics_bins: upper ends of the bins; empty for one a value.

    Raises:
        InputError: for no rows or more than 100,000.
        BudgetError: if the largest budget does not fit into the model's context.
    """
    problems = [dict(row) for row in rows]
    if not 1 <= len(problems) <= MAX_ROWS:
        raise InputError(f"{len(problems)} rows; give 1 to {MAX_ROWS:,}")
    cells = []
    was_training = model.training
    model.train(False)
    try:
        for temperature in inference.temperatures:
            for seed in inference.seeds if temperature > 0 else (None,):
                for scale, budget in zip(inference.scales, inference.budgets, strict=True):
                    asked = list((method or Method()).at_inference(problems, budget))
                    if len(asked) != len(problems):
                        raise InputError(f"at_inference() returned {len(asked)} rows")
                    asked = [{**row, "budget": budget} for row in asked]
                    with _seeded(seed):
                        done = _complete(model, tokenizer, asked, inference, budget, temperature)
                    judgements = verifier.judge(asked, done)
                    for row, judgement in zip(asked, judgements, strict=True):
                        row["judgement"] = judgement
                    samples = samples_of(asked, done, [float("nan")] * len(done), 1, difficulty)
                    cells.append(
                        Cell(
                            scale=scale,
                            budget=budget,
                            temperature=temperature,
                            seed=seed,
                            metrics=summarise(samples),
                            bins=by_bin(samples, metrics_bins),
                            right=[judgement.correct for judgement in judgements],
                            tokens=[len(ids) for ids in done],
                        )
                    )
    finally:
        model.train(was_training)
    return Evaluation(cells)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """The random state of a seed, and the old one afterwards."""
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    inference: Inference,
    budget: int,
    temperature: float,
) -> list[list[int]]:
    """The completion of each row: forced prefix, sampled tokens, forced end and answer."""
    prompts = [_prompt_ids(tokenizer, row["prompt"]) for row in rows]
    done = [list(row.get("prefix_ids") or ()) for row in rows]
    longest = max(len(p) + len(d) for p, d in zip(prompts, done, strict=True)) + budget
    if inference.forced_ids:
        longest += len(inference.forced_ids) + inference.answer_tokens
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise BudgetError(
            f"budget={budget} needs {longest} tokens with its prompt; the model's context holds "
            f"{context}: lower budget or scales"
        )
    _extend(model, tokenizer, prompts, done, range(len(rows)), budget, temperature, inference)
    if inference.forced_ids:
        left = [i for i, ids in enumerate(done) if tokenizer.eos_token_id not in ids]
        for i in left:
            if find(done[i], inference.end_of_thinking) is None:
                done[i] += inference.forced_ids
        most = inference.answer_tokens
        _extend(model, tokenizer, prompts, done, left, most, temperature, inference)
    return done


def _extend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    done: list[list[int]],
    which: Sequence[int],
    most: int,
    temperature: float,
    inference: Inference,
) -> None:
    """Sample up to `most` tokens more of some rows, in batches of similar length."""
    generate: Any = model.generate
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    order = sorted(which, key=lambda i: len(prompts[i]) + len(done[i]))
    for start in range(0, len(order), inference.batch_size):
        batch = order[start : start + inference.batch_size]
        texts = [[*prompts[i], *done[i]] for i in batch]
        width = max(map(len, texts))
        ids_BT = torch.tensor([[pad] * (width - len(t)) + t for t in texts], device=model.device)
        mask_BT = torch.tensor(
            [[0] * (width - len(t)) + [1] * len(t) for t in texts], device=model.device
        )
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature > 0
            else {"do_sample": False}
        )
        with torch.no_grad():
            out_BT = generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=most,
                pad_token_id=pad,
                eos_token_id=eos,
                **sampling,
            )
        for i, row in zip(batch, out_BT[:, width:].tolist(), strict=True):
            done[i] += row[: row.index(eos) + 1] if eos in row else row


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> list[int]:
    """As TRL reads a prompt: plain text, or a chat."""
    call: Any = tokenizer
    if isinstance(prompt, str):
        return list(call(text=prompt)["input_ids"])
    rendered = call.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    return list(rendered["input_ids"])
