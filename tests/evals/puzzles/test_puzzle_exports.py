"""reasoning-gym data sets, lm-eval tasks and rewards, each through the other library's own API."""

import json
from dataclasses import asdict

import pytest

from outlay.errors import InputError
from outlay.evals.puzzles import Puzzles
from outlay.evals.puzzles.export import PuzzleReward, task_of, training_rows, write_lm_eval
from outlay.evals.puzzles.gym import NAMES


@pytest.mark.parametrize("name", NAMES.values())
def test_reasoning_gym_makes_and_scores_entries(name):
    import reasoning_gym

    data = reasoning_gym.create_dataset(name, size=9, seed=5)
    assert len(list(data)) == 9
    levels = set()
    for entry in data:
        assert set(entry) == {"question", "answer", "metadata"}
        assert data.score_answer(entry["answer"], entry) == 1.0
        assert data.score_answer("moves = [[0, 0, 0]]", entry) == 0.0
        assert data.score_answer(None, entry) == 0.0
        levels.add(entry["metadata"]["n"])
        json.dumps(entry)
    assert len(levels) > 1
    assert data[3] == reasoning_gym.create_dataset(name, size=20, seed=5)[3]
    assert data[3] != reasoning_gym.create_dataset(name, size=9, seed=6)[3]
    with pytest.raises(IndexError):
        data[9]


def test_data_sets_mix_in_a_composite_and_have_curricula():
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import create_curriculum

    specs = [DatasetSpec(name=name, weight=1, config={}) for name in NAMES.values()]
    mixed = reasoning_gym.create_dataset("composite", size=8, seed=0, datasets=specs)
    for entry in mixed:
        assert mixed.score_answer(entry["answer"], entry) == 1.0
    for name in NAMES.values():
        curriculum = create_curriculum(name)
        first = curriculum.generate_configuration({"size": 3, "seed": 1})
        curriculum.increment_attr_level("n")
        assert curriculum.generate_configuration({"size": 3, "seed": 1}).max_n > first.min_n


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("outlay_hanoi", {"min_n": 0}),
        ("outlay_hanoi", {"min_n": 4, "max_n": 3}),
        ("outlay_river", {"max_n": 6}),
        ("outlay_blocks", {"answer": "tool"}),
    ],
)
def test_settings_out_of_range_are_refused(name, knobs):
    import reasoning_gym

    with pytest.raises(InputError):
        reasoning_gym.create_dataset(name, **knobs)


def test_rewards_judge_texts_and_chats():
    task = Puzzles("blocks", (2, 3), vary=True)
    rows = training_rows(task, seed=1, n=4)
    reward = PuzzleReward(task)
    columns = {name: [row[name] for row in rows] for name in ("id", "meta", "answer")}
    assert reward([row["answer"] for row in rows], **columns) == [1.0] * 4
    chats = [[{"role": "assistant", "content": row["answer"]}] for row in rows[::-1]]
    assert reward(chats, **columns) == [0.0] * 4
    assert reward.__name__ == "puzzles_blocks"
    with pytest.raises(InputError, match="takes turns"):
        training_rows(Puzzles("hanoi", (2,), "tool"))


def test_knobs_survive_the_way_through_json():
    task = Puzzles("river", (2, 3), "program", k=4, vary=True)
    assert task_of(json.loads(json.dumps(asdict(task)))) == task


@pytest.mark.parametrize(
    "task", [Puzzles("hanoi", (1, 2)), Puzzles("checkers", (2, 3), "kth", vary=True)]
)
def test_lm_eval_loads_and_runs_the_written_task(task, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    right = {problem.question: problem.answer for problem in task.sample(7, 6)}

    class Oracle(LM):
        """Right for the first level only."""

        def generate_until(self, requests, disable_tqdm=False):
            out = []
            for request in requests:
                prompt, settings = request.args
                assert settings["max_gen_toks"] == 500
                question = next(q for q in right if q in prompt)
                first = right[question] == task.sample(7, 1)[0].answer or task.answer == "kth"
                out.append(right[question] if first else "moves = [[1, 1, 1]]")
            return out

        def loglikelihood(self, requests):
            raise NotImplementedError

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

    name = write_lm_eval(tmp_path, task, seed=7, samples=3, temperature=0.0, max_tokens=500)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    assert name in manager.all_tasks
    out = simple_evaluate(model=Oracle(), tasks=[name], task_manager=manager, bootstrap_iters=0)
    expected = 1.0 if task.answer == "kth" else 0.5
    assert out["results"][name]["accuracy,none"] == expected
    assert out["n-samples"][name]["effective"] == 6


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"name": "Bad Name"}, "name="),
        ({"samples": 0}, "samples=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_bad_exports_are_refused(knobs, match, tmp_path):
    with pytest.raises(InputError, match=match):
        write_lm_eval(tmp_path, Puzzles("hanoi", (1,)), **knobs)
    with pytest.raises(InputError, match="takes turns"):
        write_lm_eval(tmp_path, Puzzles("hanoi", (1,), "stepwise"))
