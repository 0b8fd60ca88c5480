"""Prompts, choice of demonstrations, and the table of labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError, ModelError, ResultsError
from outlay.prompt.dynaicl import Example, Recipe, Table, Template, collect, exact_match, targets
from outlay.prompt.dynaicl.encoders import encode
from outlay.prompt.dynaicl.prompts import ladder
from outlay.prompt.dynaicl.selection import rank, vote_k

WORDS = ["red fox", "blue whale", "grey wolf", "green frog", "white owl", "black cat", "old dog"]
POOL = [Example(f"d{i}", text, "long" if i % 3 else "short") for i, text in enumerate(WORDS)]
texts = st.text(st.characters(codec="utf-8"), max_size=12)


def count(text):
    return len(text.split())


def upper(prompts):
    """A generalist: it answers the last word of the prompt in capitals, if it saw it before."""
    return [p.split()[-2].upper() if p.count(p.split()[-2]) > 1 else "?" for p in prompts]


# -- prompts --------------------------------------------------------------------------------------


@given(texts, texts, st.booleans(), st.sampled_from(["\n\n", " | ", ""]))
def test_nested_prompts_share_their_text_exactly(question, instruction, appended, separator):
    template = Template(instruction, separator=separator, cache_friendly=appended)
    x = Example("x", question)
    prompts = [template.prompt(x, POOL[:k]) for k in range(5)]
    query = template.query.replace("{input}", question)
    assert prompts[0] == (instruction + separator + query if instruction else query)
    for k in range(1, 5):
        added = template.written(POOL[k - 1])
        assert len(prompts[k]) == len(prompts[k - 1]) + len(added) + len(separator)
        if appended:
            assert prompts[k].startswith(prompts[k - 1].removesuffix(query))
        else:
            head = instruction + separator if instruction else ""
            assert prompts[k].endswith(prompts[k - 1].removeprefix(head))


def test_without_demonstrations_there_is_no_separator():
    assert Template().prompt(Example("x", "hi"), []) == "Input: hi\nOutput:"


@given(st.sampled_from(["{input}", "{answer}", "{x}{{}}", "%s", "\\1"]))
def test_braces_in_a_text_are_left_alone(text):
    shown = Template().written(Example("x", text, text))
    assert shown == f"Input: {text}\nOutput: {text}"


def test_the_ledger_of_a_ladder_equals_the_count_of_its_prompts():
    made = ladder(Template("Do it."), Example("x", "a b"), POOL[:4], count)
    assert list(made.tokens) == [count(prompt) for prompt in made.prompts]


def test_prompts_longer_than_the_window_have_fewer_demonstrations():
    x = Example("x", "a b")
    free = ladder(Template(), x, POOL[:4], count)
    made = ladder(Template(), x, POOL[:4], count, free.tokens[2])
    assert made.fits == 2
    assert made.prompts == (*free.prompts[:3], free.prompts[2], free.prompts[2])
    with pytest.raises(InputError, match="max_context"):
        ladder(Template(), x, POOL[:4], count, free.tokens[0] - 1)


# -- choice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["random", "fixed", "knn", "votek"])
def test_fewer_demonstrations_are_the_first_of_more(selector):
    x = Example("x", "red dog")
    long = rank(x, POOL, 6, selector=selector, encoder="hash")
    assert len({demo.id for demo in long}) == 6
    if selector != "votek":  # its coverage is the same, its own prefix too
        assert rank(x, POOL, 3, selector=selector, encoder="hash") == long[:3]
    assert (
        rank(x, POOL, 3, selector="votek", encoder="hash")
        == rank(x, POOL, 6, selector="votek", encoder="hash")[:3]
    )


def test_random_demonstrations_differ_by_input_and_draw_and_repeat_by_seed():
    pool = [Example(f"d{i}", f"text {i}") for i in range(40)]
    a, b = Example("a", "x"), Example("b", "y")
    assert rank(a, pool, 8) == rank(a, pool, 8)
    assert rank(a, pool, 8) != rank(b, pool, 8)
    assert rank(a, pool, 8) != rank(a, pool, 8, draw=1)
    assert rank(a, pool, 8) != rank(a, pool, 8, seed=1)


def test_nearest_demonstrations_come_first_and_stand_next_to_the_input():
    x = Example("x", "red foxes")
    ranked = rank(x, POOL, 3, selector="knn", encoder="hash")
    assert ranked[0].input == "red fox"
    prompt = Template().prompt(x, ranked)
    assert prompt.index("red fox") > prompt.index(ranked[1].input)


def test_an_input_is_never_its_own_demonstration():
    x = Example("x", "Red  FOX")  # the same text but for case and spaces
    for selector in ("random", "fixed", "knn", "votek"):
        assert all(
            d.input != "red fox" for d in rank(x, POOL, 6, selector=selector, encoder="hash")
        )
    with pytest.raises(InputError, match="usable"):
        rank(x, POOL, 7)


def test_balanced_demonstrations_take_turns_between_answers():
    ranked = rank(Example("x", "q"), POOL, 4, selector="fixed", balanced=True)
    assert sorted(d.answer for d in ranked[:2]) == ["long", "short"]
    assert sorted(d.answer for d in ranked) == ["long", "long", "short", "short"]


def test_balance_reaches_beyond_the_first_choices():
    ranked = rank(Example("x", "q"), POOL, 2, selector="votek", balanced=True, encoder="hash")
    assert sorted(d.answer for d in ranked) == ["long", "short"]


def test_vote_k_takes_one_of_each_cluster_first():
    rng = np.random.default_rng(0)
    centres = np.eye(3)[np.arange(36) % 3] * 5
    vectors = centres + rng.normal(size=(36, 3)) * 0.2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert {i % 3 for i in vote_k(vectors, 3)} == {0, 1, 2}


def test_hashed_encodings_have_length_one():
    lengths = np.linalg.norm(encode("hash", ["a", "some words", "\ud800"]), axis=1)
    assert lengths == pytest.approx(1)


# -- the table ------------------------------------------------------------------------------------


INPUTS = [Example(f"x{i}", f"animal {i} cat", "CAT") for i in range(5)]
POOLS = {"": POOL}
RECIPE = Recipe(
    K=4, n_s=3, encoder="hash", template=Template(demo="{input} {answer}", query="{input} ->")
)


def test_a_table_holds_what_the_generalist_was_asked_and_said():
    table = collect(upper, INPUTS, POOLS, RECIPE, count=count)
    assert table.quality_NKD.shape == (5, 5, 3)
    for i, x in enumerate(INPUTS):
        for draw in range(3):
            demos = rank(x, POOL, 4, draw=draw, encoder="hash")
            for k in range(5):
                prompt = RECIPE.template.prompt(x, demos[:k])
                assert table.tokens_NKD[i, k, draw] == count(prompt)
                assert table.quality_NKD[i, k, draw] == (upper([prompt])[0] == "CAT")
    assert (table.costs_NK[:, 0] == 0).all()


def test_a_table_on_disk_is_not_asked_for_again_and_resumes_after_a_cut(tmp_path):
    asked = []

    def counting(prompts):
        asked.extend(prompts)
        return upper(prompts)

    first = collect(counting, INPUTS, POOLS, RECIPE, count=count, folder=tmp_path)
    total = len(asked)
    again = collect(counting, INPUTS, POOLS, RECIPE, count=count, folder=tmp_path)
    assert len(asked) == total
    assert (again.quality_NKD == first.quality_NKD).all()
    cells = tmp_path / "cells.jsonl"
    lines = cells.read_bytes().splitlines(keepends=True)
    cells.write_bytes(b"".join(lines[:3]) + lines[3][:7])  # killed while writing
    resumed = collect(counting, INPUTS, POOLS, RECIPE, count=count, folder=tmp_path)
    assert (resumed.quality_NKD == first.quality_NKD).all()
    assert 0 < len(asked) - total < total
    changed = [replace(INPUTS[0], input="another cat"), *INPUTS[1:]]
    collect(counting, changed, POOLS, RECIPE, count=count, folder=tmp_path)
    assert any("another cat" in prompt for prompt in asked)


def test_a_folder_of_another_table_is_refused(tmp_path):
    collect(upper, INPUTS, POOLS, RECIPE, count=count, folder=tmp_path)
    with pytest.raises(ResultsError, match="another"):
        collect(upper, INPUTS, POOLS, replace(RECIPE, seed=1), count=count, folder=tmp_path)
    (tmp_path / "cells.jsonl").write_text("{broken\n")
    with pytest.raises(ResultsError, match="cannot be read"):
        collect(upper, INPUTS, POOLS, RECIPE, count=count, folder=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["generalist"] == "generalist"


def test_a_window_that_cuts_prompts_is_reported():
    table = collect(upper, INPUTS, POOLS, replace(RECIPE, max_context=12), count=count)
    assert table.tokens_NKD.max() <= 12
    assert "max_context=12" in table.warnings[0]


def test_a_generalist_that_gives_too_few_answers_is_refused():
    with pytest.raises(ModelError, match="one text per prompt"):
        collect(lambda prompts: ["x"], INPUTS, POOLS, RECIPE, count=count)


def table_of(quality):
    quality = np.asarray(quality, dtype=float)
    n, k1, _ = quality.shape
    tokens = np.broadcast_to((np.arange(k1) * 5 + 7)[None, :, None], quality.shape)
    names = tuple(f"x{i}" for i in range(n))
    return Table(names, names, quality, tokens.copy())


def test_targets_are_the_fewest_that_are_enough():
    acc = np.array(
        [
            [1.0, 1.0, 1.0],  # none needed
            [0.0, 0.71, 1.0],
            [0.1, 0.5, 0.5],  # never enough: the smallest of the highest
            [0.0, 0.0, 0.0],  # hopeless
            [0.3, 0.9, 0.2],  # demonstrations may hurt
            [0.7, 0.7, 0.7],  # the threshold itself is not enough
        ]
    )
    made = targets(table_of(acc[:, :, None]), 0.7)
    assert made.needed_N.tolist() == [0, 1, 1, 0, 1, 0]
    assert made.hopeless_N.tolist() == [False, False, False, True, False, False]


def test_a_margin_undoes_the_luck_of_few_draws():
    rng = np.random.default_rng(0)
    chance = 1 - 0.65 ** np.arange(9.0)  # 0.7 is passed at k=3
    quality = (rng.random((400, 9, 4)) < chance[None, :, None]).astype(float)
    plain = targets(table_of(quality)).needed_N.mean()
    careful = targets(table_of(quality), margin=0.5).needed_N.mean()
    assert plain < 3 <= careful + 0.5
    assert careful > plain


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: collect(upper, [], POOLS, RECIPE, count=count), "empty"),
        (lambda: collect(upper, [POOL[0]], POOLS, RECIPE, count=count), "leak"),
        (lambda: collect(upper, [INPUTS[0]] * 2, POOLS, RECIPE, count=count), "two inputs"),
        (lambda: collect(upper, INPUTS, {}, RECIPE, count=count), "no pool"),
        (lambda: collect(upper, INPUTS, {"": POOL[:3]}, RECIPE, count=count), "K=4"),
        (lambda: Recipe(K=0), "K=0"),
        (lambda: Recipe(n_s=0), "n_s=0"),
        (lambda: Recipe(max_context=0), "max_context"),
        (lambda: rank(INPUTS[0], POOL, 2, selector="best"), "selector"),
        (lambda: Template(demo="no slots"), "demo"),
        (lambda: Template(query="none"), "query"),
        (lambda: Example("", "x"), "id"),
        (lambda: targets(table_of(np.ones((1, 2, 1))), 1.0), "t=1"),
        (lambda: targets(table_of(np.ones((1, 2, 1))), 0.5, -1), "margin"),
        (lambda: encode("", ["x"]), "encoder"),
    ],
)
def test_what_cannot_be_collected_is_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()


def test_a_nan_in_the_table_names_the_input_and_k():
    quality = np.ones((3, 4, 2))
    quality[1, 2, 1] = np.nan
    with pytest.raises(InputError, match=r"'x1' at k=2"):
        table_of(quality)
    with pytest.raises(InputError, match=r"'x0' at k=0"):
        collect(upper, INPUTS, POOLS, RECIPE, count=count, metric=lambda text, x: float("nan"))


def test_exact_match_ignores_spaces_at_the_ends():
    assert exact_match(" a b\n", Example("x", "", "a b")) == 1
    assert exact_match("ab", Example("x", "", "a b")) == 0
