"""Changes that try to get the claims that the think-prm proof does not find; all are reported.

Four, each where the paper's argument is strongest:

- *four critiques*: both verifiers write four, and the first error is what most of them name;
- *few labels*: a hundred labelled solutions for everyone, since the paper's point is that critiques
  need few;
- *longer problems*: labels come from problems of 2 to 4 operations, tests have 5 and 6: the paper's
  gain is largest away from the training problems;
- *a worse teacher*: a fifth of its chains survive the process filter, as in the paper, so that
  filters have more to remove.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from outlay.models.local import LocalModel
from outlay.proofs import think_prm_runs as runs
from outlay.proofs.base import Check, Progress
from outlay.proofs.think_prm_measures import f1_gap, f1s, gap_of
from outlay.proofs.think_prm_runs import Bench, N, Verdicts
from outlay.reason.think_prm.data import Source
from outlay.reason.think_prm.filters import Mode
from outlay.reason.think_prm.templated import TeacherNoise
from outlay.reason.think_prm.train import TrainSettings
from outlay.testbeds.reasoner.chains import parse_question

MORE = 4  # critiques in parallel
FEWER = 100  # labelled solutions
PASSES = 16  # over them: more than over a thousand, so that training has enough steps
SHORT = 4  # operations of the problems whose labels are used where tests are longer
WORSE = TeacherNoise(recompute=0.5, verdict=0.4, format=0.2, ramble=0.2)

PROCESS, OUTCOME, CLASSIFIER, JUDGE = "process", "outcome", "discriminative", "zero-shot judge"


@dataclass(frozen=True)
class Found:
    """What one change gave.

    Args:
        name: of the change.
        judged: verdicts of the verifiers in it.
        note: what was changed.
    """

    name: str
    judged: Mapping[str, Verdicts]
    note: str

    def checks(self) -> list[Check]:
        """The claims that can be read off it."""
        made = []
        for other in (OUTCOME, CLASSIFIER, JUDGE):
            if other not in self.judged:
                continue
            ours, theirs = self.judged[PROCESS], self.judged[other]
            if other != JUDGE:
                both = f"F1 {f1s(ours)[0]:.3f} against {f1s(theirs)[0]:.3f}"
                made.append(self._check(other, "first-error F1", f1_gap(ours, theirs), both))
            if other != OUTCOME:
                mine, others = ours.best(), theirs.best()
                both = f"accuracy {mine.mean():.3f} against {others.mean():.3f}"
                made.append(self._check(other, f"best-of-{N}", gap_of(mine, others), both))
        return made

    def _check(
        self, other: str, measure: str, gap: tuple[float, tuple[float, float]], both: str
    ) -> Check:
        bench = self.judged[PROCESS].bench
        solutions = sum(map(len, self.judged[PROCESS].scores))
        return Check(
            f"change tried, {self.name}: process filter against {other}, {measure}",
            "-",
            gap[0],
            None,
            gap[1],
            f"{both}; {len(bench.problems)} questions, {solutions} solutions; {self.note}",
        )


@dataclass(frozen=True)
class Students:
    """Everything that verifiers are trained from.

    Args:
        base: the network that all start from.
        found: labelled solutions.
        critiqued: solutions that the teacher critiques.
        kept: chains that a critic is trained on.
        seed: of the teacher.
    """

    base: LocalModel
    found: Sequence[Source]
    critiqued: int
    kept: int
    seed: int

    def critic(
        self,
        mode: Mode,
        *,
        noise: TeacherNoise | None = None,
        settings: TrainSettings = runs.TUNING,
    ) -> runs.ThinkPRM:
        """A generative verifier."""
        chains = runs.critiques(self.found[: self.critiqued], self.seed, noise)
        kept = runs.keep(chains, mode, self.kept, self.base)
        return runs.critic(self.base, kept, mode, settings=settings)

    def survival(self, noise: TeacherNoise) -> float:
        """Share of a teacher's chains that the process filter leaves."""
        chains = runs.critiques(self.found[: self.critiqued], self.seed, noise)
        return runs.keep(chains, "process", self.kept, self.base).passed


def four_critiques(
    bench: Bench, critics: Mapping[str, runs.ThinkPRM], judged: Mapping[str, Verdicts]
) -> Found:
    """Both critics write more; the rivals, which write nothing, stay.

    Args:
        bench: the questions.
        critics: by filter.
        judged: verdicts that are there already, of the first critic at `MORE` and of the rivals.
    """
    outcome = runs.judge(bench, runs.several(critics[OUTCOME], MORE))
    return Found("four critiques", {**judged, OUTCOME: outcome}, "the first error by vote")


def few_labels(bench: Bench, students: Students) -> Found:
    """Everyone learns from `FEWER` labelled solutions."""
    settings = replace(runs.TUNING, epochs=PASSES)
    share = FEWER / students.kept
    fewer = replace(students, kept=FEWER, critiqued=round(students.critiqued * share))
    judged = {
        name: runs.judge(bench, fewer.critic(mode, settings=settings))
        for name, mode in _FILTERS.items()
    }
    rival = runs.classifier(students.base, students.found[:FEWER], replace(runs.FEW, epochs=PASSES))
    judged[CLASSIFIER] = runs.judge(bench, rival)
    return Found("few labels", judged, f"{FEWER} chains or labelled solutions, {PASSES} passes")


def longer_problems(bench: Bench, students: Students, judge: Verdicts) -> Found:
    """Labels of short problems, tests with longer ones; reading practice saw both, unlabelled."""
    short = replace(students, found=balanced(students.found, SHORT))
    where = [at for at, problem in enumerate(bench.problems) if _length(problem.question) > SHORT]
    part = bench.part(where)
    judged = {name: runs.judge(part, short.critic(mode)) for name, mode in _FILTERS.items()}
    rival = runs.classifier(students.base, short.found[: students.kept], runs.FEW)
    judged[CLASSIFIER] = runs.judge(part, rival)
    judged[JUDGE] = judge.part(where)
    note = f"labels from problems of at most {SHORT} operations, tests have more"
    return Found("longer problems", judged, note)


def worse_teacher(bench: Bench, students: Students) -> Found:
    """The teacher is wrong so often that about a fifth of its chains survive, as in the paper."""
    pool = replace(students, critiqued=len(students.found))
    judged = {
        name: runs.judge(bench, pool.critic(mode, noise=WORSE)) for name, mode in _FILTERS.items()
    }
    note = f"{pool.survival(WORSE):.2f} of the teacher's chains survive the process filter"
    return Found("worse teacher", judged, note)


_FILTERS: Mapping[str, Mode] = {PROCESS: "process", OUTCOME: "outcome"}


def balanced(found: Sequence[Source], longest: int) -> list[Source]:
    """Solutions of problems of at most `longest` operations, wrong and right ones in turn."""
    some = [source for source in found if _length(source.question) <= longest]
    wrong = [source for source in some if source.bad]
    right = [source for source in some if not source.bad]
    return [source for pair in zip(wrong, right, strict=False) for source in pair]


def _length(question: str) -> int:
    return parse_question(question).operations


def tried(
    bench: Bench,
    students: Students,
    critics: Mapping[str, runs.ThinkPRM],
    judged: Mapping[str, Verdicts],
    progress: Progress,
) -> list[Found]:
    """All changes.

    Args:
        bench: the questions.
        students: what is trained from.
        critics: the trained ones, by filter.
        judged: their and their rivals' verdicts; the process-filtered one's at `MORE` critiques.
        progress: told what is under way.
    """
    parts: list[Callable[[], Found]] = [
        lambda: four_critiques(bench, critics, judged),
        lambda: few_labels(bench, students),
        lambda: longer_problems(bench, students, judged[JUDGE]),
        lambda: worse_teacher(bench, students),
    ]
    made = []
    for part in parts:
        made.append(part())
        progress(f"change tried: {made[-1].name}")
    return made
