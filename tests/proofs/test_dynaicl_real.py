"""The parts of the DynaICL proof beside its first: another generalist, and real tasks."""

from collections import Counter

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.prompt.dynaicl.prompts import check_examples
from outlay.proofs.base import silent
from outlay.proofs.dynaicl_page import methods_data
from outlay.proofs.dynaicl_real import HEADS, RealSize, make_real, real_checks
from outlay.proofs.dynaicl_runs import PROPORTIONAL, TRAINING, Outcome, make_world
from outlay.proofs.dynaicl_tasks import INSTRUCTIONS, POOL, SETS, TASKS, asked
from outlay.proofs.dynaicl_transfer import FIRST, SECOND, other_generalist, swapped
from outlay.testbeds.icl.answers import Answerer
from outlay.testbeds.icl.store import load
from outlay.testbeds.icl.train import TrainConfig
from tiny_models import tiny_model

SMALL = RealSize(4, 2, 1)


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_position_embeddings=2048)


@pytest.fixture(scope="module")
def told(model):
    return real_checks(model, SMALL, 0, silent, None)


# -- tasks ----------------------------------------------------------------------------------------


def test_every_task_has_inputs_whose_answer_is_among_their_options():
    made = asked(0, 8)
    assert Counter(made.kinds) == dict.fromkeys(TASKS, 8)
    check_examples(made.inputs, made.pools, POOL - 1)
    for x, kind in zip(made.inputs, made.kinds, strict=True):
        assert x.answer in made.options[x.input]
        assert len(made.options[x.input]) >= 2
        assert x.instruction == INSTRUCTIONS[kind]


def test_demonstrations_of_a_hidden_change_make_the_same_change():
    made = asked(1, 8)
    changes = [task for task in made.pools if task.startswith("number-")]
    assert len(changes) == 4
    for task in changes:
        moved = {int(demo.answer) - int(demo.input) for demo in made.pools[task]}
        doubled = all(int(demo.answer) == 2 * int(demo.input) for demo in made.pools[task])
        assert len(moved) == 1 or doubled


def test_inputs_repeat_by_seed_and_differ_between_seeds():
    texts = [[x.input for x in asked(seed, 4).inputs] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_tasks_that_cannot_be_asked_are_refused():
    with pytest.raises(InputError, match="each=0"):
        asked(0, 0)
    with pytest.raises(InputError, match="'sums'"):
        asked(0, 1, kinds=["sums"])
    with pytest.raises(InputError, match="lower each"):
        asked(0, 500, kinds=["past"])


# -- a model on the tasks -------------------------------------------------------------------------


def test_training_and_test_inputs_share_nothing_and_cover_all_tasks(model):
    world = make_real(model, RealSize(2, 1, 1), 0, silent, None)
    assert not set(world.train.ids) & set(world.test.ids)
    assert Counter(world.train_kinds) == dict.fromkeys(TASKS, 2)
    assert Counter(world.test_kinds) == dict.fromkeys(TASKS, 1)
    for chosen, names in SETS.items():
        assert {world.test_kinds[i] for i in world.rows(chosen, train=False)} == set(names)
    assert all(text.startswith(tuple(INSTRUCTIONS.values())) for text in world.test.inputs)
    options = np.array([len(asked(0, 3).options[x.input]) for x in world.inputs])
    assert (world.entropies_N <= np.log(options) + 1e-9).all()
    assert (world.entropies_N >= 0).all()


def test_every_head_is_held_against_uniform_and_every_transfer_is_told(told):
    checks, data = told
    judged = [check for check in checks if check.holds is not None]
    assert len(judged) == 2 * len(HEADS)
    matrix = [check for check in checks if check.claim.startswith("transfer")]
    assert len(matrix) == 3 * len(SETS) * len(HEADS)
    assert all(check.holds is None and check.ci is not None for check in matrix)
    assert set(data["tasks"]) == {*TASKS, "all"}


def test_every_method_spends_what_uniform_spends_or_less(told):
    for mean_k in (1, 2):
        rows = {r["method"]: r["tokens"] for r in told[1]["methods"] if r["mean_k"] == mean_k}
        assert all(tokens <= rows["uniform"] + 1e-9 for tokens in rows.values())


@pytest.mark.model
def test_the_embedded_model_needs_one_example_for_past_tenses():
    from outlay.prompt.dynaicl import Chooser, DynaICL
    from outlay.proofs.dynaicl_real import asked_text, smollm

    network = smollm()
    made = asked(0, 6, kinds=("past",))
    chooser = Chooser(network, lambda prompt: made.options[asked_text(prompt)])
    table = DynaICL(K=1, n_s=1).collect(chooser, made.inputs, made.pools, count=network.count)
    accuracy_K = table.accuracy_NK.mean(axis=0)
    assert accuracy_K[0] <= 0.34
    assert accuracy_K[1] >= 0.66


# -- another generalist ---------------------------------------------------------------------------


def test_controllers_and_generalists_make_a_matrix():
    world = make_world(
        Answerer(load()[0]), 0, 40, 30, 1, silent, None, TRAINING.__class__(epochs=2, hidden=8)
    )
    other = other_generalist(TrainConfig(steps=2, hidden=16, layers=1, batch=4))
    checks = swapped(world, other, 2, silent)
    cells = {
        tuple(c.claim.removeprefix("controller of ").split(":")[0].split(" on ")) for c in checks
    }
    assert cells == {(a, b) for a in (FIRST, SECOND) for b in (FIRST, SECOND)}
    assert all(check.holds is None for check in checks)
    blind = [c for c in checks if f"on {SECOND}" in c.claim]
    assert all(abs(check.measured) < 0.2 for check in blind)  # a model that knows nothing
    own = next(
        c for c in checks if c.claim.startswith(f"controller of {FIRST} on {FIRST}: {PROPORTIONAL}")
    )
    assert own.measured > 0


def test_figures_have_the_mean_and_its_interval():
    quality = np.array([0.0, 1.0, 1.0, 1.0])
    (row,) = methods_data({1: {"uniform": [Outcome(quality, quality, quality, 0)]}})
    assert row["accuracy"] == 0.75
    assert row["ci"][0] < 0.75 < row["ci"][1]
