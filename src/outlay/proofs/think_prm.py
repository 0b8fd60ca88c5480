"""Proof of ThinkPRM's claims on the tiny reasoner, whose steps can be labelled exactly.

"Process Reward Models That Think" (arXiv 2504.16828) says: a verifier that writes a critique of
every step, trained on about a thousand synthetic chains that pass a process filter, beats one
trained on outcome-filtered or unfiltered chains, and discriminative verifiers on the same or far
more labels; more chains per solution help. Here the policy is the smaller reasoner, solutions are
sampled from it, the teacher is made of templates with known faults (see
`outlay.reason.think_prm.templated`), and every student starts from the same network: the reasoner
after reading practice, in which it works proposed steps out again, without verdicts.

Every target below was written before the first run of this proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay.errors import InputError
from outlay.figure import PALETTE
from outlay.models.local import LocalModel
from outlay.proofs import think_prm_card, think_prm_changes
from outlay.proofs import think_prm_runs as runs
from outlay.proofs.base import Check, Progress, ProofResult, Scale, silent
from outlay.proofs.think_prm_changes import MORE
from outlay.proofs.think_prm_measures import f1_gap, f1s, gap_of, interval_of
from outlay.proofs.think_prm_runs import Bench, N, Verdicts
from outlay.reason.think_prm.filters import Kept, Mode
from outlay.reason.think_prm.verifier import ThinkPRM
from outlay.stats import percentiles
from outlay.testbeds.reasoner import checkpoint_path

# Targets.
SURVIVE = (0.40, 0.65)  # the sheet's shares of faults leave 0.62 of chains without one
INVALID = 0.03  # share of ill-formed critiques after training
PILED = 0.5  # share of scores within 0.05 of 0 or 1

PROCESS, OUTCOME, NONE = "process filter", "outcome filter", "unfiltered"
ZERO, FEW, MANY = "zero-shot judge", "discriminative, 1K", "discriminative, all"
SEVERAL = f"process filter @{MORE}"


@dataclass(frozen=True)
class Size:
    """How much is run.

    Args:
        problems, drawn: training questions, and solutions sampled of each.
        practice: texts of reading practice; 0 uses the shipped verifier and trains nothing.
        kept: chains that each critic is trained on.
        critiqued: solutions that the teacher critiques.
        tests: test questions.
        votes: solutions of each for the majority; the first 8 are judged.
    """

    problems: int
    drawn: int
    practice: int
    kept: int
    critiqued: int
    tests: int
    votes: int


SIZES: Mapping[Scale, Size] = {
    "ci": Size(110, 4, 0, 50, 150, 24, 8),
    "laptop": Size(4500, 3, 15_000, 1000, 2600, 500, 16),
    "gpu": Size(20_000, 4, 40_000, 1000, 2600, 2000, 24),
}


def run(
    scale: Scale, *, seed: int = 0, progress: Progress = silent, folder: Path | None = None
) -> ProofResult:
    """Run the experiment.

    Args:
        scale: see `SIZES`; "ci" judges with the shipped verifier and trains nothing.
        seed: of everything drawn and trained.
        progress: told what is under way.
        folder: where the verifier trained on process-filtered chains is saved; None saves nothing.

    Raises:
        InputError: for a folder at scale "ci", where nothing is trained.
    """
    size = SIZES[scale]
    if folder is not None and not size.practice:
        raise InputError(f"scale={scale!r} trains no verifier, so there is none to save")
    result = ProofResult("think-prm", scale, [seed])
    policy = LocalModel.load(
        checkpoint_path(runs.CHECKPOINT), name="reasoner", device=_device(scale)
    )
    weights = runs.fingerprint()
    progress("solutions")
    found = runs.sources(policy, size.problems, size.drawn, seed)
    chains = runs.critiques(found[: size.critiqued], seed)
    modes: dict[str, Mode] = {PROCESS: "process", OUTCOME: "outcome", NONE: "none"}
    kept = {name: runs.keep(chains, mode, size.kept, policy) for name, mode in modes.items()}
    progress(f"{len(found)} solutions; test questions")
    bench = Bench.draw(policy, size.tests, size.votes, seed + 1)
    judged: dict[str, Verdicts] = {}
    changes: list[think_prm_changes.Found] = []
    if size.practice:
        base = runs.practised(policy, size.practice, seed)
        progress("reading practice done")
        judged[ZERO] = runs.judge(bench, runs.generative(base))
        critics: dict[str, ThinkPRM] = {}
        for name, mode in modes.items():
            progress(f"critic: {name}")
            verifier = runs.critic(base, kept[name], mode, folder if name == PROCESS else None)
            judged[name] = runs.judge(bench, verifier)
            critics[mode] = verifier
            if name == PROCESS:
                judged[SEVERAL] = runs.judge(bench, runs.several(verifier, MORE))
        for name, part, settings in (
            (FEW, found[: size.kept], runs.FEW),
            (MANY, found, runs.MANY),
        ):
            progress(f"classifier: {name}")
            judged[name] = runs.judge(bench, runs.classifier(base, part, settings))
        changes = think_prm_changes.tried(
            bench,
            think_prm_changes.Students(base, found, size.critiqued, size.kept, seed),
            critics,
            {
                think_prm_changes.PROCESS: judged[SEVERAL],
                think_prm_changes.CLASSIFIER: judged[FEW],
                think_prm_changes.JUDGE: judged[ZERO],
            },
            progress,
        )
    else:
        progress("judging with the shipped verifier")
        judged[PROCESS] = runs.judge(bench, ThinkPRM.load("reasoner"))
    checks = result.checks
    checks.append(_survival(kept[PROCESS]))
    checks += _critiques(judged[PROCESS], bench)
    if size.practice:
        checks += _filters(judged) + _against(judged, bench, len(found)) + _tokens(judged, bench)
    for change in changes:
        checks += change.checks()
    data = result.data = _data(judged, kept, bench, len(found), weights)
    data["changes"] = {
        change.name: {name: _row(verdicts) for name, verdicts in change.judged.items()}
        for change in changes
    }
    if folder is not None:
        counts = {"practice": size.practice, "kept": len(kept[PROCESS].chains)}
        think_prm_card.describe(folder, weights, counts, data["test"], data["verifiers"][PROCESS])
    result.draw = _drawer(judged, bench)
    return result.finish()


def _device(scale: Scale) -> str | None:
    return None if scale == "gpu" else "cpu"


# -- claims ---------------------------------------------------------------------------------------


def _survival(kept: Kept) -> Check:
    killed = ", ".join(f"{name} {n}" for name, n in kept.killed.items() if n)
    return Check(
        "part of the teacher's chains survive the process filter",
        "about 20 % of QwQ-32B-Preview's chains",
        kept.passed,
        SURVIVE[0] <= kept.passed <= SURVIVE[1],
        None,
        f"{kept.sampled} chains; killed: {killed}; target: {SURVIVE[0]} to {SURVIVE[1]}, "
        "given the templated teacher's faults",
    )


def _critiques(process: Verdicts, bench: Bench) -> list[Check]:
    guess = runs.constant_guess(bench)
    values_R = f1s(process)
    error, piled = process.calibration()
    solutions = sum(len(row) for row in process.scores)
    return [
        Check(
            "first errors are found far better than by a constant guess",
            "generative verifiers find first errors",
            float(values_R[0]),
            percentiles(values_R[1:], 0.95)[0] > guess,
            percentiles(values_R[1:], 0.95),
            f"first-error F1; the best constant guess has {guess:.3f}; exact: "
            f"{process.exact[0]:.3f} of wrong, {process.exact[1]:.3f} of right solutions; "
            "target: interval above the guess",
        ),
        Check(
            "critiques keep their format",
            "1.4 to 2.4 % invalid after training (1.5B)",
            process.invalid,
            process.invalid < INVALID,
            None,
            f"share of {solutions} without a decision on every step up to the first error; "
            f"target: below {INVALID}",
        ),
        Check(
            "scores pile up near 0 and 1",
            "scores are overconfident (limitation)",
            piled,
            piled >= PILED,
            None,
            f"share within 0.05 of 0 or 1; expected calibration error {error:.3f}; "
            f"target: at least {PILED}",
        ),
    ]


def _filters(judged: Mapping[str, Verdicts]) -> list[Check]:
    checks = []
    for better, worse in ((PROCESS, OUTCOME), (OUTCOME, NONE)):
        gap, ci = f1_gap(judged[better], judged[worse])
        checks.append(
            Check(
                f"{better} beats {worse} in finding first errors",
                "process-filtered chains train the better verifier",
                gap,
                ci[0] > 0,
                ci,
                f"first-error F1 {f1s(judged[better])[0]:.3f} against "
                f"{f1s(judged[worse])[0]:.3f}; target: interval above 0",
            )
        )
        gap, ci = gap_of(judged[better].best(), judged[worse].best())
        checks.append(
            Check(
                f"{better} is no worse than {worse} in best-of-{N}",
                "process-filtered chains train the better verifier",
                gap,
                ci[1] >= 0,
                ci,
                _accuracies(judged, better, worse) + "; target: not separably below 0",
            )
        )
    return checks


def _accuracies(judged: Mapping[str, Verdicts], *names: str) -> str:
    return "accuracy " + " against ".join(f"{judged[name].best().mean():.3f}" for name in names)


def _against(judged: Mapping[str, Verdicts], bench: Bench, found: int) -> list[Check]:
    checks = []
    targets = {FEW: True, ZERO: True, MANY: False}
    for name, wanted in targets.items():
        label = f"{name} ({found} solutions)" if name == MANY else name
        for measure, (gap, ci) in (
            ("first-error F1", f1_gap(judged[PROCESS], judged[name])),
            (f"best-of-{N}", gap_of(judged[PROCESS].best(), judged[name].best())),
        ):
            both = (
                f"F1 {f1s(judged[PROCESS])[0]:.3f} against {f1s(judged[name])[0]:.3f}"
                if measure == "first-error F1"
                else _accuracies(judged, PROCESS, name)
            )
            target = "; target: interval above 0" if wanted else "; reported"
            checks.append(
                Check(
                    f"1K critiques against the {label}, {measure}",
                    "ThinkPRM on 8K labels beats discriminative verifiers and the judge",
                    gap,
                    ci[0] > 0 if wanted else None,
                    ci,
                    both + target,
                )
            )
    gap, ci = gap_of(judged[SEVERAL].best(), judged[PROCESS].best())
    checks.append(
        Check(
            f"@{MORE} is no worse than @1 in best-of-{N}",
            "@4 adds more than 5 points in guided search",
            gap,
            ci[1] >= 0,
            ci,
            _accuracies(judged, SEVERAL, PROCESS) + "; target: not separably below 0",
        )
    )
    gap, ci = gap_of(judged[PROCESS].best(), bench.majority(N))
    checks.append(
        Check(
            f"best-of-{N} beats majority@{N}",
            "verified best-of-N beats self-consistency",
            gap,
            ci[0] > 0,
            ci,
            f"accuracy {judged[PROCESS].best().mean():.3f} against "
            f"{bench.majority(N).mean():.3f}; target: interval above 0",
        )
    )
    return checks


def _tokens(judged: Mapping[str, Verdicts], bench: Bench) -> list[Check]:
    """Majority over as many solutions as the judged ones and their critiques cost together."""
    spent = bench.policy_tokens(N) + judged[PROCESS].tokens
    most = len(bench.values[0])
    equal = next((n for n in range(N, most + 1) if bench.policy_tokens(n) >= spent), most)
    gap, ci = gap_of(judged[PROCESS].best(), bench.majority(equal))
    return [
        Check(
            f"best-of-{N} with critiques against majority@{equal} at equal tokens",
            "parity at small budgets, a gain at large ones",
            gap,
            ci[1] >= 0,
            ci,
            f"{spent:.0f} sampled and forced tokens a question, {judged[PROCESS].tokens:.0f} of "
            f"them the verifier's; majority@{equal}: {bench.policy_tokens(equal):.0f}; equal "
            "solutions are verified once; target: not separably below 0",
        )
    ]


# -- data and picture -----------------------------------------------------------------------------


def _row(verdicts: Verdicts) -> dict[str, Any]:
    values_R = f1s(verdicts)
    weighted, naive = verdicts.best(), verdicts.best(naive=True)
    error, piled = verdicts.calibration()
    return {
        "first_error_f1": round(float(values_R[0]), 4),
        "f1_ci": percentiles(values_R[1:], 0.95),
        "exact_on_wrong": round(verdicts.exact[0], 4),
        "exact_on_right": round(verdicts.exact[1], 4),
        "best_of_n": round(float(weighted.mean()), 4),
        "best_ci": interval_of(weighted),
        "best_of_n_naive": round(float(naive.mean()), 4),
        "invalid": round(verdicts.invalid, 4),
        "ece": round(error, 4),
        "near_0_or_1": round(piled, 4),
        "verifier_tokens": round(verdicts.tokens, 1),
        "verifier_prompt_tokens": round(verdicts.read, 1),
    }


def _data(
    judged: Mapping[str, Verdicts],
    kept: Mapping[str, Kept],
    bench: Bench,
    found: int,
    weights: str,
) -> dict[str, Any]:
    labelled = [source for row in bench.labelled for source in row if source is not None]
    return {
        "reasoner_sha256": weights,
        "labelled_solutions": found,
        "filters": {
            name: {"kept": len(one.chains), "sampled": one.sampled, "killed": dict(one.killed)}
            for name, one in kept.items()
        },
        "test": {
            "questions": len(bench.problems),
            "solutions": len(labelled),
            "wrong": sum(source.bad for source in labelled),
            "pass@1": round(float(bench.majority(1).mean()), 4),
            "policy_tokens": round(bench.policy_tokens(N), 1),
            "constant_guess_f1": round(runs.constant_guess(bench), 4),
        },
        "majority": {str(n): round(float(bench.majority(n).mean()), 4) for n in _votes(bench)},
        "verifiers": {name: _row(verdicts) for name, verdicts in judged.items()},
    }


def _votes(bench: Bench) -> list[int]:
    most = len(bench.values[0])
    return [n for n in (1, 2, 4, 8, 12, 16, 24, 32) if n <= most]


def _drawer(judged: Mapping[str, Verdicts], bench: Bench) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter

        figure = Figure(figsize=(11.0, 4.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        names = list(judged)
        for at, name in enumerate(names):
            values_R = f1s(judged[name])
            lo, hi = percentiles(values_R[1:], 0.95)
            color = PALETTE[at % len(PALETTE)]
            middle = float(values_R[0])
            left.barh(at, middle, color=color, height=0.62)
            left.plot([lo, hi], [at, at], color="#222222", linewidth=1.2)
            tokens = bench.policy_tokens(N) + judged[name].tokens
            best = judged[name].best()
            low, high = interval_of(best)
            right.errorbar(
                tokens,
                best.mean(),
                yerr=[[best.mean() - low], [high - best.mean()]],
                color=color,
                marker="o",
                markersize=6,
                capsize=2.5,
                linewidth=0,
                elinewidth=1.0,
                label=name,
            )
        left.set_yticks(range(len(names)), names)
        left.invert_yaxis()
        left.set_xlim(0, 1)
        left.set_xlabel("first-error F1, 95 % interval")
        left.set_title("Finding the first wrong step", loc="left", fontsize=10)
        votes = _votes(bench)
        right.plot(
            [bench.policy_tokens(n) for n in votes],
            [bench.majority(n).mean() for n in votes],
            color="#6B6B6B",
            linewidth=1.4,
            marker=".",
            label="majority of more samples",
        )
        right.set_xscale("log")
        right.xaxis.set_minor_formatter(NullFormatter())  # they would run into each other
        right.set_xlabel("tokens sampled and forced per question, verifier included")
        right.set_ylabel("accuracy, 95 % interval")
        right.set_title(f"Best of {N}, and majority", loc="left", fontsize=10)
        right.legend(frameon=False, fontsize=7)
        for axes in (left, right):
            axes.grid(True, color="#000000", alpha=0.10, linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path)

    return draw
