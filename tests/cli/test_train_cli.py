"""`outlay train`: runs, their pages, resuming, grids."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

from outlay.cli.train import register
from outlay.errors import ResultsError
from outlay.rl.recipe import Recipe
from outlay.rl.running import Training, train

TASK = {"train": 32, "test": 8, "scales": (0.5, 2.0)}
SMALL = Recipe(
    "grpo-length", steps=4, questions=2, group=4, save_every=2, task_knobs=TASK, before=False
)
TOML = """
[run]
method = "grpo-length"
steps = 2
questions = 2
group = 4
[task]
train = 32
test = 8
scales = [0.5, 2.0]
"""


@pytest.fixture(scope="module")
def cli() -> Any:
    app = Typer()
    register(app)
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["train", *map(str, words)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return train(SMALL, tmp_path_factory.mktemp("whole") / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


# -- a run ----------------------------------------------------------------------------------------


def test_a_run_from_a_recipe_is_told_as_json_and_as_a_page(cli: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(TOML)
    out = tmp_path / "run"
    result = cli("rl", "--recipe", recipe, "--out", out, "--json", "--seed", 5)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [(o["budget"], o["temperature"]) for o in data["evaluation"]] == [
        (28, 0.0),
        (112, 0.0),
        (28, 1.0),
        (112, 1.0),
    ]
    assert len(data["before"]) == 4
    assert data["change"]["a"] == "trained"
    assert data["tokens"]["rollouts"] > 0
    assert json.loads((out / "recipe.json").read_text())["seed"] == 5
    page = (out / "index.html").read_text()
    assert "<script" not in page
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", page)
    assert page.count("<svg") == 2 + page.count("<h3>")
    assert "grpo-length" in page
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out / "model").num_parameters() == 352_704


def test_names_from_users_are_escaped_on_the_page(whole: Training, tmp_path: Path) -> None:
    from dataclasses import replace

    from outlay.rl.pages import run_page

    evil = replace(whole, recipe=replace(whole.recipe, model="<img onerror=x>"))
    page = run_page(evil, evil.recipe.build_method(), tmp_path / "p.html").read_text()
    assert "<img" not in page
    assert "&lt;img" in page


def test_a_resumed_run_ends_where_an_undisturbed_one_does(whole: Training, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import os, signal, sys\n"
        "from outlay.rl.recipe import Recipe\n"
        "from outlay.rl.running import train\n"
        f"recipe = Recipe(**{SMALL.to_dict()!r})\n"
        "def stop(name, done, total):\n"
        "    if done == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"train(recipe, {str(folder)!r}, progress=stop)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -9
    assert (folder / "checkpoint-2").is_dir()
    again = train(SMALL, folder, resume=True)
    assert again.notes == ("Went on with checkpoint-2; seconds are those after it.",)
    expected, found = weights(whole.folder), weights(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert again.after is not None
    assert whole.after is not None
    assert again.after.evaluation == whole.after.evaluation
    assert again.after.curve["grad_norm"] == whole.after.curve["grad_norm"]
    assert again.after.tokens == whole.after.tokens


def test_a_folder_that_holds_a_run_is_not_written_over(whole: Training, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ResultsError, match="--resume"):
        train(SMALL, whole.folder)
    with pytest.raises(ResultsError, match="seed differ"):
        train(replace(SMALL, seed=1), whole.folder, resume=True)
    with pytest.raises(ValueError, match="steps=3"):
        train(replace(SMALL, steps=3), whole.folder, resume=True)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ResultsError, match="something else"):
        train(SMALL, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot use"):
        train(SMALL, tmp_path / "file")


def test_an_adapter_is_trained_and_saved_alone(tmp_path: Path) -> None:
    from dataclasses import replace

    recipe = replace(SMALL, steps=2, lora=2, save_every=0)
    done = train(recipe, tmp_path / "run")
    names = {path.name for path in (done.folder / "model").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    assert done.after is not None
    assert len(done.after.evaluation) == 4


# -- examples, mistakes ---------------------------------------------------------------------------


def test_examples_are_printed_as_they_are_read(cli: Any, tmp_path: Path) -> None:
    listed = cli("rl", "--example", "list").stdout.split()
    assert {"grpo", "hbpo", "curriculum-grpo", "ada-grpo", "anytime-brpo"} <= set(listed)
    text = cli("rl", "--example", "grpo-length").stdout
    path = tmp_path / "r.toml"
    path.write_text(text)
    from outlay.rl.recipe import read

    assert read(path).method == "grpo-length"
    data = json.loads(cli("rl", "--example", "hbpo", "--json").stdout)
    assert data["recipe"].startswith("#")
    assert json.loads(cli("rl", "--example", "list", "--json").stdout) == listed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--method or --recipe"),
        (("--method", "grpo"), "--out"),
        (("--method", "gpro", "--out", "x"), "unknown training method"),
        (("--method", "grpo", "--out", "x", "--steps", "0"), "steps=0"),
        (("--recipe", "no.toml", "--out", "x"), "cannot be read"),
        (("--example", "no"), "no example"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    cli: Any, words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("rl", *words, "--json")
    assert result.exit_code == 2
    assert message in json.loads(result.stdout)["error"]["message"]
    assert not list(tmp_path.iterdir())


# -- a grid ---------------------------------------------------------------------------------------


def test_a_grid_from_a_file_ends_in_a_table_a_page_and_a_picture(cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "g.toml"
    file.write_text(
        '[grid]\ntitle = "Two <ways>"\nsteps = 2\nquestions = 2\ngroup = 4\nbaseline = "GRPO"\n'
        '[methods]\nSFT = "sft"\nGRPO = "grpo"\n'
        "[task]\ntrain = 32\ntest = 8\nscales = [0.5, 2.0]\n"
    )
    first = cli("grid", file, "--out", tmp_path / "store")
    assert first.exit_code == 0, first.output
    assert "| SFT | 1 | 0 |" in first.stdout
    page = (tmp_path / "store" / "index.html").read_text()
    assert "Two &lt;ways&gt;" in page
    assert "SFT against GRPO" in page
    assert (tmp_path / "store" / "frontier.png").stat().st_size > 1000
    again = cli("grid", file, "--out", tmp_path / "store", "--json")
    data = json.loads(again.stdout)
    assert [row["method"] for row in data["rows"]] == ["SFT", "GRPO"]
    assert data["rows"][0]["versus"]["problems"] == 8
