"""Completion cases: cut at the right line, with the needed definition in the context."""

import ast

import pytest

from outlay.errors import InputError
from outlay.evals.base import Task
from outlay.evals.code import CodeCompletion


def small(path, **knobs):
    return CodeCompletion(path=path, min_chars=100, max_chars=5_000, max_gold_share=1.0, **knobs)


def by_function(problems):
    return {p.meta["function"]: p for p in problems if p.meta["path"] == "mod0.py"}


def test_visible_query_ends_with_the_line_of_the_call(tree):
    case = by_function(small(tree).sample(0, 6))["total"]
    assert case.question.endswith("        part = area_of_disc(radius)")
    assert case.answer == (
        "\n        if part > LIMIT:\n            part = LIMIT\n        # keep going\n"
        "        result += part"
    )
    assert case.context[slice(*case.gold_span)].startswith("def area_of_disc(radius):")
    assert case.context[slice(*case.gold_span)].endswith("radius ** 2")


def test_hidden_query_asks_for_the_line_of_the_call(tree):
    case = by_function(small(tree, query="hidden").sample(0, 6))["total"]
    assert case.question.endswith("    for radius in radii:")
    assert case.answer == "\n        part = area_of_disc(radius)"


def test_both_queries_are_made_from_the_same_functions(tree):
    places = [
        [
            (p.meta["path"], p.meta["function"], p.meta["line"])
            for p in small(tree, query=q).sample(1, 6)
        ]
        for q in ("visible", "hidden")
    ]
    assert places[0] == places[1]


def test_method_calls_through_self_are_cases(tree):
    case = by_function(small(tree).sample(0, 6))["Box.describe"]
    assert case.meta["needs"] == "Box.surface"
    assert "def surface(self)" in case.context[slice(*case.gold_span)]


def test_a_shadowed_name_is_no_use(tree):
    with pytest.raises(InputError, match="gives 6 completion cases"):
        small(tree).sample(0, 1000)
    assert all(p.meta["function"] != "shadow" for p in small(tree).sample(0, 6))


def test_the_function_itself_is_not_in_the_context(tree):
    for problem in small(tree).sample(0, 6):
        name = problem.meta["function"].split(".")[-1]
        assert f"def {name}(" not in problem.context
        assert problem.answer.strip() not in problem.context


def test_a_larger_sample_extends_a_smaller_one_and_seeds_differ(tree):
    task = small(tree)
    assert task.sample(3, 6)[:2] == task.sample(3, 2)
    orders = {tuple(p.id for p in task.sample(seed, 6)) for seed in range(6)}
    assert len(orders) > 1
    assert len({p.id for p in task.sample(0, 6)}) == 6


def test_a_sample_takes_every_module_before_a_second_case_of_one(tree):
    assert len({p.meta["path"] for p in small(tree).sample(0, 3)}) == 3


def test_unusable_files_are_skipped_with_a_reason(tree):
    skipped = small(tree).tree().skipped
    for path, reason in {
        "tests": "a test folder",
        "test_mod.py": "a test",
        "made.py": "generated",
        "binary.py": "binary",
        "latin.py": "undecodable",
        "empty.py": "empty",
        "wide.py": "minified",
        "other.js": "another language",
    }.items():
        assert skipped[path].startswith(reason), path
    assert len(small(tree, max_files=2).tree().files) == 2
    assert "larger" in small(tree, max_file_bytes=1_500).tree().skipped["wide.py"]


def test_line_ends_do_not_change_the_cases(tree):
    unix = small(tree).sample(0, 6)
    for path in tree.glob("mod*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert small(tree).sample(0, 6) == unix


def test_one_file_is_a_source(tree):
    assert len(small(tree / "mod0.py").sample(0, 2)) == 2


def test_needs_limits_the_kinds_of_definitions(tree):
    kinds = {p.meta["needs_kind"] for p in small(tree, needs=("method",)).sample(0, 3)}
    assert kinds == {"method"}


def test_prompt_ends_with_the_question(tree):
    task = small(tree)
    problem = task.sample(0, 1)[0]
    assert task.prompt(problem, "") == problem.question
    assert task.prompt(problem, "ctx\n") == "ctx\n\n\n" + problem.question


def test_kind_and_direction_follow_the_metric():
    likely, similar = CodeCompletion(), CodeCompletion(metric="edit_similarity")
    assert (likely.kind, likely.metric, likely.higher_is_better) == (
        "likelihood",
        "nats per token",
        False,
    )
    assert (similar.kind, similar.metric, similar.higher_is_better) == (
        "generation",
        "edit similarity",
        True,
    )
    assert CodeCompletion(metric="exact match").kind == "generation"
    assert isinstance(likely, Task)


def test_verify_measures_generated_lines(tree):
    exact = small(tree, metric="exact match")
    similar = small(tree, metric="edit similarity")
    problem = exact.sample(0, 1)[0]
    rambling = problem.answer + "\nand more\n"
    assert exact.verify(problem, rambling) == similar.verify(problem, rambling) == 1.0
    assert exact.verify(problem, "pass") == 0.0
    assert 0 <= similar.verify(problem, "pass") < 0.5


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"query": "secret"}, "query"),
        ({"metric": "bleu"}, "metric"),
        ({"target_lines": 0}, "target_lines"),
        ({"min_chars": 10, "max_chars": 5}, "min_chars"),
        ({"min_chars": -1}, "min_chars"),
        ({"needs": ()}, "needs"),
        ({"needs": ("module",)}, "needs"),
        ({"max_gold_share": 0.0}, "max_gold_share"),
        ({"max_gold_share": float("nan")}, "max_gold_share"),
        ({"max_files": 0}, "max_files"),
        ({"max_file_bytes": True}, "max_file_bytes"),
    ],
)
def test_bad_knobs_are_named(knobs, named):
    with pytest.raises(InputError, match=named):
        CodeCompletion(**knobs)


@pytest.mark.parametrize(("seed", "n"), [("0", 1), (0, 0), (0, -3), (True, 1), (0, 1.0), (None, 1)])
def test_bad_seed_or_number_is_refused(tree, seed, n):
    with pytest.raises(InputError, match=r"seed=|n="):
        small(tree).sample(seed, n)


def test_paths_without_usable_source_are_refused_with_the_reasons(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        small(tmp_path / "none").sample(0, 1)
    (tmp_path / "a.js").write_text("let x")
    with pytest.raises(InputError, match="1 x another language"):
        small(tmp_path).sample(0, 1)
    with pytest.raises(InputError, match="reads python"):
        small(tmp_path / "a.js").sample(0, 1)
    (tmp_path / "b.py").write_text("def f(:\n" * 80)
    with pytest.raises(InputError, match="not parsed"):
        small(tmp_path).sample(0, 1)


def test_the_standard_library_gives_real_cases():
    task = CodeCompletion()
    problems = task.sample(0, 60)
    assert len({p.id for p in problems}) == 60
    for problem in problems:
        assert 8_000 <= len(problem.context) <= 24_000
        gold = problem.context[slice(*problem.gold_span)]
        name = problem.meta["needs"].split(".")[-1]
        assert name in gold.split("\n", 1)[0] or "@" in gold
        assert name in problem.question.split("\n")[-1] or problem.question.rstrip().endswith(
            (")", "(", ",")
        )
        ast.parse("if 1:\n" + "\n".join(" " + line for line in gold.split("\n")))
