"""`outlay train rl` as a Python call: `train(recipe, folder)`.

The folder gets `recipe.json`, TRL's checkpoints, `metrics.jsonl`, the trained model under `model/`,
`before.json` and `after.json` (evaluations at several budgets, with the curve of training), and a
page, `index.html`. Under `accelerate launch` every process calls this; the first one writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outlay.errors import CapabilityError, InputError, ResultsError
from outlay.machine import commit, machine, today
from outlay.rl.base import Method
from outlay.rl.grid_baselines import SFT
from outlay.rl.grid_compare import Versus, versus
from outlay.rl.grid_names import described
from outlay.rl.grid_results import CellResult, EvalCell, curve_of
from outlay.rl.recipe import Recipe
from outlay.rl.running_core import evaluated, make_trainer, one_thread, quiet, spent, stepping
from outlay.rl.running_tasks import ChainTask, TrainingTask

RECIPE, BEFORE, AFTER, MODEL = "recipe.json", "before.json", "after.json", "model"
_FREE = ("steps", "save_every", "before")  # may change when a run is resumed
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Training:
    """A finished run.

    Args:
        recipe: of it.
        folder: with everything.
        before: the starting policy; None if it was not evaluated.
        after: the trained one, and the curve of training; None on processes but the first.
        notes: what a reader should know.
    """

    recipe: Recipe
    folder: Path
    before: CellResult | None
    after: CellResult | None
    notes: tuple[str, ...] = ()

    @property
    def change(self) -> Versus | None:
        """What training changed, greedy (or at the first temperature) and uncut."""
        if self.before is None or self.after is None or not self.after.evaluation:
            return None
        return versus([self.after], [self.before], self.after.evaluation[0].temperature)

    def to_dict(self) -> dict[str, Any]:
        """A summary, JSON-ready; the curve is in `after.json`."""
        change = self.change
        done = self.after
        return {
            "method": self.recipe.method,
            "task": self.recipe.task,
            "folder": str(self.folder),
            "model": str(self.folder / MODEL),
            "steps": self.recipe.steps,
            "evaluation": [] if done is None else [_brief(one) for one in done.evaluation],
            "before": [] if self.before is None else [_brief(o) for o in self.before.evaluation],
            "change": None if change is None else change.to_dict(),
            "tokens": {} if done is None else done.tokens,
            "seconds": {} if done is None else done.seconds,
            "notes": list(self.notes),
        }


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> Training:
    """Train, evaluate, write everything down.

    Args:
        recipe: how.
        out: folder of the run; made if missing.
        resume: go on with the last checkpoint there, or begin if there is none.
        progress: gets what is done: a name, steps, of how many.

    Raises:
        ResultsError: for a folder that holds a run (without `resume`), or another run.
        InputError: as the method, the task and the trainer do.
    """
    folder = Path(out)
    method, task = recipe.build_method(), recipe.build_task()
    if _first():
        _claim(folder, recipe, resume)
    if not isinstance(task, ChainTask):
        with quiet():
            return _train(recipe, method, task, folder, resume, progress)
    with quiet(), one_thread():
        return _train(recipe, method, task, folder, resume, progress)


def _train(
    recipe: Recipe,
    method: Method,
    task: TrainingTask,
    folder: Path,
    resume: bool,
    progress: Progress,
) -> Training:
    import torch
    from accelerate.utils import DistributedType  # type: ignore[import-untyped]
    from transformers import set_seed
    from transformers.trainer_utils import get_last_checkpoint

    from outlay.rl.manifest import METRICS

    set_seed(recipe.seed)
    model, tokenizer = task.load()
    before = None
    if recipe.before and _first():
        before = _before(recipe, task, model, tokenizer, folder)
    trainer = make_trainer(
        method,
        task,
        folder,
        recipe.all_settings(),
        cpu=not torch.cuda.is_available(),
        loaded=(model, tokenizer),
        peft_config=_lora(recipe),
        callbacks=[stepping(1, lambda step: progress("training", step, recipe.steps))],
    )
    checkpoint = get_last_checkpoint(str(folder)) if resume else None
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - began
    trainer.save_model(str(folder / MODEL))
    if not trainer.accelerator.is_main_process:
        return Training(recipe, folder, None, None)
    notes = []
    if checkpoint is not None:
        notes.append(f"Went on with {Path(checkpoint).name}; seconds are those after it.")
    found: list[EvalCell] = []
    started = time.perf_counter()
    split = (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if trainer.accelerator.distributed_type in split:
        notes.append("The trained policy was not evaluated: its weights are spread over processes.")
    else:
        progress("evaluation", 0, 1)
        trained = trainer.accelerator.unwrap_model(trainer.model)
        found = evaluated(task, method, trained, tokenizer)
        progress("evaluation", 1, 1)
    after = _result(recipe, task, "trained", method, found)
    after = replace(
        after,
        steps=trainer.state.global_step,
        curve=curve_of(folder / METRICS),
        tokens=spent(trainer.tokens),
        seconds={
            "train": round(seconds, 2),
            "evaluate": round(time.perf_counter() - started, 2),
        },
    )
    _write(folder / AFTER, after.to_json())
    done = Training(recipe, folder, before, after, tuple(notes))
    from outlay.rl.pages import run_page

    run_page(done, method, folder / "index.html")
    return done


def _before(
    recipe: Recipe, task: TrainingTask, model: Any, tokenizer: Any, folder: Path
) -> CellResult:
    """The starting policy's evaluation, made once a folder."""
    path = folder / BEFORE
    if path.is_file():
        try:
            return CellResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path} is not JSON ({error}); delete it and resume") from error
    result = _result(recipe, task, "before", None, evaluated(task, None, model, tokenizer))
    _write(path, result.to_json())
    return result


def _result(
    recipe: Recipe,
    task: TrainingTask,
    label: str,
    method: Method | None,
    found: list[EvalCell],
) -> CellResult:
    return CellResult(
        label=label,
        key=label,
        method=SFT if method is None else method.name,
        task=task.name,
        seed=recipe.seed,
        steps=0,
        decides={"task": described(task), "recipe": recipe.to_dict()},
        curve={},
        evaluation=found,
        tokens={},
        seconds={"train": 0.0},
        machine=machine(),
        commit=commit(),
        date=today(),
    )


def _lora(recipe: Recipe) -> Any:
    """An adapter on all linear layers; None to train all weights."""
    if not recipe.lora:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise CapabilityError("lora needs peft: pip install 'outlay[train]'") from error
    return LoraConfig(r=recipe.lora, lora_alpha=2 * recipe.lora, target_modules="all-linear")


def _claim(folder: Path, recipe: Recipe, resume: bool) -> None:
    """The folder for this recipe: new, or the same run's."""
    path = folder / RECIPE
    text = json.dumps(recipe.to_dict(), sort_keys=True, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if not resume:
                raise ResultsError(
                    f"{folder} holds a run; give --resume to go on with it, or another --out"
                )
            _check_same(path, recipe)
        elif any(folder.glob("checkpoint-*")):
            raise ResultsError(f"{folder} holds checkpoints of something else; give another --out")
        _write(path, text)
    except OSError as error:
        raise ResultsError(f"cannot use {folder} ({error}); give another --out") from error


def _check_same(path: Path, recipe: Recipe) -> None:
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path} is not JSON ({error}); give another --out") from error
    new = json.loads(json.dumps(recipe.to_dict()))
    differs = sorted(k for k in {*old, *new} if k not in _FREE and old.get(k) != new.get(k))
    if differs:
        raise ResultsError(
            f"{path.parent} holds another run ({', '.join(differs)} differs); give another --out"
        )
    if old["steps"] > new["steps"]:
        raise InputError(f"steps={new['steps']}; the run in {path.parent} has {old['steps']}")


def _first() -> bool:
    """This is the process that writes (before accelerate is set up, it is told by RANK)."""
    return os.environ.get("RANK", "0") == "0"


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _brief(one: EvalCell) -> Mapping[str, Any]:
    return {
        "scale": one.scale,
        "budget": one.budget,
        "temperature": one.temperature,
        "seed": one.seed,
        "metrics": one.metrics,
        "bins": one.bins,
    }
