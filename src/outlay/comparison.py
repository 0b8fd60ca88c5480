"""Compare: which way of spending N tokens gives the best answers on this model and this data?

A comparison runs stacks at several budgets on the examples of a task, and keeps one record per
example. Everything shown (points, intervals, verdicts, pictures, pages) derives from the records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outlay import machine, registry
from outlay.budget import Budget, Counts
from outlay.errors import CapabilityError, InputError, OutlayError
from outlay.evals.base import Problem, Task
from outlay.example import Outcome, run_example
from outlay.frontier import Axis, Point, Verdict, points, verdicts
from outlay.models.base import Model, SamplingParams, Scorer
from outlay.records import Key, Record, write_csv
from outlay.report import Detail, View, write_report
from outlay.runs import Run, fingerprint
from outlay.stack import NOTHING, Stack


class Plan(BaseModel):
    """One task, one model, several methods at several budgets.

    Args:
        task: a task's spec, see `outlay methods --tasks`.
        methods: stacks, each one or more method specs joined by "+"; "full", the default, is the
            model as it is: it compresses nothing and
            runs once, without a budget, as a reference.
        budgets: token limits; none runs every method once, limited by `max_tokens` alone.
        model: see `outlay.models.load`.
        axis: cost axis of tables and pictures, see `outlay.records.Axis`; None takes "vision" for
            tasks with images, "prompt" where budgets count that, else "generated+forced". Cache
            methods move "kv_bytes", decoders "seconds", predicted caches "ttft".
        counts: what the budgets count; None takes "vision" for tasks with images, "prompt" if any
            method compresses, else "generated".
        n: examples.
        seed: of the examples and of sampling.
        seeds: sampling repetitions per example.
        scorer: model of the compressors; None takes `model`, or the embedded one for endpoints.
        verifier: spec of the judge of reason methods, see `outlay methods --verifiers`.
        judge: model of the verifier; None takes `model`.
        temperature: of sampling; 0 is greedy; None is 0, and 0.8 for methods that reason.
        max_tokens: limit on generated tokens where the budget does not set one.
        workers: examples in flight; more than 1 pays for endpoints only.
        name: of the task in tables and pages.
        about: a sentence for the page.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    methods: tuple[str, ...] = Field(default=(NOTHING,), min_length=1)
    budgets: tuple[int, ...] = ()
    model: str = "embedded"
    axis: Axis | None = None
    counts: Counts | None = None
    n: int = Field(default=20, ge=1)
    seed: int = 0
    seeds: int = Field(default=1, ge=1)
    scorer: str | None = None
    verifier: str = "self"
    judge: str | None = None
    temperature: float | None = Field(default=None, ge=0)
    max_tokens: int = Field(default=128, ge=1)
    workers: int | None = Field(default=None, ge=1)
    name: str | None = None
    about: str = ""


class Plans(BaseModel):
    """A run file: what `outlay compare FILE.toml` reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = "outlay compare"
    compare: tuple[Plan, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: str | Path) -> Plans:
        """Read a TOML run file.

        Raises:
            InputError: if it cannot be read or has unknown or wrong entries.
        """
        import tomllib

        from outlay.files import read_text

        try:
            return cls.model_validate(tomllib.loads(read_text(path).text))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path} is not TOML ({error})") from error
        except ValidationError as error:
            raise InputError(f"{path}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """A validation error in one line."""
    parts = []
    for item in error.errors():
        where = ".".join(str(step) for step in item["loc"])
        parts.append(f"{where}: {item['msg']}")
    return "; ".join(parts)


def plan(**knobs: Any) -> Plan:
    """A `Plan`, with errors as `InputError`."""
    try:
        return Plan(**knobs)
    except ValidationError as error:
        raise InputError(explain(error)) from error


@dataclass(frozen=True)
class Cell:
    """One run to do."""

    key: str
    stack: Stack
    label: str
    budget: Budget
    problem: Problem
    seed: int


@dataclass
class Failure:
    """An example that could not be run."""

    task: str
    label: str
    budget: str
    example: str
    error: str


Progress = Callable[[str, int, int], None]  # task, done, total


def _silent(task: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass
class Comparison:
    """The outcome of a run.

    Args:
        title: headline.
        outcomes: one per example, stack, budget and seed.
        views: how each task is shown.
        failures: examples that could not be run.
        meta: model, machine, seeds.
        folder: where the records are.
    """

    title: str
    outcomes: list[Outcome]
    views: dict[str, View]
    failures: list[Failure] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def records(self) -> list[Record]:
        """All records."""
        return [outcome.record for outcome in self.outcomes]

    def points(self, task: str) -> list[Point]:
        """Frontier points of one task."""
        mine = [record for record in self.records if record.task == task]
        return points(mine, axis=self.views[task].axis)

    def verdicts(self) -> dict[Key, Verdict]:
        """How each stack stands at each budget."""
        return verdicts(
            self.records,
            higher_is_better={name: view.higher_is_better for name, view in self.views.items()},
        )

    def notes(self) -> list[str]:
        """Failures, one line a cell."""
        cells: dict[tuple[str, str, str], list[Failure]] = {}
        for failure in self.failures:
            cells.setdefault((failure.task, failure.label, failure.budget), []).append(failure)
        return [
            f"{task}: {label} at {budget} failed on {len(found)} examples: {found[0].error}"
            for (task, label, budget), found in cells.items()
        ]

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML page and, beside it, a CSV of all records (same name)."""
        target = Path(path) if path else (self.folder or Path()) / "report.html"
        details = {o.record.key: Detail(o.texts, o.marks) for o in self.outcomes}
        write_report(
            target,
            title=self.title,
            records=self.records,
            meta=self.meta,
            details=details,
            views=self.views,
            notes=self.notes(),
        )
        write_csv(target.with_suffix(".csv"), self.records)
        return target

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary: points with verdicts, notes, meta."""
        found = self.verdicts()
        rows = [
            {**point.to_dict(), "verdict": found[point.group], "metric": self.views[task].metric}
            for task in self.views
            for point in self.points(task)
        ]
        return {
            "title": self.title,
            "meta": self.meta,
            "points": rows,
            "notes": self.notes(),
            "failures": [vars(failure) for failure in self.failures],
        }


def compare(
    plans: Plans | Plan | Sequence[Plan],
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress = _silent,
    load: Callable[[str], Model] | None = None,
) -> Comparison:
    """Run a comparison, or what is left of it.

    Args:
        plans: what to run.
        out: the run's folder; None names one under `runs/` after the configuration. Running again
            with the same configuration goes on where the last run stopped.
        fresh: drop what the folder holds.
        progress: called after every example with (task, done, total).
        load: gives a model for a spec; None is `outlay.models.load`.

    Raises:
        InputError: for unknown names or impossible plans, before anything runs.
        ResultsError: for a folder that holds another run.
        KeyboardInterrupt: passed on; finished examples are kept.
    """
    if isinstance(plans, Plan):
        plans = Plans(compare=(plans,))
    elif not isinstance(plans, Plans):
        plans = Plans(compare=tuple(plans))
    load = _Loader(load)
    jobs = [_Job(item, load) for item in plans.compare]
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        raise InputError(f"two comparisons are named {sorted(names)}; give each its own name=")
    config = {"plans": [job.config() for job in jobs], "version": machine.versions()["outlay"]}
    folder = Path(out) if out is not None else Path("runs") / fingerprint(config)
    run = Run(folder, config, fresh=fresh)
    failures: list[Failure] = []
    for job in jobs:
        failures += job.run(run, progress)
    order = {cell.key: i for i, cell in enumerate(c for job in jobs for c in job.cells)}
    outcomes = sorted(
        (o for key, o in run.outcomes.items() if key in order), key=lambda o: order[o.record.key]
    )
    if not outcomes:
        reason = failures[0].error if failures else "nothing was planned"
        raise InputError(f"no example could be run: {reason}")
    meta = {
        "models": ", ".join(dict.fromkeys(job.plan.model for job in jobs)),
        "examples": ", ".join(f"{job.name}: {job.plan.n}" for job in jobs),
        "seeds": ", ".join(dict.fromkeys(str(job.plan.seed) for job in jobs)),
        "date": machine.today(),
        "commit": machine.commit(),
        "machine": machine.sentence(),
        "versions": ", ".join(f"{name} {v}" for name, v in machine.versions().items()),
    }
    views = {job.name: job.view() for job in jobs}
    return Comparison(plans.title, outcomes, views, failures, meta, folder)


class _Loader:
    """Loads each model once."""

    def __init__(self, load: Callable[[str], Model] | None) -> None:
        self._load = load
        self._known: dict[str, Model] = {}

    def __call__(self, spec: str) -> Model:
        if spec not in self._known:
            if self._load is None:
                from outlay import models

                self._known[spec] = models.load(spec)
            else:
                self._known[spec] = self._load(spec)
        return self._known[spec]


class _Job:
    """A plan, resolved: its task, model, stacks and cells."""

    def __init__(self, item: Plan, load: Callable[[str], Model]) -> None:
        from outlay.models.memo import MemoScorer

        self.plan = item
        self.task: Task = registry.create("tasks", item.task)
        self.name = item.name or self.task.name
        self.model = load(item.model)
        given: dict[str, Any] = {}
        if any(needs(spec, "scorer") for spec in item.methods):
            given["scorer"] = MemoScorer(self._scorer(item, load))
        if any(needs(spec, "verifier") for spec in item.methods):
            judge = {"model": load(item.judge or item.model)}
            given["verifier"] = registry.create("verifiers", item.verifier, given=judge)
        stacks = {spec: Stack.parse(spec, given=given) for spec in item.methods}
        compresses = any(stack.prompt is not None for stack in stacks.values())
        self.counts: Counts = item.counts or self._counted(compresses)
        problems = self.task.sample(item.seed, item.n)
        self.cells: list[Cell] = []
        for problem in problems:  # by example, so that a run cut short has complete examples
            for budget in self._budgets():
                for spec, stack in stacks.items():
                    if spec != NOTHING:
                        stack.budgets(budget)  # refuse impossible pairs before anything runs
                        self._plan(stack, spec, budget, problem)
            if NOTHING in stacks:
                self._plan(stacks[NOTHING], NOTHING, Budget(), problem)

    def _counted(self, compresses: bool) -> Counts:
        """What budgets count where the plan does not say it."""
        if self.task.kind == "vision":
            return "vision"
        return "prompt" if compresses else "generated"

    @staticmethod
    def _scorer(item: Plan, load: Callable[[str], Model]) -> Scorer:
        model = load(item.scorer or item.model)
        if not isinstance(model, Scorer):
            if item.scorer:
                raise CapabilityError(f"scorer={item.scorer!r} cannot score text; use a local one")
            model = load("embedded")
        return cast(Scorer, model)

    def _budgets(self) -> Iterator[Budget]:
        if not self.plan.budgets:
            yield Budget()
        for tokens in dict.fromkeys(self.plan.budgets):
            yield Budget(tokens=tokens, counts=self.counts)

    def _plan(self, stack: Stack, label: str, budget: Budget, problem: Problem) -> None:
        for seed in range(self.plan.seed, self.plan.seed + self.plan.seeds):
            key = " | ".join((self.name, problem.id, label, budget.label(), str(seed)))
            self.cells.append(Cell(key, stack, label, budget, problem, seed))

    def config(self) -> dict[str, Any]:
        """What decides the results; a change makes another run."""
        return {
            **self.plan.model_dump(exclude={"about", "axis", "workers"}),
            "task": repr(self.task),
        }

    def view(self) -> View:
        """How the task is shown."""
        named: Axis = "prompt" if self.counts == "prompt" else "generated+forced"
        axis = self.plan.axis or ("vision" if self.task.kind == "vision" else named)
        return View(self.task.metric, axis, self.task.higher_is_better, self.plan.about)

    def run(self, run: Run, progress: Progress) -> list[Failure]:
        """Run every cell that the folder lacks."""
        failures: list[Failure] = []
        todo = [cell for cell in self.cells if cell.key not in run]
        done = len(self.cells) - len(todo)
        progress(self.name, done, len(self.cells))
        stop = threading.Event()

        def one(cell: Cell) -> Outcome | Failure | None:
            if stop.is_set():
                return None
            try:
                return run_example(
                    self.model,
                    cell.stack,
                    self.task,
                    cell.problem,
                    cell.budget,
                    seed=cell.seed,
                    sampling=self._sampling(cell.stack),
                    label=cell.label,
                    task_name=self.name,
                )
            except OutlayError as error:
                where = (self.name, cell.label, cell.budget.label(), cell.problem.id)
                return Failure(*where, error=str(error))

        for result in self._results(todo, one, stop):
            if isinstance(result, Outcome):
                run.add(result)
            elif result is not None:
                failures.append(result)
            done += 1
            progress(self.name, done, len(self.cells))
        return failures

    def _sampling(self, stack: Stack) -> SamplingParams:
        temperature = self.plan.temperature
        if temperature is None:
            temperature = stack.temperature
        return SamplingParams(max_tokens=self.plan.max_tokens, temperature=temperature)

    def _results(
        self,
        todo: Sequence[Cell],
        one: Callable[[Cell], Outcome | Failure | None],
        stop: threading.Event,
    ) -> Iterator[Outcome | Failure | None]:
        remote = getattr(self.model, "max_concurrency", 1)
        workers = self.plan.workers or remote
        if workers == 1:
            yield from map(one, todo)
            return
        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in as_completed([pool.submit(one, cell) for cell in todo]):
                    yield future.result()
            finally:
                stop.set()


def needs(spec: str, name: str) -> bool:
    """True if a method of the stack `spec` has a field `name`."""
    import dataclasses

    if spec.strip() == NOTHING:
        return False
    slugs = [registry.parse_spec(part)[0] for part in registry.split_spec(spec, "+")]
    classes = [registry.find("methods", slug).load() for slug in slugs]
    return any(f.name == name for cls in classes for f in dataclasses.fields(cls))


def summary(comparison: Comparison) -> Mapping[str, str]:
    """The best stack of every task and budget, in a sentence each."""
    found = comparison.verdicts()
    lines: dict[str, str] = {}
    for task, _stack, budget in found:
        block = {k[1]: v for k, v in found.items() if k[0] == task and k[2] == budget}
        leader = next((s for s, v in block.items() if v in ("best", "highest")), None)
        if leader is None:
            continue
        tied = [s for s, v in block.items() if v == "not separable"]
        text = f"{leader} is best"
        if tied:
            text = f"{leader} leads, not separable from {', '.join(tied)}"
        lines[f"{task} at {budget}"] = text
    return lines
