"""`outlay policy export`: a comparison's winner becomes a policy that can be served, or none."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from outlay import registry
from outlay.budget import Budget, Counts
from outlay.cli import policy as cli
from outlay.comparison import compare, plan
from outlay.errors import InputError
from outlay.example import Outcome
from outlay.gateway.config import read
from outlay.gateway.policies import winners
from outlay.gateway.policies.exporting import Exported, export
from outlay.gateway.policies.methods import Catalogue, prepare
from outlay.ledger import Ledger
from outlay.records import Record
from outlay.runs import CONFIG, RECORDS, Run
from outlay.worst import Shape
from tiny_models import tiny_model

runner = CliRunner()
QA = repr(registry.create("tasks", "code-qa"))
NATS = repr(registry.create("tasks", "code-completion"))
EIGHT = range(8)
Spent = tuple[float, int, int]  # quality, prompt tokens, generated tokens
FULL = ("full", None)


def stored(
    folder: Path,
    cells: Mapping[tuple[str, int | None], Spent],
    *,
    counts: Counts = "prompt",
    task: str = QA,
    wobble: float = 0.01,
    **more: Any,
) -> Path:
    """A run's folder with the means that `cells` say, by stack and budget."""
    name = "code-qa" if task == QA else "code-completion"
    stacks = list(dict.fromkeys(stack for stack, _ in cells))
    knobs = {"name": None, "scorer": None, "judge": None, "verifier": "self", "max_tokens": 32}
    ran = {"task": task, "methods": stacks, "model": "embedded", "counts": counts, **knobs, **more}
    run = Run(folder, {"plans": [ran], "version": "1"})
    for (stack, tokens), (quality, prompt, generated) in cells.items():
        for example in EIGHT:
            ledger = Ledger()
            ledger.record(
                "answer", "target", prompt_new=prompt, generated=generated, seconds=prompt / 100
            )
            budget = Budget() if tokens is None else Budget(tokens=tokens, counts=counts)
            off = wobble * (1 if example % 2 else -1)
            record = Record(name, f"e{example}", stack, budget, 0, quality + off, ledger)
            run.add(Outcome(record, {}))
    return folder


PROMPTS = {
    FULL: (0.60, 2000, 20),
    ("longcodezip", 500): (0.50, 500, 20),
    ("longcodezip", 1000): (0.70, 1000, 20),
    ("bm25", 500): (0.55, 500, 20),
    ("bm25", 1000): (0.58, 1000, 20),
}


def tables(made: Exported) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the TOML says of the policy and the route."""
    found = tomllib.loads(made.toml)
    return found["policies"][made.name], found["routes"][made.name]


# -- what is chosen -------------------------------------------------------------------------------


def test_the_best_quality_at_a_budget_wins(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", PROMPTS)
    assert export(run, budget=500).winner.stack == "bm25"
    assert export(run, budget=1000).winner.stack == "longcodezip"


def test_the_cheapest_within_a_distance_of_the_best_wins(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", PROMPTS)
    won = export(run, within=0.16).winner
    assert (won.stack, won.budget.tokens) == ("bm25", 500)
    assert export(run, within=0.0).winner.stack == "longcodezip"


def test_an_axis_decides_what_is_cheap(tmp_path: Path) -> None:
    cells = {
        FULL: (0.5, 900, 90),
        ("no-thinking", 50): (0.6, 900, 50),
        ("m1:max_think=8", 50): (0.6, 90, 60),
    }
    run = stored(tmp_path / "run", cells, counts="generated")
    assert export(run, within=0, axis="generated").winner.stack == "no-thinking"
    assert export(run, within=0, axis="seconds").winner.stack == "m1:max_think=8"
    with pytest.raises(InputError, match="usd"):
        export(run, within=0, axis="usd")


def test_a_task_whose_losses_are_better_low_is_read_that_way(tmp_path: Path) -> None:
    cells = {FULL: (3.0, 2000, 0), ("bm25", 500): (2.5, 500, 0), ("head", 500): (2.9, 500, 0)}
    run = stored(tmp_path / "run", cells, task=NATS)
    assert export(run, budget=500).winner.stack == "bm25"
    assert export(run, budget=500, higher_is_better=True).winner.stack == "head"


def test_a_tie_goes_to_the_cheaper_one(tmp_path: Path) -> None:
    cells = {FULL: (0.1, 900, 9), ("head", 400): (0.5, 400, 9), ("tail", 400): (0.5, 300, 9)}
    assert export(stored(tmp_path / "run", cells), budget=400).winner.stack == "tail"


@given(
    qualities=st.lists(st.integers(0, 20), min_size=2, max_size=5),
    within=st.integers(0, 20),
)
@settings(max_examples=40, deadline=None)
def test_nothing_cheaper_is_as_near_to_the_best(qualities: list[int], within: int) -> None:
    points = tuple(
        replace(_point(), stack=f"s{at}", quality=float(quality), cost=float(10 * at))
        for at, quality in enumerate(qualities)
    )
    for higher in (True, False):
        found = winners.Found("t", points, higher)
        won = found.cheapest(within)
        best = max(qualities) if higher else min(qualities)
        assert abs(won.quality - best) <= within
        assert all(abs(p.quality - best) > within for p in points if p.cost < won.cost)


def _point() -> Any:
    from outlay.frontier import points

    ledger = Ledger()
    ledger.record("answer", "target", prompt_new=1, generated=1)
    return points([Record("t", "e", "s", Budget(), 0, 1.0, ledger)])[0]


# -- what is refused ------------------------------------------------------------------------------


def test_where_the_plain_model_wins_no_policy_is_the_best(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", {**PROMPTS, FULL: (0.9, 2000, 20)})
    with pytest.raises(InputError, match="no policy is the best"):
        export(run, within=0.05)
    assert export(run, budget=500).winner.stack == "bm25"  # the plain prompt has more than 500


def test_a_plain_answer_that_was_cut_off_is_a_limit_and_no_policy(tmp_path: Path) -> None:
    cells = {FULL: (0.1, 20, 90), ("plain", 50): (0.9, 20, 50)}
    run = stored(tmp_path / "run", cells, counts="generated")
    with pytest.raises(InputError, match="without a policy, with max_output = 50"):
        export(run, budget=50)


def test_a_plain_model_that_costs_no_more_than_the_budget_takes_part(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", {**PROMPTS, FULL: (0.9, 400, 20)})
    with pytest.raises(InputError, match="no policy is the best"):
        export(run, budget=500, axis="seconds")


@pytest.mark.parametrize(
    ("stack", "match"),
    [
        ("lacache:span=4", r"works inside the model \(cache/\)"),
        ("a-star-decoding", "does not say what it costs"),
        ("m1:n_wait=1e999", "n_wait"),
        ("gone", "unknown method 'gone'"),
    ],
)
def test_a_winner_that_can_be_no_policy_is_refused(tmp_path: Path, stack: str, match: str) -> None:
    cells = {FULL: (0.1, 90, 90), (stack, 50): (0.9, 90, 50)}
    run = stored(tmp_path / "run", cells, counts="generated", verifier="self")
    with pytest.raises(InputError, match=match):
        export(run, budget=50)


def test_a_budget_of_all_tokens_has_no_knob(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", {("m1", 50): (0.9, 20, 20)}, counts="all")
    with pytest.raises(InputError, match="counts prompts as well"):
        export(run, budget=50)


def test_a_vote_that_holds_no_two_answers_is_refused(tmp_path: Path) -> None:
    cells = {("self-consistency:n=4", 40): (0.9, 20, 20)}
    run = stored(tmp_path / "run", cells, counts="generated", max_tokens=32)
    with pytest.raises(InputError, match="holds no two answers of 32"):
        export(run, budget=40)


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"budget": 700}, "no winner at budget=700; choose 500, 1000"),
        ({}, "no winner at budget=None; choose 500, 1000"),
        ({"budget": 500, "within": 0.1}, "not both"),
        ({"within": -1.0}, "within=-1.0"),
        ({"within": float("nan")}, "within=nan"),
        ({"budget": 500, "task": "other"}, "task='other'; the run has: code-qa"),
        ({"budget": 500, "name": "none"}, "there is no policy"),
        ({"budget": 500, "name": "a b"}, "name='a b'"),
        ({"budget": 500, "size": 400}, "shortens nothing"),
        ({"budget": 500, "size": 0}, "leaves nothing"),
        ({"budget": 500, "answer": "poem"}, None),
    ],
)
def test_wrong_words_are_told(tmp_path: Path, knobs: dict[str, Any], match: str | None) -> None:
    run = stored(tmp_path / "run", PROMPTS)
    if match is None:  # compressors have no votes, so how answers are read does not matter
        assert "answer" not in tables(export(run, **knobs))[0]
        return
    with pytest.raises(InputError, match=match):
        export(run, **knobs)


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder of a run"):
        export(tmp_path, budget=5)
    with pytest.raises(InputError, match="cannot be read"):
        export(tmp_path / "gone.json", budget=5)
    for text, match in (
        ("{", "is not JSON"),
        ("[]", "no output of outlay compare"),
        ('{"points": [1]}', "points that are none"),
        ('{"points": [{"task": "t"}]}', "a point that cannot be read"),
        ('{"points": []}', "no task at all"),
    ):
        path = tmp_path / "summary.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=match):
            export(path, budget=5)


def test_a_broken_record_is_told_and_a_line_cut_off_by_a_crash_is_not(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", PROMPTS)
    records = run / RECORDS
    with records.open("a", encoding="utf-8") as file:
        file.write('{"record": {"task"')
    assert export(run, budget=500).winner.n == len(EIGHT)
    with records.open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(InputError, match="run the comparison again"):
        export(run, budget=500)


def test_a_direction_that_nobody_knows_has_to_be_said(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", PROMPTS)
    config = json.loads((run / CONFIG).read_text())
    config["plans"][0] |= {"task": "Theirs(x=1)", "name": "code-qa"}
    (run / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match="whether more is better is not known"):
        export(run, budget=500)
    assert export(run, budget=500, higher_is_better=True).winner.stack == "bm25"


# -- what is written ------------------------------------------------------------------------------


def test_a_prompts_budget_becomes_the_part_that_is_kept(tmp_path: Path) -> None:
    made = export(stored(tmp_path / "run", PROMPTS), budget=1000)
    policy, route = tables(made)
    assert policy == {"prompt": "longcodezip", "above": 1000, "keep": 0.5, "scorer": "embedded"}
    assert route == {
        "models": ["*"],
        "default_max_output": 32,
        "choose": ["none"],
        "policy": "longcodezip",
    }
    assert any("2000 tokens of a plain prompt" in note for note in made.notes)


def test_the_size_of_the_texts_can_be_said_and_must_be_without_a_plain_run(tmp_path: Path) -> None:
    cells = {("bm25", 500): (0.9, 500, 20)}
    run = stored(tmp_path / "run", cells)
    with pytest.raises(InputError, match="compare 'full' as well, or give the size"):
        export(run, budget=500)
    made = export(run, budget=500, size=3000)
    assert made.policy.keep == pytest.approx(0.166)
    assert made.policy.kept(3000) == 498  # never more than the comparison gave
    assert any("did not measure the plain model" in note for note in made.notes)


@given(limit=st.integers(1, 5000), size=st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_no_text_of_the_runs_size_keeps_more_than_its_budget(
    tmp_path_factory: pytest.TempPathFactory, limit: int, size: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    stored(run, {("head", limit): (0.9, limit, 2)})
    try:
        made = export(run, budget=limit, size=size)
    except InputError:
        assert limit >= size or limit / size < 0.001
        return
    kept = made.policy.kept(size)
    assert kept is not None
    assert kept <= max(1, limit)


@pytest.mark.parametrize(
    ("stack", "budget", "wanted", "answer"),
    [
        ("m1", 512, {"decode": "m1:max_think=384"}, 128),
        ("m1:max_think=100", 512, {"decode": "m1:max_think=100"}, 128),
        ("m1:max_answer=64", 512, {"decode": "m1:max_answer=64,max_think=448"}, 64),
        ("no-thinking", 24, {"decode": "no-thinking"}, 24),
        ("no-thinking", 512, {"decode": "no-thinking"}, 32),
        ("self-consistency:n=4", 512, {"reason": "self-consistency:n=4"}, 32),
        ("self-consistency:n=4", 96, {"reason": "self-consistency:n=3"}, 32),
        ("shortest", 64, {"reason": "shortest:n=2"}, 32),
        (
            "self-consistency:n=4+m1",
            512,
            {"reason": "self-consistency:n=4", "decode": "m1:max_think=96"},
            32,
        ),
    ],
)
def test_a_budget_of_generated_tokens_becomes_the_knob_that_carries_it(
    tmp_path: Path, stack: str, budget: int, wanted: dict[str, str], answer: int
) -> None:
    run = stored(tmp_path / "run", {(stack, budget): (0.9, 20, 20)}, counts="generated")
    made = export(run, budget=budget)
    policy, route = tables(made)
    assert {slot: policy[slot] for slot in ("reason", "decode") if slot in policy} == wanted
    assert route["default_max_output"] == answer


@given(
    n=st.integers(2, 9),
    budget=st.integers(64, 4000),
    longest=st.integers(1, 64),
    thinks=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_worst_case_stays_within_the_budget_that_won(
    tmp_path_factory: pytest.TempPathFactory, n: int, budget: int, longest: int, thinks: bool
) -> None:
    run = tmp_path_factory.mktemp("run")
    stack = f"self-consistency:n={n}" + ("+m1" if thinks else "")
    stored(run, {(stack, budget): (0.9, 20, 20)}, counts="generated", max_tokens=longest)
    if budget < 2 * longest:
        with pytest.raises(InputError, match="holds no two answers"):
            export(run, budget=budget)
        return
    made = export(run, budget=budget)
    ready = prepare("p", made.policy)
    shape = Shape(10, made.route.default_max_output, len)
    if ready.decode is not None:
        shape = replace(shape, decoded=ready.decode.worst(shape))
    assert ready.worst(shape).output <= budget


def test_a_method_that_reserves_more_than_its_budget_says_so(tmp_path: Path) -> None:
    cells = {("plan-and-budget", 300): (0.9, 20, 20)}
    run = stored(tmp_path / "run", cells, counts="generated")
    made = export(run, budget=300)
    assert made.policy.reason == "plan-and-budget:budget=300"
    assert any("its worst case counts every call in full" in note for note in made.notes)


def test_a_verifier_and_its_model_come_from_the_run(tmp_path: Path) -> None:
    cells = {("best-of-n:n=2", 500): (0.9, 20, 20)}
    run = stored(tmp_path / "run", cells, counts="generated", verifier="self", judge="reasoner")
    policy, _ = tables(export(run, budget=500, answer="number"))
    assert policy == {
        "reason": "best-of-n:n=2",
        "answer": "number",
        "verifier": "self",
        "scorer": "reasoner",
    }


def test_a_compressor_and_a_verifier_with_models_of_their_own_are_no_policy(tmp_path: Path) -> None:
    cells = {FULL: (0.1, 900, 9), ("longcodezip+best-of-n:n=2", 500): (0.9, 500, 20)}
    run = stored(tmp_path / "run", cells, judge="reasoner")
    with pytest.raises(InputError, match="a policy has one scorer"):
        export(run, budget=500)


def test_a_run_on_an_endpoint_scores_with_the_embedded_model(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", PROMPTS, model="http://127.0.0.1:1/v1#m")
    assert tables(export(run, budget=1000))[0]["scorer"] == "embedded"


def test_what_is_not_separable_from_the_plain_model_is_said(tmp_path: Path) -> None:
    cells = {FULL: (0.60, 2000, 20), ("bm25", 500): (0.601, 500, 20)}
    near = export(stored(tmp_path / "near", cells, wobble=0.2), budget=500)
    assert not any("separable" in note for note in near.notes)  # equal wobbles cancel in pairs
    noisy = tmp_path / "noisy"
    stored(noisy, {FULL: (0.60, 2000, 20)}, wobble=0.2)
    run = Run(noisy, json.loads((noisy / CONFIG).read_text()))
    for example in EIGHT:
        ledger = Ledger()
        ledger.record("answer", "target", prompt_new=500, generated=20)
        budget = Budget(tokens=500, counts="prompt")
        quality = 0.6 + 0.2 * (-1) ** (example // 2)
        record = Record("code-qa", f"e{example}", "bm25", budget, 0, quality, ledger)
        run.add(Outcome(record, {}))
    assert any("not separable" in note for note in export(noisy, budget=500).notes)
    worse = {FULL: (0.9, 2000, 20), ("bm25", 500): (0.5, 500, 20)}
    below = export(stored(tmp_path / "worse", worse), budget=500)
    assert any("separably below" in note for note in below.notes)


# -- a real comparison, a configuration, the command line -----------------------------------------


def compared(folder: Path) -> dict[str, Any]:
    """A real comparison of a tiny network."""
    found = compare(
        plan(
            task="chainarith:operations=[2,3]",
            methods=("shortest:n=2", "self-consistency:n=2"),
            budgets=(64,),
            model="mine",
            n=4,
            max_tokens=5,
        ),
        out=folder,
        load=lambda spec: tiny_model(),
    )
    return {**found.to_dict(), "folder": str(folder)}


def test_the_folder_and_the_json_of_a_real_comparison_say_the_same(tmp_path: Path) -> None:
    summary = compared(tmp_path / "run")
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary), encoding="utf-8")
    one, two = export(tmp_path / "run", budget=64), export(path, budget=64)
    assert one == two
    alone = tmp_path / "elsewhere.json"
    alone.write_text(json.dumps({**summary, "folder": "gone"}), encoding="utf-8")
    three = export(alone, budget=64)
    assert three.winner == one.winner
    assert three.policy == one.policy
    with pytest.raises(InputError, match="give the run's folder for axis='seconds'"):
        export(alone, budget=64, axis="seconds")


def test_the_json_alone_tells_which_way_is_better(tmp_path: Path) -> None:
    def summary(best: int) -> Path:
        rows = [
            {
                **_point().to_dict(),
                "task": "t",
                "stack": stack,
                "quality": quality,
                "verdict": "worse",
            }
            for stack, quality in (("head", 1.0), ("tail", 2.0))
        ]
        rows[best]["verdict"] = "best"
        path = tmp_path / f"{best}.json"
        path.write_text(json.dumps({"points": rows}), encoding="utf-8")
        return path

    assert winners.read(summary(1)).higher
    assert not winners.read(summary(0)).higher


GATEWAY = """
[upstreams.here]
local = "embedded"
[upstreams.there]
url = "http://127.0.0.1:1/v1"
[models.mine]
upstream = "here"
[models.theirs]
upstream = "there"
[routes.default]
models = ["*"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(GATEWAY, encoding="utf-8")
    return path


def test_the_toml_put_before_the_other_routes_is_served(tmp_path: Path, config: Path) -> None:
    run = stored(tmp_path / "run", PROMPTS)
    made = export(run, budget=1000, name="zip.1", models=("mine",), config=config)
    assert made.checked
    config.write_text(made.toml + config.read_text(), encoding="utf-8")
    both = read(config)
    assert both.route("mine", "chat") == ("zip.1", made.route)
    assert Catalogue(both).policies["zip.1"].table == made.policy


def test_a_policy_that_the_configuration_cannot_serve_is_refused(
    tmp_path: Path, config: Path
) -> None:
    run = stored(tmp_path / "run", {("m1", 64): (0.9, 9, 9)}, counts="generated")
    assert export(run, budget=64, models=("mine",), config=config).checked
    with pytest.raises(InputError, match=r"needs append, .* upstream 'there' does not offer"):
        export(run, budget=64, models=("theirs",), config=config)
    with pytest.raises(InputError, match="no model of the configuration fits other"):
        export(run, budget=64, models=("other",), config=config)
    with pytest.raises(InputError, match=r"has routes\.default already"):
        export(run, budget=64, name="default", config=config)


@given(name=st.text(min_size=1, max_size=70) | st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z"))
@settings(max_examples=60, deadline=None)
def test_a_name_is_written_so_that_it_reads_back(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    run = tmp_path_factory.mktemp("run")
    stored(run, {("head", 5): (0.9, 5, 2)})
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        with pytest.raises(InputError, match="name="):
            export(run, budget=5, size=10, name=name)
        return
    assert tables(export(run, budget=5, size=10, name=name))[0]["prompt"] == "head"


@pytest.fixture
def call() -> Any:
    app = typer.Typer()
    cli.register(app)

    def run(*words: str, code: int = 0) -> Any:
        result = runner.invoke(app, ["policy", *words])
        assert result.exit_code == code, result.output
        return result

    return run


def test_the_command_prints_toml_json_and_mistakes(tmp_path: Path, config: Path, call: Any) -> None:
    run = str(stored(tmp_path / "run", PROMPTS))
    words = ("export", run, "--budget", "1000", "--model", "mine", "--name", "zip")
    shown = call(*words, "--config", str(config))
    assert tomllib.loads(shown.stdout)["routes"]["zip"]["models"] == ["mine"]
    assert "note: " in shown.stderr
    told = json.loads(call(*words, "--json").stdout)
    assert told["policy"]["keep"] == 0.5
    assert told["winner"]["budget"] == {"tokens": 1000, "counts": "prompt"}
    assert not told["checked"]
    wrong = json.loads(call("export", run, "--budget", "7", "--json", code=2).stdout)
    assert "choose 500, 1000" in wrong["error"]["message"]


def test_the_command_writes_a_new_file_only(tmp_path: Path, call: Any) -> None:
    run = str(stored(tmp_path / "run", PROMPTS))
    out = tmp_path / "zip.toml"
    call("export", run, "--within", "0.16", "--out", str(out))
    assert tomllib.loads(out.read_text())["policies"]["bm25"]["above"] == 500
    again = call("export", run, "--within", "0.16", "--out", str(out), code=2)
    assert "exists; give a new file" in again.stderr


def test_the_command_is_one_of_outlays_own() -> None:
    from outlay.cli import COMMANDS

    assert "policy" in COMMANDS
    assert list(COMMANDS) == sorted(COMMANDS)
