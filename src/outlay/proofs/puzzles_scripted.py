"""The scripted half of the puzzles' proof: what was planned must be measured."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from outlay.evals.puzzles import Blocks, Checkers, Hanoi, Puzzle, Puzzles, River, print_moves
from outlay.evals.puzzles.answers import judge_program
from outlay.evals.puzzles.curves import Sample, accuracy, decline, effort, majority_at_tokens
from outlay.evals.puzzles.fairness import output_need
from outlay.evals.puzzles.regimes import Level, regimes
from outlay.evals.puzzles.study import Study, collect
from outlay.evals.puzzles.trace import analyse
from outlay.proofs.base import Check
from outlay.proofs.puzzles_policies import (
    Placed,
    Policy,
    ScriptedReasoner,
    by_level,
    count,
    effortful,
    planned,
    slips,
)

# Targets.
CHANCE = 0.01  # family-wise level of the exact binomial tests of (1 - e)^moves over all levels
ERRORS = (0.02, 0.1)
SLIPS = (1, 2, 3, 4, 5, 6)
DESIGN = {  # success of the thinking and the plain policy per level, and the regime that follows
    1: (0.97, 0.97, "low"),
    2: (0.95, 0.60, "low"),
    3: (0.95, 0.05, "medium"),
    4: (0.70, 0.02, "medium"),
    5: (0.00, 0.00, "high"),
    6: (0.00, 0.00, "high"),
}
THINKING = 900  # words of the thinking policy
WORDS = {1: 60, 2: 120, 3: 240, 4: 300, 5: 360, 6: 400}
GIVING_UP = {1: 0.0, 2: 0.0, 3: 0.05, 4: 0.5, 5: 0.85, 6: 0.95}
PROGRAM = 15  # disks that a program must print (the comment's example)
PROGRAM_TOKENS = 5_000  # in fewer tokens than this, as the comment says
_HANOI_PROGRAM = """```python
def solve(n={n}, a=0, c=2, b=1):
    if n:
        yield from solve(n - 1, a, b, c)
        yield n, a, c
        yield from solve(n - 1, b, c, a)
```"""


def _collect(
    task: Puzzles, policy: Policy, samples: int, seed: int, max_tokens: int = 64_000
) -> Study:
    model = ScriptedReasoner(policy, task, seed=seed, samples=samples)
    return collect(model, task, samples=samples, seed=seed, max_tokens=max_tokens)


def slipping(samples: int, seed: int) -> dict[str, list[Sample]]:
    """Hanoi and checkers under policies that err with a known chance per move."""
    made: dict[str, list[Sample]] = {}
    for error in ERRORS:
        for world in ("hanoi", "checkers"):
            task = Puzzles(world, SLIPS)
            study = _collect(task, slips(error), samples, seed)
            made[f"{world}, e={error}"] = study.samples
    return made


def slip_checks(curves: Mapping[str, list[Sample]]) -> list[Check]:
    """Accuracy against its true value."""
    from scipy.stats import binomtest

    checks = []
    least = CHANCE / sum(len(accuracy(samples)) for samples in curves.values())
    for error in ERRORS:
        outside, cells, worst = 0, 0, 0.0
        for name, samples in curves.items():
            if not name.endswith(f"e={error}"):
                continue
            for at in accuracy(samples):
                truth = (1 - error) ** (at.moves or 0)
                outside += binomtest(at.solved, at.reasoned, truth).pvalue < least
                worst = max(worst, abs((at.accuracy or 0.0) - truth))
                cells += 1
        checks.append(
            Check(
                f"scripted, error {error} per move: accuracy is (1 - e)^moves",
                "no collapse of reasoning is needed for a collapse of accuracy",
                float(outside),
                bool(outside == 0),
                None,
                f"levels that an exact binomial test rejects, of {cells}, at {CHANCE} over all; "
                f"largest gap {worst:.3f}; target: 0",
            )
        )
    return checks


def positions(traces: int, seed: int) -> Check:
    """Candidates in traces, where they were planned."""
    random, wrong, seen = Random(seed), 0, 0
    for _ in range(max(10, traces // 10)):
        puzzle: Puzzle = random.choice([Hanoi(4), Checkers(2), Blocks(6), River(3, 2)])
        plan = [Placed(random.randrange(60), random.random() < 0.5) for _ in range(3)]
        if puzzle.name == "river":  # its moves have no target to spoil
            plan = [Placed(item.words, True) for item in plan]
        plan.insert(2, Placed(7, True, repeated=True))
        text, ends = planned(puzzle, plan, random.randrange(80))
        trace = analyse(text, puzzle, count, dedup=False)
        # Without the repeated one, which has no planned position.
        found = [each for index, each in enumerate(trace.candidates) if index != 2]
        wrong += [each.position for each in found] != ends
        rights = [item.right for item in plan if not item.repeated]
        wrong += [each.correct for each in found] != rights
        firsts = {str(each.moves): each.position for each in reversed(trace.candidates)}
        kept = analyse(text, puzzle, count)
        once = {str(each.moves): firsts[str(each.moves)] for each in trace.candidates}
        wrong += [each.position for each in kept.candidates] != list(once.values())
        seen += 1
    return Check(
        "scripted: positions and verdicts of candidates in traces are the planned ones",
        "positions of correct and incorrect candidates",
        float(wrong),
        wrong == 0,
        None,
        f"differences in {seen} traces with 4 candidates each, one repeated; target: 0",
    )


def efforts(samples: int, seed: int) -> list[Check]:
    """The decline test on a policy that gives up, one that does not, and one that is cut."""
    levels = tuple(WORDS)
    task = Puzzles("blocks", tuple(n + 1 for n in levels))
    words = {n + 1: WORDS[n] for n in levels}
    never = {n + 1: 0.0 for n in levels}
    giving = {n + 1: GIVING_UP[n] for n in levels}
    samples = min(samples, 60)
    steady = _collect(task, effortful(words, never), samples, seed).samples
    quitting = _collect(task, effortful(words, giving), samples, seed).samples
    rising, falling = decline(steady, seed=seed), decline(quitting, seed=seed)
    capped = _collect(task, effortful(words, never), samples, seed, max_tokens=330).samples
    kept, dropped = effort(capped, truncated=True), effort(capped)
    last = max(dropped)
    return [
        Check(
            "scripted: effort that falls because the policy gives up is a decline",
            "thinking tokens fall near the collapse",
            falling.slope,
            falling.declines,
            (falling.lo, falling.hi),
            f"tokens per level after the peak at N={falling.peak}; target: interval below 0",
        ),
        Check(
            "scripted: effort that keeps rising is none",
            "",
            rising.slope,
            not rising.declines,
            (rising.lo, rising.hi),
            f"peak at N={rising.peak}; target: interval not below 0",
        ),
        Check(
            "scripted: what a token limit does to effort is shown apart",
            "effort decline may be truncation",
            float(kept[last].mean - dropped[last].mean),
            None,
            None,
            f"tokens at N={last} with truncated samples minus without; levels left without "
            f"them: {len(dropped)} of {len(kept)}",
        ),
    ]


def cut_off(samples: int, seed: int) -> list[Check]:
    """A policy that is always right, under a token limit."""
    task = Puzzles("hanoi", (1, 2, 3, 4, 5, 6, 7))
    samples = min(samples, 40)

    def wordy(puzzle: Puzzle, random: Random) -> tuple[str, str]:
        words = " ".join(["hm"] * round(40 * puzzle.n * random.uniform(0.5, 1.5)))
        return words, print_moves(list(puzzle.solution()))

    limit = 500
    made = _collect(task, wordy, samples, seed, max_tokens=limit).samples
    fates = [sample.fate for sample in made]
    bound = {sample.n for sample in made if sample.fate == "output_bound"}
    needs = {n: output_need(Hanoi(n), count).tokens for n in task.levels}
    return [
        Check(
            "scripted: truncation is never a failure of reasoning",
            "a limit of 64k tokens ends Hanoi near N = 12",
            float(fates.count("wrong")),
            fates.count("wrong") == 0 and fates.count("truncated") > 0,
            None,
            f"wrong of {len(fates)} samples of a faultless policy under {limit} tokens; truncated "
            f"{fates.count('truncated')}; target: 0 wrong, some truncated",
        ),
        Check(
            "scripted: levels whose list does not fit are output-bound",
            "",
            ", ".join(map(str, sorted(bound))),
            bound == {n for n in needs if needs[n] > limit},
            None,
            f"tokens needed by N: {needs}; target: exactly the levels above {limit}",
        ),
    ]


def designed(samples: int, seed: int) -> tuple[list[Sample], list[Sample], list[Level]]:
    """Two policies with planned success at every level."""
    task = Puzzles("blocks", tuple(n + 1 for n in DESIGN))
    think = {n + 1: DESIGN[n][0] for n in DESIGN}
    plain = {n + 1: DESIGN[n][1] for n in DESIGN}
    ours = _collect(task, by_level(think, THINKING), samples, seed).samples
    theirs = _collect(task, by_level(plain, 0), samples, seed + 1).samples
    return ours, theirs, regimes(ours, theirs, seed=seed)


def regime_checks(thinking: list[Sample], plain: list[Sample], levels: list[Level]) -> list[Check]:
    """The planned regimes, and what unequal tokens would say."""
    found = [level.regime for level in levels]
    wanted = [DESIGN[n][2] for n in DESIGN]
    second = levels[1]
    at_level = [sample for sample in plain if sample.n == second.n]
    vote = majority_at_tokens(at_level, second.tokens)
    flipped = second.unmatched < 0 and second.hi <= 0.05
    return [
        Check(
            "scripted: the three regimes are the designed ones",
            "low, medium and high complexity",
            ", ".join(found),
            found == wanted,
            None,
            f"target: {', '.join(wanted)}; N = {[level.n for level in levels]}",
        ),
        Check(
            "scripted: pass@k without equal tokens says the opposite at the second level",
            "pass@k at equal compute",
            second.unmatched,
            flipped,
            None,
            f"plain minus thinking for one sample each; at equal tokens (k={second.plain.k:.1f}"
            f"{', at least' if second.plain.capped else ''}) thinking minus plain is "
            f"{second.difference:.3f}, majority vote of plain {vote.value:.3f}; target: worse "
            "unmatched, not worse by 0.05 matched",
        ),
    ]


def program() -> Check:
    """A program in place of a list that does not fit."""
    text = _HANOI_PROGRAM.format(n=PROGRAM)
    judged = judge_program(Hanoi(PROGRAM), text)
    tokens = count(text)
    return Check(
        f"a program solves Hanoi with {PROGRAM} disks within the comment's tokens",
        f"N={PROGRAM} in less than {PROGRAM_TOKENS} tokens",
        float(tokens),
        judged.correct and tokens < PROGRAM_TOKENS,
        None,
        f"tokens of a program whose {2**PROGRAM - 1} moves were run in the sandbox and checked; "
        f"the list itself needs {output_need(Hanoi(PROGRAM), count).tokens}",
    )
