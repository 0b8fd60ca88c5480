"""Training of the garment classifier: a ViT from scratch, with labels for patches too.

The loss is cross-entropy of the class token's label, plus that of every patch's own label (what
covers it, or background) by a second head that is thrown away: token labelling, as LV-ViT does it.
Without it a ViT of this size learns far less in minutes. AdamW, linear warm-up, cosine decay. The
same settings, thread count and library versions give the same weights.

Shapes: B images, N patches, D width, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError
from outlay.testbeds.adam import Adam, cosine
from outlay.testbeds.garments.scenes import CLASSES, World, scenes

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

COVERED = 0.08  # share of a patch from which it bears the object's label
BACKGROUND = 0.15  # weight of background patches
POOL = 16  # batches that are drawn together
LOWEST = 0.02  # of the peak learning rate, at the end


@dataclass(frozen=True)
class TrainConfig:
    """Size of the model and of its training.

    Args:
        steps: optimiser steps.
        seed: of weights, data and order.
        hidden: width of the model.
        layers: number of blocks.
        heads: attention heads.
        patch: side of a patch in pixels.
        batch: images a step.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        clip: largest gradient norm.
        patches: weight of the patches' loss.
        world: the scenes; of split "train".

    Raises:
        InputError: for values out of range.
    """

    steps: int = 3000
    seed: int = 0
    hidden: int = 96
    layers: int = 6
    heads: int = 4
    patch: int = 8
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    patches: float = 0.5
    world: World = field(
        default_factory=lambda: World(sizes=(28, 40, 56), digits=0.2, split="train")
    )

    def __post_init__(self) -> None:
        for name in ("steps", "hidden", "layers", "heads", "patch", "batch", "warmup"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; must be at least 1")
        if self.hidden % self.heads:
            raise InputError(f"hidden={self.hidden}; must be a multiple of heads={self.heads}")
        if self.world.side % self.patch:
            raise InputError(f"patch={self.patch}; must divide the side of {self.world.side}")
        if self.world.split != "train":
            raise InputError("world.split='test'; train on split 'train'")
        if not self.lr > 0 or self.patches < 0:
            raise InputError(f"lr={self.lr}, patches={self.patches}; need lr > 0, patches >= 0")


@dataclass(frozen=True)
class Progress:
    """State of a training after `step` steps."""

    step: int
    loss: float
    images: int
    seconds: float
    cpu_seconds: float


def build_model(config: TrainConfig) -> ViTForImageClassification:
    """A freshly initialised model, seeded by `config.seed`."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(config.seed)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden,
            image_size=config.world.side,
            patch_size=config.patch,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.05,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: index for index, name in enumerate(CLASSES)},
            attn_implementation="eager",
        )
    )


def train(
    config: TrainConfig, report: Callable[[Progress], None] | None = None
) -> ViTForImageClassification:
    """Train a classifier; `report` is called after every step.

    Returns:
        The model in eval mode.
    """
    model = build_model(config)
    head = torch.nn.Linear(config.hidden, len(CLASSES) + 1)
    weights_K = torch.ones(len(CLASSES) + 1)
    weights_K[-1] = BACKGROUND
    optimiser = Adam(
        [*model.parameters(), *head.parameters()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        clip=config.clip,
        schedule=cosine(config.warmup, config.steps, LOWEST),
    )
    started, cpu_started = time.perf_counter(), time.process_time()
    model.train()
    for step in range(config.steps):
        if step % POOL == 0:
            pool = scenes(config.world, POOL * config.batch, step * config.batch)
            pixels_BCHW, owners_BN = pool.tensor(), pool.covered(config.patch) > COVERED
        rows = slice(step % POOL * config.batch, (step % POOL + 1) * config.batch)
        labels_B = pool.labels_B[rows]
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BND = model.vit(pixels_BCHW[rows]).last_hidden_state
            logits_BK = model.classifier(hidden_BND[:, 0])
            patches_BNK = head(hidden_BND[:, 1:])
        background = torch.tensor(len(CLASSES))
        owned_BN = torch.where(owners_BN[rows], labels_B[:, None], background)
        entropy = torch.nn.functional.cross_entropy
        loss = entropy(logits_BK.float(), labels_B) + config.patches * entropy(
            patches_BNK.float().flatten(0, 1), owned_BN.flatten(), weights_K
        )
        optimiser.update(loss)
        if report is not None:
            now, cpu = time.perf_counter() - started, time.process_time() - cpu_started
            report(Progress(step + 1, loss.item(), (step + 1) * config.batch, now, cpu))
    model.train(False)
    return model
