"""Recipes and tasks: what a TOML file may say, and that held-out problems are held out."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay import registry
from outlay.errors import BudgetError, InputError, ModelError
from outlay.rl.base import Method
from outlay.rl.grid_baselines import BASELINES, LengthGRPO
from outlay.rl.grid_file import read_grid
from outlay.rl.recipe import Recipe, example, examples, parse, read
from outlay.rl.running_core import prepared
from outlay.rl.running_sources import FileTask, GymTask, read_rows
from outlay.rl.running_tasks import ChainTask

KNOWN = {*BASELINES, *(entry.slug for entry in registry.methods() if entry.room == "rl")}
RECIPE = '[run]\nmethod = "grpo-length"\n'


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in examples() if name in KNOWN])
def test_every_shipped_recipe_builds_and_can_be_asked_to_act(name: str) -> None:
    recipe = parse(tomllib.loads(example(name)), name)
    task = recipe.build_task()
    _, tokenizer = task.load()
    method = prepared(recipe.build_method(), tokenizer)
    rows = [{**task.train_rows()[0], "member": member} for member in range(recipe.group)]
    told = method.assign(rows, 0, recipe.steps, recipe.group)
    assert len(told) == recipe.group
    assert method.reward_functions()


def test_there_is_a_recipe_for_every_registered_method() -> None:
    assert KNOWN - {"grpo-cosine", "grpo-overlong"} <= set(examples())


def test_all_parts_of_a_recipe_arrive(tmp_path: Path) -> None:
    text = (
        '[run]\nmethod = "grpo-length"\nsteps = 7\nquestions = 2\ngroup = 4\nseed = 3\n'
        "lora = 2\nsave_every = 0\n"
        "[method]\nscale = 64\n[task]\ntest = 9\nops = [2, 3]\n[settings]\nwarmup_steps = 5\n"
    )
    recipe = read(written(tmp_path / "r.toml", text))
    assert recipe.build_method() == LengthGRPO(scale=64)
    assert recipe.build_task() == ChainTask(test=9, ops=(2, 3))
    settings = recipe.all_settings()
    assert settings["warmup_steps"] == 5
    assert settings["max_steps"] == 7
    assert settings["per_device_train_batch_size"] == 8
    assert settings["save_strategy"] == "no"
    assert settings["learning_rate"] == 2e-5
    assert replace(recipe, task="countdown", task_knobs={}).all_settings()["learning_rate"] == 1e-6


def test_a_recipes_model_is_where_its_task_starts(tmp_path: Path) -> None:
    assert Recipe("grpo", model="sft").build_task() == ChainTask(start="sft")
    gym = Recipe("grpo", task="countdown", model="m").build_task()
    assert isinstance(gym, GymTask)
    assert (gym.name, gym.model) == ("countdown", "m")
    file = Recipe("grpo", task="x.jsonl").build_task()
    assert isinstance(file, FileTask)
    assert file.model == "embedded"


def test_knobs_with_lists_and_texts_reach_the_method() -> None:
    recipe = Recipe(
        "hbpo",
        knobs={"budgets": [8, 16], "n": 4, "l_max": 32, "prefix_template": ['<"a",b>', "<c>"]},
    )
    method: Any = recipe.build_method()
    assert method.budgets == (8, 16)
    assert method.prefix_template == ('<"a",b>', "<c>")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'needs method = "..."'),
        ("[run]\nmethod = 1", "method=1"),
        ("[rum]\n", "has no rum"),
        ("run = 3", "must be a table"),
        (RECIPE + "step = 3", "has no step"),
        (RECIPE + "steps = 0", "steps=0"),
        (RECIPE + 'steps = "9"', "steps='9'"),
        (RECIPE + "group = 1", "group=1"),
        (RECIPE + "lora = -1", "lora=-1"),
        (RECIPE + "learning_rate = 2.0", "learning_rate"),
        (RECIPE + "[settings]\nmax_steps = 3", "field for it is 'steps'"),
        (RECIPE + "[", "is not TOML"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(written(tmp_path / "r.toml", text))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("sft"), "before training"),
        (Recipe("grpo-length:scale=3", knobs={"slope": 1}), "use one"),
        (Recipe("grpo-length", knobs={"size": 1}), "no knob size"),
        (Recipe("grpo", task_knobs={"tests": 3}), r"\[task\] has no tests"),
        (Recipe("grpo", task_knobs={"test": "many"}), r"\[task\] test"),
        (Recipe("grpo", task_knobs={"test": 0}), "test=0"),
    ],
)
def test_recipes_that_cannot_be_built(recipe: Recipe, message: str) -> None:
    def build() -> None:
        recipe.build_method()
        recipe.build_task()

    with pytest.raises(InputError, match=message):
        build()


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "missing.toml")
    with pytest.raises(InputError, match="larger than"):
        read(written(tmp_path / "big.toml", "#" * 1_000_001))
    with pytest.raises(InputError, match="no example"):
        example("nothing")


def test_reading_recipes_and_stored_cells_needs_no_torch() -> None:
    code = (
        "import sys, outlay.rl.grid, outlay.rl.grid_compare, outlay.rl.running, outlay.cli.train\n"
        "assert not {'torch', 'transformers', 'trl', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- grids ----------------------------------------------------------------------------------------


GRID = (
    '[grid]\nseeds = [0, 1]\nsteps = 3\nbaseline = "GRPO"\n[methods]\nSFT = "sft"\nGRPO = "grpo"\n'
)


def test_a_grid_is_methods_by_seeds(tmp_path: Path) -> None:
    plan = read_grid(written(tmp_path / "g.toml", GRID + "[task]\ntest = 9\n"))
    assert [(cell.label, cell.seed) for cell in plan.cells] == [
        ("SFT", 0),
        ("GRPO", 0),
        ("GRPO", 1),
    ]
    assert {cell.steps for cell in plan.cells} == {3}
    assert plan.cells[0].task == ChainTask(test=9)
    assert (plan.title, plan.baseline) == ("g", "GRPO")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\n", "is empty"),
        ("[grid]\nsteps = 3\nstep = 2\n", "has no step"),
        (GRID.replace("[0, 1]", "[]"), "give a list"),
        (GRID.replace('"GRPO"\n[', '"X"\n['), "is none of"),
        (GRID.replace('"sft"', "3"), "spec in quotes"),
        (GRID.replace('"sft"', '"stf"'), "unknown training method"),
        ("grid = 1", "must be a table"),
    ],
)
def test_grids_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_grid(written(tmp_path / "g.toml", text))


# -- tasks ----------------------------------------------------------------------------------------


def test_chains_are_trained_on_and_held_out_apart() -> None:
    task = ChainTask(train=500, test=200, ops=(2, 8))
    assert not set(task.train_rows()["prompt"]) & set(task.test_rows()["prompt"])


def test_gym_problems_are_trained_on_and_held_out_apart() -> None:
    task = GymTask(task="basic_arithmetic", train=60, test=20, config={"min_terms": 2})
    train, test = task.train_rows(), task.test_rows()
    asked = {row["prompt"][0]["content"] for row in train}
    assert len(train) == 60
    assert len(test) == 20
    assert not asked & {row["prompt"][0]["content"] for row in test}
    assert task.train_rows()[:] == train[:]
    with pytest.raises(InputError, match="refuses task"):
        GymTask(task="no_such_task").train_rows()


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@given(st.lists(st.integers(0, 12), min_size=4, max_size=40), st.integers(1, 10), st.integers(0, 5))
def test_rows_of_a_file_are_on_one_side_only(numbers: list[int], test: int, seed: int) -> None:
    import tempfile

    rows = [{"prompt": f"What is {n}?", "answer": n} for n in numbers]
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "d.jsonl", lines(rows))
        task = FileTask(path=str(path), test=test, data_seed=seed)
        if len(set(numbers)) == 1:
            with pytest.raises(InputError, match="too few"):
                task._split()
            return
        try:
            train, held = task._split()
        except InputError:  # equal prompts took the rest to one side
            return
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    assert len(train) + len(held) == len(rows)
    assert all(isinstance(row["answer"], str) for row in train)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n", "is not JSON"),
        ("[1]\n", "needs the columns"),
        ('{"prompt": "a"}\n', "it has: prompt"),
        ('{"prompt": "", "answer": 1}\n', "prompt must be"),
        ('{"prompt": [1], "answer": 1}\n', "prompt must be"),
        (
            '{"prompt": "a", "answer": 1}\n'
            '{"prompt": [{"role": "user", "content": "b"}], "answer": 1}\n',
            "mixes texts and chats",
        ),
    ],
)
def test_files_that_are_no_data_sets(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(written(tmp_path / "d.jsonl", text))


def test_tasks_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file"):
        FileTask(path=str(tmp_path / "none.jsonl")).train_rows()
    with pytest.raises(InputError, match="workers=0"):
        GymTask(task="countdown", workers=0)
    with pytest.raises(BudgetError, match="budget=0"):
        GymTask(task="countdown", budget=0)
    with pytest.raises(InputError, match="end_of_thinking"):
        GymTask(task="countdown", forced="</think>")
    with pytest.raises(ModelError, match="cannot be loaded"):
        GymTask(task="countdown", model=str(tmp_path)).load()


def test_a_method_is_given_its_tokenizer_once() -> None:
    class Bare(Method):
        """Needs none."""

    method = Bare()
    assert prepared(method, object()) is method
