"""Training, evaluation, the model card, ranking, and the commands that cover them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from outlay.cli import basir as command
from outlay.errors import InputError
from outlay.evals.basir.data import Excerpt
from outlay.evals.basir.identifier import NOTICE, Identifier
from outlay.evals.basir.synthetic import load_sample
from outlay.evals.basir.train import (
    RankConfig,
    TrainConfig,
    evaluate,
    evaluate_cascade,
    make_scorer,
    rank,
    train,
)

ROWS, PRICES, LABELS = load_sample()


@pytest.fixture(scope="module")
def trained():
    return train(ROWS, LABELS, TrainConfig(route="tfidf"))


def test_training_learns_tunes_and_judges_on_later_events(trained):
    assert trained.test.micro > 0.7
    assert trained.test.rows == sum(row.date >= "2022-01-01" for row in ROWS)
    late = [row for row in ROWS if row.date >= "2022-01-01"]
    assert evaluate(trained.identifier, late) == trained.test
    assert trained.test.macro < trained.test.micro  # 61 labels have no text
    assert "61 of 81 labels have no training text" in trained.warnings[0]


def test_the_threshold_does_not_see_the_test_rows(trained):
    other = [
        Excerpt(r.event, r.date, r.excerpt_id, "Nothing at all.", ("tobacco",))
        if r.date >= "2022-01-01"
        else r
        for r in ROWS
    ]
    again = train(other, LABELS, TrainConfig(route="tfidf"))
    assert (again.identifier.thresholds.values == trained.identifier.thresholds.values).all()
    assert again.validation == trained.validation
    assert again.test.micro != trained.test.micro


def test_training_beats_the_most_frequent_labels(trained):
    assert trained.test.micro > train(ROWS, LABELS, TrainConfig(route="frequent")).test.micro + 0.3


def test_the_card_says_how_it_was_made_and_what_it_cannot_do(trained):
    card = trained.card()
    assert f"| test | {trained.test.micro:.3f} | {trained.test.macro:.3f} |" in card
    assert "--route tfidf" in card
    assert "61 of 81 labels" in card
    assert NOTICE in card


def test_a_given_threshold_and_min_one_are_kept():
    fixed = train(ROWS, LABELS, TrainConfig(route="tfidf", threshold=99.0, min_one=True))
    assert (fixed.identifier.thresholds.values == 99.0).all()
    decided = fixed.identifier.decide([row.text for row in ROWS[:20]])
    assert (decided.sum(axis=1) == 1).all()


def test_a_cascade_without_a_model_equals_its_route(trained):
    late = [row for row in ROWS if row.date >= "2022-01-01"]
    asked = evaluate_cascade(None, late, trained.identifier)
    assert asked.report == trained.test
    assert asked.to_dict()["prompt_tokens_per_excerpt"] == 0


def test_ranking_prints_chance_beside_every_figure():
    found = rank(ROWS, PRICES, LABELS, RankConfig(scorers=("tfidf-ridge", "prior"))).to_dict()
    assert list(found["scorers"]) == ["constant", "tfidf-ridge", "prior"]
    assert found["scorers"]["constant"]["excess"] == pytest.approx(0.0, abs=1e-12)
    assert found["scorers"]["tfidf-ridge"]["excess"] > 0.3
    row = found["scorers"]["tfidf-ridge"]
    assert row["worst"] < row["random"] < row["ndcg"]
    assert row["items"] == 20
    assert row["minus_constant"]["mean"] == pytest.approx(row["excess"])
    assert found["notice"] == NOTICE


def test_ranking_warns_of_traps():
    config = RankConfig(scorers=("random",), relevance="price_relative")
    found = rank(ROWS, PRICES, LABELS, config)
    assert "price_relative" in found.warnings[0]
    assert found.reports["random"].mean("ndcg") > 0.98


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: train(ROWS, LABELS, TrainConfig(threshold=float("nan"))), "threshold=nan"),
        (lambda: train(ROWS, LABELS, TrainConfig(route="tfidf", epochs=2)), "no knob 'epochs'"),
        (lambda: train(ROWS, LABELS, TrainConfig(test_from="2050-01-01")), "no rows"),
        (lambda: train((*ROWS, ROWS[0]), LABELS), "appears twice"),
        (lambda: make_scorer("oracle"), "'oracle' is unknown"),
        (lambda: make_scorer("llm-point"), "asks a model"),
        (lambda: rank(ROWS, PRICES, LABELS, RankConfig(agg="cap")), "no cap"),
        (lambda: rank(ROWS, PRICES, LABELS, RankConfig(min_companies=9)), "no event has"),
        (lambda: rank(ROWS, PRICES, LABELS, RankConfig(k=0)), "k=0"),
    ],
)
def test_bad_configurations_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


# -- commands -------------------------------------------------------------------------------------


@pytest.fixture
def cli():
    app = typer.Typer()
    command.register(app)
    app.command("other")(lambda: None)  # with one group alone, typer would drop its name

    def call(*words: object, code: int = 0):
        result = CliRunner().invoke(app, ["basir", *map(str, words)])
        assert result.exit_code == code, result.output
        return result

    return call


SPEECH = """Budget Speech

1. I now turn to iron and steel. This is about steel making, iron ore products and steel duties.
The outlay doubles, and a tax holiday of ten years is granted.

2. Let me speak about cement. This is about cement and ready-mix concrete. A committee will study
the matter and report next year.
"""


def test_a_speech_is_segmented_tagged_and_written(cli, tmp_path):
    (tmp_path / "speech.txt").write_text(SPEECH)
    out = tmp_path / "model"
    made = json.loads(cli("train", "--out", out, "--route", "tfidf", "--json").stdout)
    assert made["test"]["micro"] > 0.7
    assert (out / "README.md").read_text().startswith("---")
    rows = json.loads(
        cli(
            "segment", tmp_path / "speech.txt", "--date", "2025-02-01", "--model", out, "--json"
        ).stdout
    )["excerpts"]
    assert [row["excerpt_id"] for row in rows] == ["speech-0001", "speech-0002"]
    assert rows[0]["sectors"] == list(Identifier.load(out).sectors([rows[0]["text"]])[0])
    assert "steel" in rows[0]["sectors"]
    cli("segment", tmp_path / "speech.txt", "--out", tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [row["text"] for row in rows]


def test_evaluate_and_rank_report_json_and_text(cli, tmp_path):
    out = tmp_path / "model"
    cli("train", "--out", out, "--route", "tfidf")
    found = json.loads(cli("evaluate", out, "--test-from", "2022-01-01", "--json").stdout)
    assert 0.7 < found["tfidf"]["micro"] <= 1
    assert len(found["tfidf"]["per_label"]) == 81
    assert "F1 micro" in cli("evaluate", out).stdout
    ranked = json.loads(cli("rank", "--scorer", "length", "--json").stdout)
    assert set(ranked["scorers"]) == {"constant", "length"}
    text = cli("rank", "--scorer", "tfidf-ridge", "--k", 5).stdout
    assert "random" in text
    assert "not investment advice" in text


def test_own_excerpts_and_daily_quotes_rank(cli, tmp_path):
    random = np.random.default_rng(0)
    rows, quotes = [], []
    for year in range(2015, 2025):
        for place, sector in enumerate(("steel", "banks", "ports")):
            text = f"Budget words on {sector} {'rise' if (year + place) % 2 else 'fall'}."
            rows.append(
                {
                    "event": str(year),
                    "date": f"{year}-02-01",
                    "excerpt_id": f"{year}-{sector}",
                    "text": text,
                    "sectors": [sector],
                }
            )
            for day in ("01-31", "02-02"):
                price = {"company": sector, "sector": sector, "date": f"{year}-{day}"}
                quotes.append({**price, "open": float(random.uniform(90, 110))})
    for name, data in (("rows", rows), ("quotes", quotes)):
        text = "\n".join(json.dumps(row) for row in data)
        (tmp_path / f"{name}.jsonl").write_text(text)
    found = json.loads(
        cli(
            *("rank", tmp_path / "rows.jsonl", "--quotes", tmp_path / "quotes.jsonl"),
            *("--scorer", "tfidf-ridge", "--json"),
        ).stdout
    )
    assert found["scorers"]["tfidf-ridge"]["events"] == 3
    message = json.loads(cli("rank", tmp_path / "rows.jsonl", "--json", code=2).stdout)
    assert "no prices" in message["error"]["message"]


def test_fine_tuning_prints_nothing_but_its_json(cli, tmp_path):
    rows = [
        {
            "event": str(year),
            "date": f"{year}-02-01",
            "excerpt_id": f"{year}-{sector}",
            "text": f"More for {sector} in {year}.",
            "sectors": [sector],
        }
        for year in range(2015, 2020)
        for sector in ("steel", "banks")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = (tmp_path / "rows.jsonl", "--out", tmp_path / "model", "--route", "embed-ft")
    made = json.loads(cli("train", *words, "--epochs", 1, "--json").stdout)
    assert made["test"]["rows"] == 2
    assert (tmp_path / "model" / "encoder" / "model.safetensors").exists()
    assert Identifier.load(tmp_path / "model").decide(["Steel."]).shape == (1, 81)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("segment", "none.txt"), "does not exist"),
        (("evaluate", "none"), "no trained identifier"),
        (("train", "--out", "x", "--route", "magic"), "route='magic'"),
        (("train", "--out", "x", "--threshold", "high"), "--threshold 'high'"),
        (("rank", "--scorer", "magic"), "'magic' is unknown"),
    ],
)
def test_mistakes_end_with_one_json_message(cli, words, message):
    found = json.loads(cli(*words, "--json", code=2).stdout)
    assert message in found["error"]["message"]
