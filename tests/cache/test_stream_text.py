"""Streaming a text: losses, rows and bytes of every block."""

from __future__ import annotations

import json
import math

import pytest
import torch
import typer
from typer.testing import CliRunner

from outlay.cache.baselines import StreamingLLM
from outlay.cache.lacache import LaCache
from outlay.cache.loop import forward
from outlay.cache.streaming import stream_text
from outlay.cli import stream
from outlay.errors import InputError
from tiny_models import plain_logprobs, tiny_model

SMALL = LaCache(capacity=24, span=3, overlap=1, start=2)


@pytest.fixture(scope="module")
def deep():
    return tiny_model(num_hidden_layers=6)


def ids(count, batch=1):
    return torch.randint(5, 260, (batch, count), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("window", "block"), [(1, 30), (7, 14), (16, 64)])
def test_the_full_cache_gives_the_losses_of_one_plain_pass(deep, window, block):
    text = ids(50, batch=2)
    blocks = list(stream_text(deep, None, text, window=window, block=block))
    assert sum(each.tokens for each in blocks) == 50
    for row in range(2):
        logprobs_TV = plain_logprobs(deep, text[row].tolist())
        nll_T = -logprobs_TV[:-1].gather(1, text[row, 1:, None])[:, 0]
        at = 0
        for each in blocks:
            count = each.tokens - (each.first == 0)
            assert each.nll_texts[row] == pytest.approx(
                float(nll_T[at : at + count].mean()), rel=1e-4
            )
            at += count


def test_a_compacted_stream_gives_the_losses_of_single_steps(deep):
    text = ids(80)
    cache, nll = SMALL.open(deep.model, 80), []
    for at in range(79):
        logits_BV = forward(deep, text[:, at : at + 1], cache)
        nll.append(-float(logits_BV.log_softmax(-1)[0, text[0, at + 1]]))
    blocks = list(stream_text(deep, SMALL, text, window=1, block=80))
    assert blocks[0].nll == pytest.approx(sum(nll) / 79, rel=1e-4)


def test_rows_and_bytes_stay_what_the_capacity_allows(deep):
    blocks = list(stream_text(deep, SMALL, ids(600), window=4, block=100))
    ceiling = SMALL.policy(6, 600).ceiling
    row = 2 * 2 * 8 * 4 * 6
    assert all(each.peak_rows <= ceiling + 4 for each in blocks)
    assert all(each.peak_bytes <= (ceiling + 4) * row for each in blocks)
    assert {each.peak_bytes for each in blocks[1:]} == {blocks[1].peak_bytes}
    assert all(abs(each.mean_rows - 24) <= 2 for each in blocks[1:])
    assert [each.first for each in blocks] == [0, 100, 200, 300, 400, 500]
    assert all(math.isfinite(each.perplexity) for each in blocks)
    full = list(stream_text(deep, None, ids(600), window=4, block=100))
    assert [each.peak_rows for each in full] == [100, 200, 300, 400, 500, 600]


def test_a_stream_goes_on_from_a_cache(deep):
    text = ids(120)
    whole = list(stream_text(deep, SMALL, text, window=4, block=60))
    cache = SMALL.open(deep.model, 120)
    first = list(stream_text(deep, cache, text[:, :60], window=4, block=60))
    second = list(stream_text(deep, cache, text[:, 60:], window=4, block=60))
    assert first[0].nll == whole[0].nll
    assert second[0].first == 60
    assert second[0].peak_rows == whole[1].peak_rows


@pytest.mark.parametrize(
    ("text", "knobs", "words"),
    [
        (ids(1), {}, "T >= 2"),
        (torch.arange(9), {}, "T >= 2"),
        (ids(20), {"window": 0}, "window=0"),
        (ids(20), {"window": 1.5}, "window=1.5"),
        (ids(20), {"window": 16, "block": 40}, "no multiple"),
    ],
)
def test_bad_texts_and_windows_are_refused(deep, text, knobs, words):
    with pytest.raises(InputError, match=words):
        list(stream_text(deep, StreamingLLM(), text, **knobs))


@pytest.fixture
def command():
    app = typer.Typer()
    stream.register(app)
    app.command("other")(lambda: None)  # with one command alone typer takes no name
    return lambda *words: CliRunner().invoke(app, ["stream", *words])


@pytest.mark.model
def test_the_command_streams_a_file_and_prints_json(command, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The river runs to the sea. " * 40, encoding="utf-8")
    words = ["--tokens", "160", "--cache", "lacache:capacity=64", "--block", "80", "--json"]
    result = command(str(file), *words)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [block["first"] for block in data["blocks"]] == [0, 80]
    assert data["blocks"][1]["peak_rows"] <= 64 + 16 + 2
    assert data["blocks"][1]["perplexity"] < data["blocks"][0]["perplexity"]
    assert data["tokens"] == 160


@pytest.mark.model
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "1"], "tokens"),
        (["--tokens", "100", "--cache", "lacache:capacity=20"], "capacity=20"),
        (["--cache", "nothing"], "unknown"),
        (["--tokens", "100", "--window", "7"], "no multiple"),
    ],
)
def test_the_command_refuses_bad_options_in_one_line(command, tmp_path, words, said):
    file = tmp_path / "text.txt"
    file.write_text("The river runs to the sea. " * 40, encoding="utf-8")
    result = command(str(file), *words)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.model
def test_the_command_says_how_many_tokens_a_short_text_has(command, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Too short.", encoding="utf-8")
    result = command(str(file), "--tokens", "500")
    assert result.exit_code == 2
    assert "3 tokens" in result.output
