"""Choosing between options, tasks with instructions of their own, task-level numbers."""

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.prompt.dynaicl import Chooser, DynaICL, Example, Table, Template
from outlay.prompt.dynaicl.baselines import by_task
from outlay.prompt.dynaicl.config import Training
from tiny_models import chain_model, plain_logprobs, tiny_model

PROMPTS = ["Say: the cat", "Say: the other", "Say: a", "in the end", "Say: the cat and a dog"]
OPTIONS = ("abc", "the", "er", "x")


def slowly(model, prompt, option):
    """Mean log-probability by one plain pass over prompt and option."""
    ids, more = model.prompt_ids(prompt), model.encode(f" {option}")
    log_TV = plain_logprobs(model, [*ids, *more])
    return float(np.mean([log_TV[len(ids) - 1 + i, token] for i, token in enumerate(more)]))


def test_scores_equal_one_plain_pass_per_option():
    model = tiny_model()
    found = Chooser(model, lambda prompt: OPTIONS).scores(PROMPTS)
    for prompt, row in zip(PROMPTS, found, strict=True):
        expected = [slowly(model, prompt, option) for option in OPTIONS]
        assert row == pytest.approx(expected, abs=1e-4)


def test_the_likeliest_option_is_the_answer_and_the_first_one_on_ties():
    chooser = Chooser(chain_model("qrst"), lambda prompt: ("t", "s", "r"), lead="")
    assert chooser(["q", "r", "s"]) == ["r", "s", "t"]
    even = Chooser(chain_model("qrst"), lambda prompt: ("x", "y"), lead="")
    assert even(["q"]) == ["x"]


def test_every_prompt_has_its_own_options():
    model = tiny_model()
    own = {prompt: (f"{i}", f"{i}{i}") for i, prompt in enumerate(PROMPTS)}
    answers = Chooser(model, lambda prompt: own[prompt])(PROMPTS)
    assert all(answer in own[prompt] for prompt, answer in zip(PROMPTS, answers, strict=True))


def test_the_ledger_counts_what_was_read_and_shared_text_once():
    model = tiny_model()
    chooser = Chooser(model, lambda prompt: OPTIONS)
    prompts = ["Say: one", "Say: two", "Say: three"]
    chooser(prompts)
    whole = sum(len(model.prompt_ids(prompt)) for prompt in prompts)
    options = len(prompts) * sum(len(model.encode(f" {option}")) for option in OPTIONS)
    total = chooser.ledger.totals(role="target")
    shared = total.prompt_cached // (len(prompts) - 1)
    assert 5 <= shared < len(model.prompt_ids(prompts[0]))
    assert total.prompt_new == whole + options - total.prompt_cached
    assert total.generated == 0
    assert total.flops > 0


@pytest.mark.parametrize("options", [(), ("a", "a"), ("a", "")])
def test_options_that_decide_nothing_are_refused(options):
    with pytest.raises(InputError, match="options"):
        Chooser(tiny_model(), lambda prompt: options)(["x"])


def test_a_prompt_longer_than_the_window_is_refused():
    with pytest.raises(InputError, match="window"):
        Chooser(tiny_model(max_position_embeddings=8), lambda prompt: ("a", "b"))(["z" * 20])


# -- tasks ----------------------------------------------------------------------------------------


def test_instructions_of_tasks_open_prompts_and_are_read_by_the_controller():
    shown = [Example("d", "1", "one", "n", "Numbers.")]
    x = Example("x", "2", "two", "n", "Numbers.")
    assert Template().prompt(x, []) == "Numbers.\n\nInput: 2\nOutput:"
    assert Template("All.").prompt(x, shown).split("\n\n")[:2] == ["All.", "Numbers."]
    assert x.read == "Numbers.\n2"
    pools = {"n": [Example(f"d{i}", f"{i}0", "ten", "n", "Numbers.") for i in range(4)]}
    seen: list[str] = []

    def generalist(prompts):
        seen.extend(prompts)
        return ["two"] * len(prompts)

    method = DynaICL(K=2, n_s=1, controller="hash", mean_k=1, training=Training(epochs=2))
    table = method.collect(generalist, [x], pools, count=len)
    assert table.inputs == ("Numbers.\n2",)
    assert all(prompt.startswith("Numbers.\n\n") for prompt in seen)
    load = method.fit(table).plan([x], pools, count=len)
    assert load.controller_tokens == len(x.read)


def test_an_instruction_does_not_change_the_key_of_inputs_without_one(tmp_path):
    pools = {"": [Example(f"d{i}", f"{i}", "y") for i in range(3)]}
    method = DynaICL(K=1, n_s=1)
    calls: list[int] = []

    def generalist(prompts):
        calls.append(len(prompts))
        return ["y"] * len(prompts)

    for x in (
        Example("x", "q", "y"),
        Example("x", "q", "y", instruction="Do."),
        Example("x", "q", "y"),
    ):
        method.collect(generalist, [x], pools, count=len, folder=tmp_path)
    assert len(calls) == 2  # the third was known


def test_an_instruction_that_is_too_long_is_refused():
    with pytest.raises(InputError, match="longer"):
        Example("x", "q", instruction="z" * 1_000_001)


def table_of(curves):
    quality = np.array(curves, dtype=float)[:, :, None]
    tokens = np.arange(quality.shape[1])[None, :, None] * np.ones((len(curves), 1, 1), dtype=int)
    names = tuple(f"x{i}" for i in range(len(curves)))
    return Table(names, names, quality, tokens.astype(np.int64))


def test_the_best_number_of_a_task_is_the_fewest_whose_mean_is_enough():
    table = table_of([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0.4]])
    known = ["p", "q", "q", "r", "r"]
    found = by_task(["r", "q", "p", "q"], table, known)
    assert found.tolist() == [1, 2, 0, 2]


def test_a_task_without_labels_is_refused():
    with pytest.raises(InputError, match="'s'"):
        by_task(["s"], table_of([[0, 1]]), ["p"])
    with pytest.raises(InputError, match="2 tasks"):
        by_task(["p"], table_of([[0, 1]]), ["p", "p"])
