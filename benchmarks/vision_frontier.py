"""Every vision method at equal budgets of visual tokens, on the same questions.

The seer of size S (64 visual tokens, four layers) or M (144, six layers) answers held-out questions
of all kinds whose answer is one word. Budgets are means over the decoder's layers, so that a method
inside the decoder pays for the layers before it drops; where it cannot spend so little it has no
point. G-Search's steepness is tuned on scenes of their own for each budget; the oracle keeps the
patches that show objects, most covered first. Intervals are bootstraps over questions. QuoTA
(videos), TokenFLEX and T2T-ViT (models of their own) stand in their own proofs.

    python benchmarks/vision_frontier.py [--size S] [--n 400] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from outlay.budget import Budget
from outlay.errors import OutlayError
from outlay.figure import plot
from outlay.frontier import points
from outlay.ledger import Ledger
from outlay.machine import commit, machine, today
from outlay.records import Record
from outlay.testbeds.seer import load
from outlay.testbeds.seer.evaluate import Examples, answered, held_out
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.questions import VOCABULARY
from outlay.testbeds.seer.scenes import Scenes
from outlay.vision import costs
from outlay.vision.baselines import (
    ClassTopTokens,
    GivenTokens,
    MergedTokens,
    NoTokens,
    PooledTokens,
    RandomTokens,
    UniformTokens,
)
from outlay.vision.covipal import CoViPAL
from outlay.vision.dropper import Dropper
from outlay.vision.gsearch import GSearch
from outlay.vision.gsearch.calibration import Batch
from outlay.vision.hired import HiRED
from outlay.vision.in_decoder import FastV, PyramidDrop
from outlay.vision.zero_tprune import ZeroTPrune

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
SHARES = (0.06, 0.125, 0.25, 0.5, 0.75)
BATCH, CALIBRATION, SPLIT = 64, 32, 7  # rows; scenes of a kind; seed of the calibration scenes
SHOWN = (
    *("full", "hired", "covipal", "g-search", "zero-tprune", "class-top", "fastv"),
    *("fastv, layer 1", "pyramid-drop", "merged-visual", "pooled-visual", "random-visual"),
)
"""In the picture; the rest is in the table."""

Method = Callable[[Any], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=("S", "M"))
    parser.add_argument("--n", type=int, default=400, help="scenes of every kind of question")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seer = load(options.size)
    asked = held_out(options.size, options.n, seed=11)
    records: list[Record] = []
    for name, budget, method in cells(seer):
        try:
            found = list(run(seer, asked, name, budget, method))
        except OutlayError as error:
            print(f"{name} at {budget.label()}: {error}")
            continue
        records += found
        mean = sum(one.quality for one in found) / len(found)
        print(f"{name:16} {budget.label():24} {mean:.3f}", flush=True)
    save(options.size, options.n, records, options.out)


def cells(seer: Seer) -> Iterator[tuple[str, Budget, Method | None]]:
    """What runs: name, budget, method."""
    total, layers = seer.size.tokens, seer.size.layers
    base: dict[str, Any] = {
        "hired": HiRED(),
        "covipal": CoViPAL(),
        "zero-tprune": ZeroTPrune(schedule=[(2, 0.5, 0, 1)]),
        "class-top": ClassTopTokens(),
        "fastv": FastV(),
        "fastv, layer 1": FastV(layer=1),
        "pyramid-drop": PyramidDrop(),
        "merged-visual": MergedTokens(),
        "pooled-visual": PooledTokens(),
        "uniform-visual": UniformTokens(),
        "random-visual": RandomTokens(),
    }
    yield "full", Budget(), None
    yield "blind", Budget(), NoTokens()
    for share in SHARES:
        tokens = max(1, round(share * total))
        budget = Budget(tokens=tokens, counts="vision")
        yield "oracle", budget, None
        for name, method in base.items():
            try:
                yield name, budget, method.within(tokens, total, layers)
            except OutlayError as error:
                print(f"{name} at {budget.label()}: {error}")
        try:
            yield "g-search", budget, tuned(seer, tokens / total)
        except OutlayError as error:
            print(f"g-search at {budget.label()}: {error}")


def tuned(seer: Seer, share: float) -> GSearch:
    """The best P-Sigmoid of a budget on calibration scenes."""
    batches = []
    for part in held_out(seer.size.name, CALIBRATION, split="train", seed=SPLIT).values():
        answers = [[VOCABULARY[word] for word in one.answer] for one in part.questions]
        batches.append(Batch(seer.inputs(part.seen, part.questions), answers))
    method = GSearch(mode="budget", budget=share, first_drop=1)
    return method.fit(seer.model, batches)


def run(
    seer: Seer,
    asked: dict[str, Examples],
    name: str,
    budget: Budget,
    method: Method | None,
) -> Iterator[Record]:
    """A record a question."""
    for kind, examples in asked.items():
        for start in range(0, len(examples), BATCH):
            part = examples[start : start + BATCH]
            inputs = seer.inputs(part.seen, part.questions)
            opened = method or (_oracle(part, budget) if name == "oracle" else Dropper)
            with torch.no_grad(), opened(seer.model) as kept:
                right = answered(seer, part, inputs)
            for row, quality in enumerate(right):
                visual = [layer[row] for layer in kept.counts()]
                cost = costs.prefill(seer.model.config, kept.text[row], visual, ranked=kept.ranked)
                ledger = Ledger()
                ledger.record("vision", "target", prompt_new=int(cost.tokens + 0.5), method=name)
                ledger.record(
                    "answer",
                    "target",
                    prompt_new=kept.text[row],
                    generated=1,
                    method=name,
                    flops=float(cost.flops),
                )
                yield Record(
                    task=f"seer-{seer.size.name}",
                    example=f"{kind}-{start + row}",
                    method_stack=name,
                    budget=budget,
                    seed=0,
                    quality=float(quality),
                    ledger=ledger,
                    kv_bytes=float(cost.kv_bytes),
                )


def _oracle(part: Examples, budget: Budget) -> Method:
    """Patches by how much of them objects cover."""
    assert budget.tokens is not None
    covered_BN = cast(Scenes, part.seen).coverage().max(-1).reshape(len(part), -1)
    return GivenTokens(list(covered_BN), max_tokens=budget.tokens)


def save(size: str, n: int, records: list[Record], folder: Path) -> None:
    """Table, data and picture."""
    folder.mkdir(parents=True, exist_ok=True)
    found = points(records, axis="vision")
    stem = folder / f"vision_frontier_{size}"
    data = {
        "name": stem.name,
        "date": today(),
        "commit": commit(),
        "machine": machine(),
        "questions": len({record.example for record in records}),
        "scenes": n,
        "points": [point.to_dict() for point in found],
    }
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# Vision methods at equal budgets, seer {size}",
        "",
        f"{today()}, {machine()['cpu']}; {data['questions']} held-out questions, six kinds. "
        "Budgets and tokens are means over the decoder's layers.",
        "",
        "| budget | method | accuracy | 95 % CI | visual tokens | FLOPs | KV bytes |",
        "|---" * 7 + "|",
    ]
    lines += [
        f"| {point.budget.label()} | {point.stack} | {point.quality:.3f} | {point.lo:.3f} to "
        f"{point.hi:.3f} | {point.cost:.1f} | {point.flops:.3g} | {point.kv_bytes:,.0f} |"
        for point in sorted(found, key=lambda p: (p.budget.tokens or 10**6, -p.quality))
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shown = [point for point in found if point.stack in SHOWN]
    plot(
        shown,
        stem.with_suffix(".png"),
        title=f"Vision methods on the seer ({size})",
        metric="accuracy on held-out questions",
        log=True,
        width=9,
        height=5.6,
    )
    print(f"wrote {stem.with_suffix('.md')}")


if __name__ == "__main__":
    main()
