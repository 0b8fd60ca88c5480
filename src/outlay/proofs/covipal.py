"""Proof of CoViPAL (arXiv 2508.17243) on the seer, with dense scenes of four to six objects.

A pruning module is trained for the frozen seer: stage 1 on the attention of a deeper layer, stage 2
end to end under soft removal; three seeds. At reserve ratios from .5 to .03 it is measured, on
scenes of other source pictures, against random tokens, an even grid, the class token's ranking, the
module without text, stage 1 alone, the true attention of the guidance layer, and, at equal mean
tokens a layer, FastV-like and PyramidDrop-like removal inside the decoder.

The five claims of the sheet have targets, written before the first run. Wall clock, costs and the
gap between hard and soft removal are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from outlay.errors import InputError
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.covipal_changes import changes
from outlay.proofs.covipal_cost import costs
from outlay.proofs.covipal_figure import drawer
from outlay.proofs.covipal_runs import (
    METHOD,
    NAMED,
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
    random,
    ratio_count,
    uniform,
    world,
)
from outlay.stats import FloatArray
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.store import load
from outlay.vision.base import Budgeted, Pruner
from outlay.vision.baselines import NoTokens
from outlay.vision.covipal.training import Recipe
from outlay.vision.in_decoder import FastV, PyramidDrop

WIDE, NARROW = (0.5, 0.25), (0.125, 0.06, 0.03)
SIZES: Mapping[Scale, Size] = {
    "ci": Size(6, 16, 1, 64, 64, (0,), (2.0, 1.0)),
    "laptop": Size(96, 32, 6, 1024, 320, (0, 1, 2), (3.0, 0.5), timed=30),
    "gpu": Size(400, 32, 12, 4096, 1024, (0, 1, 2), (3.0, 1.0), timed=30),
}
RECIPE = Recipe(lr=(2e-3, 2e-4), lr2=3e-4)
SEED = 4200
OURS, FIRST, BLIND = "CoViPAL", "stage 1 only", "without text"
RANDOM, GRID, CLASS, ORACLE = "random", "even grid", "class token", "true attention"
FULL, NOTHING = "all tokens", "no tokens"

# Targets.
COUNT_LOSS = 0.02  # on "how many", against the module without text, at most
EVEN = 0.0  # stage 2 is at least as good as stage 1
BY_CHANCE = 0.03  # quick check: at least so much better than random tokens at .125

Table = dict[str, dict[float, dict[str, FloatArray]]]
"""Method -> ratio -> type -> right answers, mean over seeds."""


def run(scale: Scale, *, seed: int = 0, progress: Progress = silent) -> ProofResult:
    """Run the experiment; see `SIZES` for what each scale means.

    Raises:
        ModelError: if no seer of size M ships.
        DependencyError: without Fashion-MNIST.
    """
    return prove(load("M"), scale, SIZES[scale], seed=seed, progress=progress)


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
    found = world(seer, size, METHOD.amount().stairs[0][1], SEED + seed, progress)
    trained = _trained(found, size, progress)
    table = _entered(found, size, trained, progress)
    inside = _inside(found, size, trained["inside"], progress)
    checks = result.checks
    checks += _context(table)
    checks += [_counting(table), _stages(table), _guidance(found, table, trained, progress)]
    checks.append(_identity(found, trained[OURS][0]))
    checks += _beside(inside)
    checks.append(_random(table))
    checks += _reported(found, table, trained)
    if scale != "ci":
        checks += changes(found, table[FIRST], trained[OURS], NARROW, RECIPE, progress)
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
        made[BLIND].append(modules(found, blind, recipe, stage2=False))
    progress("a module before layer 1, and one that a shallow layer taught")
    later = replace(METHOD, prune_layer=1, guidance_layer=None)
    made["inside"] = [modules(found, later, recipes[0], stage2=False)]
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
            RANDOM: [random(ratio, s) for s in size.seeds],
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
        "CoViPAL before layer 1": later[0].one,
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


# -- claims ---------------------------------------------------------------------------------------


def _pool(table: Table, name: str, ratio: float, kinds: tuple[str, ...]) -> FloatArray:
    return np.concatenate([table[name][ratio][kind] for kind in kinds])


def _context(table: Table) -> list[Check]:
    """Claim 1: knowing the question helps where not everything can be kept."""
    checks = []
    for rival in (BLIND, CLASS):
        for ratio in NARROW:
            gap = difference(_pool(table, OURS, ratio, NAMED), _pool(table, rival, ratio, NAMED))
            checks.append(
                Check(
                    f'"which / what kind is C" at {ratio:g}: CoViPAL above {rival}',
                    "contextualised pruning wins, most at low ratios",
                    gap.mean,
                    gap.separable and gap.mean > 0,
                    (gap.lo, gap.hi),
                    f"{_pool(table, OURS, ratio, NAMED).mean():.3f} against "
                    f"{_pool(table, rival, ratio, NAMED).mean():.3f}, n={gap.n}; target: "
                    "separably above 0",
                )
            )
    large, small = NARROW[0], NARROW[-1]
    gaps = [
        _pool(table, OURS, ratio, NAMED) - _pool(table, BLIND, ratio, NAMED)
        for ratio in (small, large)
    ]
    growth = difference(gaps[0], gaps[1])
    checks.append(
        Check(
            f"the gap to {BLIND} grows from {large:g} to {small:g}",
            "the gap over the best training-free method grows from +0.2 (.5) to +4.6 (.25)",
            growth.mean,
            growth.separable and growth.mean > 0,
            (growth.lo, growth.hi),
            f"{gaps[1].mean():+.3f} to {gaps[0].mean():+.3f}, n={growth.n}; target: separably "
            "above 0",
        )
    )
    return checks


def _counting(table: Table) -> Check:
    """Claim 2: questions about everything lose nothing by it."""
    gap = difference(
        np.mean([table[OURS][ratio]["count"] for ratio in NARROW], axis=0),
        np.mean([table[BLIND][ratio]["count"] for ratio in NARROW], axis=0),
    )
    shown = ", ".join(
        f"{table[OURS][r]['count'].mean():.3f}/{table[BLIND][r]['count'].mean():.3f} at {r:g}"
        for r in NARROW
    )
    return Check(
        f'"how many": no loss against {BLIND}',
        "none on whole-image questions",
        gap.mean,
        gap.mean >= -COUNT_LOSS,
        (gap.lo, gap.hi),
        f"{shown}; mean over ratios, n={gap.n}; target: at least -{COUNT_LOSS}",
    )


def _stages(table: Table) -> Check:
    """Claim 3: stage 2 does not undo stage 1."""
    both = [
        np.mean([_pool(table, name, ratio, tuple(TYPES)) for ratio in NARROW], axis=0)
        for name in (OURS, FIRST)
    ]
    gap = difference(both[0], both[1])
    shown = ", ".join(
        f"{_pool(table, OURS, r, tuple(TYPES)).mean():.3f}/"
        f"{_pool(table, FIRST, r, tuple(TYPES)).mean():.3f} at {r:g}"
        for r in NARROW
    )
    return Check(
        "stage 2 is at least as good as stage 1 after hard removal",
        "two stages",
        gap.mean,
        gap.mean >= EVEN,
        (gap.lo, gap.hi),
        f"{shown}; all types, mean over ratios, n={gap.n}; target: at least {EVEN:g}",
    )


def _guidance(
    found: World, table: Table, trained: Mapping[str, list[Modules]], progress: Progress
) -> Check:
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
        "r=1 leaves logits bit-identical",
        "",
        float(apart),
        apart == 0,
        None,
        f"logits that differ, over a batch of each of {len(found.asked)} types; target: 0",
    )


def _beside(inside: Table) -> list[Check]:
    """Equal mean tokens a layer."""
    checks = []
    ours = "CoViPAL before layer 1"
    kinds = tuple(TYPES)
    for ratio in WIDE:
        if ratio not in inside.get(ours, {}):
            continue
        rivals = {
            name: _pool(inside, name, ratio, kinds)
            for name, found in inside.items()
            if name != ours and ratio in found
        }
        best = max(rivals, key=lambda name: rivals[name].mean())
        gap = difference(_pool(inside, ours, ratio, kinds), rivals[best])
        checks.append(
            Check(
                f"pruning before layer 1, equal mean tokens of {ratio:g}: CoViPAL against the best "
                "in-decoder ranking",
                {0.5: "97.48 against 97.29", 0.25: "89.48 against 84.93"}[ratio],
                gap.mean,
                (gap.separable and gap.mean > 0) if ratio == WIDE[-1] else None,
                (gap.lo, gap.hi),
                f"{_pool(inside, ours, ratio, kinds).mean():.3f}; "
                + ", ".join(f"{name} {right.mean():.3f}" for name, right in rivals.items())
                + f"; n={gap.n}"
                + ("; target: separably above 0" if ratio == WIDE[-1] else ""),
            )
        )
    return checks


def _random(table: Table) -> Check:
    """The quick assertion."""
    ratio, kinds = NARROW[0], tuple(TYPES)
    gap = difference(_pool(table, OURS, ratio, kinds), _pool(table, RANDOM, ratio, kinds))
    return Check(
        f"CoViPAL at {ratio:g} is better than random tokens",
        "",
        gap.mean,
        gap.mean >= BY_CHANCE,
        (gap.lo, gap.hi),
        f"all types, n={gap.n}; target: at least {BY_CHANCE}",
    )


def _reported(found: World, table: Table, trained: Mapping[str, list[Modules]]) -> list[Check]:
    """Figures without a target."""
    kinds = tuple(TYPES)
    checks = []
    for ratio in NARROW:
        gap = difference(_pool(table, FIRST, ratio, kinds), _pool(table, ORACLE, ratio, kinds))
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
