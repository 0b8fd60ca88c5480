"""Whether the seer is fit to judge methods: it reads, it needs its eyes, and its CLS token looks.

Written down before training (`TARGETS`): mean accuracy of one-token questions; the same without any
visual token; how many of the quarter of patches that CLS attends to most show an object; and CLS
against random choice at an eighth of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from outlay.errors import InputError
from outlay.testbeds.seer.evaluate import Examples, Row, answered, held_out, mean, score
from outlay.testbeds.seer.model import Seer, look, normalised
from outlay.testbeds.seer.questions import ONE_TOKEN, SCENE_KINDS
from outlay.testbeds.seer.scenes import Scenes

TARGETS = {"all": 0.75, "blind": 0.45, "precision": 0.55}
"""For size S: at least, at most, at least; and CLS above random."""
PRECISION_SHARE = 0.25
KEEP_SHARE = 0.125


def saliency(seer: Seer, seen: Scenes) -> torch.Tensor:
    """(B, n) how much the tower's CLS token attends to each patch of scenes that are not tiled.

    Raises:
        InputError: for a tiled size.
    """
    if seer.size.tiled:
        raise InputError("size HR has a CLS token in every tile; use its tower directly")
    pixels = normalised(seen.images).to(seer.model.device)
    return look(seer.model.model.vision_tower, pixels)[1]


def precision(seer: Seer, seen: Scenes, share: float = PRECISION_SHARE) -> tuple[float, float]:
    """Share of objects' patches among those with the highest saliency, and among all."""
    scores_Bn = saliency(seer, seen)
    count = max(1, int(share * scores_Bn.shape[1] + 0.5))
    front_Bn = torch.from_numpy(seen.foreground())
    top = front_Bn.gather(1, scores_Bn.topk(count, 1).indices.cpu())
    return float(top.float().mean()), float(front_Bn.float().mean())


def kept_inputs(seer: Seer, asked: Examples, scores_Bn: torch.Tensor, keep: int) -> dict[str, Any]:
    """Inputs that hold only the best-scored visual tokens, in order, at their own positions.

    Raises:
        InputError: unless 1 <= keep <= tokens.
    """
    n = scores_Bn.shape[1]
    if not 1 <= keep <= n:
        raise InputError(f"keep={keep}; must be 1 to {n}")
    index = scores_Bn.topk(keep, 1).indices.sort(1).values
    features = seer.features(asked.seen)[:, 0]
    chosen = features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))
    made = seer.inputs_of_features([[row] for row in chosen], asked.questions)
    words = made["input_ids"].shape[1] - 1 - keep
    text = torch.arange(1 + n, 1 + n + words, device=index.device).expand(len(index), -1)
    made["position_ids"] = torch.cat([torch.zeros_like(text[:, :1]), 1 + index, text], 1)
    return made


@torch.no_grad()
def with_kept(
    seer: Seer, asked: Examples, rank: str, keep: int, *, seed: int = 0, batch: int = 64
) -> np.ndarray:
    """(n,) exact answers with `keep` visual tokens, ranked by `cls`, `oracle` or `random`."""
    if rank not in ("cls", "oracle", "random"):
        raise InputError(f"rank={rank!r}; must be cls, oracle or random")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        assert isinstance(part.seen, Scenes)
        noise_Bn = torch.rand((len(part), seer.size.tokens), generator=generator)
        if rank == "cls":
            noise_Bn = saliency(seer, part.seen)
        elif rank == "oracle":
            noise_Bn = noise_Bn + torch.from_numpy(part.seen.foreground())
        noise_Bn = noise_Bn.to(seer.model.device)
        found.append(answered(seer, part, kept_inputs(seer, part, noise_Bn, keep)))
    return np.concatenate(found)


def rows(seer: Seer, n: int = 1000, seed: int = 1) -> list[Row]:
    """Accuracy on `n` held-out scenes, by kind of question, with and without eyes."""
    asked = held_out(seer.size.name, n, SCENE_KINDS, seed=seed)
    full = score(seer, asked)
    made = []
    for kind, part in asked.items():
        blind = blind_right(seer, part)
        made.append(Row(kind, len(part), float(full[kind].mean()), float(blind.mean())))
    return made


@torch.no_grad()
def blind_right(seer: Seer, asked: Examples, batch: int = 256) -> np.ndarray:
    """(n,) exact answers to the questions alone, without any visual token."""
    found = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        found.append(answered(seer, part, seer.blind_inputs(part.questions)))
    return np.concatenate(found)


def check(seer: Seer, n: int = 1000, seed: int = 1) -> dict[str, float]:
    """The figures that `TARGETS` speaks of, on `n` held-out scenes of a size that is not tiled.

    Returns:
        `all`, `blind`, `precision`, `base` (share of patches with an object), `cls` and `random`
        (accuracies with an eighth of the tokens) and `oracle`.
    """
    asked = held_out(seer.size.name, n, ONE_TOKEN, seed=seed)
    keep = max(1, int(KEEP_SHARE * seer.size.tokens + 0.5))
    seen = asked["count"].seen
    assert isinstance(seen, Scenes)
    best, base = precision(seer, seen)
    figures = {
        "all": mean(score(seer, asked)),
        "blind": mean({kind: blind_right(seer, part) for kind, part in asked.items()}),
        "precision": best,
        "base": base,
    }
    for rank in ("cls", "random", "oracle"):
        kept = {kind: with_kept(seer, part, rank, keep) for kind, part in asked.items()}
        figures[rank] = mean(kept)
    return figures


def holds(figures: Mapping[str, float]) -> dict[str, bool]:
    """Which targets the figures of size S meet."""
    return {
        "all": figures["all"] >= TARGETS["all"],
        "blind": figures["blind"] <= TARGETS["blind"],
        "precision": figures["precision"] >= TARGETS["precision"],
        "cls above random": figures["cls"] > figures["random"],
    }
