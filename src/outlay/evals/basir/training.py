"""One run of a trainer of sentence-transformers, quiet and without checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback

from outlay.errors import ModelError


def run_trainer(
    trainer: Callable[..., Any],
    arguments: Callable[..., Any],
    model: torch.nn.Module,
    data: Any,
    loss: Any,
    *,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
) -> None:
    """Train `model` in place.

    Args:
        trainer: the library's class of the trainer.
        arguments: the library's class of its arguments.
        model: what is trained.
        data: a `datasets.Dataset`.
        loss: of the library.
        epochs: passes over the data.
        lr: learning rate, with a linear warm-up over the first tenth and linear decay.
        batch: examples per step.
        seed: of the order.

    Raises:
        ModelError: if the training diverged.
    """
    with tempfile.TemporaryDirectory() as scratch:
        args = arguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            learning_rate=lr,
            warmup_steps=0.1,
            seed=seed,
            data_seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        running = trainer(model=model, args=args, train_dataset=data, loss=loss)
        running.remove_callback(PrinterCallback)  # standard output is for results
        running.train()
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise ModelError(f"training diverged at lr={lr}; lower lr=")
