"""Changes that try to get the claims that the A*-decoding proof does not find; all are reported.

*Billed tokens.* Every pass of the verifier is billed for the whole text so far, so there should be
fewer passes: successors that all samples of a state agree on are not judged (`judge_agreed`), or
the verifier looks at every second step only (`stride`).

*An oracle at chance.* Its scores should leave one sample's accuracy. They are the same for equal
texts, so a rare wrong step is chosen as often as the usual right one, and going back makes early,
wrong ends likelier the longer the search lasts. So the search goes straight on, or what the policy
itself finds likely is part of the cost.

*A truthful oracle.* It needs more expansions than the chain has steps where none of the k
successors is right, so there are more of them, or the samples are cooler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from outlay.proofs.a_star_decoding_runs import Group, Setting, ratio_at
from outlay.proofs.a_star_decoding_world import K, World, only, places
from outlay.proofs.base import Check
from outlay.reason import Verifier
from outlay.stats import FloatArray, percentiles, resample_means
from outlay.testbeds.reasoner.oracle import ChainOracle

FEWER_PASSES: Mapping[str, Mapping[str, Any]] = {
    "no pass where samples agree": {"judge_agreed": False},
    "a pass every second step": {"stride": 2},
}
AT_CHANCE: Mapping[str, Mapping[str, Any]] = {
    "straight on": {"frontier_cap": 1},
    "unlikely steps cost": {"cost": "logprob", "lam": 1.0},
}
MORE = 8  # successors
COOLER = 0.7  # of the temperature


def billed(
    world: World,
    verifier: Verifier,
    best: Sequence[Setting],
    rival: Setting,
    accuracy: float,
) -> tuple[list[Check], list[Setting]]:
    """What fewer passes of the verifier cost at best-of-N's accuracy, and at a fixed one.

    Args:
        world: what is run on; the first `Size.tried` questions of every seed.
        verifier: the learned one.
        best: the curve of best-of-N, over all questions.
        rival: its setting whose accuracy is to be reached.
        accuracy: the fixed one.
    """
    some = [Group(group.seed, group.asked[: world.size.tried]) for group in world.all]
    where = places(world.all, some)
    theirs = [only(setting, where) for setting in best]
    checks, settings = [], []
    for name, knobs in FEWER_PASSES.items():
        ours = [world.astar(some, verifier, k, name=name, **knobs) for k in world.size.successors]
        settings += ours
        top = max(setting.accuracy for setting in ours)
        goals: dict[str, float | Setting] = {
            f"the accuracy of best-of-{rival.knob}": only(rival, where),
            f"{accuracy:.0%} accuracy": accuracy,
        }
        for at, goal in goals.items():
            found = ratio_at(ours, theirs, "billed", goal)
            shared = ratio_at(ours, theirs, "computed", goal)
            known = found.lo is not None and found.hi is not None
            costs = "" if found.value is None else f"{found.ours:.0f} against {found.theirs:.0f}, "
            also = "not reached" if shared.value is None else f"{shared.value:.2f}"
            checks.append(
                Check(
                    f"change tried, {name}: tokens (billed) at {at}, over its tokens",
                    "up to 3x fewer",
                    "not reached" if found.value is None else found.value,
                    None,
                    (found.lo, found.hi) if known else None,  # type: ignore[arg-type]
                    f"{costs}at {found.at:.3f}, reached in {found.reached:.0%} of resamples; "
                    f"{len(where)} questions, highest {top:.3f}; computed: {also}",
                )
            )
    return checks, settings


def at_chance(world: World, single_N: FloatArray, seed: int) -> tuple[list[Check], list[Setting]]:
    """What a verifier that says nothing costs, where the search does less with what it says.

    Args:
        world: what is run on; its part.
        single_N: accuracy of one sample of each of the part's questions.
        seed: of the oracle.
    """
    checks, settings = [], []
    for name, knobs in AT_CHANCE.items():
        setting = world.astar(world.part, ChainOracle(0.5, seed), K, name=name, **knobs)
        gap_N1 = (setting.right_N - single_N)[:, None]
        ci = percentiles(resample_means(gap_N1, 1000, seed)[:, 0], 0.95)
        checks.append(
            Check(
                f"change tried, oracle at chance, {name}: accuracy minus one sample's",
                "-",
                float(gap_N1.mean()),
                None,
                ci,
                f"AUC 0.5, k={K}, {len(single_N)} questions",
            )
        )
        settings.append(setting)
    return checks, settings


def truthful(world: World, seed: int) -> tuple[list[Check], list[Setting]]:
    """How often a truthful oracle goes straight down, where right successors are likelier."""
    cooler = replace(world, temperature=COOLER * world.temperature)
    runs = {
        f"k={MORE}": (world, MORE),
        f"temperature {cooler.temperature:.2f}": (cooler, K),
    }
    checks, settings = [], []
    for name, (where, k) in runs.items():
        setting = where.astar(world.part, ChainOracle(1.0, seed), k, name=name)
        exact = straight(setting)
        checks.append(
            Check(
                f"change tried, truthful oracle, {name}: as many expansions as the chain has steps",
                "-",
                float(np.mean(exact)) if exact else "no right answer",
                None,
                note=f"{len(exact)} answers all of whose steps are right",
            )
        )
        settings.append(setting)
    return checks, settings


def straight(setting: Setting) -> list[bool]:
    """For answers all of whose steps are right: whether the search went straight down to them."""
    return [
        answer.detail["expansions"] == len(answer.chosen.lineage()) - 1
        for answer in setting.answers
        if answer.chosen is not None and answer.scores and max(answer.scores) == 1
    ]
