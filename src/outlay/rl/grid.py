"""The ablation grid: methods x seeds x settings, trained once each, stored, compared.

A `Cell` says everything that decides a run; its `key` is a hash of that. `run` trains and evaluates
the cells that a folder lacks and returns a `CellResult` each. A run that is killed goes on where it
stopped: a cell's file is written whole or not at all. Two runs over one folder share the work, and
a cell that several studies need is trained once. `outlay.rl.grid_compare` makes tables and
frontiers of the results.

>>> from outlay.rl.grid import Cell, run  # doctest: +SKIP
>>> run([Cell("GRPO", Plain(), seed=s) for s in (0, 1, 2)], "runs/grid")  # doctest: +SKIP
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from outlay.errors import InputError, ResultsError
from outlay.machine import commit, machine, today
from outlay.rl.base import Method
from outlay.rl.grid_baselines import SFT, method_of
from outlay.rl.grid_names import described
from outlay.rl.grid_results import CellResult, EvalCell, curve_of
from outlay.rl.running_core import (
    evaluated,
    make_trainer,
    one_thread,
    quiet,
    single_threaded,
    spent,
    stepping,
)
from outlay.rl.running_tasks import ChainTask, TrainingTask

__all__ = ["Cell", "CellResult", "ChainTask", "EvalCell", "load", "run", "run_cell"]

MAX_CELLS = 10_000
MAX_STEPS = 1_000_000
_LAYOUT = 1  # of stored cells; a new one makes stored cells unreadable
_SET_BY_CELL = frozenset(
    {
        "max_steps",
        "seed",
        "num_generations",
        "learning_rate",
        "per_device_train_batch_size",
        "output_dir",
    }
)


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        label: in tables; it does not decide the run.
        method: an instance, a spec (`grpo-length:scale=64`), or None or "sft" for the policy before
            training.
        seed: of sampling, of the order of problems, of everything random in training.
        steps: optimiser steps.
        questions: of a step.
        group: rollouts of a question.
        learning_rate: constant.
        settings: further fields of `GRPOConfig`; they win over the method's own.
        task: model, problems, verifier, evaluation.
        keep: also store the trained weights; it does not decide the run.

    Raises:
        InputError: for numbers out of range, or settings that have a field of their own here.
    """

    label: str
    method: Method | str | None
    seed: int = 0
    steps: int = 150
    questions: int = 16
    group: int = 8
    learning_rate: float = 2e-5
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    task: TrainingTask = field(default_factory=ChainTask)
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.label.strip():
            raise InputError("label is empty; name the cell")
        if isinstance(self.method, str):
            object.__setattr__(self, "method", method_of(self.method))
        if self.method is not None and not isinstance(self.method, Method):
            raise InputError(
                f"method={self.method!r} is no training method; give an instance of Method, a "
                f"spec, or {SFT!r}"
            )
        if not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"steps={self.steps}; must be in 1..{MAX_STEPS:,}")
        if self.questions < 1 or self.group < 2 or self.seed < 0:
            raise InputError(
                f"questions={self.questions}, group={self.group}, seed={self.seed}; need at least "
                "1 question, 2 rollouts and a seed >= 0"
            )
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate={self.learning_rate}; must be in (0, 1)")
        if taken := sorted(_SET_BY_CELL & set(self.settings)):
            raise InputError(
                f"settings has {', '.join(taken)}; use the cell's steps, seed, group, "
                "learning_rate and questions"
            )

    @property
    def key(self) -> str:
        """A hash of everything that decides the run: 16 hexadecimal digits."""
        text = json.dumps(self.decides(), sort_keys=True, allow_nan=False)
        return sha256(text.encode()).hexdigest()[:16]

    def decides(self) -> dict[str, Any]:
        """Everything that decides the run, JSON-ready.

        The policy before training has no seed, steps or settings: all its cells are one.

        Raises:
            InputError: for a method with a part that has no stable name (a lambda).
        """
        shared = {
            "layout": _LAYOUT,
            "task": described(self.task),
            "identity": self.task.identity(),
            "method": described(self.method),
        }
        if self.method is None:
            return shared
        return {
            **shared,
            "seed": self.seed,
            "steps": self.steps,
            "questions": self.questions,
            "group": self.group,
            "learning_rate": self.learning_rate,
            "settings": described(dict(self.settings)),
        }


def run(
    cells: Sequence[Cell],
    folder: str | Path,
    progress: Callable[[str], None] = lambda message: None,
    processes: int = 1,
) -> list[CellResult]:
    """Train and evaluate what the folder lacks.

    Args:
        cells: in the order of the results; cells of one key are run once.
        folder: of the store; made if missing.
        progress: gets a line a cell.
        processes: cells at once, one thread each. More than one starts new interpreters: guard the
            calling script with `if __name__ == "__main__"`.

    Raises:
        InputError: for no cells, more than 10,000, or less than one process.
        ResultsError: if the folder cannot be used, or a stored cell cannot be read.
    """
    if not 1 <= len(cells) <= MAX_CELLS:
        raise InputError(f"{len(cells)} cells; give 1 to {MAX_CELLS:,}")
    if processes < 1:
        raise InputError(f"processes={processes}; must be at least 1")
    home = Path(folder)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot use {home} ({error}); give another folder") from error
    wanted: dict[str, Cell] = {}
    for cell in cells:
        known = wanted.setdefault(cell.key, cell)
        if cell.keep and not known.keep:
            wanted[cell.key] = cell
    todo = [cell for cell in wanted.values() if not _stored(cell, home)]
    if len(wanted) > len(todo):
        progress(f"{len(wanted) - len(todo)} of {len(wanted)} cells are there already")
    runner = _serial if processes == 1 else _parallel
    busy = runner(todo, home, progress, processes, False)
    runner(busy, home, progress, processes, True)  # wait for those that another run is at
    return [replace(load(home, cell.key), label=cell.label) for cell in cells]


def load(folder: str | Path, key: str) -> CellResult:
    """A stored cell.

    Raises:
        ResultsError: if it is not there, or cannot be read.
    """
    path = Path(folder) / f"{key}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(
            f"{path} is no stored cell ({error}); delete it and run again"
        ) from error
    return CellResult.from_dict(data, Path(folder))


def run_cell(
    cell: Cell, progress: Callable[[str], None] = lambda message: None, keep: Path | None = None
) -> CellResult:
    """Train and evaluate one cell, in this process, with one thread.

    Args:
        cell: what to run.
        progress: gets a line every ten steps.
        keep: folder for the trained weights; None drops them.
    """
    with one_thread(), quiet():
        return _run_cell(cell, progress, keep)


def _run_cell(cell: Cell, progress: Callable[[str], None], keep: Path | None) -> CellResult:
    from transformers import set_seed

    from outlay.rl.manifest import METRICS

    set_seed(cell.seed)
    model, tokenizer = cell.task.load()
    curve: dict[str, list[float | None]] = {}
    tokens: dict[str, int] = {}
    began = time.perf_counter()
    if isinstance(cell.method, Method):
        with tempfile.TemporaryDirectory(prefix="outlay-cell-") as scratch:
            trainer = make_trainer(
                cell.method,
                cell.task,
                scratch,
                _settings(cell),
                cpu=True,
                loaded=(model, tokenizer),
                callbacks=[
                    stepping(10, lambda step: progress(f"{cell.label}, seed {cell.seed}: {step}"))
                ],
            )
            trainer.train()
            curve = curve_of(Path(scratch) / METRICS)
            tokens = spent(trainer.tokens)
            model = trainer.accelerator.unwrap_model(trainer.model)
    trained = time.perf_counter()
    evaluation = evaluated(cell.task, _method(cell), model, tokenizer)
    done = time.perf_counter()
    if keep is not None:
        _keep(model, tokenizer, keep)
    return CellResult(
        label=cell.label,
        key=cell.key,
        method=SFT if cell.method is None else type(cell.method).__name__,
        task=cell.task.name,
        seed=cell.seed,
        steps=0 if cell.method is None else cell.steps,
        decides=cell.decides(),
        curve=curve,
        evaluation=evaluation,
        tokens=tokens,
        seconds={"train": round(trained - began, 2), "evaluate": round(done - trained, 2)},
        machine=machine(),
        commit=commit(),
        date=today(),
    )


def _method(cell: Cell) -> Method | None:
    return cell.method if isinstance(cell.method, Method) else None


def _settings(cell: Cell) -> dict[str, Any]:
    return {
        **cell.settings,
        "max_steps": cell.steps,
        "num_generations": cell.group,
        "per_device_train_batch_size": cell.questions * cell.group,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
    }


def _keep(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights and tokenizer as a folder, whole or not at all."""
    import shutil

    draft = folder.with_name(folder.name + f".{os.getpid()}.part")
    model.save_pretrained(draft, safe_serialization=True)
    tokenizer.save_pretrained(draft)
    if folder.is_dir():
        shutil.rmtree(folder)
    draft.replace(folder)


def _stored(cell: Cell, home: Path) -> bool:
    whole = (home / f"{cell.key}.json").is_file()
    return whole and (not cell.keep or (home / cell.key).is_dir())


def _work(cell: Cell, home: Path, wait: bool, progress: Callable[[str], None]) -> str:
    """Run one cell under its lock: "done", "there" (another run did it), or "busy"."""
    with _locked(home / f"{cell.key}.lock", wait) as mine:
        if not mine:
            return "busy"
        if _stored(cell, home):
            return "there"
        result = run_cell(cell, progress, home / cell.key if cell.keep else None)
        path = home / f"{cell.key}.json"
        draft = path.with_suffix(f".{os.getpid()}.part")
        draft.write_text(result.to_json(), encoding="utf-8")
        draft.replace(path)
        return "done"


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    """A lock of the kernel: it is gone when its process is, however that ended."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _serial(
    cells: Sequence[Cell],
    home: Path,
    progress: Callable[[str], None],
    processes: int,
    wait: bool,
) -> list[Cell]:
    busy = []
    for number, cell in enumerate(cells, 1):
        began = time.perf_counter()
        outcome = _work(cell, home, wait, progress)
        if outcome == "busy":
            busy.append(cell)
        progress(_line(cell, outcome, number, len(cells), time.perf_counter() - began))
    return busy


def _parallel(
    cells: Sequence[Cell],
    home: Path,
    progress: Callable[[str], None],
    processes: int,
    wait: bool,
) -> list[Cell]:
    if not cells:
        return []
    busy = []
    with ProcessPoolExecutor(
        max_workers=min(processes, len(cells)),
        mp_context=get_context("spawn"),
        initializer=single_threaded,
    ) as pool:
        began = time.perf_counter()
        work = {pool.submit(_work, cell, home, wait, _quiet): cell for cell in cells}
        for number, future in enumerate(as_completed(work), 1):
            cell, outcome = work[future], future.result()
            if outcome == "busy":
                busy.append(cell)
            progress(_line(cell, outcome, number, len(cells), time.perf_counter() - began))
    return busy


def _quiet(message: str) -> None:
    """Helper processes say nothing."""


def _line(cell: Cell, outcome: str, number: int, total: int, seconds: float) -> str:
    said = {"done": f"done, {seconds:.0f} s", "there": "there", "busy": "another run is at it"}
    return f"{number}/{total} {cell.label}, seed {cell.seed}: {said[outcome]}"
