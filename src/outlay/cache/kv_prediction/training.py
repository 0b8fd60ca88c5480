"""Training of auxiliary and predictor: a subclass of transformers' `Trainer`, and its config.

The paper's recipe (appendix): AdamW (.9, .95), weight decay .1 except on norms and biases, clipping
at 1, 5k steps of warm-up and a cosine to a tenth over 70k steps. Rates and steps are `Trainer`'s
own options; the defaults here are those that the paper's scale does not decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from outlay.cache.kv_prediction import store
from outlay.cache.kv_prediction.losses import KVReduce, LossWeights
from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.errors import InputError

PARTS = ("base", "aux", "keys", "values", "z")


@dataclass
class KVPredictionConfig(TrainingArguments):
    """Options of `Trainer`, and the weights of the losses.

    Args:
        lambda_base: see `LossWeights`; so the next ones.
        lambda_aux: of the auxiliary's own cross-entropy.
        lambda_kv: of the distance between predicted and true keys and values.
        kv_reduce: mean or sum over layers.
        z_loss: of the squared log-partition.
    """

    lambda_base: float = field(default=1.0, metadata={"help": "Weight of the base's loss."})
    lambda_aux: float = field(default=1.0, metadata={"help": "Weight of the auxiliary's loss."})
    lambda_kv: float = field(default=1.0, metadata={"help": "Weight of the cache's distance."})
    kv_reduce: KVReduce = field(default="mean", metadata={"help": "mean or sum over layers."})
    z_loss: float = field(default=1e-4, metadata={"help": "Weight of the z-loss; 0 is off."})
    learning_rate: float = field(default=1.2e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Of matrices."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Of AdamW."})
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr", metadata={"help": "Schedule after the warm-up."}
    )
    lr_scheduler_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"min_lr_rate": 0.1}, metadata={"help": "Of the schedule."}
    )
    prediction_loss_only: bool = field(
        default=True, metadata={"help": "Evaluation returns losses, not logits."}
    )

    def losses(self) -> LossWeights:
        """The weights, checked."""
        return LossWeights(
            self.lambda_base, self.lambda_aux, self.lambda_kv, self.kv_reduce, self.z_loss
        )


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Rows of token ids as `Trainer` wants them.

    Args:
        rows_NT: ids, all of one length; any integer type.
        labels_NT: as the ids, -100 where nothing is to be learnt; None learns every token.
        mask_NT: 0 at padding; None where there is none.

    Raises:
        InputError: for no rows, rows of one token, or labels or a mask of another shape.
    """

    def __init__(
        self,
        rows_NT: torch.Tensor,
        labels_NT: torch.Tensor | None = None,
        mask_NT: torch.Tensor | None = None,
    ) -> None:
        if rows_NT.ndim != 2 or not len(rows_NT) or rows_NT.shape[1] < 2:
            raise InputError(
                f"rows have shape {tuple(rows_NT.shape)}; give N >= 1 rows of T >= 2 tokens"
            )
        for name, tensor in (("labels", labels_NT), ("mask", mask_NT)):
            if tensor is not None and tensor.shape != rows_NT.shape:
                raise InputError(
                    f"{name}: shape {tuple(tensor.shape)}, rows {tuple(rows_NT.shape)}; "
                    "give one entry for each token"
                )
        self.rows_NT, self.labels_NT, self.mask_NT = rows_NT, labels_NT, mask_NT

    def __len__(self) -> int:
        return len(self.rows_NT)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels_NT = self.rows_NT if self.labels_NT is None else self.labels_NT
        found = {"input_ids": self.rows_NT[index].long(), "labels": labels_NT[index].long()}
        if self.mask_NT is not None:
            found["attention_mask"] = self.mask_NT[index].long()
        return found


class KVPredictionTrainer(Trainer):
    """Trains a pair; its logs hold the loss's parts, its checkpoints no base.

    Args:
        model: the pair.
        args: options; their loss weights become the model's.
        train_dataset: rows with "input_ids", and where wanted "attention_mask" and "labels".
        eval_dataset: likewise.
        callbacks: as for `Trainer`.
        optimizers: as for `Trainer`.
    """

    def __init__(
        self,
        model: KVPredictionModel,
        args: KVPredictionConfig,
        train_dataset: Dataset[Any] | None = None,
        eval_dataset: Dataset[Any] | None = None,
        *,
        callbacks: Sequence[Any] = (),
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        model.losses = args.losses()
        self._parts: dict[str, list[torch.Tensor]] = {}
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=list(callbacks),
            optimizers=optimizers,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The pair's loss; its parts are kept for the next log."""
        outputs = model(**inputs)
        if self.model.training:
            for name in PARTS:
                if name in outputs:
                    self._parts.setdefault(name, []).append(outputs[name])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the means of the loss's parts since the last log."""
        if "loss" in logs:
            for name, found in self._parts.items():
                logs[f"loss_{name}"] = float(torch.stack(found).mean())
            self._parts = {}
        super().log(logs, *args, **kwargs)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        store.save(self.model, output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        store.restore(self.model, resume_from_checkpoint)
