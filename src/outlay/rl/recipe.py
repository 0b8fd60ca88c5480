"""Recipes: one TOML file says how a model is trained, and how it is judged afterwards.

    [run]
    method = "hbpo"
    task = "chainarith-rl"
    steps = 150

    [method]            # knobs of the method
    budgets = [16, 32, 64, 96]

    [task]              # knobs of the task: problems, budgets of the evaluation
    test = 160

    [settings]          # any field of trl's GRPOConfig
    warmup_steps = 5

No torch.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from outlay.errors import InputError
from outlay.rl.base import Method
from outlay.rl.grid_baselines import method_of
from outlay.rl.running_sources import FileTask, GymTask
from outlay.rl.running_tasks import ChainTask, TrainingTask

CHAIN = "chainarith-rl"
MAX_BYTES = 1_000_000
_PARTS = ("run", "method", "task", "settings")
_OWN = {
    "max_steps": "steps",
    "num_generations": "group",
    "learning_rate": "learning_rate",
    "seed": "seed",
    "per_device_train_batch_size": "questions",
    "output_dir": "out",
    "save_steps": "save_every",
    "save_strategy": "save_every",
}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        method: name, or a spec with knobs.
        task: "chainarith-rl", a data set of reasoning-gym, or a JSONL file.
        model: a folder, a hub's name or "embedded"; None for the testbed's policy, or "embedded"
            elsewhere.
        steps: optimiser steps.
        questions: of a step, on each process.
        group: rollouts of a question.
        learning_rate: None for 2e-5 on the testbed, and 1e-6 (TRL's default) elsewhere.
        seed: of training.
        lora: rank of an adapter; 0 trains all weights.
        save_every: steps between checkpoints; 0 for none.
        before: evaluate the starting policy, too.
        knobs: of the method.
        task_knobs: of the task.
        settings: further fields of `GRPOConfig`.

    Raises:
        InputError: for numbers out of range, or settings that have a field here.
    """

    method: str
    task: str = CHAIN
    model: str | None = None
    steps: int = 150
    questions: int = 16
    group: int = 8
    learning_rate: float | None = None
    seed: int = 0
    lora: int = 0
    save_every: int = 50
    before: bool = True
    knobs: Mapping[str, Any] = field(default_factory=dict)
    task_knobs: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = (self.method, self.task, "" if self.model is None else self.model)
        if not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"method={self.method!r}, task={self.task!r}, model={self.model!r}; must be texts"
            )
        least = {"steps": 1, "questions": 1, "group": 2, "seed": 0, "lora": 0, "save_every": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f"{name}={value!r}; must be a whole number >= {low}")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < 1:
            raise InputError(f"learning_rate={rate}; must be in (0, 1)")
        for name in sorted(set(_OWN) & set(self.settings)):
            raise InputError(f"settings has {name}; the recipe's field for it is {_OWN[name]!r}")

    def build_method(self) -> Method:
        """The method.

        Raises:
            InputError: for an unknown name or knob, or "sft".
        """
        knobs = ",".join(f"{name}={json.dumps(value)}" for name, value in self.knobs.items())
        if knobs and ":" in self.method:
            raise InputError(f"method={self.method!r} has knobs, and so has [method]; use one")
        made = method_of(f"{self.method}:{knobs}" if knobs else self.method)
        if made is None:
            raise InputError("method='sft' is the policy before training; choose a method")
        return made

    def build_task(self) -> TrainingTask:
        """The task.

        Raises:
            InputError: for a name that is neither the testbed's, nor reasoning-gym's, nor a file's;
                or an unknown knob.
        """
        given = dict(self.task_knobs)
        if self.task == CHAIN:
            model = {} if self.model is None else {"start": self.model}
            return _made(ChainTask, {**model, **given})
        own = {} if self.model is None else {"model": self.model}
        if self.task.endswith((".jsonl", ".json")):
            return _made(FileTask, {**own, "path": self.task, **given})
        return _made(GymTask, {**own, "task": self.task, **given})

    def all_settings(self) -> dict[str, Any]:
        """Fields of `GRPOConfig`."""
        rate = self.learning_rate
        if rate is None:
            rate = 2e-5 if self.task == CHAIN else 1e-6
        saving: dict[str, Any] = {"save_strategy": "no"}
        if self.save_every:
            saving = {"save_strategy": "steps", "save_steps": self.save_every}
        return {
            "logging_steps": 1,
            "disable_tqdm": True,
            "report_to": "none",
            **self.settings,
            **saving,
            "max_steps": self.steps,
            "num_generations": self.group,
            "per_device_train_batch_size": self.questions * self.group,
            "seed": self.seed,
            "learning_rate": rate,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def read(path: str | Path) -> Recipe:
    """A recipe from a TOML file.

    Raises:
        InputError: for a file that cannot be read, or a key that recipes do not have.
    """
    return parse(read_toml(Path(path)), str(path))


def example(name: str) -> str:
    """The text of a shipped recipe.

    Raises:
        InputError: if there is none of that name.
    """
    known = examples()
    if name not in known:
        raise InputError(f"no example {name!r}; there are: {', '.join(known)}")
    place = resources.files("outlay") / "examples" / f"rl-{name}.toml"
    return place.read_text(encoding="utf-8")


def examples() -> list[str]:
    """Names of the shipped recipes."""
    names = [one.name for one in (resources.files("outlay") / "examples").iterdir()]
    return sorted(
        name.removeprefix("rl-").removesuffix(".toml")
        for name in names
        if name.startswith("rl-") and name.endswith(".toml")
    )


def parse(data: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from a TOML document.

    Args:
        data: the document.
        where: its name, for errors.

    Raises:
        InputError: for a key that recipes do not have, or values of the wrong kind.
    """
    check_keys(data, _PARTS, where)
    tables = {name: data.get(name, {}) for name in _PARTS}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise InputError(f"{where}: {name} must be a table, [{name}]")
    fields = [f.name for f in dataclasses.fields(Recipe)]
    own = [name for name in fields if name not in ("knobs", "task_knobs", "settings")]
    check_keys(tables["run"], own, f"{where}: [run]")
    if "method" not in tables["run"]:
        raise InputError(f'{where}: [run] needs method = "..."')
    try:
        return Recipe(
            **tables["run"],
            knobs=tables["method"],
            task_knobs=tables["task"],
            settings=tables["settings"],
        )
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


def check_keys(data: Mapping[str, Any], known: Any, where: str) -> None:
    """Refuse keys that nobody reads."""
    if unknown := [name for name in data if name not in known]:
        raise InputError(f"{where} has no {', '.join(unknown)}; it has: {', '.join(known)}")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML document.

    Raises:
        InputError: for a file that cannot be read, is too large, or is not TOML.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES:,} bytes; is it a recipe?")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error})") from error


def _made(kind: type, given: Mapping[str, Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError

    check_keys(given, [f.name for f in dataclasses.fields(kind)], "[task]")
    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"[task] {place}: {first['msg']}") from error
