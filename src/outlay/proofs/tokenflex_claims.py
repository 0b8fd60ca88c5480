"""Claims of TokenFLEX's proof, each judged on tables of right answers.

Every target was written before the first run.

Shapes: S scenes, K kinds of question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from outlay.proofs.base import Check
from outlay.proofs.tokenflex_runs import (
    ARMS,
    BETWEEN,
    COARSE,
    COUNTS,
    FINE,
    KINDS,
    PROBS,
    Model,
    Plan,
    columns,
)
from outlay.stats import mean_interval

# Targets.
FAR = 0.10  # flex above fixed-144 on fine questions, both at 36 tokens, at least
PARITY = -0.02  # flex minus the matching specialist, all questions, at least
SHARE = float(np.dot(COUNTS, PROBS)) / COUNTS[-1]  # of fixed-144's training tokens
SHARE_OFF = 0.03  # how far a finite number of draws may be from it
FINE_GAIN = 0.10  # fine questions at 144 above 9 tokens, at least
COARSE_GAIN = 0.05  # coarse ones, at most
AGREE = 0.99  # answers through the public method that equal those on ready features

LAST = COUNTS[-1]
Table = np.ndarray
"""(S, K), mean of the seeds; see `tokenflex_runs.right`."""

Tables = Mapping[tuple[str, int], Table]
"""By arm and count; pruning methods stand beside the arms."""


def gap(one: Table, two: Table, kinds: Sequence[str] = KINDS) -> tuple[float, float, float]:
    """Mean over scenes of the difference, each the mean of its questions of these kinds, with its
    95 % bootstrap interval; scenes that only one table has do not count."""
    scenes = min(len(one), len(two))
    part = (one[:scenes] - two[:scenes])[:, columns(kinds)]
    return interval(part)


def interval(values_SK: np.ndarray) -> tuple[float, float, float]:
    """Mean over scenes and its 95 % bootstrap interval."""
    asked = ~np.isnan(values_SK).all(1)
    found = mean_interval(np.nanmean(values_SK[asked], axis=1))
    low = found.mean if found.lo is None else found.lo
    return found.mean, low, found.mean if found.hi is None else found.hi


def accuracy(table: Table, kinds: Sequence[str] = KINDS) -> float:
    """Mean over scenes."""
    return interval(table[:, columns(kinds)])[0]


def specialists_fall(tables: Tables) -> list[Check]:
    """A model trained with many tokens is lost with few; one trained with random numbers is not."""
    checks = []
    for count in (COUNTS[1], COUNTS[0]):
        ours, theirs = tables["flex", count], tables["fixed-144", count]
        mean, lo, hi = gap(ours, theirs, FINE)
        main = count == COUNTS[1]
        told = f"at least {FAR}, interval above 0" if main else "interval above 0"
        checks.append(
            Check(
                f"at {count} tokens the model trained with 144 is far below flex on fine questions",
                "fixed 256 at 64 tokens: OCRBench 45.5 against 64.5",
                mean,
                lo > 0 and (mean >= FAR or not main),
                (lo, hi),
                f"flex {accuracy(ours, FINE):.3f}, fixed-144 {accuracy(theirs, FINE):.3f} (at 144: "
                f"{accuracy(tables['fixed-144', LAST], FINE):.3f}); target: {told}",
            )
        )
    return checks


def parity(tables: Tables) -> list[Check]:
    """Flex beside the specialist of each count."""
    checks = []
    for count in COUNTS:
        if (f"fixed-{count}", count) not in tables:
            continue
        ours, theirs = tables["flex", count], tables[f"fixed-{count}", count]
        mean, lo, hi = gap(ours, theirs)
        fine, coarse = gap(ours, theirs, FINE), gap(ours, theirs, COARSE)
        checks.append(
            Check(
                f"at {count} tokens flex is as good as the model trained with {count}",
                "+1.6, +1.0, +0.4 points over the specialists of 64, 144, 256",
                mean,
                mean >= PARITY,
                (lo, hi),
                f"all questions: flex {accuracy(ours):.3f}, specialist {accuracy(theirs):.3f}; "
                f"fine {_told(fine)}, coarse {_told(coarse)}; target: at least {PARITY}",
            )
        )
    return checks


def _told(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.3f} ({found[1]:+.3f} to {found[2]:+.3f})"


def tokens(plan: Plan, runs: Mapping[int, Mapping[str, Model]]) -> list[Check]:
    """What training saw and how long it took."""
    flex = sum(sum(models["flex"].tokens) for models in runs.values())
    fixed = sum(sum(models["fixed-144"].tokens) for models in runs.values())
    wanted = sum(
        sum(grid.count for grid in ARMS["flex"].at(step, seed)) * plan.batch
        for seed in runs
        for step in range(plan.steps)
    )
    seconds = {name: sum(models[name].seconds for models in runs.values()) for name in plan.arms}
    return [
        Check(
            "flex trains on the expected share of the tokens",
            "28 % fewer visual tokens, 13 % less time",
            flex / fixed,
            abs(flex / fixed - SHARE) <= SHARE_OFF,
            None,
            f"{flex} of {fixed} in {plan.steps} equal steps; expected {SHARE:.3f}; target: within "
            f"{SHARE_OFF}",
        ),
        Check(
            "the visual tokens told are those of the draws",
            "invariant",
            float(flex - wanted),
            flex == wanted,
            None,
            f"{flex} counted, {wanted} by the seed; target: 0",
        ),
        Check(
            "time of flex's own training passes, as a share of fixed-144's",
            "13.0 h of 15.0 h, with the shared parts",
            seconds["flex"] / max(seconds["fixed-144"], 1e-9),
            None,
            None,
            "process time of projector and language model, tower and scenes shared: "
            + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()),
        ),
    ]


def who_gains(tables: Tables) -> list[Check]:
    """More tokens serve fine questions, not coarse ones."""
    few, many = tables["flex", COUNTS[0]], tables["flex", LAST]
    fine, coarse = gap(many, few, FINE), gap(many, few, COARSE)
    both = many - few
    asked = ~np.isnan(both[:, columns(FINE)]).all(1)
    apart = interval(
        (
            np.nanmean(both[asked][:, columns(FINE)], axis=1)
            - np.nanmean(both[asked][:, columns(COARSE)], axis=1)
        )[:, None]
    )
    told = {n: (tables["flex", n], n) for n in COUNTS}
    rows = "; ".join(
        f"{n}: fine {accuracy(table, FINE):.3f}, coarse {accuracy(table, COARSE):.3f}"
        for table, n in told.values()
    )
    return [
        Check(
            "fine questions gain from more tokens",
            "OCRBench 64.5, 69.8, 71.4 at 64, 144, 256",
            fine[0],
            fine[0] >= FINE_GAIN and fine[1] > 0,
            fine[1:],
            f"flex at 144 minus 9 tokens; {rows}; target: at least {FINE_GAIN}, interval above 0",
        ),
        Check(
            "coarse questions do not",
            "means over all tasks move by 2.4 points",
            coarse[0],
            coarse[0] <= COARSE_GAIN,
            coarse[1:],
            f"flex at 144 minus 9 tokens, how many and is there; target: at most {COARSE_GAIN}",
        ),
        Check(
            "fine questions gain more than coarse ones",
            "the budget shows most in OCRBench",
            apart[0],
            apart[1] > 0,
            apart[1:],
            "difference of both gains, by scene; target: interval above 0",
        ),
    ]


def changes(tables: Tables) -> list[Check]:
    """Two changes, tried after a first run had missed parity at few tokens and the gain of fine
    questions: a projector without a gate, and counts that reach down to where tokens are scarce."""
    few, least = COUNTS[0], BETWEEN[0]
    ours, theirs = tables["flex-mlp", few], tables[f"fixed-{few}", few]
    mean, lo, hi = gap(ours, theirs)
    checks = [
        Check(
            f"changed, no gate in the projector: flex minus specialist at {few} tokens",
            "",
            mean,
            None,
            (lo, hi),
            f"all questions; {accuracy(ours):.3f} against {accuracy(theirs):.3f}; fine "
            f"{_told(gap(ours, theirs, FINE))}, coarse {_told(gap(ours, theirs, COARSE))}",
        )
    ]
    if ("flex", least) in tables:
        scarce, many = tables["flex", least], tables["flex", LAST]
        mean, lo, hi = gap(many, scarce, FINE)
        checks.append(
            Check(
                f"changed, counted from {least} tokens (never trained): gain of fine questions",
                "OCRBench 64.5, 69.8, 71.4 at 64, 144, 256",
                mean,
                None,
                (lo, hi),
                f"flex at {LAST} minus {least} tokens; coarse {_told(gap(many, scarce, COARSE))}",
            )
        )
    return checks


def projector(tables: Tables) -> list[Check]:
    """The gate alone: both arms have random counts."""
    checks = []
    for count in COUNTS:
        mean, lo, hi = gap(tables["flex", count], tables["flex-mlp", count])
        checks.append(
            Check(
                f"gated projector minus MLP, both with random counts, at {count} tokens",
                "+0.4, +1.1, +0.8 points at 64, 144, 256",
                mean,
                None,
                (lo, hi),
                f"all questions; MLP {accuracy(tables['flex-mlp', count]):.3f}; as many weights",
            )
        )
    return checks


def pruning(tables: Tables) -> list[Check]:
    """Beside dropping the tokens of a model that was trained with all."""
    checks = []
    for count in COUNTS[:-1]:
        for name in ("top-k of fixed-144", "even grid of fixed-144"):
            mean, lo, hi = gap(tables["flex", count], tables[name, count])
            checks.append(
                Check(
                    f"flex minus {name}, both at {count} tokens",
                    "a baseline of the sheet",
                    mean,
                    None,
                    (lo, hi),
                    f"all questions; {accuracy(tables[name, count]):.3f}, without training; blind "
                    f"{accuracy(tables['blind', 0]):.3f}",
                )
            )
    return checks


def agrees(tables: Tables, scenes: int) -> Check:
    """The public method answers as ready features do."""
    direct, public = tables["flex", COUNTS[1]][:scenes], tables["TokenFlex", COUNTS[1]]
    asked = ~np.isnan(public)
    same = float((direct[asked] == public[asked]).mean())
    return Check(
        "prompts with all placeholders are answered alike through TokenFlex(n=36)",
        "invariant",
        same,
        same >= AGREE,
        None,
        f"share of {int(asked.sum())} questions judged the same as on ready features and exact "
        f"placeholders; target: at least {AGREE}",
    )


def beside(plan: Plan, tables: Tables) -> list[Check]:
    """Other ways of training, where they ran."""
    checks = []
    for arm, what in (("joint", "all counts in every step"), ("flex-even", "even odds")):
        if arm not in plan.arms:
            continue
        for count in COUNTS:
            mean, lo, hi = gap(tables["flex", count], tables[arm, count])
            checks.append(
                Check(
                    f"flex minus {what}, at {count} tokens",
                    "a baseline of the sheet" if arm == "joint" else "1:1:1 is worse at 256",
                    mean,
                    None,
                    (lo, hi),
                    f"all questions; {accuracy(tables[arm, count]):.3f}",
                )
            )
    return checks
