"""The task: deterministic, honest about hops and paths, explained and marked."""

import json
import pickle

import pytest

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.evals.base import Explains, Marks, Task
from outlay.evals.factuality.tasks import Factuality
from outlay.example import run_example
from outlay.prompt.truncation import HeadTruncation
from outlay.stack import Stack
from recording_model import RecordingModel


@pytest.fixture(scope="module")
def task():
    return Factuality(paths="path", hops=(1, 2, 3))


def test_it_is_a_task_that_explains_and_marks(task):
    assert isinstance(task, Task)
    assert isinstance(task, Explains)
    assert isinstance(task, Marks)
    assert (task.kind, task.metric, task.chat) == ("generation", "exact match", True)
    assert Factuality(match="semantic").metric == "semantic match"
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301 - our own bytes


def test_a_larger_sample_extends_a_smaller_one_and_seeds_differ(task):
    small, large = task.sample(3, 10), task.sample(3, 30)
    assert large[:10] == small
    assert len({problem.id for problem in large}) == 30
    assert task.sample(4, 10) != small
    json.dumps([problem.meta for problem in large])


def test_hops_alternate_and_are_those_of_the_path(task):
    problems = task.sample(0, 30)
    assert [problem.meta["hops"] for problem in problems[:6]] == [1, 2, 3, 1, 2, 3]
    for problem in problems:
        assert len(problem.context.splitlines()) >= problem.meta["hops"]


def test_both_prompts_ask_the_same_questions(task):
    closed = Factuality(paths="closed", hops=(1, 2, 3)).sample(5, 20)
    grounded = task.sample(5, 20)
    assert [p.id for p in closed] == [p.id for p in grounded]
    for bare, told in zip(closed, grounded, strict=True):
        assert bare.context == ""
        assert bare.answer in told.context
        assert told.context in task.prompt(told, told.context)
        assert bare.question in task.prompt(bare, "")


def test_the_reference_answer_is_right_and_others_are_wrong(task):
    for problem in task.sample(1, 12):
        assert task.verify(problem, f"Thinking. \\boxed{{{problem.answer}}}") == 1.0
        assert task.verify(problem, problem.answer) == 1.0
        for wrong in ("", "\\boxed{}", "\\boxed{banana}", f"I think it is {problem.answer} maybe"):
            assert task.verify(problem, wrong) == 0.0


def test_aliases_and_meaning_count_where_asked_for():
    open_, strict = Factuality(), Factuality(aliases=False)
    problem = next(
        p for p in open_.sample(0, 400) if any(len(names) > 1 for names in p.meta["answers"])
    )
    alias = next(names[1] for names in problem.meta["answers"] if len(names) > 1)
    assert open_.verify(problem, f"\\boxed{{{alias}}}") == 1.0
    assert strict.verify(problem, f"\\boxed{{{alias}}}") == 0.0
    near = f"\\boxed{{{problem.answer} {problem.answer}}}"
    assert open_.verify(problem, near) == 0.0
    assert Factuality(match="semantic", tau=0.6).verify(problem, near) == 1.0


def test_an_answer_is_explained_and_a_trace_is_marked(task):
    problem = task.sample(0, 1)[0]
    text = "The capital of France is Paris.\nThe capital of Norway is Paris.\n\\boxed{EUR}"
    told = task.explain(problem, text)
    assert (told["extracted"], told["found by"]) == ("EUR", "box")
    assert told["statements"] == "1 match the graph, 1 contradict it"
    assert problem.answer in told["gold"]
    first, second = task.marks(problem, text)
    assert (first.good, second.good) == (True, False)
    assert text[second.start : second.end] == "The capital of Norway is Paris."
    assert "contradicts the graph" in second.label


def test_splits_share_no_composition():
    held = {
        tuple(p.meta["composition"]) for p in Factuality(split="heldout", hops=(2,)).sample(0, 40)
    }
    train = {
        tuple(p.meta["composition"]) for p in Factuality(split="train", hops=(2,)).sample(0, 40)
    }
    assert held
    assert not held & train


def test_a_compressor_shortens_the_facts_and_the_question_stays(task):
    problem = max(task.sample(0, 30), key=lambda p: len(p.context))
    model = RecordingModel()
    outcome = run_example(
        model, Stack(prompt=HeadTruncation()), task, problem, Budget(tokens=12, counts="prompt")
    )
    assert problem.question in model.prompts[0]
    assert len(model.prompts[0]) < len(task.prompt(problem, problem.context))
    assert outcome.record.task == "factuality"


def test_a_graph_and_questions_of_ones_own(tmp_path):
    (tmp_path / "g.tsv").write_text("cat\tlives in\tyork\nyork\tpart of\tuk\n")
    (tmp_path / "labels.tsv").write_text("cat\tCat\nyork\tYork\tEboracum\nuk\tBritain\n")
    rows = [
        {
            "ID": "1",
            "question": "Which state does Cat live in?",
            "answers": [{"answer": "Britain"}],
        },
        {"ID": "2", "question": "Where does Dog live?", "answers": [{"answer": "York"}]},
    ]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    own = Factuality(
        graph=str(tmp_path / "g.tsv"),
        labels=str(tmp_path / "labels.tsv"),
        questions=str(tmp_path / "q.json"),
        paths="path",
    )
    [problem] = own.sample(0, 1)
    assert problem.context.splitlines() == ["Cat, lives in, York", "York, part of, Britain"]
    assert problem.meta["hops"] == 2
    assert own.marks(problem, "Cat, lives in, York")[0].good
    with pytest.raises(InputError, match="1 no question entity is in the graph"):
        own.sample(0, 2)
    made = Factuality(graph=str(tmp_path / "g.tsv"), labels=str(tmp_path / "labels.tsv"))
    assert {p.question for p in made.sample(0, 3)} == {
        "What is the lives in of Cat?",
        "What is the part of of York?",
        "What is the part of of the lives in of Cat?",
    }


def test_a_changed_graph_file_is_read_again(tmp_path):
    file = tmp_path / "g.tsv"
    file.write_text("a\tr\tb\n")
    own = Factuality(graph=str(file), hops=(1,))
    assert own.sample(0, 1)[0].answer == "b"
    file.write_text("a\tr\tcc\n")
    assert own.sample(0, 1)[0].answer == "cc"


def test_too_many_questions_are_refused_with_the_reasons(task):
    with pytest.raises(InputError, match="countries gives"):
        task.sample(0, 100_000)


def test_a_problem_of_another_task_is_refused(task):
    from outlay.evals.base import Problem

    with pytest.raises(InputError, match="not of the task factuality"):
        task.verify(Problem("x", "Who?"), "me")


@pytest.mark.parametrize(
    "knobs",
    [
        {"paths": "open"},
        {"match": "fuzzy"},
        {"tau": 0},
        {"max_hops": 0},
        {"hops": (1, 4)},
        {"hops": (3,), "max_hops": 2},
        {"split": "dev"},
        {"holdout": 2},
        {"max_paths": 0},
        {"id_map": "m.tsv"},
    ],
)
def test_knobs_out_of_range_are_refused(knobs):
    with pytest.raises(InputError):
        Factuality(**knobs)


def test_a_missing_graph_is_named():
    with pytest.raises(InputError, match="no file"):
        Factuality(graph="none.tsv").sample(0, 1)
    with pytest.raises(InputError, match="labels="):
        Factuality(labels="l.tsv").sample(0, 1)
