"""Proof of CoViPAL (arXiv 2508.17243) on the seer, with dense scenes of four to six objects.

A pruning module is trained for the frozen seer: stage 1 on the attention of a deeper layer, stage 2
end to end under soft removal; three seeds. At reserve ratios from .5 to .03 it is measured, on
scenes of other source pictures, against random tokens, an even grid, the class token's ranking, the
module without text, stage 1 alone, the true attention of the guidance layer, and, at equal mean
tokens a layer, FastV-like and PyramidDrop-like removal inside the decoder.

The five claims have targets, written before the first run. A pilot on the smaller seer S came
before it. There 192 steps of stage 1 gave .742/.560/.467 at .125/.06/.03 of the tokens. A second
stage of 32 steps made that .732/.599/.479 with the soft gate and .816/.626/.504 with the exact
top-k gate, which is why the latter is taken here; the soft gate is reported beside it. A look at
the true attention of seer M's layers, on 64 scenes, said that the question's last token guides
better than all of its words. Wall clock, costs and the gap between hard and soft removal are
reported.

The quick variant trains for a few steps on seer S, which shows that everything runs; its one target
is that the module that ships beats random tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from outlay.errors import InputError
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.covipal_changes import changes
from outlay.proofs.covipal_claims import (
    BLIND,
    CLASS,
    FIRST,
    FULL,
    GRID,
    NARROW,
    NOTHING,
    ORACLE,
    OURS,
    RANDOM,
    WIDE,
    Table,
    beside,
    context,
    counting,
    pool,
    random_tokens,
    stages,
)
from outlay.proofs.covipal_cost import CACHE, costs
from outlay.proofs.covipal_figure import drawer
from outlay.proofs.covipal_runs import (
    METHOD,
    TYPES,
    Make,
    Modules,
    Size,
    World,
    always,
    answered,
    at,
    class_token,
    difference,
    full_accuracy,
    hard_minus_soft,
    modules,
    oracle,
    prompts_of,
    random,
    ratio_count,
    uniform,
    world,
)
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.store import load
from outlay.vision.base import Budgeted, Pruner
from outlay.vision.baselines import NoTokens
from outlay.vision.covipal import CoViPAL
from outlay.vision.covipal.training import Recipe
from outlay.vision.in_decoder import FastV, PyramidDrop

SIZES: Mapping[Scale, Size] = {
    "ci": Size(4, 16, 1, 32, 32, (0,), (1.0, 1.0)),
    "laptop": Size(96, 32, 6, 1024, 320, (0, 1, 2), (6.0, 0.75), timed=30),
    "gpu": Size(400, 32, 12, 4096, 1024, (0, 1, 2), (12.0, 3.0), timed=30),
}
RECIPE = Recipe(lr=(5e-3, 2e-4), lr2=5e-4, ratios=(0.03, 0.5), queries="last")
SEED = 4200
SHIPPED_SCENES = 128
IDENTITY = "r=1 leaves logits bit-identical"
EXACT = (IDENTITY, CACHE)  # hold after any number of steps


def run(scale: Scale, *, seed: int = 0, progress: Progress = silent) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means.

    Raises:
        ModelError: if no seer of that size ships.
        DependencyError: without Fashion-MNIST.
    """
    seer = load("S" if scale == "ci" else "M")
    result = prove(seer, scale, SIZES[scale], seed=seed, progress=progress)
    if scale == "ci":
        result.checks = [
            check if check.claim in EXACT else replace(check, holds=None) for check in result.checks
        ]
        result.checks.append(_shipped(seer, seed))
    return result.finish()


def _shipped(seer: Seer, seed: int) -> Check:
    """The module that comes with the package, against random tokens."""
    asked = prompts_of(seer, SHIPPED_SCENES, SEED + 3 + seed)
    ways = {OURS: always(CoViPAL(ratio=NARROW[0])), RANDOM: random(NARROW[0], 0)}
    table: Table = {
        name: {NARROW[0]: {kind: answered(seer, part, make) for kind, part in asked.items()}}
        for name, make in ways.items()
    }
    return replace(random_tokens(table), claim="the shipped module is better than random tokens")


def prove(
    seer: Seer, scale: Scale, size: Size, *, seed: int = 0, progress: Progress = silent
) -> ProofResult:
    """The proof on any seer of one picture.

    Args:
        seer: frozen.
        scale: for the result's head.
        size: how much.
        seed: added to the seeds of scenes.
        progress: is told.
    """
    result = ProofResult("covipal", scale, [*size.seeds, SEED + seed])
    found = world(seer, size, RECIPE, METHOD.stairs[0][1], SEED + seed, progress)
    trained = _trained(found, size, progress)
    table = _entered(found, size, trained, progress)
    inside = _inside(found, size, trained["inside"], progress)
    checks = result.checks
    checks += context(table)
    checks += [counting(table), stages(table), _guidance(found, trained, progress)]
    checks.append(_identity(found, trained[OURS][0]))
    checks += beside(inside)
    checks.append(random_tokens(table))
    checks += _reported(found, table, trained)
    if scale != "ci":
        recipe = replace(RECIPE, epochs=size.epochs)
        checks += changes(found, trained[OURS], NARROW, recipe, progress)
    timing = costs(found, at(trained[OURS][0].last, 0.125), size.timed)
    checks += timing.checks
    result.data = _data(found, table, inside, trained) | {"costs": timing.rows}
    result.draw = drawer(_means(table), _means(inside), found.tokens)
    return result.finish()


def _trained(found: World, size: Size, progress: Progress) -> dict[str, list[Modules]]:
    """Both stages, without text, and before layer 1, for every seed."""
    recipes = [replace(RECIPE, epochs=size.epochs, seed=s) for s in size.seeds]
    made: dict[str, list[Modules]] = {OURS: [], BLIND: []}
    for recipe in recipes:
        progress(f"modules of seed {recipe.seed}")
        made[OURS].append(modules(found, METHOD, recipe))
        blind = replace(METHOD, text_context=False)
        made[BLIND].append(modules(found, blind, recipe))
    progress("a module before layer 1, and one that a shallow layer taught")
    later = replace(METHOD, prune_layer=1)
    made["inside"] = [modules(found, later, recipes[0], guide=found.best_below(1))]
    made["shallow"] = [modules(found, METHOD, recipes[0], guide=0, stage2=False)]
    return made


def _entered(
    found: World, size: Size, trained: Mapping[str, list[Modules]], progress: Progress
) -> Table:
    """Everything that prunes before the decoder, and nothing pruned."""
    table: Table = {}
    for ratio in (*WIDE, *NARROW):
        progress(f"answers at {ratio:g}")
        ways: dict[str, list[Make]] = {
            OURS: [always(at(one.last, ratio)) for one in trained[OURS]],
            FIRST: [always(at(one.one, ratio)) for one in trained[OURS]],
            BLIND: [always(at(one.last, ratio)) for one in trained[BLIND]],
            RANDOM: [random(ratio, 0)],
            GRID: [uniform(ratio)],
            CLASS: [class_token(found, ratio)],
            ORACLE: [oracle(found, ratio)],
        }
        for name, makes in ways.items():
            kept = makes[:1] if ratio in WIDE else makes
            for kind in TYPES:
                prompts = found.asked[kind]
                if ratio in WIDE:
                    prompts = prompts.first(size.wide)
                right = np.mean([answered(found.seer, prompts, make) for make in kept], axis=0)
                table.setdefault(name, {}).setdefault(ratio, {})[kind] = right
    progress("answers with all tokens, and with none")
    for name, one, ratio in ((FULL, None, 1.0), (NOTHING, always(NoTokens()), 0.0)):
        prompts_of = {kind: found.asked[kind].first(size.wide) for kind in TYPES}
        table[name] = {
            ratio: {kind: answered(found.seer, p, one) for kind, p in prompts_of.items()}
        }
    return table


def _inside(found: World, size: Size, later: list[Modules], progress: Progress) -> Table:
    """Removal inside the decoder, at equal mean tokens a layer; those that cannot are left out."""
    table: Table = {}
    pruners: dict[str, Budgeted] = {
        "CoViPAL before layer 1": later[0].last,
        "FastV-like, layer 1": FastV(layer=1),
        "FastV-like, layer 2": FastV(layer=2),
        "PyramidDrop-like": PyramidDrop(),
    }
    for ratio in WIDE:
        tokens = ratio_count(ratio, found.tokens)
        for name, pruner in pruners.items():
            try:
                fitting: Pruner = pruner.within(tokens, found.tokens, found.depth)
            except InputError:
                continue  # its full first layers cost more than that
            progress(f"{name} at {ratio:g}")
            for kind in TYPES:
                prompts = found.asked[kind].first(size.wide)
                right = answered(found.seer, prompts, always(fitting))
                table.setdefault(name, {}).setdefault(ratio, {})[kind] = right
    return table


def _guidance(found: World, trained: Mapping[str, list[Modules]], progress: Progress) -> Check:
    """Claim 4: a layer that is not deeper than the pruned one is a worse teacher."""
    ratio = NARROW[0]
    progress("answers of the module that layer 0 taught")
    shallow = always(at(trained["shallow"][0].one, ratio))
    deep = always(at(trained[OURS][0].one, ratio))
    answers = [
        np.concatenate([answered(found.seer, found.asked[kind], make) for kind in TYPES])
        for make in (deep, shallow)
    ]
    gap = difference(answers[0], answers[1])
    return Check(
        f"guidance of layer {found.guide} beats that of layer 0, which is not deeper than l_p=0",
        "the guidance layer must be deeper than the pruning layer",
        gap.mean,
        gap.separable and gap.mean > 0,
        (gap.lo, gap.hi),
        f"stage 1 at {ratio:g}, one seed, all types: {answers[0].mean():.3f} against "
        f"{answers[1].mean():.3f}, n={gap.n}; target: separably above 0",
    )


def _identity(found: World, ours: Modules) -> Check:
    """Claim 5: nothing pruned, nothing changed."""
    import torch

    model = found.seer.model
    apart = 0
    for prompts in found.asked.values():
        inputs = prompts.inputs[0]
        with torch.no_grad():
            plain = model(**inputs).logits
            with at(ours.last, 1.0)(model):
                same = model(**inputs).logits
        apart += int((plain != same).sum())
    return Check(
        IDENTITY,
        "",
        float(apart),
        apart == 0,
        None,
        f"logits that differ, over a batch of each of {len(found.asked)} types; target: 0",
    )


def _reported(found: World, table: Table, trained: Mapping[str, list[Modules]]) -> list[Check]:
    """Figures without a target."""
    kinds = tuple(TYPES)
    checks = []
    for ratio in NARROW:
        gap = difference(pool(table, FIRST, ratio, kinds), pool(table, ORACLE, ratio, kinds))
        checks.append(
            Check(
                f"stage 1 against its teacher's true attention at {ratio:g}",
                "an upper bound of stage 1",
                gap.mean,
                None,
                (gap.lo, gap.hi),
                f"all types, n={gap.n}",
            )
        )
    gaps = [hard_minus_soft(found, one.last) for one in trained[OURS]]
    checks.append(
        Check(
            "accuracy after hard removal minus that under soft removal",
            "",
            float(np.mean(gaps)),
            None,
            (min(gaps), max(gaps)),
            f"validation rows, ratio {METHOD.ratio}; the interval is over seeds",
        )
    )
    checks.append(
        Check(
            "guidance layer, chosen on validation data",
            "deeper than the pruning layer",
            float(found.guide),
            None,
            None,
            "accuracy of pruning by each layer's attention: "
            + ", ".join(f"{layer}: {value:.3f}" for layer, value in found.oracles.items())
            + f"; unpruned {full_accuracy(found):.3f}",
        )
    )
    return checks


def _means(table: Table) -> dict[str, dict[float, dict[str, float]]]:
    return {
        name: {
            ratio: {kind: float(right.mean()) for kind, right in kinds.items()}
            for ratio, kinds in ratios.items()
        }
        for name, ratios in table.items()
    }


def _data(
    found: World, table: Table, inside: Table, trained: Mapping[str, list[Modules]]
) -> dict[str, Any]:
    def rows(of: Table) -> list[dict[str, Any]]:
        return [
            {"method": name, "ratio": ratio, "n": len(right), "type": kind, "accuracy": mean}
            for name, ratios in _means(of).items()
            for ratio, kinds in ratios.items()
            for kind, mean in kinds.items()
            for right in (of[name][ratio][kind],)
        ]

    fitted = trained[OURS][0].one.fitted
    return {
        "visual_tokens": found.tokens,
        "module_weights": 0
        if fitted is None
        else sum(weight.numel() for weight in fitted.ppms[0].parameters()),
        "model_weights": sum(w.numel() for w in found.seer.model.parameters()),
        "guidance_layer": found.guide,
        "oracles": {str(layer): value for layer, value in found.oracles.items()},
        "losses": {name: [one.loss for one in made] for name, made in trained.items()},
        "before_decoder": rows(table),
        "inside_decoder": rows(inside),
    }
