"""reasoning-gym problems: deterministic, scored strictly, safe in threads."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from outlay.errors import InputError
from outlay.evals.base import Task
from outlay.evals.reasoning import ReasoningGym, datasets

SOLVED = (
    "chain_sum",
    "basic_arithmetic",
    "gcd",
    "propositional_logic",
    "knights_knaves",
    "syllogism",
    "n_queens",
    "pool_matrix",
    "list_functions",
    "game_of_life_halting",
)


@pytest.mark.parametrize("name", SOLVED)
def test_reference_answers_are_right_and_nonsense_is_wrong(name):
    task = ReasoningGym(name)
    for problem in task.sample(0, 3):
        assert task.verify(problem, f"Let me think.\nAnswer: {problem.answer}") == 1.0
        assert task.verify(problem, f"<answer>{problem.answer}</answer>") == 1.0
        for wrong in ("banana", "", "Answer:"):
            assert task.verify(problem, wrong) == 0.0


def test_partial_credit_does_not_count():
    task = ReasoningGym("countdown")
    problem = task.sample(0, 1)[0]
    assert task.verify(problem, "Answer: 1 + 1") == 0.0


def test_numbers_are_found_in_sentences():
    task = ReasoningGym("chain_sum", {"min_digits": 4, "max_digits": 4})
    problem = task.sample(0, 1)[0]
    assert task.verify(problem, f"The answer is {int(problem.answer):,}.") == 1.0
    assert task.verify(problem, f"The answer is {int(problem.answer) + 1}.") == 0.0


def test_a_larger_sample_extends_a_smaller_one_across_chunks():
    task = ReasoningGym("chain_sum")
    assert task.sample(1, 70)[:33] == task.sample(1, 33)
    assert len({p.id for p in task.sample(1, 70)}) == 70


def test_seeds_do_not_share_problems():
    task = ReasoningGym("basic_arithmetic")
    questions = [{p.question for p in task.sample(seed, 20)} for seed in (0, 1, 2)]
    assert len(set.union(*questions)) > 55


def test_options_change_the_problems():
    short = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 2})
    assert all(p.question.count("+") + p.question.count(" - ") == 1 for p in short.sample(0, 9))


@pytest.mark.parametrize("name", ["pool_matrix", "list_functions"])
def test_global_random_state_neither_matters_nor_changes(name):
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = ReasoningGym(name).sample(0, 3)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(2)
    np.random.seed(2)
    # Another instance with equal knobs shares the cache; other options do not.
    again = ReasoningGym(name, instruction="Reply with the result.").sample(0, 3)
    assert [p.question for p in again] == [p.question for p in first]


def test_threads_agree_with_one_thread():
    names = ["chain_sum", "pool_matrix", "list_functions", "syllogism"] * 3

    def work(name):
        task = ReasoningGym(name, instruction=f"Say it ({name}).")
        problems = task.sample(7, 5)
        return [(p.id, task.verify(p, "Answer: " + p.answer)) for p in problems]

    alone = [work(name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, names)) == alone


def test_unknown_names_get_a_suggestion():
    with pytest.raises(InputError, match="did you mean chain_sum"):
        ReasoningGym("chainsum")
    with pytest.raises(InputError, match="choose one of"):
        ReasoningGym("zzzzzzzzzz")
    assert "propositional_logic" in datasets()


@pytest.mark.parametrize(
    "options", [{"min_terms": 5, "max_terms": 2}, {"colour": 3}, {"seed": 3}, {"min_terms": "x"}]
)
def test_bad_options_name_the_known_ones(options):
    with pytest.raises(InputError, match="max_terms"):
        ReasoningGym("chain_sum", options)
    with pytest.raises(InputError, match="mapping"):
        ReasoningGym("chain_sum", [1])


def test_bad_seed_number_and_foreign_problems_are_refused():
    task = ReasoningGym("chain_sum")
    for seed, n in (("0", 1), (0, 0), (0, True)):
        with pytest.raises(InputError):
            task.sample(seed, n)
    with pytest.raises(InputError, match="not of the data set"):
        task.verify(ReasoningGym("gcd").sample(0, 1)[0], "1")
    other = ReasoningGym("chain_sum", {"min_digits": 3, "max_digits": 4})
    with pytest.raises(InputError, match="other options"):
        task.verify(other.sample(0, 1)[0], "1")


def test_tasks_are_values():
    task = ReasoningGym("chain_sum", {"max_terms": 3})
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert hash(task) == hash(ReasoningGym("chain_sum", {"max_terms": 3}))
    assert isinstance(task, Task)
    assert (task.name, task.kind, task.metric) == (
        "reasoning-gym/chain_sum",
        "generation",
        "accuracy",
    )
    problem = task.sample(0, 1)[0]
    assert task.prompt(problem, "") == f"{problem.question}\n\n{task.instruction}"
