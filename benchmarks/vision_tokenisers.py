"""T2T tokenisers beside plain patch embedding: time and multiply-adds for the same tokens.

At 224 pixels with the widths of T2T-ViT-14, tokeniser alone and whole model; and how the time of
both kinds of attention grows with four times the tokens. Peers: transformers' `ViTPatchEmbeddings`
and `ViTModel` with the same backbone. CPU time of one thread, in turns.

`--train` is for a GPU (some minutes): accuracy on unseen garments after ten epochs of 20,000, three
seeds, for each tokeniser of the proof at its sizes, with the released start and with one by fan-in.
Trained cells are kept in the proof's store.

    python benchmarks/vision_tokenisers.py [--train]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
import torch
from transformers import ViTConfig, ViTModel
from transformers.models.vit.modeling_vit import ViTPatchEmbeddings

from common import Row, faster, turns, warn_if_busy, write
from outlay.models import store
from outlay.paired import difference
from outlay.proofs.t2t_vit import PLANS, SEEDS, main_cells, started_cells, trained
from outlay.proofs.t2t_vit_claims import STARTED, gaps
from outlay.proofs.t2t_vit_runs import NAMES, PATCH, Outcome
from outlay.vision.t2t_vit import T2TViT
from outlay.vision.t2t_vit.tokeniser import Tokeniser
from outlay.vision.t2t_vit.tokens import TokensType

BASE = T2TViT.preset("t2t-vit-14")
KINDS: tuple[TokensType, ...] = ("performer", "transformer", "conv", "patch")
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", action="store_true", help="accuracy instead of time")
    if parser.parse_args().train:
        write("vision_tokenisers_trained", *_accuracies())
        return
    warn_if_busy()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=BASE.embed_dim,
        num_hidden_layers=BASE.depth,
        num_attention_heads=BASE.heads,
        intermediate_size=BASE.mlp_width,
        qkv_bias=False,
    )
    peer = f"patches of 16, transformers {metadata.version('transformers')}"
    image = torch.randn(1, 3, 224, 224)
    models = {kind: replace(BASE, tokens_type=kind) for kind in KINDS}
    patches = ViTPatchEmbeddings(config).eval()
    alone: dict[str, Callable[[], object]] = {"peer": _call(patches, image)}
    whole: dict[str, Callable[[], object]] = {
        "peer": _call(ViTModel(config, add_pooling_layer=False).eval(), image)
    }
    for kind, method in models.items():
        tokeniser = Tokeniser(method.tokens, 3, BASE.embed_dim).eval()
        alone[kind] = _call(tokeniser, image)
        whole[kind] = _call(method.build().vit.eval(), image)
    rows: list[Row] = []
    for title, sides in (("tokeniser", alone), ("whole model", whole)):
        seconds = turns(sides, REPEATS, clock="cpu")
        for kind, method in models.items():
            macs = method.tokeniser_macs if sides is alone else method.macs
            base = models["patch"].tokeniser_macs if sides is alone else models["patch"].macs
            note = (
                f"196 tokens of 224 x 224 pixels; {macs / 1e6:.0f} million multiply-adds against "
                f"{base / 1e6:.0f}; no target"
            )
            rows.append(faster(f"{title}, {kind}", seconds[kind], seconds["peer"], peer, note))
    rows += [_growth(kind) for kind in ("performer", "transformer")]
    write("vision_tokenisers", rows)


def _accuracies() -> tuple[list[Row], dict[str, Any]]:
    """Accuracy of every tokeniser against patches, on the most garments of the proof's plan, and
    the machine that trained them."""
    plan = PLANS["gpu"]["garments"]
    plan = replace(plan, samples=plan.samples[-1:])
    seeds = list(range(SEEDS["gpu"]))
    wanted = [
        (name, cell) for name, cell in main_cells({"garments": plan}, seeds) if cell.depth == 6
    ]
    wanted += started_cells(plan, seeds)
    home = store.cache_dir() / "t2t-vit"
    runs: Mapping[str, Sequence[Outcome]] = {
        name: part
        for (_, _, name), part in trained(
            wanted, home, lambda line: print(line, flush=True)
        ).items()
    }
    patches = runs[NAMES[PATCH]]
    rows = []
    for name, part in runs.items():
        if part is patches:
            continue
        gap = difference(gaps(part, patches))
        by_seed = ", ".join(
            f"{a.accuracy - b.accuracy:+.3f}" for a, b in zip(part, patches, strict=True)
        )
        late = " (chosen after shorter runs were seen)" if name.endswith(STARTED) else ""
        ours, theirs = (float(np.mean([o.accuracy for o in side])) for side in (part, patches))
        rows.append(
            Row(
                f"{name}{late}",
                "accuracy",
                ours,
                theirs,
                NAMES[PATCH],
                ours / theirs,
                None,
                f"difference {gap.mean:+.4f} [{gap.lo:+.4f}, {gap.hi:+.4f}], by seed {by_seed}; "
                f"{part[0].cell.samples} garments, {part[0].cell.seen} pictures seen, n={gap.n}",
            )
        )
    return rows, patches[0].about["machine"]


def _call(module: torch.nn.Module, image: torch.Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def work() -> object:
        return module(image)

    return work


def _growth(kind: TokensType) -> Row:
    """Time of four times the tokens over the time of one."""
    tokeniser = Tokeniser(replace(BASE, tokens_type=kind).tokens, 3, BASE.embed_dim).eval()
    small, large = (torch.randn(1, 3, side, side) for side in (224, 448))
    seconds = turns(
        {"small": _call(tokeniser, small), "large": _call(tokeniser, large)}, REPEATS, clock="cpu"
    )
    ratios = [b / a for a, b in zip(seconds["small"], seconds["large"], strict=True)]
    return Row(
        f"{kind}: time of four times the tokens",
        "ratio",
        statistics.median(ratios),
        note=f"448 against 224 pixels; {_range(ratios)}; linear would be 4",
    )


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


if __name__ == "__main__":
    main()
