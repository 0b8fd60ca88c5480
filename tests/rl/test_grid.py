"""The ablation grid: what names a cell, and that a cell's run depends on nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from outlay.errors import BudgetError, InputError, ResultsError
from outlay.rl.base import Method, Plain
from outlay.rl.grid import Cell, CellResult, ChainTask, load, run, run_cell
from outlay.rl.grid_names import described
from outlay.rl.rewards import GatedLength, accuracy

TASK = ChainTask(train=32, test=8, scales=(0.5, 2.0))
SMALL: dict[str, Any] = {"steps": 2, "questions": 2, "group": 4, "task": TASK}
GRPO = Cell("GRPO", "grpo", **SMALL)


@dataclass(frozen=True)
class Holding(Method):
    """Holds whatever it is given."""

    held: Any = None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CellResult]:
    folder = tmp_path_factory.mktemp("grid")
    (result,) = run([replace(GRPO, keep=True)], folder)
    return folder, result


def same(a: CellResult, b: CellResult) -> bool:
    """Equal but for clocks."""
    clocks = ("seconds", "step_time")

    def shown(one: CellResult) -> Any:
        curve = {name: values for name, values in one.curve.items() if name not in clocks}
        return curve, one.evaluation, one.tokens, one.decides

    return shown(a) == shown(b)


# -- names ----------------------------------------------------------------------------------------


def test_label_and_keeping_do_not_name_a_cell() -> None:
    assert replace(GRPO, label="other", keep=True).key == GRPO.key


@pytest.mark.parametrize(
    "change",
    [
        {"method": "grpo-length"},
        {"method": Plain(hard_cap=64)},
        {"method": Plain(rewards=(accuracy, GatedLength(50)))},
        {"method": None},
        {"seed": 1},
        {"steps": 3},
        {"questions": 4},
        {"group": 8},
        {"learning_rate": 1e-5},
        {"settings": {"beta": 0.1}},
        {"task": replace(TASK, test=16)},
        {"task": replace(TASK, cut="completion")},
    ],
)
def test_everything_else_names_a_cell(change: dict[str, Any]) -> None:
    assert replace(GRPO, **change).key != GRPO.key


def test_the_name_of_a_cell_does_not_depend_on_the_process() -> None:
    code = (
        "from outlay.rl.grid import Cell, ChainTask\n"
        "task = ChainTask(train=32, test=8, scales=(0.5, 2.0))\n"
        "print(Cell('x', 'grpo', steps=2, questions=2, group=4, task=task).key)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert out.stdout.strip() == GRPO.key


def test_another_start_names_another_cell(tmp_path: Path) -> None:
    from outlay.testbeds.chainarith_rl import checkpoint_path

    for file in checkpoint_path().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    copied = replace(TASK, start=str(tmp_path))
    before = copied.identity()
    assert before == TASK.identity()  # the same weights
    (weights,) = tmp_path.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert copied.identity() != before


def test_the_policy_before_training_is_one_cell_whatever_its_seed() -> None:
    first = Cell("SFT", "sft", seed=0, steps=10, task=TASK)
    assert first.key == Cell("SFT", None, seed=5, steps=200, task=TASK).key


def test_spec_and_instance_are_one_cell() -> None:
    assert Cell("a", "grpo", **SMALL).key == Cell("b", Plain(), **SMALL).key


def test_what_has_no_stable_name_is_refused() -> None:
    with pytest.raises(InputError, match="no stable name"):
        _ = Cell("x", Holding(lambda: 0), **SMALL).key
    with pytest.raises(InputError, match="finite"):
        _ = Cell("x", Holding(float("nan")), **SMALL).key
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(InputError, match="deeper"):
        described(nested)
    with pytest.raises(InputError, match="no stable name"):
        described(object())


def test_names_of_nested_values_are_json() -> None:
    value = {"b": (1, 2.5, None), "a": {GatedLength(3)}, "p": Path("x"), "f": accuracy}
    text = json.dumps(described(value), sort_keys=True)
    assert '"f": "outlay.rl.rewards:accuracy"' in text
    assert '"scale": 3' in text


# -- runs -----------------------------------------------------------------------------------------


def test_a_stored_cell_is_not_run_again(store: tuple[Path, CellResult]) -> None:
    folder, result = store
    path = folder / f"{GRPO.key}.json"
    said: list[str] = []
    before = path.stat().st_mtime_ns
    (again,) = run([replace(GRPO, label="renamed")], folder, said.append)
    assert path.stat().st_mtime_ns == before
    assert again == replace(result, label="renamed")
    assert said == ["1 of 1 cells are there already"]


def test_a_cell_runs_alike_in_a_helper_process(
    store: tuple[Path, CellResult], tmp_path: Path
) -> None:
    (result,) = run([GRPO], tmp_path, processes=2)
    assert same(result, store[1])


def test_what_came_before_a_cell_does_not_matter(store: tuple[Path, CellResult]) -> None:
    torch.manual_seed(99)
    assert same(run_cell(GRPO), store[1])


def test_another_seed_is_another_run(store: tuple[Path, CellResult]) -> None:
    other = run_cell(replace(GRPO, seed=1))
    assert other.curve["grad_norm"] != store[1].curve["grad_norm"]


def test_a_plain_cell_is_trls_own_training(store: tuple[Path, CellResult], tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    from outlay.rl.presets import cpu_preset
    from outlay.testbeds.chainarith_rl import correct
    from outlay.testbeds.chainarith_rl import load as policy

    torch.set_num_threads(1)
    model, tokenizer = policy()
    settings = {
        **cpu_preset(),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 112,
        "seed": 0,
    }
    trainer = GRPOTrainer(
        model,
        reward_funcs=correct,
        args=GRPOConfig(output_dir=str(tmp_path), **settings),
        train_dataset=TASK.train_rows(),
        processing_class=tokenizer,
    )
    trainer.train()
    theirs = [line for line in trainer.state.log_history if "grad_norm" in line]
    for name in ("grad_norm", "loss"):
        expected = [float(f"{line[name]:.6g}") for line in theirs]
        assert store[1].curve[name] == expected


def test_curves_and_tokens_are_those_of_the_run(store: tuple[Path, CellResult]) -> None:
    result = store[1]
    assert result.curve["step"] == [1, 2]
    assert all(norm is not None and norm > 0 for norm in result.curve["grad_norm"])
    sampled = [round(16 / 2 * mean) for mean in result.curve["tokens_mean"] if mean is not None]
    assert result.tokens["rollouts"] == sum(sampled) == result.training_tokens
    assert result.tokens["probe"] == result.tokens["forced"] == 0
    assert result.seconds["train"] > 0
    assert {name for name in result.curve if name.startswith("acc@")}


def test_kept_weights_are_the_trained_policy(store: tuple[Path, CellResult]) -> None:
    from outlay.rl.running_core import evaluated, one_thread
    from outlay.testbeds.chainarith_rl import load as policy

    result = store[1]
    assert result.weights is not None
    trained, tokenizer = policy(result.weights)
    start, _ = policy()
    assert not torch.equal(next(trained.parameters()), next(start.parameters()))
    with one_thread():
        assert evaluated(TASK, Plain(), trained, tokenizer) == result.evaluation


def test_weights_that_were_not_kept_are_made_when_asked_for(tmp_path: Path) -> None:
    sft = Cell("SFT", "sft", task=TASK)
    (without,) = run([sft], tmp_path)
    assert without.weights is None
    (kept,) = run([replace(sft, keep=True)], tmp_path)
    assert kept.weights == tmp_path / sft.key
    assert same(kept, without)


def test_a_killed_grid_goes_on_where_it_stopped(
    store: tuple[Path, CellResult], tmp_path: Path
) -> None:
    code = (
        "from outlay.rl.grid import Cell, ChainTask, run\n"
        "task = ChainTask(train=32, test=8, scales=(0.5, 2.0))\n"
        "cells = [Cell('SFT', 'sft', task=task),\n"
        "         Cell('GRPO', 'grpo', steps=100000, questions=2, group=4, task=task)]\n"
        f"run(cells, {str(tmp_path)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    sft, long = Cell("SFT", "sft", task=TASK), replace(GRPO, steps=100000)
    deadline = time.monotonic() + 60
    while not (tmp_path / f"{long.key}.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / f"{sft.key}.json").is_file()
    assert not (tmp_path / f"{long.key}.json").exists()
    said: list[str] = []
    results = run([sft, GRPO], tmp_path, said.append)
    assert said[0] == "1 of 2 cells are there already"
    assert same(results[1], store[1])


def test_a_cell_that_another_run_is_at_is_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    cell = Cell("SFT", "sft", task=TASK)
    with (tmp_path / f"{cell.key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results: list[CellResult] = []
        thread = threading.Thread(target=lambda: results.extend(run([cell], tmp_path, said.append)))
        thread.start()
        thread.join(1.5)
        assert thread.is_alive()
        assert said == ["1/1 SFT, seed 0: another run is at it"]
        fcntl.flock(lock, fcntl.LOCK_UN)
        thread.join(60)
    assert results[0].label == "SFT"


def test_a_stored_cell_reads_back_as_it_was(store: tuple[Path, CellResult]) -> None:
    folder, result = store
    assert load(folder, GRPO.key) == result
    assert CellResult.from_dict(json.loads(result.to_json())) == result


# -- readings -------------------------------------------------------------------------------------


def test_readings_are_those_of_the_answers(store: tuple[Path, CellResult]) -> None:
    result = store[1]
    (uncut,) = result.at(0.0)
    assert uncut.budget == 112
    assert result.accuracy() == sum(uncut.right) / 8 == uncut.metrics["acc"]
    assert result.mean_tokens() == sum(uncut.tokens) / 8
    assert result.budget_curve() == [(28, result.accuracy(0.0, 0.5)), (112, result.accuracy())]
    assert sum(result.styles().values()) == pytest.approx(1)
    assert set(result.by_difficulty("acc")) == {str(n) for n in range(1, 9)}
    records = result.records()
    assert len(records) == 16
    assert sum(record.quality for record in records[8:]) == sum(uncut.right)
    assert result.tail("acc", 1) == result.curve["acc"][-1]
    assert result.tail("nothing") is None
    with pytest.raises(InputError, match="was not evaluated"):
        result.at(0.3)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": " "}, "label"),
        ({"method": "gpro"}, "unknown training method"),
        ({"method": 3}, "no training method"),
        ({"steps": 0}, "steps=0"),
        ({"questions": 0}, "questions=0"),
        ({"group": 1}, "group=1"),
        ({"seed": -1}, "seed=-1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"settings": {"max_steps": 3}}, "max_steps"),
    ],
)
def test_cells_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(GRPO, **change)


def test_runs_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 cells"):
        run([], tmp_path)
    with pytest.raises(InputError, match="processes=0"):
        run([GRPO], tmp_path, processes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot use"):
        run([GRPO], tmp_path / "file")
    with pytest.raises(ResultsError, match="no stored cell"):
        load(tmp_path, "0")
    (tmp_path / f"{GRPO.key}.json").write_text('{"label": "x"}')
    with pytest.raises(ResultsError, match="not a stored cell"):
        run([GRPO], tmp_path)


def test_tasks_that_cannot_be() -> None:
    with pytest.raises(InputError, match="cut="):
        ChainTask(cut="answer")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="train=0"):
        ChainTask(train=0)
    with pytest.raises(BudgetError, match="budget=0"):
        ChainTask(budget=0)
