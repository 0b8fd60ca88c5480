"""Comparisons: same records however they were run, killed and resumed; failures are notes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from outlay.comparison import Comparison, Plan, Plans, compare, needs, plan, summary
from outlay.errors import BudgetError, CapabilityError, InputError, ResultsError
from outlay.models.base import Model
from outlay.runs import RECORDS
from recording_model import RecordingModel
from tiny_models import tiny_model

PLAN = plan(
    task="chainarith:operations=[2,3]",
    methods=("plain", "full", "plain:max_tokens=3"),
    budgets=(4, 8),
    model="mine",
    n=6,
    max_tokens=5,
)
CELLS = 6 * (2 * 2 + 1)


def run(out: Path, model: Model, of: Plan = PLAN, **knobs: Any) -> Comparison:
    return compare(of, out=out, load=lambda spec: model, **knobs)


def facts(result: Comparison) -> list[Any]:
    """What a run found, without how long it took."""
    rows = []
    for outcome in result.outcomes:
        row = outcome.record.to_dict()
        for entry in row["ledger"]["entries"]:
            entry.pop("seconds", None)
            entry.pop("branch", None)
        row["ledger"].pop("delivered")
        row.pop("ttft")
        row.pop("tbt")
        rows.append((row, outcome.texts))
    return rows


def test_every_cell_is_run_once_in_the_order_of_the_examples(tmp_path: Path) -> None:
    model = RecordingModel()
    seen: list[tuple[str, int, int]] = []
    result = run(tmp_path, model, progress=lambda *step: seen.append(step))
    assert len(model.prompts) == len(result.records) == CELLS
    assert [step[1:] for step in seen] == [(i, CELLS) for i in range(CELLS + 1)]
    assert [r.example for r in result.records[:5]] == ["chainarith-0-0"] * 5
    assert len({r.key for r in result.records}) == CELLS
    for record in result.records:
        spent = record.ledger.totals().generated
        assert spent <= (record.budget.tokens or PLAN.max_tokens)
    assert {p.budget.label() for p in result.points("chainarith")} == {
        "4 generated tokens",
        "8 generated tokens",
        "unlimited",
    }
    assert result.failures == []


def test_points_lie_on_the_axis_asked_for_and_another_axis_is_the_same_run(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"n": 2, "axis": "kv_bytes"})
    result = run(tmp_path, tiny_model(), plan)
    for point in result.points("chainarith"):
        assert point.cost == point.kv_bytes
        assert point.cost is not None
        assert point.cost > 0
    again = run(tmp_path, RecordingModel(), plan.model_copy(update={"axis": "generated"}))
    assert [p.cost for p in again.points("chainarith")] != [
        p.cost for p in result.points("chainarith")
    ]


def test_an_axis_that_a_method_does_not_measure_is_refused_by_name(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"n": 2, "axis": "ttft"})
    result = run(tmp_path, RecordingModel(), plan)
    with pytest.raises(InputError, match="did not measure ttft"):
        result.points("chainarith")


def test_running_again_does_nothing_again(tmp_path: Path) -> None:
    first = run(tmp_path, RecordingModel())
    model = RecordingModel()
    again = run(tmp_path, model)
    assert model.prompts == []
    assert facts(again) == facts(first)


def test_workers_change_nothing_but_time(tmp_path: Path) -> None:
    for name, make in (("recording", RecordingModel), ("tiny", tiny_model)):
        model: Any = make()
        hot = PLAN.model_copy(update={"temperature": 1.0, "seeds": 2, "n": 3})
        one = run(tmp_path / name / "1", model, hot.model_copy(update={"workers": 1}))
        four = run(tmp_path / name / "4", model, hot.model_copy(update={"workers": 4}))
        assert facts(one) == facts(four)
        assert len(one.records) == 2 * CELLS // 2


def test_workers_do_not_make_another_run(tmp_path: Path) -> None:
    run(tmp_path, RecordingModel(), PLAN.model_copy(update={"workers": 1}))
    model = RecordingModel()
    run(tmp_path, model, PLAN.model_copy(update={"workers": 3, "about": "x"}))
    assert model.prompts == []


def test_a_budget_given_twice_is_run_once(tmp_path: Path) -> None:
    model = RecordingModel()
    run(tmp_path, model, PLAN.model_copy(update={"budgets": (4, 4), "methods": ("plain", "plain")}))
    assert len(model.prompts) == 6


@pytest.mark.parametrize("workers", [1, 3])
def test_failing_examples_are_notes_and_stop_nothing(tmp_path: Path, workers: int) -> None:
    problems = RecordingModel()
    run(tmp_path / "a", problems)
    broken = problems.prompts[5]  # the second example
    model = RecordingModel(fails_on=broken)
    result = run(tmp_path / "b", model, PLAN.model_copy(update={"workers": workers}))
    assert len(result.failures) == 5
    assert len(result.records) == CELLS - 5
    assert len(result.notes()) == 5
    assert "plain at 4 generated tokens failed on 1 examples: the prompt holds" in "".join(
        result.notes()
    )
    assert {f.example for f in result.failures} == {"chainarith-0-1"}
    page = result.report().read_text()
    assert "failed on 1 examples" in page
    # What failed is tried again, what is done is not.
    healed = RecordingModel()
    assert len(run(tmp_path / "b", healed).records) == CELLS
    assert len(healed.prompts) == 5


def test_a_run_in_which_all_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no example could be run: the prompt holds"):
        run(tmp_path, RecordingModel(fails_on="="), PLAN.model_copy(update={"task": "chainarith"}))


# -- killed and interrupted -------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from recording_model import RecordingModel
from test_comparison_plan import PLAN
from outlay.comparison import compare
compare(PLAN, out=sys.argv[1], load=lambda spec: RecordingModel(Path(sys.argv[2]), 0.05))
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    (tmp_path / "test_comparison_plan.py").write_text(
        f"from outlay.comparison import plan\nPLAN = plan(**{PLAN.model_dump()!r})\n"
    )
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return [sys.executable, str(script)]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def start_and_stop(command: list[str], records: Path, sign: int, after: int) -> int:
    """Run `command`, send `sign` once `records` has that many lines; its exit status."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while len(lines(records)) < after:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, sign)
    process.communicate(timeout=60)
    return process.returncode


def test_a_killed_run_goes_on_to_the_same_records_and_does_nothing_twice(
    tmp_path: Path, program: list[str]
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    for after in (4, 13):
        status = start_and_stop(
            [*program, str(out), str(log)], out / RECORDS, signal.SIGKILL, after
        )
        assert status == -signal.SIGKILL
    with (out / RECORDS).open("ab") as file:  # as if the last write had been cut
        file.write(b'{"record": {"task": "chainarith", "exa')
    before = len(lines(out / RECORDS)) - 1
    calls = len(lines(log))
    assert before <= calls <= before + 2  # at most the example in flight at each kill
    model = RecordingModel()
    resumed = run(out, model)
    assert len(model.prompts) == CELLS - before
    assert facts(resumed) == facts(run(tmp_path / "whole", RecordingModel()))
    assert len(lines(out / RECORDS)) == CELLS


COMMAND = """
import sys
sys.path.insert(0, {tests!r})
from recording_model import RecordingModel
import outlay.models
outlay.models.load = lambda spec: RecordingModel(None, 0.02)
from outlay.cli import main
main()
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_ctrl_c_exits_with_130_and_leaves_whole_lines(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", COMMAND.format(tests=str(Path(__file__).parent)), "compare"]
    command += ["--task", "chainarith", "--method", "plain", "--budget", "8"]
    command += ["--n", "2000", "--workers", str(workers), "--out", str(out)]
    status = start_and_stop(command, out / RECORDS, signal.SIGINT, 3)
    assert status == 130
    rows = lines(out / RECORDS)
    assert 3 <= len(rows) < 2000
    assert all(json.loads(row)["record"]["task"] == "chainarith" for row in rows)
    assert rows[-1].endswith("\n")


# -- bad plans --------------------------------------------------------------------------------


def test_impossible_plans_are_refused_before_anything_runs(tmp_path: Path) -> None:
    model = RecordingModel()
    for change, error, match in (
        ({"task": "chainarit"}, InputError, "did you mean chainarith"),
        ({"methods": ("plan",)}, InputError, "did you mean plain"),
        ({"methods": ("head",), "counts": "generated"}, BudgetError, "head needs to know"),
        ({"budgets": (0,)}, BudgetError, "tokens=0 is too small"),
    ):
        with pytest.raises(error, match=match):
            run(tmp_path, model, PLAN.model_copy(update=change))
    assert model.prompts == []
    assert not (tmp_path / RECORDS).exists()
    for knobs, match in (
        ({"methods": ()}, "methods"),
        ({"n": 0}, "n: "),
        ({"speed": 3}, "speed: "),
        ({"counts": "words"}, "counts: "),
    ):
        with pytest.raises(InputError, match=match):
            plan(**{"task": "chainarith", "methods": ("plain",), "budgets": (4,), **knobs})


def test_another_plan_needs_another_folder(tmp_path: Path) -> None:
    run(tmp_path, RecordingModel())
    with pytest.raises(ResultsError, match="plans differs"):
        run(tmp_path, RecordingModel(), PLAN.model_copy(update={"n": 3}))
    run(tmp_path, RecordingModel(), PLAN.model_copy(update={"n": 3}), fresh=True)


def test_two_plans_need_two_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two comparisons are named"):
        compare([PLAN, PLAN], out=tmp_path, load=lambda spec: RecordingModel())
    other = PLAN.model_copy(update={"name": "again"})
    both = compare([PLAN, other], out=tmp_path, load=lambda spec: RecordingModel())
    assert set(both.views) == {"chainarith", "again"}
    assert len(both.records) == 2 * CELLS


def test_scorers_are_loaded_where_a_method_needs_one(tmp_path: Path) -> None:
    assert needs("longcodezip+plain", "scorer")
    assert not needs("head+plain", "scorer")
    assert not needs("full", "scorer")
    change = {"methods": ("longcodezip",), "counts": None, "scorer": "x"}
    with pytest.raises(CapabilityError, match="scorer='x' cannot score text"):
        run(tmp_path, RecordingModel(), PLAN.model_copy(update=change))


def test_each_model_is_loaded_once(tmp_path: Path) -> None:
    specs: list[str] = []

    def load(spec: str) -> Model:
        specs.append(spec)
        return RecordingModel()

    other = PLAN.model_copy(update={"name": "again"})
    compare([PLAN, other], out=tmp_path, load=load)
    assert specs == ["mine"]


def test_run_files_are_read_and_their_faults_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'title = "t"\n[[compare]]\ntask = "chainarith"\nmethods = ["plain"]\nbudgets = [4]\n'
    )
    plans = Plans.read(path)
    assert plans.title == "t"
    assert plans.compare[0].budgets == (4,)
    for text, match in (
        ("title = ", "is not TOML"),
        ('title = "t"\n', "compare: "),
        ('[[compare]]\ntask = "x"\nmethods = ["a"]\nbudgets = ["many"]\n', r"compare\.0\.budgets"),
        ('[[compare]]\ntask = "x"\nmethods = ["a"]\nbudgets = [1]\nspeed = 2\n', "speed"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            Plans.read(path)


def test_results_are_json_with_a_verdict_for_every_point(tmp_path: Path) -> None:
    result = run(tmp_path, RecordingModel())
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert len(data["points"]) == 5
    assert all(point["verdict"] and point["metric"] == "accuracy" for point in data["points"])
    assert set(data) == {"title", "meta", "points", "notes", "failures"}
    assert all(" is best" in text or " leads" in text for text in summary(result).values())
