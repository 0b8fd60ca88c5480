"""The claims of Zero-TPrune's proof, computed from its outcomes; targets are constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from scipy.stats import spearmanr

from outlay.paired import Difference
from outlay.proofs.base import Check
from outlay.proofs.zero_tprune_runs import (
    ANY_HALF,
    CLASS,
    COLUMN,
    FILTERED,
    FULL,
    KEPT,
    LATE,
    MORE_COPIES,
    NO_COPIES,
    OURS,
    RANDOM,
    SIZES,
    TOME,
    Cell,
    gap_of,
    stages_of,
)
from outlay.proofs.zero_tprune_when import MANY, Block
from outlay.stats import wilson
from outlay.vision.zero_tprune import Found, ZeroTPrune
from outlay.vision.zero_tprune.cost import Shape, macs, overhead
from outlay.vision.zero_tprune.schedule import counts

# Targets.
FREE = -0.02  # what copies may cost where the object is small
UNTOUCHED = 0.9  # share of the patches that the schedule found still has before block 3
AS_GOOD = -0.02  # the schedule found against the one made by hand

Cells = Mapping[tuple[str, str, int], Cell]


def whole(cells: Cells) -> list[Check]:
    """Accuracy with all patches."""
    checks = []
    for size in SIZES:
        cell = cells[FULL, "", size]
        n = len(cell.right_B)
        ci = wilson(float(cell.right_B.sum()), n)
        checks.append(
            Check(f"{size} px: accuracy with all patches", "", cell.accuracy, None, ci, f"n={n}")
        )
    return checks


def _worst(
    cells: Cells,
    budgets: Sequence[str],
    size: int,
    one: str,
    other: str,
    by: Callable[[Difference], float],
) -> tuple[Difference, str]:
    """The gap that is lowest in what is judged (`by`), over the budgets."""
    gaps = {b: gap_of(cells[one, b, size], cells[other, b, size]) for b in budgets}
    at = min(gaps, key=lambda budget: by(gaps[budget]))
    return gaps[at], at


def above(cells: Cells, budgets: Sequence[str]) -> list[Check]:
    """Above random and above the class token, at every budget."""
    checks = []
    for size in SIZES:
        for other, paper in ((RANDOM, "random drop 76.8, WPR 78.6 at 3.08 G"), (CLASS, "")):
            gap, at = _worst(cells, budgets, size, OURS, other, lambda one: one.lo)
            checks.append(
                Check(
                    f"{size} px: {OURS} is above {other} at every budget",
                    paper,
                    gap.mean,
                    gap.lo > 0,
                    (gap.lo, gap.hi),
                    f"lowest interval ({at}); {_rates(cells, budgets, size, OURS, other)}; "
                    "target: interval above 0",
                )
            )
    return checks


def _rates(cells: Cells, budgets: Sequence[str], size: int, *names: str) -> str:
    def one(name: str) -> str:
        return "/".join(f"{cells[name, b, size].accuracy:.3f}" for b in budgets)

    return " against ".join(one(name) for name in names)


def copies(cells: Cells, budgets: Sequence[str]) -> list[Check]:
    """What the S-stage is worth."""
    tight = budgets[-1]
    large = gap_of(cells[OURS, tight, 56], cells[NO_COPIES, tight, 56])
    small, at = _worst(cells, budgets, 28, OURS, NO_COPIES, lambda one: one.mean)
    return [
        Check(
            "dropping near copies pays where the object fills the canvas and the budget is tight",
            "S-stage: 78.9 to 79.4",
            large.mean,
            large.lo > 0,
            (large.lo, large.hi),
            f"56 px; {_rates(cells, budgets, 56, OURS, NO_COPIES)}; target: interval above 0",
        ),
        Check(
            "it costs about nothing where the object is small",
            "",
            small.mean,
            small.mean >= FREE,
            (small.lo, small.hi),
            f"28 px, lowest mean ({at}); {_rates(cells, budgets, 28, OURS, NO_COPIES)}; target: "
            f"at least {FREE}",
        ),
    ]


def of_search(
    found: Found,
    shape: Shape,
    searched: Mapping[int, Cell],
    hand: Mapping[int, Cell],
    early: Mapping[str, Cell],
) -> list[Check]:
    """What the search found."""
    seen = counts(found.method.stages, shape.patches, shape.depth)
    share = seen[2] / shape.patches
    rank = early["PageRank after block 1"]
    checks = [
        Check(
            "the search finds by itself that early pruning is ruinous",
            "schedules by forward passes alone",
            share,
            share >= UNTOUCHED,
            None,
            f"share of the patches that block 3 sees; found {_written(found.method)} in "
            f"{len(found.trials)} trials; {rank.accuracy:.3f} with half gone after block 1; "
            f"target: at least {UNTOUCHED}",
        )
    ]
    for size in SIZES:
        gap = gap_of(searched[size], hand[size])
        checks.append(
            Check(
                f"{size} px: the schedule found is as good as one made by hand",
                "",
                gap.mean,
                gap.mean >= AS_GOOD,
                (gap.lo, gap.hi),
                f"{searched[size].accuracy:.3f} at {searched[size].macs:.3f} of the MACs against "
                f"{hand[size].accuracy:.3f} at {hand[size].macs:.3f}; target: at least {AS_GOOD}",
            )
        )
    return checks


def _written(method: ZeroTPrune) -> str:
    return ", ".join(f"({s.block}, {s.rate:.2f}, {s.r}, {s.votes})" for s in method.stages)


def reported(cells: Cells, budgets: Sequence[str], shape: Shape) -> list[Check]:
    """Figures without target: the column mean, the filter, ToMe, and what the layers cost."""
    checks = []
    pairs = (
        (NO_COPIES, COLUMN, "not compared"),
        (OURS, COLUMN, "not compared"),
        (FILTERED, OURS, "VHF: 78.8 to 78.9"),
        (f"{OURS}, VHF fitted", OURS, "not compared"),
        (OURS, TOME, "79.4 against 78.9 at 2.97 G"),
        (OURS, LATE, "not compared"),
    )
    for size in SIZES:
        for one, other, paper in pairs:
            checks.append(_by_budget(cells, budgets, size, one, other, paper))
    for name in (MORE_COPIES, ANY_HALF):
        for other in (RANDOM, CLASS):
            checks += [
                _by_budget(cells, budgets, size, name, other, "tried after a first run")
                for size in SIZES
            ]
    for budget in budgets:
        method = ZeroTPrune(schedule=stages_of(KEPT[budget]))
        checks.append(
            Check(
                f"{budget}: MACs of the pruning layers over those that they save",
                "",
                overhead(shape, method)
                / (macs(shape) - macs(shape, method) + overhead(shape, method)),
                None,
            )
        )
    return checks


def _by_budget(
    cells: Cells, budgets: Sequence[str], size: int, one: str, other: str, paper: str
) -> Check:
    """One method minus another at every budget that both have, without target."""
    where = [b for b in budgets if (one, b, size) in cells and (other, b, size) in cells]
    gaps = {b: gap_of(cells[one, b, size], cells[other, b, size]) for b in where}
    costs = [
        f"{cells[one, b, size].macs:.3f} against {cells[other, b, size].macs:.3f}" for b in where
    ]
    return Check(
        f"{size} px: {one} minus {other}, by budget",
        paper,
        "; ".join(f"{b} {_ranged(gap)}" for b, gap in gaps.items()),
        None,
        None,
        f"{_rates(cells, where, size, one, other)}; MACs {', '.join(costs)}",
    )


def when(
    looks: Sequence[Block],
    singles: Mapping[int, Mapping[str, Sequence[Cell]]],
    wide: Mapping[str, Sequence[Cell]],
    wide_full: Cell,
) -> list[Check]:
    """Where more votes are ahead of the column mean."""
    checks = []
    for block in looks:
        gain = _gain(block)
        others = ("5 votes", "1 vote, EIR", "5 votes, EIR", "5 votes, VHF", "5 votes, class boost")
        shown_auc = ", ".join(f"{name} {block.auc[name]:.3f}" for name in others)
        sharp = block.auc["sharp, 5 votes"] - block.auc["sharp, column mean"]
        low, middle, high = block.variance
        checks.append(
            Check(
                f"{block.size} px, block {block.block}: AUC of the object's patches, {MANY} votes "
                "minus column mean",
                "",
                gain,
                None,
                None,
                f"column mean {block.auc['column mean']:.3f}; {shown_auc}; sharpened attention, 5 "
                f"votes minus column mean {sharp:+.3f}; groups mix with 1 - b - o = "
                f"{block.mixing:.2f}, votes settle at {block.lift:.2f} of the object's share; "
                f"foretold with rank correlation {block.told:.2f}; variances of heads {low:.2f} to "
                f"{high:.2f}, median {middle:.2f}",
            )
        )
    for size, found in singles.items():
        checks.append(_votes(f"{size} px, 64 patches", found))
    checks.append(_votes(f"56 px, 256 patches (all patches {wide_full.accuracy:.3f})", wide))
    told = spearmanr([b.auc["column mean"] for b in looks], [_gain(b) for b in looks]).statistic
    mixing = spearmanr([b.mixing for b in looks], [_gain(b) for b in looks])
    checks.append(
        Check(
            "rank correlation, over blocks, of how slowly the groups mix (1 - b - o) and what more "
            "votes add to the AUC",
            "",
            float(mixing.statistic),
            None,
            None,
            f"p={mixing.pvalue:.3f}; the formula of `zero_tprune_when` foretells it above 0",
        )
    )
    checks.append(
        Check(
            "rank correlation, over blocks, of the column mean's AUC and what more votes add to it",
            "",
            float(told),
            None,
            None,
            "; ".join(
                f"{size} px: ahead by over 0.01 in blocks {_where(looks, size, 1)}, behind in "
                f"{_where(looks, size, -1)}"
                for size in SIZES
            ),
        )
    )
    return checks


def _gain(block: Block) -> float:
    return block.auc[f"{MANY} votes"] - block.auc["column mean"]


def _where(looks: Sequence[Block], size: int, sign: int) -> str:
    found = [str(b.block) for b in looks if b.size == size and sign * _gain(b) > 0.01]
    return ", ".join(found) or "none"


def _votes(what: str, found: Mapping[str, Sequence[Cell]]) -> Check:
    """Accuracy with a quarter kept once, after each block."""
    gaps, notes = [], []
    for few, many, plain in zip(
        found["5 votes"], found[f"{MANY} votes"], found["column mean"], strict=True
    ):
        gaps.append(f"{plain.budget} {_ranged(gap_of(many, plain))}")
        notes.append(
            f"{plain.budget}: {many.accuracy:.3f} with {MANY}, {few.accuracy:.3f} with 5, "
            f"{plain.accuracy:.3f} by column mean"
        )
    return Check(
        f"{what}, a quarter kept once: accuracy with {MANY} votes minus column mean, by block",
        "T = 30 to 50 in shallow blocks, 1 in the last third",
        "; ".join(gaps),
        None,
        None,
        "; ".join(notes),
    )


def _ranged(gap: Difference) -> str:
    return f"{gap.mean:+.3f} ({gap.lo:+.3f} to {gap.hi:+.3f})"
