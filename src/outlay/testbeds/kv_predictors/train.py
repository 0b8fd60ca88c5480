"""Training of a pair for the embedded model, and of the same auxiliary by itself.

Both see the same rows in the same order. The pair may stop at a deadline: its learning rate then
follows the clock, and the auxiliary gets as many steps as the pair had.

Shapes: N rows, T tokens.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from outlay.cache.kv_prediction.lora import Lora
from outlay.cache.kv_prediction.losses import KVReduce
from outlay.cache.kv_prediction.mapping import every
from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.cache.kv_prediction.ridge import ridge_start
from outlay.cache.kv_prediction.training import KVPredictionConfig, KVPredictionTrainer, Rows
from outlay.errors import InputError
from outlay.testbeds.adam import groups

RIDGE_TOKENS = 32_768
FLOOR = 0.1  # of the learning rate, at the end


@dataclass(frozen=True)
class PairConfig:
    """How a pair is trained.

    Args:
        keep: layers of the auxiliary, at regular intervals of the base's.
        lora_r: rank of its low-rank additions; 0 trains all its weights.
        seconds: of training; the pair stops there. 0 for no deadline.
        steps: optimiser steps at most.
        batch: rows a step.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        lambda_kv: weight of the cache's distance.
        kv_reduce: mean or sum over layers.
        ridge: start the predictor from ridge regression.
        seed: of weights and order.

    Raises:
        InputError: for values out of range.
    """

    keep: int = 15
    lora_r: int = 10
    seconds: float = 0.0
    steps: int = 1000
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 20
    lambda_kv: float = 1.0
    kv_reduce: KVReduce = "mean"
    ridge: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.keep, self.steps, self.batch) < 1 or self.lora_r < 0 or self.seconds < 0:
            raise InputError(f"{self}: sizes must be positive, lora_r and seconds at least 0")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; must be positive")


@dataclass(frozen=True)
class Trained:
    """A trained pair, its log, and how far it came."""

    model: KVPredictionModel
    log: list[dict[str, float]]
    steps: int
    tokens: int
    seconds: float


class _Clock(TrainerCallback):
    """Progress of a training by steps or by the clock, whichever is further."""

    def __init__(self, config: PairConfig) -> None:
        self._config = config
        self._start = time.monotonic()

    def progress(self, step: int) -> float:
        done = step / self._config.steps
        if self._config.seconds:
            done = max(done, (time.monotonic() - self._start) / self._config.seconds)
        return min(1.0, done)

    def rate(self, step: int) -> float:
        """Of the peak: warm-up by steps, then a cosine of the progress."""
        warm = min(1.0, (step + 1) / max(1, self._config.warmup))
        return warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * self.progress(step))))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress(state.global_step) >= 1:
            control.should_training_stop = True


def train_pair(
    base: Any,
    rows_NT: torch.Tensor,
    config: PairConfig,
    *,
    folder: str | Path,
    alone: bool = False,
    log_every: int = 10,
) -> Trained:
    """Train a pair, or with `alone` only its auxiliary, on the base's device.

    Args:
        base: a transformers causal LM.
        rows_NT: token ids.
        config: the recipe.
        folder: for the trainer's own files.
        alone: leave base and predictor out of the loss.
        log_every: steps between two points of the log.
    """
    torch.manual_seed(config.seed)
    keep = every(int(base.config.num_hidden_layers), config.keep)
    lora = Lora(config.lora_r, 2 * config.lora_r) if config.lora_r else None
    model = KVPredictionModel.pruned(base, keep, lora=lora)
    if lora is None:
        model.aux.float()
    if config.ridge and not alone:
        ridge_start(model, rows_NT[: max(1, RIDGE_TOKENS // rows_NT.shape[1])])
    on_cpu = base.device.type == "cpu"
    args = KVPredictionConfig(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.lr,
        lambda_base=0.0 if alone else 1.0,
        lambda_kv=0.0 if alone else config.lambda_kv,
        kv_reduce=config.kv_reduce,
        bf16=base.device.type != "mps",
        use_cpu=on_cpu,
        logging_steps=log_every,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
    )
    clock = _Clock(config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        groups(trained, args.weight_decay),
        lr=config.lr,
        betas=(args.adam_beta1, args.adam_beta2),
        fused=base.device.type == "cuda",
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, clock.rate)
    trainer = KVPredictionTrainer(
        model, args, Rows(rows_NT), callbacks=[clock], optimizers=(optimizer, scheduler)
    )
    trainer.remove_callback(PrinterCallback)
    start = time.monotonic()
    trainer.train()
    model.eval()
    steps = int(trainer.state.global_step)
    log = [
        {
            k: float(v)
            for k, v in entry.items()
            if k.startswith("loss") or k in ("step", "grad_norm")
        }
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    tokens = steps * config.batch * rows_NT.shape[1]
    return Trained(model, log, steps, tokens, time.monotonic() - start)
