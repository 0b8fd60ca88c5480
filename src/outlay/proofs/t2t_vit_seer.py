"""T2T tokens in the tiny vision-language model: the same 64 tokens, made by patches or by T2T.

Both are trained by the testbed's own recipe from the same seed, tower first; only the embedding of
the tower differs. Asked are small things (digits, 16 pixels) and larger ones (garments, 28 pixels).
It trains two models a seed, ten to fifteen minutes of a core each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from outlay.paired import difference
from outlay.proofs.base import Check, Progress
from outlay.vision.t2t_vit.tokens import SPLITS_MEDIUM, Tokens

KINDS = ("digit", "garment")
SMALL = KINDS[0]
SCENES = 2000
TOKENS = Tokens(SPLITS_MEDIUM, "transformer", token_dim=32)
PATCHES, T2T = "patches", "T2T, transformer"


def checks(
    seeds: Sequence[int],
    folder: Path,
    progress: Progress,
    steps: tuple[int, int] | None = None,
    scenes: int = SCENES,
) -> list[Check]:
    """Train what the folder lacks and compare.

    Args:
        seeds: of weights and data.
        folder: store.
        progress: gets a line a model.
        steps: of tower and language model; None is the testbed's own.
        scenes: held out.
    """
    found: dict[str, list[dict[str, list[int]]]] = {PATCHES: [], T2T: []}
    for seed in seeds:
        for name, rights in found.items():
            rights.append(_stored(name, seed, folder, steps, scenes))
            progress(f"seer, {name}, seed {seed}: {_shown(rights[-1])}")
    made = []
    for kind in KINDS:
        ours, theirs = (
            np.mean([rights[kind] for rights in found[name]], axis=0) for name in (T2T, PATCHES)
        )
        gap = difference(ours - theirs)
        made.append(
            Check(
                f"tiny vision-language model, {kind}s: T2T tokens against patches",
                "overlapping windows keep what crosses a patch's border",
                gap.mean,
                gap.lo > 0 if kind == SMALL else None,
                (gap.lo, gap.hi),
                f"{ours.mean():.3f} against {theirs.mean():.3f} right with 64 tokens each, "
                f"{len(seeds)} seeds, n={gap.n}"
                + ("; target: interval above 0" if kind == SMALL else ""),
            )
        )
    return made


def _shown(rights: dict[str, list[int]]) -> str:
    return ", ".join(f"{kind} {np.mean(rights[kind]):.3f}" for kind in KINDS)


def _stored(
    name: str, seed: int, folder: Path, steps: tuple[int, int] | None, scenes: int
) -> dict[str, list[int]]:
    key = sha256(json.dumps([name, seed, steps, scenes, repr(TOKENS)]).encode()).hexdigest()[:16]
    path = folder / f"seer-{key}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(_trained(name, seed, steps, scenes)) + "\n", encoding="utf-8")
        draft.replace(path)
    found: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _trained(
    name: str, seed: int, steps: tuple[int, int] | None, scenes: int
) -> dict[str, list[int]]:
    """Right answers, by kind of question, of one trained model."""
    import torch

    from outlay.testbeds.seer.evaluate import held_out, right
    from outlay.testbeds.seer.model import Seer, build, size_of
    from outlay.testbeds.seer.train import TrainConfig, Training, train_llm, train_tower
    from outlay.vision.t2t_vit.clip import retokenised

    config = TrainConfig(seed=seed)
    if steps is not None:
        config = TrainConfig(seed=seed, tower_steps=steps[0], llm_steps=steps[1])
    size = size_of(config.size)
    model: Any = build(size, seed)
    if name == T2T:
        torch.manual_seed(seed)
        model.model.vision_tower = retokenised(model.model.vision_tower, TOKENS)
    model.set_attn_implementation("eager")
    record = Training()
    train_tower(model, size, config, record, None)
    model.model.vision_tower.requires_grad_(False)
    train_llm(model, size, config, record, None)
    model.set_attn_implementation("sdpa")
    seer = Seer(size, model.eval())
    asked = held_out(config.size, scenes, KINDS, seed=1)
    return {kind: [int(value) for value in right(seer, asked[kind])] for kind in KINDS}
