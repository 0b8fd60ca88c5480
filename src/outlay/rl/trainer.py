"""`BudgetGRPOTrainer`: TRL's GRPO, with budgets from the data set to the rollout to the reward.

The smallest subclass of `trl.GRPOTrainer` that lets a `Method` say what each rollout is told, where
it is cut, how it is paid, and how pay becomes advantages of tokens. Sampling, clipping, losses,
logging, distribution, PEFT and vLLM stay TRL's. With `Method()` (nothing overridden) training
equals TRL's bit for bit.

Refused by name: prompts or prefixes that differ within a group on a vLLM *server* (it samples all
rollouts of a group from its first prompt); caps and prefixes with tools, environments or a
`rollout_func` (which sample by themselves); prefixes with images.

A cap is enforced by sampling no further than the largest cap of the batch and cutting each row at
its own: on every backend the tokens of a row are the same as if it had stopped there.

Shapes: B rollouts of this process, N of all, G of a question, T tokens of a completion, F rewards.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from trl import GRPOTrainer

from outlay.errors import CapabilityError, InputError
from outlay.ledger import Ledger
from outlay.rl.base import Context, Method, Row, Verifier
from outlay.rl.batches import fit, trained_mask
from outlay.rl.checks import check_advantages, check_columns, checked
from outlay.rl.contract import check_batch, check_class, check_instance
from outlay.rl.manifest import RunFiles
from outlay.rl.metrics import by_bin, samples_of, summarise
from outlay.rl.planning import Plan, check_rows, make_plan, with_members
from outlay.rl.segments import fill

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import GRPOConfig

Mode = Literal["train", "eval"]

_PER_ROW = frozenset({"grpo", "sapo", "luspo", "dr_grpo"})
"""Losses that divide by the number of rows, those without tokens included."""


class BudgetGRPOTrainer(GRPOTrainer):
    """Trains a model with a method of this room.

    Args:
        model: as TRL takes it: a model or its path.
        method: what differs from GRPO.
        args: TRL's settings; see `make_config`.
        train_dataset: with a column `prompt`, and those that the verifier and rewards read.
        verifier: judges every rollout once; None if no reward function reads `judgement`.
        eval_dataset: for TRL's own evaluation (see `evaluate_policy` for a better one).
        processing_class: the tokenizer.
        callbacks: of transformers, beside those of the method.
        peft_config: trains an adapter.
        difficulty: column by which metrics are also given in bins.
        metrics_bins: upper ends of these bins; empty for one a value.

    Raises:
        DependencyError: for a TRL whose methods differ from the tested ones.
        InputError: for a data set without the needed columns, or reward weights that do not match.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        method: Method,
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
        check_class(GRPOTrainer)
        check_columns(train_dataset, difficulty)
        by_bin([], metrics_bins)
        functions = method.reward_functions()
        weights = method.reward_weights()
        if not functions:
            raise InputError(f"{method.name} has no reward functions; training needs at least one")
        if weights is not None and len(weights) != len(functions):
            raise InputError(
                f"{method.name} gives {len(weights)} weights for {len(functions)} reward functions"
            )
        if weights is not None:
            args.reward_weights = weights
        self.method, self.verifier = method, verifier
        self.difficulty, self.metrics_bins = difficulty, tuple(metrics_bins)
        self.tokens = Ledger()
        self._plan: Plan | None = None
        self._prompts: list[list[int]] = []
        self._scored: tuple[list[Row], list[list[int]], Tensor] | None = None
        super().__init__(
            model=model,
            reward_funcs=[checked(function) for function in functions],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[*method.callbacks(), *(callbacks or [])],
            peft_config=peft_config,
        )
        check_instance(self)
        self._files = RunFiles(self)
        self.add_callback(self._files)

    # What each rollout is told.

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        mode: Mode = "train" if self.model.training else "eval"
        generations: Any = self.num_generations if mode == "train" else self.num_generations_eval
        group = int(generations)
        rows = self._planned(inputs, group)
        self._plan = self._whole_plan(rows, group)
        began = time.perf_counter()
        try:
            batch = super()._generate_and_score_completions(rows)
        finally:
            plan, self._plan = self._plan, None
        check_batch(batch)
        assert self._scored is not None
        context = self._context(mode, group, plan, batch["advantages"])
        self._mask_prefixes(batch, plan)
        self._write_advantages(batch, context)
        if type(self.method).expand is not Method.expand:
            had = frozenset(batch)
            batch = self._fitted(had, self.method.expand(batch, context), mode)
        self._record(context, plan, mode, time.perf_counter() - began)
        return batch

    def _planned(self, inputs: list[Row], group: int) -> list[Row]:
        total = self._total_steps()
        if self.method.needs_total_steps and total < 1:
            raise InputError(
                f"{self.method.name} has a schedule over the whole run; set max_steps in GRPOConfig"
            )
        first = self.accelerator.process_index * len(inputs)
        rows = with_members(inputs, first, group)
        planned = self.method.assign(
            [dict(row) for row in rows], self.state.global_step, total, group
        )
        context = getattr(self.model.config, "max_position_embeddings", None)
        return check_rows(rows, planned, context)

    def _whole_plan(self, rows: list[Row], group: int) -> Plan:
        plan = make_plan(rows, self.method.prefix, int(self.max_completion_length or 256))
        forced = any(plan.prefixes)
        if plan.limit is not None and (self.tools or self.rollout_func is not None):
            raise CapabilityError(
                f"{self.method.name} sets caps or prefixes, which tools, environments and "
                "rollout_func ignore; leave those out"
            )
        if forced and ("images" in rows[0] or "image" in rows[0]):
            raise CapabilityError(
                f"{self.method.name} forces a prefix, which is not possible with images"
            )
        limits = [one for one in self._gathered([plan.limit]) if one is not None]
        plan = Plan(plan.prefixes, plan.caps, plan.prefix, max(limits) if limits else None)
        if self.use_vllm and self.vllm_mode == "server":
            asked = self._gathered([(repr(r["prompt"]), r["prefix_ids"]) for r in rows])
            for start in range(0, len(asked), group):
                if any(one != asked[start] for one in asked[start : start + group]):
                    raise CapabilityError(
                        f"{self.method.name} tells rollouts of one question different things, and "
                        "a vLLM server samples all of them from the first prompt; use "
                        "vllm_mode='colocate'"
                    )
        return plan

    # Where it is cut.

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float | None]] | None]:
        plan = self._plan
        if plan is None or plan.limit is None:
            self._prompts = prompt_ids
            generated: tuple[Any, Any] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
            return generated
        asked = [ids + prefix for ids, prefix in zip(prompt_ids, plan.prefixes, strict=True)]
        with self._at_most(plan.limit):
            sampled, logprobs = super()._generate_single_turn(
                asked, images, multimodal_fields, num_generations, has_tool_images
            )
        sampled = [ids[:cap] for ids, cap in zip(sampled, plan.caps, strict=True)]
        if logprobs is not None:
            logprobs = [one[: len(ids)] for one, ids in zip(logprobs, sampled, strict=True)]
        if plan.prefix == "prompt":
            prompt_ids[:] = asked  # TRL goes on with this list
            self._prompts = prompt_ids
            return sampled, logprobs
        self._prompts = prompt_ids
        if logprobs is not None:  # forced tokens have none; TRL gives them an importance of 1
            pairs = zip(plan.prefixes, logprobs, strict=True)
            logprobs = [[None] * len(prefix) + list(one) for prefix, one in pairs]
        whole = [prefix + ids for prefix, ids in zip(plan.prefixes, sampled, strict=True)]
        return whole, logprobs

    @contextmanager
    def _at_most(self, limit: int) -> Iterator[None]:
        """All backends sample at most `limit` tokens a row."""
        if self.use_vllm:
            holder, name = self.vllm_generation, "max_completion_length"
        else:
            holder, name = self.generation_config, "max_new_tokens"
        usual = getattr(holder, name)
        setattr(holder, name, limit)
        try:
            yield
        finally:
            setattr(holder, name, usual)

    def sample(self, prompt_ids: Sequence[Sequence[int]], most: Sequence[int]) -> list[list[int]]:
        """One completion a prompt from the model as it is, with the run's sampling settings.

        Args:
            prompt_ids: prompts as tokens.
            most: most new tokens of each.

        Raises:
            InputError: for lists of different lengths, or a number below 1.
            CapabilityError: on a vLLM server.
        """
        if len(prompt_ids) != len(most) or any(cap < 1 for cap in most):
            raise InputError(
                f"{len(prompt_ids)} prompts and most={list(most)[:8]}; give one number >= 1 each"
            )
        if self.use_vllm and self.vllm_mode == "server":
            raise CapabilityError("extra samples need vllm_mode='colocate', or no vLLM")
        if not prompt_ids:
            return []
        outer, prompts = self._plan, self._prompts
        began = time.perf_counter()
        limit = max(self._gathered([max(most)]))
        self._plan = Plan([[] for _ in prompt_ids], list(most), "trained", limit)
        try:
            sampled, _ = self._generate_single_turn([list(p) for p in prompt_ids], None, {}, 1)
        finally:
            self._plan, self._prompts = outer, prompts
        new, asked = sum(map(len, sampled)), sum(map(len, prompt_ids))
        self._bill("probe", asked, new, 0, time.perf_counter() - began)
        return sampled

    # How it is paid.

    def _calculate_rewards(
        self,
        inputs: list[Row],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        if self.verifier is not None:
            shown = completion_ids_list
            if self._plan is not None and self._plan.prefix == "prompt":
                pairs = zip(self._plan.prefixes, completion_ids_list, strict=True)
                shown = [prefix + ids for prefix, ids in pairs]
            judgements = self.verifier.judge(inputs, shown)
            if len(judgements) != len(inputs):
                raise InputError(
                    f"{type(self.verifier).__name__} judged {len(judgements)} of {len(inputs)} "
                    "completions; return one judgement each"
                )
            for row, judgement in zip(inputs, judgements, strict=True):
                row["judgement"] = judgement
        self.method.probe(inputs, self._prompts, completion_ids_list, self.sample)
        rewards_NF: Tensor = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        self._scored = (inputs, completion_ids_list, rewards_NF)
        return rewards_NF

    # How pay becomes advantages.

    def _context(self, mode: Mode, group: int, plan: Plan, advantages_B: Tensor) -> Context:
        assert self._scored is not None
        (rows, completion_ids, rewards_NF), self._scored = self._scored, None
        first = self.accelerator.process_index * len(rows)
        light = [{k: v for k, v in row.items() if k not in ("image", "images")} for row in rows]
        masked = plan.inside if plan.prefix == "masked" else [0] * len(rows)
        return Context(
            rows=self._gathered(light),
            completion_ids=self._gathered(completion_ids),
            rewards_NF=rewards_NF,
            weights_F=self.reward_weights.to(rewards_NF.device),
            advantages_N=self.accelerator.gather(advantages_B),
            group=group,
            step=self.state.global_step,
            total_steps=self._total_steps(),
            local=slice(first, first + len(rows)),
            mode=mode,
            trained_from=self._gathered(masked),
        )

    def _mask_prefixes(self, batch: dict[str, Any], plan: Plan) -> None:
        if plan.prefix != "masked" or not any(plan.prefixes):
            return
        tool_mask_BT = torch.ones_like(batch["completion_mask"])
        for row, forced in enumerate(plan.inside):
            tool_mask_BT[row, :forced] = 0
        batch["tool_mask"] = tool_mask_BT * batch["completion_mask"]
        self._recount(batch)

    def _recount(self, batch: dict[str, Any]) -> None:
        total = self.accelerator.gather(trained_mask(batch).sum()).sum()
        batch["num_items_in_batch"] = total

    def _write_advantages(self, batch: dict[str, Any], context: Context) -> None:
        given = self.method.advantages(context)
        if given is None:
            return
        mask_BT = trained_mask(batch)
        if isinstance(given, torch.Tensor):
            check_advantages(given, context, self.method.name)
            local = given[context.local]
            if local.dim() == 2:
                dense_BT = torch.zeros(mask_BT.shape, dtype=local.dtype)
                width = min(local.shape[1], mask_BT.shape[1])
                dense_BT[:, :width] = local[:, :width].cpu()
                local = dense_BT * mask_BT.cpu()
            shown = given.double().cpu()
        else:
            whole_NT = torch.zeros(len(context.rows), context.width)
            for row, length in enumerate(context.lengths):
                whole_NT[row, context.trained_from[row] : length] = 1
            shown = fill(given, whole_NT, torch.float64)
            local = fill(given[context.local], mask_BT)
        like = batch["advantages"]
        batch["advantages"] = local.to(device=like.device, dtype=like.dtype)
        if shown.dim() == 2:
            lengths_N = torch.tensor(context.lengths, dtype=torch.float64)
            shown = shown.sum(dim=1) / lengths_N
        log: Any = self._logs["advantages"]
        for _ in range(min(len(log), len(context.rows))):
            log.pop()
        log.extend(shown.tolist())

    # More rows than rollouts.

    def _fitted(self, had: frozenset[str], expanded: dict[str, Any], mode: Mode) -> dict[str, Any]:
        """Expanded rows padded to what all processes and all micro-batches need."""
        if "importance_sampling_ratio" in had - expanded.keys():
            raise CapabilityError(
                f"{self.method.name} adds rows whose sampling probabilities are unknown; set "
                "vllm_importance_sampling_correction=False"
            )
        chunks = self.args.steps_per_generation if mode == "train" else 1
        counts = self._gathered([len(expanded["prompt_ids"])])
        rows = -(-max(counts) // chunks) * chunks
        fitted = fit(expanded, rows)
        self._recount(fitted)
        fitted["row_scale"] = torch.tensor(
            rows * self.accelerator.num_processes / sum(counts),
            device=fitted["completion_mask"].device,
        )
        for key, model in (("old_per_token_logps", self.model), ("ref_per_token_logps", None)):
            if key in had and key not in expanded:
                fitted[key] = self._scores(fitted, model)
        return fitted

    def _scores(self, batch: dict[str, Any], model: Any) -> Tensor:
        """Log-probabilities (B, T) under `model`, None for the reference model."""
        if model is None and self.ref_model is None:
            raise CapabilityError(
                f"{self.method.name} adds rows, and with an adapter their reference "
                "probabilities are unknown; set beta=0"
            )
        ids_BS = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask_BS = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with torch.no_grad():
            logps_BT: Tensor = self._get_per_token_logps_and_entropies(
                model if model is not None else self.ref_model,
                ids_BS,
                mask_BS,
                batch["completion_ids"].size(1),
                self.args.per_device_train_batch_size,
            )[0]
        return logps_BT

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if "row_scale" not in inputs or self.loss_type not in _PER_ROW:
            return loss
        if self._entropy_bonus_enabled or self.aux_loss_enabled:
            raise CapabilityError(
                f"{self.method.name} pads batches, and loss_type={self.loss_type!r} divides by "
                "rows: use loss_type='dapo' with an entropy bonus or router loss"
            )
        return loss * inputs["row_scale"]

    # What was spent and what came of it.

    def _record(self, context: Context, plan: Plan, mode: Mode, seconds: float) -> None:
        forced = sum(map(len, plan.prefixes))
        inside = sum(plan.inside)
        completions = sum(len(ids) for ids in context.completion_ids[context.local])
        asked = sum(map(len, self._prompts)) - (forced - inside)
        self._bill("rollouts", asked, completions - inside, forced, seconds)
        samples = samples_of(
            context.rows,
            context.completion_ids,
            context.rewards.tolist(),
            context.group,
            self.difficulty,
        )
        overall = summarise(samples)
        bins = by_bin(samples, self.metrics_bins)
        for name, value in overall.items():
            if value is not None:
                self._metrics[mode][f"rollouts/{name}"].append(value)
        for bin_name, values in bins.items():
            for name in ("acc", "tokens_mean"):
                value = values[name]
                if value is not None:
                    self._metrics[mode][f"rollouts/{bin_name}/{name}"].append(value)
        totals = self.tokens.totals(stage="train")
        self._files.write(
            {
                "kind": "rollouts",
                "mode": mode,
                "step": context.step,
                "metrics": overall,
                "bins": bins,
                "tokens": {"generated": totals.generated, "forced": totals.forced},
                "seconds": seconds,
            }
        )

    def _bill(self, note: str, asked: int, new: int, forced: int, seconds: float) -> None:
        bills = self._gathered([(asked, new, forced)])
        self.tokens.record(
            "train",
            "target",
            prompt_new=sum(bill[0] for bill in bills),
            generated=sum(bill[1] for bill in bills),
            forced=sum(bill[2] for bill in bills),
            method=self.method.name,
            seconds=seconds,
            note=note,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._files.resume(checkpoint)

    def _gathered(self, values: list[Any]) -> list[Any]:
        """Values of all processes, in their order."""
        return values if self.accelerator.num_processes == 1 else list(gather_object(values))

    def _total_steps(self) -> int:
        return self.state.max_steps if self.state.max_steps > 0 else max(0, self.args.max_steps)
