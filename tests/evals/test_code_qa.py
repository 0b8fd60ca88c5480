"""Questions about code: one provable answer, judged by name or value."""

import pytest

from outlay.errors import InputError
from outlay.evals.base import Task, continuations
from outlay.evals.code_qa import CodeQA
from outlay.evals.pysource import parse_module, strip_docstrings


def small(path, **knobs):
    return CodeQA(path=path, min_chars=100, max_chars=5_000, **knobs)


def asked(path, *kinds, **knobs):
    task = small(path / "mod0.py", questions=kinds, **knobs)
    found = []
    while True:
        try:
            found = task.sample(0, len(found) + 1)
        except InputError:
            return {p.question: p for p in found}


def test_default_and_constant_answers_come_from_the_source(tree):
    answers = {q: p.answer for q, p in asked(tree, "default", "constant").items()}
    assert answers == {
        "What is the default value of the parameter `unit` of `Box.describe`?": "'cm'",
        "What is the value of the module constant `LIMIT`?": "25",
        "What is the value of the module constant `UNIT`?": "'cm'",
        "What is the value of the module constant `INDEX`?": "0",
    }


def test_search_hides_the_docstrings(tree):
    found = asked(tree, "search")
    answers = {p.answer for p in found.values()}
    assert answers == {"area_of_disc", "surface", "describe", "total"}
    for problem in found.values():
        sentence = problem.question.split('"')[1]
        assert sentence not in problem.context
        assert f"def {problem.answer}" in problem.context[slice(*problem.gold_span)]


def test_caller_is_the_only_one(tree):
    found = asked(tree, "caller")
    answers = {q: p.answer for q, p in found.items()}
    # area_of_disc also names a parameter of `shadow`, so it is not asked for.
    assert answers == {"Which function calls `Box.surface`?": "describe"}


def test_stripping_docstrings_keeps_the_code(module_text):
    bare = strip_docstrings(parse_module(module_text))
    assert "Multiply" not in bare
    assert '"""Shapes."""' in bare
    assert parse_module(bare) is not None
    assert (
        strip_docstrings(parse_module('def f():\n    "doc"\nx = 1')) == "def f():\n    ...\nx = 1"
    )
    assert parse_module(strip_docstrings(parse_module('def f(): "é"; return 1'))) is not None


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("area_of_disc", 1.0),
        ("`area_of_disc()`", 1.0),
        ("The function is shapes.area_of_disc.", 1.0),
        ("Answer: area_of_disc", 1.0),
        ("total", 0.0),
        ("area_of_disc or total", 0.0),
        ("", 0.0),
    ],
)
def test_names_are_judged_by_the_function_they_name(tree, answer, right):
    task = small(tree / "mod0.py", questions=("search",))
    problem = next(p for p in task.sample(0, 4) if p.answer == "area_of_disc")
    assert task.verify(problem, answer) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [('"cm"', 1.0), ("'cm'", 1.0), ("cm", 1.0), ("unit='cm'", 1.0), ("mm", 0.0), ("", 0.0)],
)
def test_values_are_judged_as_literals(tree, answer, right):
    task = small(tree / "mod0.py", questions=("default",))
    assert task.verify(task.sample(0, 1)[0], answer) == right


def test_true_is_not_one(tree):
    (tree / "flag.py").write_text("FLAG = 1\n" + "# filler\n" * 20)
    task = small(tree / "flag.py", questions=("constant",))
    problem = task.sample(0, 1)[0]
    assert (task.verify(problem, "1"), task.verify(problem, "True")) == (1.0, 0.0)


def test_choice_form_offers_the_answer_once(tree):
    task = small(tree, form="choice", options=3)
    assert (task.kind, CodeQA().kind, task.metric) == ("choice", "generation", "accuracy")
    assert isinstance(task, Task)
    for problem in task.sample(0, 9):
        assert len(set(problem.choices)) == 3
        assert problem.choices.count(problem.answer) == 1
        assert continuations(problem)[0] == " " + problem.choices[0]
        assert [task.verify(problem, c) for c in problem.choices].count(1.0) == 1
        letter = "ABC"[problem.choices.index(problem.answer)]
        assert task.verify(problem, f"The answer is {letter}") == 1.0
        assert task.prompt(problem, "code").endswith("\nAnswer:")


def test_a_larger_sample_extends_a_smaller_one(tree):
    task = small(tree)
    assert task.sample(5, 9)[:4] == task.sample(5, 4)
    assert len({p.id for p in task.sample(5, 9)}) == 9


def test_reference_answers_are_right_on_the_standard_library():
    for form in ("open", "choice"):
        task = CodeQA(form=form)
        for problem in task.sample(0, 30):
            assert task.verify(problem, problem.answer) == 1.0
            assert 8_000 <= len(problem.context) <= 24_000


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"form": "essay"}, "form"),
        ({"questions": ()}, "questions"),
        ({"questions": ("why",)}, "questions"),
        ({"options": 1}, "options"),
        ({"max_chars": 0}, "max_chars"),
    ],
)
def test_bad_knobs_are_named(knobs, named):
    with pytest.raises(InputError, match=named):
        CodeQA(**knobs)


def test_too_few_questions_are_refused_with_the_reasons(tree):
    with pytest.raises(InputError, match=r"questions, 5000 wanted.*skipped"):
        small(tree).sample(0, 5000)
    with pytest.raises(InputError, match="n=0"):
        small(tree).sample(0, 0)
