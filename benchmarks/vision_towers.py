"""Pruning inside vision towers: images a second, multiply-adds, overhead and accuracy.

Zero-TPrune beside the plain column mean of attention (the same patches' numbers, a cheaper
ranking), ToMe at equal multiply-adds, and the whole model, in turns. Two towers: the garment
classifier (65 tokens, trained, so that accuracy counts) at three schedules, and a DeiT-S (197
tokens, random weights: time alone) at the published one. No target: at few tokens on a CPU the
votes may eat what they save, and that is what this shows.

On a GPU (wall clock): DeiT-S alone, batches of 256, in float32 and in bfloat16.

    python benchmarks/vision_towers.py [--device cuda] [--out DIR]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import common
from common import Row, turns, warn_if_busy, write
from outlay.proofs.zero_tprune_runs import (
    COLUMN,
    KEPT,
    NO_COPIES,
    OURS,
    TOME,
    answers,
    cheapest,
    cost_of,
    methods,
    shown,
)
from outlay.testbeds import garments
from outlay.vision.zero_tprune import PatchRanking, Stage, ZeroTPrune
from outlay.vision.zero_tprune.cost import Shape, macs, overhead

REPEATS = 7
BATCH = 64
SCENES = 1000  # of each size, for accuracy
FULL = "all patches"
Sides = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args()
    if options.out is not None:
        common.RESULTS = options.out
    warn_if_busy()
    torch.set_num_threads(1)
    if options.device == "cuda":
        write(
            "vision_towers_cuda",
            [
                *_deit(torch.device("cuda"), 256, torch.float32),
                *_deit(torch.device("cuda"), 256, torch.bfloat16),
            ],
        )
        return
    rows = [*_garments(), *_deit(torch.device("cpu"), 4, torch.float32)]
    write("vision_towers", rows)


def _run(model: Any, method: Any, pixels_BCHW: torch.Tensor) -> Callable[[], object]:
    def work() -> object:
        with torch.inference_mode(), nullcontext() if method is None else method(model):
            logits = model(pixel_values=pixels_BCHW).logits
        if pixels_BCHW.is_cuda:
            torch.cuda.synchronize()
        return logits

    return work


def _timed(
    case: str, model: Any, sides: Sides, pixels: torch.Tensor, note: Mapping[str, str]
) -> list[Row]:
    """Images a second of every side against the whole model, turn by turn."""
    work = {name: _run(model, method, pixels) for name, method in sides.items()}
    if pixels.is_cuda:  # more than the one warm-up of `turns`: kernels are chosen and loaded
        for one in work.values():
            one()
    clock, said = ("wall", "wall clock") if pixels.is_cuda else ("cpu", "CPU time")
    seconds = turns(work, REPEATS, clock=clock)
    shape, whole = Shape.of(model), seconds[FULL]
    rows = []
    for name, method in sides.items():
        if method is None:
            continue
        ratios = [a / b for a, b in zip(whole, seconds[name], strict=True)]
        share = cost_of(shape, method) / macs(shape)
        rows.append(
            Row(
                f"{case}: {name}",
                "images/s",
                len(pixels) / statistics.median(seconds[name]),
                len(pixels) / statistics.median(whole),
                f"{FULL}, transformers",
                statistics.median(ratios),
                (min(ratios), max(ratios)),
                f"{share:.3f} of the MACs, so at best {1 / share:.2f} times faster; "
                f"{note.get(name, '')}{said}, batch {len(pixels)}",
            )
        )
    return rows


def _overhead(case: str, model: Any, method: Any, pixels: torch.Tensor) -> Row:
    """Time in the pruning layers over the time that shorter blocks save."""
    full, spent, own = [], [], []
    for _ in range(REPEATS):
        clocked = turns({FULL: _run(model, None, pixels)}, 1)
        full.append(clocked[FULL][0])
        with torch.inference_mode(), method(model) as kept:
            model(pixel_values=pixels)
            before = kept.seconds
            clocked = turns({"ours": lambda: model(pixel_values=pixels)}, 1)
        spent.append(clocked["ours"][0])
        own.append((kept.seconds - before) / 2)  # the warm-up of `turns` counts, too
    saved_times = [f - s + o for f, s, o in zip(full, spent, own, strict=True)]
    shares = [o / max(t, 1e-9) for o, t in zip(own, saved_times, strict=True)]
    shape = Shape.of(model)
    saved = macs(shape) - macs(shape, method) + overhead(shape, method)
    return Row(
        f"{case}: the pruning layers' time over the time that they save",
        "share",
        statistics.median(shares),
        spread=(min(shares), max(shares)),
        note=f"by multiply-adds {overhead(shape, method) / saved:.3f}; above 1 nothing is gained; "
        "wall time",
    )


def _garments() -> list[Row]:
    model = garments.load()
    shape = Shape.of(model)
    seen = {size: shown(size, SCENES, [0]) for size in (28, 56)}
    full = {size: _accuracy(model, None, one) for size, one in seen.items()}
    rows = [
        Row(
            f"garments, {size} px: accuracy, {FULL}",
            "accuracy",
            full[size],
            note=f"{SCENES} unseen scenes; {macs(shape) / 1e6:.1f} M multiply-adds",
        )
        for size in seen
    ]
    pixels = seen[28].tensor()[:BATCH]
    for budget, kept in KEPT.items():
        every = methods(shape, kept)
        sides = {FULL: None} | {n: every[n] for n in (OURS, NO_COPIES, COLUMN, TOME) if n in every}
        note = {}
        for name, method in sides.items():
            if method is not None:
                right = [f"{_accuracy(model, method, one):.3f}" for one in seen.values()]
                note[name] = f"accuracy {right[0]} at 28 px, {right[1]} at 56 px; "
        rows += _timed(f"garments, {budget} schedule", model, sides, pixels, note)
        rows.append(_overhead(f"garments, {budget} schedule", model, every[OURS], pixels))
    return rows


def _accuracy(model: Any, method: Any, seen: garments.Scenes) -> float:
    said_B, _ = answers(model, method, seen.tensor())
    return float((said_B == seen.labels_B).double().mean())


def _deit(device: torch.device, batch: int, dtype: torch.dtype) -> list[Row]:
    """DeiT-S at 224 pixels with random weights."""
    from transformers import DeiTConfig, DeiTForImageClassification

    torch.manual_seed(0)
    config = DeiTConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=6)
    model = DeiTForImageClassification(config)
    model = model.train(False).to(device, dtype)
    shape, ours = Shape.of(model), ZeroTPrune()
    plain = []
    patches = shape.patches
    for stage in ours.stages:
        left = stage.left(patches)
        plain.append(Stage(stage.block, left / patches))
        patches = left
    sides: dict[str, Any] = {FULL: None, OURS: ours, COLUMN: PatchRanking(plain, "column")}
    if (merging := cheapest(shape, macs(shape, ours), 1)) is not None:
        sides[TOME] = merging
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    case = "DeiT-S, published schedule"
    if device.type == "cuda":  # what is spent inside is not known: the host does not wait
        name = str(dtype).removeprefix("torch.")
        return _timed(f"{case}, {name}", model, sides, pixels.to(device, dtype), {})
    rows = _timed(case, model, sides, pixels, {})
    rows.append(_overhead("DeiT-S, published schedule", model, ours, pixels))
    return rows


if __name__ == "__main__":
    main()
