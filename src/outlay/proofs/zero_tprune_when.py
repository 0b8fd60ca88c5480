"""When PageRank ranks patches better than the plain column mean of attention.

Take the patches in two groups, object and background, and let b be the mean attention that a
background patch gives to the object and o what an object patch gives to the background. Then the
object's share of all votes follows `s <- (1 - o) s + b (1 - s)`: it moves from its share of the
patches towards `b / (b + o)`, and what is left to go shrinks by `1 - b - o` with every vote. The
column mean is the first step. So more votes go on in the direction that the first one took, no
other, and gain most where the groups mix slowly; where they mix at once, nothing is left to gain.
This module measures b, o and both rankings in every block, and how well the formula foretells the
gain.

Shapes: B images, H heads, N tokens, P patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from outlay.proofs.zero_tprune_runs import BATCH, COVERED, Cell, answers
from outlay.stats import auc
from outlay.testbeds.garments import Scenes
from outlay.vision.towers import Reader, find_tower
from outlay.vision.zero_tprune import PatchRanking, Stage, ZeroTPrune
from outlay.vision.zero_tprune.graph import (
    PUBLISHED,
    aggregate,
    checked,
    cut,
    page_rank,
    passing,
    start,
)

MANY = 30  # votes that stand for the stationary distribution
SHARP = 2.0  # attention is raised to this power and renormalised


@dataclass(frozen=True)
class Block:
    """One block's rankings of the patches of scenes of one size.

    Args:
        block, size: counted from 1; of the objects.
        auc: ranking -> how often an object's patch is ahead of a background one.
        mixing: mean of 1 - b - o over images.
        lift: mean of `b / (b + o)` over the object's share of patches; above 1, votes favour it.
        told: rank correlation, over images, of the share that is left to gain after one vote and
            the AUC that further votes do gain.
        variance: smallest, median and largest variance of a head's patch scores.
    """

    block: int
    size: int
    auc: Mapping[str, float]
    mixing: float
    lift: float
    told: float
    variance: tuple[float, float, float]


@torch.inference_mode()
def attentions(model: Any, pixels_BCHW: Tensor) -> list[Tensor]:
    """Attention of every block, each (B, H, N, N)."""
    tower = find_tower(model)
    readers = [Reader(block, f"block {i + 1}") for i, block in enumerate(tower.blocks)]
    found: list[list[Tensor]] = [[] for _ in readers]
    for reader in readers:
        reader.open()
    for part in pixels_BCHW.split(BATCH):
        model(pixel_values=part)
        for kept, reader in zip(found, readers, strict=True):
            kept.append(reader.rows())
    for reader in readers:
        reader.close()
    return [torch.cat(parts) for parts in found]


def scored(
    attention_BHNN: Tensor,
    votes: int,
    *,
    how: Any = "mean",
    bounds: Any = None,
    boosted: int = 0,
    power: float = 1.0,
) -> Tensor:
    """Patch scores (B, P) of one ranking."""
    graph = attention_BHNN
    if power != 1:
        graph = graph**power
        graph = graph / graph.sum(-1, keepdim=True)
    graph = checked(graph)
    ranks = page_rank(graph, start(graph.shape[-1], boosted, graph), votes)[..., 1:]
    return aggregate(ranks, passing(ranks, bounds), how)


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "column mean": {"votes": 1},
    "2 votes": {"votes": 2},
    "5 votes": {"votes": 5},
    f"{MANY} votes": {"votes": MANY},
    "1 vote, EIR": {"votes": 1, "how": "eir"},
    "5 votes, EIR": {"votes": 5, "how": "eir"},
    "5 votes, class boost": {"votes": 5, "boosted": 1},
    "1 vote, class boost": {"votes": 1, "boosted": 1},
    "5 votes, VHF": {"votes": 5, "bounds": PUBLISHED},
    "sharp, column mean": {"votes": 1, "power": SHARP},
    "sharp, 5 votes": {"votes": 5, "power": SHARP},
}


def look(model: Any, seen: Scenes, size: int) -> list[Block]:
    """Measure every block on some scenes."""
    object_BP = seen.covered(model.config.patch_size) > COVERED
    both_B = object_BP.any(1) & ~object_BP.all(1)
    object_BP = object_BP[both_B]
    blocks = []
    for index, every_BHNN in enumerate(attentions(model, seen.tensor())):
        graph_BHNN = every_BHNN[both_B]
        scores = {name: scored(graph_BHNN, **knobs) for name, knobs in VARIANTS.items()}
        aucs_B = {name: _aucs(values, object_BP) for name, values in scores.items()}
        to_object_B, to_ground_B = flows(graph_BHNN, object_BP)
        mixing_B = 1 - to_object_B - to_ground_B
        share_B = object_BP.double().mean(1)
        settled_B = to_object_B / (to_object_B + to_ground_B).clamp_min(1e-12)
        first_B = settled_B + (share_B - settled_B) * mixing_B
        gained_B = aucs_B[f"{MANY} votes"] - aucs_B["column mean"]
        ranks = page_rank(graph_BHNN, start(graph_BHNN.shape[-1], 0, graph_BHNN), 1)[..., 1:]
        ranks = ranks / ranks.mean(-1, keepdim=True)
        spread = ranks.var(-1, unbiased=False).flatten()
        blocks.append(
            Block(
                index + 1,
                size,
                {name: float(values.mean()) for name, values in aucs_B.items()},
                float(mixing_B.mean()),
                float((settled_B / share_B).mean()),
                float(spearmanr((settled_B - first_B).numpy(), gained_B).statistic),
                (float(spread.min()), float(spread.median()), float(spread.max())),
            )
        )
    return blocks


def _aucs(scores_BP: Tensor, object_BP: Tensor) -> np.ndarray:
    return np.array(
        [
            auc(values.numpy(), right.numpy())
            for values, right in zip(scores_BP, object_BP, strict=True)
        ]
    )


def flows(attention_BHNN: Tensor, object_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean attention among patches, heads averaged: background to object, object to background."""
    places = torch.arange(1, attention_BHNN.shape[-1]).expand(len(object_BP), -1)
    graph_BPP = cut(attention_BHNN.double(), places).mean(1)
    object_BP = object_BP.double()
    ground_BP = 1 - object_BP
    gives_BP = (graph_BPP @ object_BP[..., None])[..., 0]  # what each patch gives to the object
    to_object_B = (gives_BP * ground_BP).sum(1) / ground_BP.sum(1)
    to_ground_B = ((1 - gives_BP) * object_BP).sum(1) / object_BP.sum(1)
    return to_object_B, to_ground_B


def once(model: Any, seen: Scenes, size: int, blocks: range, keep: float) -> dict[str, list[Cell]]:
    """Accuracy where patches go once, after one block: column mean against more votes.

    Args:
        model: the classifier.
        seen: scenes.
        size: of their objects.
        blocks: after which patches go, each by itself.
        keep: share of the patches.
    """
    found: dict[str, list[Cell]] = {}
    for block in blocks:
        tried: dict[str, Any] = {"column mean": PatchRanking([Stage(block, keep)], "column")}
        for votes in (5, MANY):
            tried[f"{votes} votes"] = ZeroTPrune(
                schedule=[Stage(block, keep, 0, votes)], head_agg="mean", cls_boost=False
            )
        for name, method in tried.items():
            said_B, kept_BK = answers(model, method, seen.tensor())
            right_B = (said_B == seen.labels_B).double().numpy()
            found.setdefault(name, []).append(
                Cell(name, f"block {block}", size, right_B, float("nan"), kept_BK)
            )
    return found


@torch.no_grad()
def enlarged(model: Any, side: int) -> Any:
    """The same classifier for larger canvases: more tokens, positions interpolated, no training."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**{**model.config.to_dict(), "image_size": side})
    larger = ViTForImageClassification(config)
    weights = model.state_dict()
    name = "vit.embeddings.position_embeddings"
    count = (side // config.patch_size) ** 2 + 1
    blank = torch.zeros(1, count, config.hidden_size)
    weights[name] = model.vit.embeddings.interpolate_pos_encoding(blank, side, side)
    larger.load_state_dict(weights)
    larger.train(False)
    return larger
