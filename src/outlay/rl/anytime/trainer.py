"""`AnytimeTrainer`: thinkings stop at their end tag, answers reuse their keys and values, and
training rows may be trees.

The smallest subclass of `BudgetGRPOTrainer`: TRL samples the thinkings (its own `generate` call is
recorded), `forking` the answers; trees reach the model as a 4-D mask and position ids through
`_get_per_token_logps_and_entropies`.

Where keys and values are out of reach (vLLM, continuous batching, FSDP, DeepSpeed, models with
sliding windows) answers are sampled from their whole prefix, as vLLM's prefix caching makes cheap.
Trees need attention that takes a 4-D mask over all layers (sdpa or eager).

Shapes: B rows, P tokens of a question, T of the rest, L = P + T.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import DistributedType  # type: ignore[import-untyped]
from trl.models import unwrap_model_for_generation

from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.rl.anytime.forking import Record, Spent, fork, recorded
from outlay.rl.anytime.method import AnytimeBRPO
from outlay.rl.anytime.outcomes import KEY, Fork, ForkSampler, Outcome
from outlay.rl.anytime.packing import TREE_KEYS, tree_mask, tree_positions
from outlay.rl.base import Context, Row, Verifier
from outlay.rl.planning import Plan
from outlay.rl.trainer import BudgetGRPOTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import GRPOConfig

_MASKED = frozenset({"sdpa", "eager"})
_SPLIT = frozenset({DistributedType.FSDP, DistributedType.DEEPSPEED})


class AnytimeTrainer(BudgetGRPOTrainer):
    """Trains with `AnytimeBRPO`; arguments are those of `BudgetGRPOTrainer`.

    Args:
        model: as TRL takes it.
        method: its templates are tokenised here if they are not; without `reward_fn` it takes
            `verifier`.
        args: with `loss_type="dr_grpo"` (as `make_config` has it).
        train_dataset: with a column `prompt`.
        verifier: judges rollouts for metrics, and answers if the method has no `reward_fn`.
        eval_dataset: for TRL's own evaluation.
        processing_class: the tokenizer.
        callbacks: of transformers.
        peft_config: trains an adapter.
        difficulty: column by which metrics are given in bins.
        metrics_bins: upper ends of these bins.

    Raises:
        InputError: without any verifier, for another loss, or a KL term with `skip_flat`.
        BudgetError: for budgets beyond `max_completion_length` or the model's context.
        CapabilityError: for packing="tree" with attention that ignores 4-D masks.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        method: AnytimeBRPO,
        args: GRPOConfig,
        train_dataset: Dataset,
        *,
        verifier: Verifier | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        difficulty: str | None = None,
        metrics_bins: Sequence[float] = (),
    ) -> None:
        _check(method, args, verifier)
        if method.reward_fn is None:
            method = replace(method, reward_fn=verifier)
        if method.templates is None and processing_class is not None:
            method = method.tokenized(processing_class)
        super().__init__(
            model,
            method,
            args,
            train_dataset,
            verifier=verifier,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            peft_config=peft_config,
            difficulty=difficulty,
            metrics_bins=metrics_bins,
        )
        if method.templates is None:
            method = method.tokenized(self._tokenizer)
        self.method: AnytimeBRPO = method
        _check_room(method, self._network.config)
        if method.packing == "tree":
            check_attention(self._network.config)
        self._record_of: Record | None = None
        self._tree: dict[str, Any] | None = None
        self._answer_ends = list(self.eos_token_ids)
        if not self.use_vllm and len(method.pieces.end) == 1:
            # TRL counts what ends so as ended; answers have ends of their own.
            self.eos_token_ids = [*self.eos_token_ids, method.pieces.end[0]]
            self.generation_config.eos_token_id = self.eos_token_ids
        self.sample = _Forker(self)  # type: ignore[method-assign,assignment]

    @property
    def _network(self) -> Any:
        """The model of transformers inside what accelerate and PEFT wrap."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    # Thinkings, recorded; answers, forked.

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float | None]] | None]:
        with recorded(self._network) as record:
            generated = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        self._record_of = record
        return generated

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self._record_of = None  # the weights are about to change

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Only an end of text ends an answer."""
        usual = self.eos_token_ids
        self.eos_token_ids = self._answer_ends
        if not self.use_vllm:
            self.generation_config.eos_token_id = self._answer_ends
        try:
            yield
        finally:
            self.eos_token_ids = usual
            if not self.use_vllm:
                self.generation_config.eos_token_id = usual

    @property
    def _forks(self) -> bool:
        record = self._record_of
        return (
            record is not None
            and record.usable
            and not self.use_vllm
            and self.accelerator.distributed_type not in _SPLIT
        )

    def _forked(
        self,
        prompts: Sequence[Sequence[int]],
        thinkings: Sequence[Sequence[int]],
        forks: Sequence[Fork],
        most: int,
    ) -> list[list[list[int]]]:
        began = time.perf_counter()
        record, self._record_of = self._record_of, None
        assert record is not None
        wrapped = unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )
        with self._answering(), wrapped:
            answers, spent = fork(
                self._network, record, prompts, thinkings, forks, self.generation_config, most
            )
        self._book(spent, time.perf_counter() - began)
        return answers

    def _book(self, spent: Spent, seconds: float) -> None:
        parts = self._gathered([spent])
        total = sum(parts[1:], parts[0])
        self.tokens.record(
            "train",
            "target",
            prompt_new=total.computed,
            prompt_cached=total.reused,
            generated=total.generated,
            method=self.method.name,
            seconds=seconds,
            note="probe",
        )
        mode = "train" if self.model.training else "eval"
        for name, value in (
            ("summary_tokens", float(total.generated)),
            ("kv_ratio", total.ratio),
            ("summary_seconds", seconds),
        ):
            if value is not None:
                self._metrics[mode][f"anytime/{name}"].append(value)

    def _record(
        self, context: Context, plan: Plan, mode: Literal["train", "eval"], seconds: float
    ) -> None:
        super()._record(context, plan, mode, seconds)
        outcomes: list[Outcome] = context.column(KEY)
        n = len(outcomes)
        for slot, budget in enumerate(self.method.budgets):
            mean = sum(one.means[slot] for one in outcomes) / n
            self._metrics[mode][f"anytime/reward_at_{budget}"].append(mean)
        for name, values in (
            ("thinking", [len(one.thinking) for one in outcomes]),
            ("ended", [one.ended for one in outcomes]),
        ):
            self._metrics[mode][f"anytime/{name}"].append(sum(values) / n)

    # Trees.

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        with self._trees_of(inputs):
            return super()._compute_loss(model, inputs)

    def _scores(self, batch: dict[str, Any], model: Any) -> Tensor:
        with self._trees_of(batch):
            return super()._scores(batch, model)

    @contextmanager
    def _trees_of(self, batch: dict[str, Any]) -> Iterator[None]:
        self._tree = batch if TREE_KEYS[0] in batch else None
        try:
            yield
        finally:
            self._tree = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        shown = model if self._tree is None else _TreeForward(model, self._tree)
        found: tuple[Tensor, Tensor | None, Tensor | None] = (
            super()._get_per_token_logps_and_entropies(
                shown,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **fields,
            )
        )
        return found


class _Forker(ForkSampler):
    """What `AnytimeBRPO.probe` samples with."""

    def __init__(self, trainer: AnytimeTrainer) -> None:
        self._trainer = trainer

    def __call__(self, prompts: Sequence[Sequence[int]], most: Sequence[int]) -> list[list[int]]:
        """Sample one completion a prompt, from its whole prefix."""
        with self._trainer._answering():
            return BudgetGRPOTrainer.sample(self._trainer, prompts, most)

    @property
    def trees(self) -> bool:
        """The model's attention takes a 4-D mask."""
        return takes_masks(self._trainer._network.config)

    def fork(
        self,
        prompts: Sequence[Sequence[int]],
        thinkings: Sequence[Sequence[int]],
        forks: Sequence[Fork],
        most: int,
    ) -> list[list[list[int]]]:
        """Sample the copies of every fork: from kept keys and values where they are."""
        trainer = self._trainer
        if trainer._forks:
            return trainer._forked(prompts, thinkings, forks, most)
        return trainer.method._again(prompts, thinkings, forks, self)


class _TreeForward:
    """A model that is shown the trees of a batch; rows come in order, in chunks."""

    def __init__(self, model: Any, batch: dict[str, Any]) -> None:
        self._model, self._batch, self._at = model, batch, 0

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, **fields: Any) -> Any:
        rows = slice(self._at, self._at + len(input_ids))
        self._at = rows.stop
        part = {key: self._batch[key][rows] for key in TREE_KEYS}
        before = attention_mask.shape[1] - part["tree_cut"].shape[1]
        prompt_BP, rest_BT = attention_mask[:, :before], attention_mask[:, before:]
        seen_BHLL = tree_mask(
            prompt_BP, rest_BT, part["tree_cut"], part["tree_branch"], part["tree_leaf"]
        )
        return self._model(
            input_ids=input_ids,
            attention_mask=additive(seen_BHLL, next(self._model.parameters()).dtype),
            position_ids=tree_positions(prompt_BP, part["tree_position"]),
            **fields,
        )


def additive(seen_BHLL: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers to add; eager attention computes garbage from booleans."""
    mask_BHLL = torch.zeros(seen_BHLL.shape, dtype=dtype, device=seen_BHLL.device)
    return mask_BHLL.masked_fill(~seen_BHLL, torch.finfo(dtype).min)


def takes_masks(config: Any) -> bool:
    """Every layer is full attention of a kind that takes 4-D masks."""
    kinds = getattr(config, "layer_types", None)
    full = all(kind == "full_attention" for kind in kinds) if kinds else True
    window = None if kinds else getattr(config, "sliding_window", None)
    return getattr(config, "_attn_implementation", None) in _MASKED and full and window is None


def check_attention(config: Any) -> None:
    """Check that a model can be trained on trees.

    Raises:
        CapabilityError: if its attention ignores 4-D masks.
    """
    if not takes_masks(config):
        raise CapabilityError(
            "packing='tree' needs full attention that takes 4-D masks; this model has "
            f"attn_implementation={getattr(config, '_attn_implementation', None)!r} and layers "
            f"{sorted(set(getattr(config, 'layer_types', None) or ['?']))}; load it with "
            "attn_implementation='sdpa', or use packing='rows'"
        )


def _check_room(method: AnytimeBRPO, config: Any) -> None:
    context = getattr(config, "max_position_embeddings", None)
    most = method.budgets[-1] + len(method.pieces.forced) + method.max_summary_tokens
    if context is not None and most >= context:
        raise BudgetError(
            f"budgets up to {method.budgets[-1]}, a template of {len(method.pieces.forced)} and an "
            f"answer of max_summary_tokens={method.max_summary_tokens} leave no room for a "
            f"question in the model's context of {context}; lower them"
        )


def _check(method: AnytimeBRPO, args: GRPOConfig, verifier: Verifier | None) -> None:
    if not isinstance(method, AnytimeBRPO):
        raise InputError(f"AnytimeTrainer trains AnytimeBRPO, not {type(method).__name__}")
    if method.reward_fn is None and verifier is None:
        raise InputError("answers cannot be judged; give AnytimeTrainer a verifier")
    if args.loss_type != "dr_grpo":
        raise InputError(
            f"loss_type={args.loss_type!r}; the advantages of AnytimeBRPO are scaled for 'dr_grpo'"
        )
    if args.beta and method.skip_flat:
        raise InputError("skip_flat leaves out answers that a KL term needs; set beta=0")
    longest = args.max_completion_length
    if longest is not None and method.budgets[-1] > longest:
        raise BudgetError(
            f"budgets={method.budgets} go beyond max_completion_length={longest}; raise it"
        )
