"""`outlay bench serve` on a small real model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from outlay.cli import bench
from outlay.schedule import Request
from outlay.schedule.traces import Trace
from tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk."""
    place = tmp_path_factory.mktemp("model")
    model = tiny_model("Mixtral", num_hidden_layers=4, max_position_embeddings=1024)
    model.model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requests = tuple(
        Request(i, tuple(range(5, 25 + 10 * i)), 6, 0.01 * i, timeout=100.0) for i in range(4)
    )
    return Trace("four", 0, 100.0, requests).write(tmp_path_factory.mktemp("t") / "t.jsonl")


def call(*words: object) -> tuple[int, str]:
    app = typer.Typer()
    bench.register(app)
    result = CliRunner().invoke(app, ["bench", "serve", *map(str, words)])
    return result.exit_code, result.output


@pytest.mark.parametrize("clock", ["wall", "cpu", "virtual"])
def test_all_schedules_serve_one_trace_with_the_same_tokens(folder, trace, clock: str) -> None:
    words = ("--model", folder, "--trace", trace, "--ref-chunk", 8, "--clock", clock, "--json")
    code, output = call(*words)
    assert code == 0, output
    found = json.loads(output)
    assert [row["schedule"] for row in found["rows"]] == list(bench.DEFAULT)
    assert found["same_tokens"]
    assert found["clock"] == clock
    layered, chunked, orca = found["rows"]
    assert layered["cohorts"] < chunked["cohorts"]
    assert layered["expert_loads"] < chunked["expert_loads"]
    assert all(row["requests"] == 4 and row["ttft_mean"] > 0 for row in found["rows"])
    assert all(0 <= row["goodput"] <= 1 for row in found["rows"])
    assert found["limits"]["tbt_p99"] == pytest.approx(5 * found["decode_seconds"])
    assert orca["steps"] <= layered["steps"]


def test_specs_set_knobs_and_the_reference_chunk_sets_the_rest() -> None:
    made = bench._schedule("layered-prefill:max_groups=3", 64)
    assert (made.max_groups, made.ref_chunk, made.max_num_batched_tokens) == (3, 64, 1024)
    own = bench._schedule("layered-prefill:ref_chunk=16", 64)
    assert (own.ref_chunk, own.max_num_batched_tokens) == (16, 256)
    assert bench._schedule("chunked-prefill", 64).max_num_batched_tokens == 64
    assert bench._schedule("chunked-prefill:max_num_batched_tokens=7", 64) == type(
        bench._schedule("chunked-prefill", 64)
    )(7)


def test_a_made_trace_is_written_and_can_be_served_again(folder, tmp_path) -> None:
    path = tmp_path / "made.jsonl"
    words = ("--model", folder, "--schedule", "orca", "--ref-chunk", 8, "--clock", "cpu")
    code, output = call(*words, "--trace", "mixed", "--requests", 3, "--save-trace", path)
    assert code == 0, output
    assert "tokens are the same" in " ".join(output.split())
    code, again = call(*words, "--trace", path, "--json")
    assert code == 0, again
    assert json.loads(again)["requests"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--clock", "sun"), "--clock sun"),
        (("--ref-chunk", 0), "ref_chunk=0"),
        (("--ref-chunk", 500), "ref_chunk=500 is timed on sequences"),
        (("--load", 0.5, "--rate", 1), "not both"),
        (("--load", -1), "--load -1"),
        (("--tbt-limit", 0), "must be above 0"),
        (("--schedule", "layred-prefill"), "did you mean layered-prefill"),
        (("--schedule", "m1"), "is no schedule"),
        (("--schedule", "layered-prefill:ref_chunk=0"), "ref_chunk=0"),
        (("--schedule", "layered-prefill:rule=official"), "num_stages=16 is more"),
        (("--trace", "nowhere.jsonl"), "does not exist"),
        (("--requests", 0), "requests=0"),
        (("--num-blocks", 1), "the whole pool has 16"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(folder, trace, words, message: str) -> None:
    base = ["--model", folder, "--trace", trace, "--ref-chunk", 8, "--clock", "cpu"]
    code, output = call(*base, *words)  # of an option that is given twice the last counts
    assert code == 2, output
    assert message in " ".join(output.split())
