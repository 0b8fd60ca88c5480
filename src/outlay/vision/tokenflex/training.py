"""Training with random counts of visual tokens: a collator, and a subclass of `Trainer`.

TokenFLEX (arXiv 2504.03154): each step draws a count, the projector gives as many tokens, the loss
is the usual cross-entropy. Rows of the data set have one placeholder an image; the trainer makes
room for what was drawn, in `training_step`, where the step is known (a collator in a worker process
would not know it). Not stated in the paper, and our choice: all processes draw alike, so that none
waits for a longer batch; LLaVA's learning rates; what is frozen in stage 2.

Shapes: B rows, T tokens, P pictures, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer

from outlay.errors import CapabilityError, InputError
from outlay.vision.tokenflex.draws import STAGES, CountDraw
from outlay.vision.tokenflex.grids import Count, grid_of
from outlay.vision.tokenflex.inputs import grids_for, images_of, lengths_of, prepare, using
from outlay.vision.tokenflex.models import need_flexible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
    from transformers import TrainingArguments as Arguments

MAX_TOKENS = 1 << 20
_RATES = {1: 1e-3, 2: 2e-5, 3: 2e-5}


def stage_arguments(stage: int) -> dict[str, Any]:
    """Settings for `TrainingArguments`, as LLaVA trains (the paper's are not known).

    Args:
        stage: 1 aligns the projector, 2 improves the encoder, 3 tunes on instructions.

    Raises:
        InputError: for another stage.
    """
    _check_stage(stage)
    return {
        "learning_rate": _RATES[stage],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "weight_decay": 0.0,
    }


def freeze_for(model: Any, stage: int) -> None:
    """Train what a stage trains: the projector, the encoder as well, or all of the model.

    Raises:
        InputError: for another stage.
        CapabilityError: for a model without a flexible projector.
    """
    _check_stage(stage)
    projector = need_flexible(model)
    model.requires_grad_(stage == 3)
    if stage == 2:
        model.model.vision_tower.requires_grad_(True)
    projector.requires_grad_(True)


def _check_stage(stage: int) -> None:
    if stage not in STAGES:
        raise InputError(f"stage={stage!r}; stages are 1, 2 and 3")


@dataclass(frozen=True)
class FlexCollator:
    """Rows of a data set as a batch, one placeholder an image.

    A row has `input_ids`, `labels` (none: no loss), `pixel_values` of its image (C, H, W) or images
    (P, C, H, W), and `image_sizes` (P, 2) where images have tiles (then pixels are (P, tiles, C, H,
    W)).

    Args:
        pad: token that fills rows up.
        most: tokens of a row.
    """

    pad: int = 0
    most: int = MAX_TOKENS

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch, filled up on the right.

        Raises:
            InputError: for no rows, a row without tokens or pixels or with too many tokens, or
                labels of another length.
        """
        if not rows:
            raise InputError("no rows to make a batch of")
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        labels = [torch.as_tensor(row["labels"]).long() for row in rows if "labels" in row]
        width = max(len(row) for row in ids)
        if not min(len(row) for row in ids) or width > self.most:
            raise InputError(f"rows have {[len(row) for row in ids]} tokens; need 1 to {self.most}")
        if labels and [len(row) for row in labels] != [len(row) for row in ids]:
            raise InputError("labels must be as long as input_ids, in every row or in none")
        batch = {
            "input_ids": _stacked(ids, width, self.pad),
            "attention_mask": _stacked([torch.ones_like(row) for row in ids], width, 0),
        }
        if labels:
            batch["labels"] = _stacked(labels, width, -100)
        pixels = [torch.as_tensor(row["pixel_values"]) for row in rows]
        tiled = any("image_sizes" in row for row in rows)
        if tiled:
            sizes = [torch.as_tensor(row["image_sizes"]).view(-1, 2) for row in rows]
            batch["image_sizes"] = torch.cat(sizes)
            flat = [image for row in pixels for image in (row if row.ndim == 5 else row[None])]
            batch["pixel_values"] = _stacked(flat, max(len(image) for image in flat), 0)
        else:
            batch["pixel_values"] = torch.cat([p if p.ndim == 4 else p[None] for p in pixels])
        return batch


def _stacked(rows: Sequence[Tensor], width: int, fill: int) -> Tensor:
    out = rows[0].new_full((len(rows), width, *rows[0].shape[1:]), fill)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@dataclass(frozen=True)
class Step:
    """Visual tokens of one batch.

    Args:
        step: of the optimiser.
        images: of the batch.
        tokens: of all its images.
        computed: what they would be if all rows had those of the largest, to which they are padded.
    """

    step: int
    images: int
    tokens: int
    computed: int


@dataclass
class VisualTokens:
    """Visual tokens that one process has trained on, batch by batch."""

    steps: list[Step] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Of all images."""
        return sum(step.tokens for step in self.steps)

    @property
    def computed(self) -> int:
        """With padding."""
        return sum(step.computed for step in self.steps)


class TokenFlexTrainer(Trainer):
    """Trains a flexible model with a random number of visual tokens in every batch.

    Args:
        model: made by `convert`, or loaded as one of the flexible classes.
        args: of transformers; `stage_arguments` has LLaVA's settings.
        draw: the counts.
        stage: of training; where `draw` is off, it takes the largest count. Nothing is frozen here,
            see `freeze_for`.
        train_dataset: rows as `FlexCollator` takes them.
        eval_dataset: evaluated at the model's native count.
        data_collator: makes batches with one placeholder an image; None is `FlexCollator` with the
            model's padding token.
        processing_class: saved beside the model.
        callbacks: of transformers.
        optimizers: optimiser and schedule; made from `args` where they are None.

    Raises:
        CapabilityError: for a model without a flexible projector, one that cannot give a count, or
            several GPUs in one process (its threads would not see the count).
    """

    def __init__(
        self,
        model: Any,
        args: Arguments,
        draw: CountDraw | None = None,
        *,
        stage: int = 2,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        _check_stage(stage)
        projector = need_flexible(model)
        self.draw = CountDraw(projector.settings.counts) if draw is None else draw
        for count in self.draw.counts:
            grid_of(count, projector.grid, knob="counts")
        if args.n_gpu > 1:
            raise CapabilityError(
                f"{args.n_gpu} GPUs in one process run in threads, which do not see the count of a "
                "step; start one process a GPU (accelerate launch, torchrun)"
            )
        self.stage = stage
        self.visual = VisualTokens()
        self._flexible = model
        self._last = (-1, 0)
        pad = model.config.get_text_config().pad_token_id
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or FlexCollator(pad=pad or 0),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One batch at the count that its step draws."""
        step = self.state.global_step
        micro = self._last[1] + 1 if self._last[0] == step else 0
        self._last = (step, micro)
        images = images_of(inputs)
        counts = self.draw.at(step, images, micro=micro, stage=self.stage)
        asked: Any = counts if self.draw.draw == "sample" else counts[0]
        ready = prepare(self._flexible, inputs, asked, padding="right")
        self.visual.steps.append(self._step(step, inputs, ready, asked))
        with using(self._flexible, asked):
            loss: Tensor = super().training_step(model, ready, num_items_in_batch)
        return loss

    def _step(self, step: int, inputs: dict[str, Any], ready: dict[str, Any], asked: Any) -> Step:
        images = images_of(inputs)
        grids = grids_for(self._flexible, asked, images)
        tokens = sum(lengths_of(self._flexible, grids, inputs.get("image_sizes")))
        places_BS = ready["input_ids"] == self._flexible.config.image_token_id
        computed = len(places_BS) * int(places_BS.sum(1).max())
        return Step(step, images, tokens, computed)

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One batch of an evaluation, at the model's native count."""
        native: Count = need_flexible(self._flexible).settings.native
        ready = prepare(self._flexible, inputs, native, padding="right")
        with using(self._flexible, native):
            found: tuple[Tensor | None, Tensor | None, Tensor | None] = super().prediction_step(
                model, ready, prediction_loss_only, ignore_keys
            )
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs of training tell how many visual tokens this process has had."""
        if "loss" in logs or "train_loss" in logs:
            logs = {**logs, "visual_tokens": float(self.visual.total)}
        super().log(logs, start_time)
