"""The in-context testbed: its rules, its shipped model and controller, and its task."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import InputError, ModelError
from outlay.evals.base import Task
from outlay.example import run_example
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.prompt.dynaicl import DynaICL, UniformDemonstrations
from outlay.stack import Stack
from outlay.testbeds.icl import (
    FAMILIES,
    InContext,
    Rule,
    build_tokenizer,
    checkpoint_path,
    draw_instance,
    families,
    load,
    vocabulary,
    workload,
)
from outlay.testbeds.icl.answers import Answerer
from outlay.testbeds.icl.evaluate import table
from outlay.testbeds.icl.labels import METHOD, labels
from outlay.testbeds.icl.train import TrainConfig, batches

seeds = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def ask():
    import torch

    torch.set_num_threads(1)
    return Answerer(load()[0])


@pytest.fixture(scope="module")
def measured(ask):
    return table(ask, n=100, seed=2)


# -- the world ------------------------------------------------------------------------------------


@given(seeds, st.sampled_from(FAMILIES))
def test_examples_follow_the_questions_rule_and_never_show_its_pair(seed, family):
    made = draw_instance(random.Random(seed), family, 8)
    images = {}
    for item in (*made.pool, made.question):
        pair = item.question[-2:]
        for symbol, image in zip(pair, item.answer, strict=True):
            assert images.setdefault(symbol, image) == image
    assert all(item.question[-2:] != made.question.question[-2:] for item in made.pool)


@given(seeds)
def test_one_example_gives_a_shift_away(seed):
    made = draw_instance(random.Random(seed), "shift", 1)
    circle = "ABCDEFGH"
    shown = made.pool[0]
    offset = circle.index(shown.answer[0]) - circle.index(shown.question[-2])
    expected = "".join(circle[(circle.index(c) + offset) % 8] for c in made.question.question[-2:])
    assert made.question.answer == expected


def test_the_stored_map_is_always_the_same_and_the_others_are_not():
    rules = {f: {Rule.draw(random.Random(s), f).images for s in range(40)} for f in FAMILIES}
    assert len(rules["stored"]) == 1
    assert len(rules["shift"]) == 8
    assert len(rules["lookup"]) > 30


def test_the_family_can_be_seen_in_the_question_and_the_rule_cannot():
    by_question = {}
    for seed in range(3000):
        for family in FAMILIES:
            item = draw_instance(random.Random(f"{seed}{family}"), family, 0).question
            by_question.setdefault(item.question[-2:], set()).add((family, item.answer))
    assert all(len({family for family, _ in seen}) == 1 for seen in by_question.values())
    answers = {f: [] for f in FAMILIES}
    for seen in by_question.values():
        answers[next(iter(seen))[0]].append(len(seen))
    assert set(answers["stored"]) == {1}
    assert np.mean(answers["shift"]) == pytest.approx(8, abs=0.1)
    assert min(answers["lookup"]) > 25


def test_the_tokenizer_knows_every_sign_and_nothing_else():
    tokenizer = build_tokenizer()
    for seed in range(60):
        made = draw_instance(random.Random(seed), FAMILIES[seed % 3], 8)
        text = "".join(item.text for item in (*made.pool, made.question))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == [vocabulary()[character] for character in text]
        assert tokenizer.decode(ids) == text
    with pytest.raises(Exception, match=r"(?i)unk"):
        tokenizer("é", add_special_tokens=False)
    assert 64 <= len(vocabulary()) <= 128


def test_only_answers_and_ends_are_trained_on():
    ids_BT, labels_BT = next(batches(TrainConfig(batch=6)))
    names = list(vocabulary())
    for ids, wanted in zip(ids_BT.tolist(), labels_BT.tolist(), strict=True):
        text = "".join(names[i] for i in ids).replace("<pad>", "")
        shown = "".join(names[i] for i in wanted if i >= 0)
        assert shown == "".join(part.split(">")[1] + ";" for part in text.split(";") if part)
        assert text.count(";") == 9


@pytest.mark.parametrize(
    "call",
    [
        lambda: Rule.draw(random.Random(0), "square"),
        lambda: draw_instance(random.Random(0), "shift", -1),
        lambda: families(random.Random(0), 3, (0, 0, 0)),
        lambda: families(random.Random(0), 3, (1, 1)),
        lambda: InContext(demonstrations=9),
        lambda: InContext(mix=(1, -1, 1)),
        lambda: workload(0, 0),
        lambda: TrainConfig(steps=0),
        lambda: TrainConfig(hidden=30),
        lambda: TrainConfig(lr=0),
    ],
)
def test_what_cannot_be_made_is_refused(call):
    with pytest.raises(InputError):
        call()


# -- the shipped model ----------------------------------------------------------------------------


def test_the_shipped_model_is_small_and_its_card_tells_what_was_measured():
    folder = checkpoint_path()
    assert (folder / "model.safetensors").stat().st_size < 3_000_000
    record = json.loads((folder / "measured.json").read_text())
    card = (folder / "README.md").read_text()
    for row in record["rows"]:
        assert f"{row['accuracy']:.2f}" in card
    assert f"--steps {record['config']['steps']}" in card


def test_the_shipped_model_still_measures_what_its_card_says(measured):
    recorded = json.loads((checkpoint_path() / "measured.json").read_text())["rows"]
    for row, old in zip(measured, recorded, strict=True):
        spread = (old["accuracy"] * (1 - old["accuracy"]) / 100 + 0.0025) ** 0.5
        assert abs(row.accuracy - old["accuracy"]) < 4 * spread


def test_examples_help_where_they_must_and_only_there(measured):
    found = {(row.family, row.k): row.accuracy for row in measured}
    assert found["stored", 0] > 0.9
    assert found["shift", 0] < 0.3
    assert found["shift", 1] > 0.7
    assert found["lookup", 0] < 0.1
    assert found["lookup", 1] < 0.4
    assert found["lookup", 8] > 0.7


def test_answers_do_not_depend_on_the_batch(ask):
    batch = workload(5, 12)
    prompts = [
        METHOD.template().prompt(x, batch.pools[x.task][: i % 9])
        for i, x in enumerate(batch.inputs)
    ]
    assert ask(prompts) == [ask([prompt])[0] for prompt in prompts]
    with pytest.raises(InputError, match="character"):
        ask(["é>"])
    with pytest.raises(InputError, match="empty"):
        ask([""])


def test_the_fast_answers_equal_those_of_the_general_model(ask):
    model = LocalModel.load(checkpoint_path(), device="cpu")
    batch = workload(6, 10)
    prompts = [METHOD.template().prompt(x, batch.pools[x.task][:4]) for x in batch.inputs]
    made = [model.generate(p, sampling=SamplingParams(max_tokens=5)).text for p in prompts]
    assert [text.split(";")[0] for text in made] == ask(prompts)
    assert [model.count(p) for p in prompts] == [ask.count(p) for p in prompts]


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no checkpoint"):
        load(tmp_path)


# -- the task, and DynaICL in a comparison --------------------------------------------------------


def test_the_task_samples_the_same_problems_and_more():
    task = InContext()
    assert isinstance(task, Task)
    assert task.sample(3, 8) == task.sample(3, 12)[:8]
    for problem in task.sample(0, 20):
        assert task.verify(problem, problem.answer + ";") == 1
        assert task.verify(problem, "??") == 0
        assert problem.context.count(";") == 8


def test_the_shipped_controller_spends_fewer_tokens_for_the_same_answers():
    model = LocalModel.load(checkpoint_path(), device="cpu")
    task, budget = InContext(), Budget(tokens=56, counts="prompt")
    problems = task.sample(0, 60)
    spent, right = {}, {}
    dynamic = DynaICL(saved="icl", delimiter=";", lam=0.2)
    for name, method in {
        "all": UniformDemonstrations(delimiter=";"),
        "dynaicl": dynamic,
    }.items():
        outcomes = [run_example(model, Stack(prompt=method), task, p, budget) for p in problems]
        spent[name] = sum(o.record.ledger.totals(role="target").prompt for o in outcomes)
        right[name] = sum(o.record.quality for o in outcomes)
    assert spent["dynaicl"] < 0.8 * spent["all"]
    assert right["dynaicl"] >= right["all"] - 6


def test_labels_of_the_world_are_collected_with_the_tokens_of_its_prompts(ask):
    batch = workload(8, 6, pool=12)
    made = labels(ask, batch)
    assert made.quality_NKD.shape == (6, 9, 4)
    assert (np.diff(made.tokens_NKD, axis=1) >= 6).all()  # an example has six or seven signs


def test_the_training_command_writes_a_model_with_its_card_and_a_controller(tmp_path):
    out = tmp_path / "model"
    command = [sys.executable, "-m", "outlay.testbeds.icl", "--out", str(out), "--steps", "2"]
    command += ["--hidden", "16", "--layers", "1", "--batch", "2", "--rules", "2"]
    command += ["--controller", str(tmp_path / "controller"), "--inputs", "6"]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    assert len(Answerer(load(out)[0])(["ab>"])[0]) >= 2
    assert "k=8" in (out / "README.md").read_text()
    saved = DynaICL(saved=str(tmp_path / "controller"))
    assert saved.predict(["ab"]).curves_NK.shape == (1, 9)
