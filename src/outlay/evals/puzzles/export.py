"""The puzzles for other tools: tasks of lm-evaluation-harness, and rewards for TRL's GRPO.

`write_lm_eval` writes a folder with one YAML file and one Python file that the harness's
`TaskManager(include_path=...)` loads; problems and verdicts come from this package. `PuzzleReward`
is a reward function over the completions of a data set made by `training_rows`. The data sets for
reasoning-gym are in `outlay.evals.puzzles.gym`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay.errors import InputError
from outlay.evals.base import Problem
from outlay.evals.checks import check_sample, check_whole
from outlay.evals.puzzles.answers import ProgramLimits
from outlay.evals.puzzles.tasks import Puzzles

_HOOKS = "outlay_puzzle.py"


def _knobs(task: Puzzles) -> dict[str, Any]:
    return {**asdict(task), "levels": list(task.levels)}


def task_of(knobs: Mapping[str, Any]) -> Puzzles:
    """The task with these knobs, as `write_lm_eval` stores them."""
    limits = ProgramLimits(**knobs["sandbox_limits"])
    return Puzzles(**{**knobs, "levels": tuple(knobs["levels"]), "sandbox_limits": limits})


def training_rows(task: Puzzles, *, seed: int = 0, n: int = 100) -> list[dict[str, Any]]:
    """Rows "prompt", "id", "meta" (JSON) and "answer", for `datasets.Dataset.from_list`.

    Raises:
        InputError: for episodes, which a single completion cannot answer.
    """
    if task.kind == "episode":
        raise InputError(f"answer={task.answer!r} takes turns; use 'list', 'kth' or 'program'")
    check_sample(seed, n)
    return [
        {
            "prompt": task.prompt(problem, ""),
            "id": problem.id,
            "meta": json.dumps(problem.meta),
            "answer": problem.answer,
        }
        for problem in task.sample(seed, n)
    ]


@dataclass(frozen=True)
class PuzzleReward:
    """A reward function for TRL's GRPO: 1.0 for a right completion, else 0.0.

    Args:
        task: the task that made the rows.
    """

    task: Puzzles

    @property
    def __name__(self) -> str:
        """What the trainer logs it as."""
        return f"puzzles_{self.task.puzzle}"

    def __call__(
        self, completions: Sequence[Any], id: Sequence[str], meta: Sequence[str], **columns: object
    ) -> list[float]:
        """Rewards of completions: texts, or chats whose last message counts."""
        rewards = []
        for completion, name, shown in zip(completions, id, meta, strict=True):
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            problem = Problem(name, "", meta=json.loads(shown))
            rewards.append(self.task.verify(problem, text))
        return rewards


def write_lm_eval(
    folder: str | Path,
    task: Puzzles,
    *,
    name: str = "",
    seed: int = 0,
    samples: int = 25,
    temperature: float = 1.0,
    max_tokens: int = 64_000,
) -> str:
    """Write a task of lm-evaluation-harness into `folder`; returns its name.

    Args:
        folder: is created; an existing task of another name is not touched.
        task: no episode.
        name: of the harness's task; "" for outlay_<puzzle>_<answer>.
        seed: of the problems.
        samples: per level.
        temperature: of sampling; 0 is greedy.
        max_tokens: generated per answer.

    Raises:
        InputError: for episodes, an unusable name, or numbers out of range.
    """
    name = name or f"outlay_{task.puzzle}_{task.answer}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"name={name!r}; use small letters, digits and underscores")
    check_whole("samples", samples, least=1)
    check_whole("max_tokens", max_tokens, least=1)
    if not temperature >= 0:
        raise InputError(f"temperature={temperature}; must be >= 0 (0 is greedy)")
    training_rows(task, seed=seed, n=1)
    base = Path(folder) / name
    base.mkdir(parents=True, exist_ok=True)
    knobs = json.dumps(_knobs(task), ensure_ascii=True)
    (base / _HOOKS).write_text(
        '"""Problems and verdicts of one puzzle, for lm-evaluation-harness."""\n\n'
        "from outlay.evals.puzzles.export import lm_eval_hooks\n\n"
        f"dataset, text, process = lm_eval_hooks({knobs!r}, seed={seed}, samples={samples})\n",
        encoding="utf-8",
    )
    stem = _HOOKS.removesuffix(".py")
    sampled = f"  do_sample: true\n  temperature: {temperature}\n"
    (base / f"{name}.yaml").write_text(
        f"task: {name}\n"
        f"custom_dataset: !function {stem}.dataset\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        f"doc_to_text: !function {stem}.text\n"
        'doc_to_target: "{{answer}}"\n'
        f"process_results: !function {stem}.process\n"
        "generation_kwargs:\n"
        "  until: []\n"
        f"  max_gen_toks: {max_tokens}\n"
        + (sampled if temperature else "  do_sample: false\n")
        + "metric_list:\n"
        "  - metric: accuracy\n"
        "    aggregation: mean\n"
        "    higher_is_better: true\n"
        "metadata:\n"
        "  version: 1.0\n",
        encoding="utf-8",
    )
    return name


def lm_eval_hooks(
    knobs: str, *, seed: int, samples: int
) -> tuple[
    Callable[..., dict[str, Any]],
    Callable[[Mapping[str, Any]], str],
    Callable[[Mapping[str, Any], Sequence[str]], dict[str, float]],
]:
    """What the files of `write_lm_eval` hand to the harness: problems, prompts and verdicts."""
    task = task_of(json.loads(knobs))

    def dataset(**_: object) -> dict[str, Any]:
        from datasets import Dataset

        rows = training_rows(task, seed=seed, n=samples * len(task.levels))
        return {"test": Dataset.from_list(rows)}

    def text(doc: Mapping[str, Any]) -> str:
        return str(doc["prompt"])

    def process(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        return {"accuracy": PuzzleReward(task)([results[0]], [doc["id"]], [doc["meta"]])[0]}

    return dataset, text, process
