"""Few visual tokens first, many where the answer is unsure.

Our addition to TokenFLEX (arXiv 2504.03154), which leaves the choice of a count to the user. A row
is answered at the smallest count; where the model was not sure of its own words, it is answered
again at the next one. Encoding is done once: a second try costs the projector and a prefill.

Shapes: B rows, V vocabulary, L new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.tokenflex.grids import Count, check_counts
from outlay.vision.tokenflex.inputs import grids_for, lengths_of, prepare, tiled, using
from outlay.vision.tokenflex.models import need_flexible

Sureness = Literal["least", "mean"]
MAX_NEW = 4096


@dataclass(frozen=True)
class Routed:
    """Answers of a batch.

    Args:
        answers: of every row, new tokens.
        counts: of every row, the count that its answer was given at.
        sureness: of every row, of its last answer.
        visual_tokens: of every row, over all tries.
        encoded: pictures and tiles that went through the tower.
    """

    answers: list[Tensor]
    counts: list[Count]
    sureness: list[float]
    visual_tokens: list[int]
    encoded: int


@dataclass(frozen=True)
class Router:
    """Answers at few tokens, and at more where the answer is unsure.

    Args:
        counts: to try, rising.
        escalate_below: sureness under which the next count is tried; 0 never does, and above 1
            always.
        measure: sureness is the `least` probability of an answer's words, or their geometric
            `mean`.

    Raises:
        InputError: for counts that do not rise, or another measure.
    """

    counts: tuple[Count, ...] = (64, 256)
    escalate_below: float = 0.9
    measure: Sureness = "least"

    def __post_init__(self) -> None:
        check_counts(self.counts)
        if not self.escalate_below >= 0:
            raise InputError(f"escalate_below={self.escalate_below}; must be at least 0")
        if self.measure not in ("least", "mean"):
            raise InputError(f"measure={self.measure!r}; use 'least' or 'mean'")

    @torch.no_grad()
    def answer(self, model: Any, inputs: Mapping[str, Any], *, max_new_tokens: int = 64) -> Routed:
        """Greedy answers to a batch, at least one image a row.

        Args:
            model: with a flexible projector.
            inputs: of the processor.
            max_new_tokens: of an answer.

        Raises:
            CapabilityError: for a model without a flexible projector.
            InputError: for inputs that `prepare` refuses, or limits out of range.
        """
        if not 1 <= max_new_tokens <= MAX_NEW:
            raise InputError(f"max_new_tokens={max_new_tokens}; must be 1 to {MAX_NEW}")
        encoded = _Encoded(model, inputs, self.counts[0])
        rows = len(inputs["input_ids"])
        answers: list[Tensor] = [torch.empty(0)] * rows
        counts: list[Count] = [self.counts[0]] * rows
        sureness, spent = [0.0] * rows, [0] * rows
        waiting = list(range(rows))
        for count in self.counts:
            found, sure = self._try(model, encoded, count, waiting, max_new_tokens)
            for row, answer, value in zip(waiting, found, sure, strict=True):
                answers[row], counts[row], sureness[row] = answer, count, value
                spent[row] += encoded.tokens(count, row)
            waiting = [row for row in waiting if sureness[row] < self.escalate_below]
            if not waiting:
                break
        return Routed(answers, counts, sureness, spent, encoded.pictures)

    def _try(
        self, model: Any, encoded: _Encoded, count: Count, rows: Sequence[int], most: int
    ) -> tuple[list[Tensor], list[float]]:
        made = model.generate(
            **encoded.inputs(count, rows),
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new_BL = made.sequences[:, -len(made.logits) :]
        logits_BLV = torch.stack(made.logits, dim=1).float()
        logs_BL = logits_BLV.log_softmax(-1).gather(-1, new_BL[..., None])[..., 0]
        answers, sure = [], []
        for new_L, logs_L in zip(new_BL, logs_BL, strict=True):
            length = _length(new_L, model.generation_config.eos_token_id)
            logs = logs_L[:length]
            answers.append(new_L[:length])
            sure.append(float((logs.min() if self.measure == "least" else logs.mean()).exp()))
        return answers, sure


def _length(new_L: Tensor, ends: int | Sequence[int] | None) -> int:
    """Tokens up to the first end, which counts."""
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    at = torch.isin(new_L, torch.tensor(known, device=new_L.device)).nonzero()
    return int(at[0]) + 1 if len(at) else len(new_L)


class _Encoded:
    """A batch whose pictures went through the tower.

    Args:
        model: with a flexible projector.
        given: inputs of the processor.
        count: that is tried first.
    """

    def __init__(self, model: Any, given: Mapping[str, Any], count: Count) -> None:
        self.model, self.inner = model, model.model
        self.projector = need_flexible(model)
        self.given = given
        self.sizes = given.get("image_sizes")
        ready = prepare(model, given, count)
        patches: list[Tensor] = []
        handle = self.projector.register_forward_pre_hook(lambda _, args: patches.append(args[0]))
        known = {} if self.sizes is None else {"image_sizes": self.sizes}
        try:
            with using(model, count):
                output = self.inner.get_image_features(
                    pixel_values=ready["pixel_values"], return_dict=True, **known
                )
        finally:
            handle.remove()
        self.patches_PKC = patches[0]
        self.pictures = len(self.patches_PKC)
        self.features = {count: list(output.pooler_output)}
        self.images = len(output.pooler_output)
        lengths = iter(self.lengths(count))
        self.by_row: list[list[int]] = []  # images of every row
        image = 0
        for places in (ready["input_ids"] == model.config.image_token_id).sum(1).tolist():
            row = []
            while places > 0:
                places -= next(lengths)
                row.append(image)
                image += 1
            self.by_row.append(row)

    def lengths(self, count: Count) -> list[int]:
        """Features of every image."""
        return lengths_of(self.model, grids_for(self.model, count, self.images), self.sizes)

    def tokens(self, count: Count, row: int) -> int:
        """Visual tokens of one row."""
        lengths = self.lengths(count)
        return sum(lengths[image] for image in self.by_row[row])

    def at(self, count: Count) -> list[Tensor]:
        """Features of every image; the tower does not run again."""
        if count not in self.features:
            with using(self.model, count):
                features = self.projector(self.patches_PKC)
                if tiled(self.model):
                    features = self._packed(features)
            self.features[count] = list(features)
        return self.features[count]

    def _packed(self, tiles_PND: Tensor) -> list[Tensor]:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.model.config
        parts = [
            image_size_to_num_patches(
                size, config.image_grid_pinpoints, config.vision_config.image_size
            )
            for size in self.sizes  # type: ignore[union-attr]
        ]
        found: list[Tensor] = self.inner.pack_image_features(
            tiles_PND.split(parts),
            self.sizes,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=self.inner.image_newline,
        )[0]
        return found

    def inputs(self, count: Count, rows: Sequence[int]) -> dict[str, Any]:
        """Of some rows: a prompt and ready features."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        features = self.at(count)
        whole = prepare(self.model, self.given, count)
        index = torch.tensor(rows, device=whole["input_ids"].device)
        wanted = [features[image] for row in rows for image in self.by_row[row]]
        return {
            "input_ids": whole["input_ids"][index],
            "attention_mask": whole["attention_mask"][index],
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=wanted)},
        }
