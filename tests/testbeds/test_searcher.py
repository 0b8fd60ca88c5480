"""The searcher: its trees, searches, tokenizer, training and shipped checkpoint."""

import json
import random
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError, ModelError
from outlay.evals.base import Reads, Task
from outlay.testbeds.searcher import (
    HiddenLeaf,
    Puzzle,
    build_tokenizer,
    checkpoint_path,
    load,
    parse_question,
    read_steps,
    render_prompt,
    sample_puzzle,
    walks,
)
from outlay.testbeds.searcher.tokenizer import CONTEXT, vocabulary
from outlay.testbeds.searcher.trees import (
    CHOICES,
    DEAD,
    DECOYS,
    FOUND,
    MAX_LEAVES,
    split_of,
)

seeds = st.integers(0, 10**6)
sizes = st.integers(CHOICES, MAX_LEAVES)
SMALL = Puzzle((("a", "b"), ("b", "c"), ("a", "d"), ("x", "y"), ("y", "z")), "a", ("z", "c"))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def checkpoint():
    import torch

    torch.set_num_threads(1)
    return load()


# --- trees --------------------------------------------------------------------------------------


@given(seeds, sizes)
def test_every_puzzle_has_one_answer_three_edges_below_the_root(seed, leaves):
    puzzle = sample_puzzle(random.Random(seed), leaves)
    parent = {child: above for above, child in puzzle.edges}
    path = [puzzle.answer]
    while path[-1] in parent:
        path.append(parent[path[-1]])
    assert path[-1] == puzzle.root
    assert len(path) == 4
    assert len(puzzle.leaves) == leaves
    assert len(puzzle.candidates) == CHOICES
    others = set(puzzle.candidates) - {puzzle.answer}
    assert not others & set(puzzle.leaves)
    assert not others & set(puzzle.children)
    assert len({child for _, child in puzzle.edges}) == len(puzzle.edges)
    assert len(parent) - len(puzzle.edges) == 0
    assert sum(leaf not in puzzle.children for leaf in parent) == leaves + DECOYS


@given(seeds, sizes)
def test_questions_read_back(seed, leaves):
    puzzle = sample_puzzle(random.Random(seed), leaves)
    assert parse_question(puzzle.question) == puzzle


def test_the_answer_is_equally_often_every_candidate():
    rng = random.Random(0)
    puzzles = [sample_puzzle(rng, 6) for _ in range(800)]
    counts = [0] * CHOICES
    for puzzle in puzzles:
        counts[puzzle.candidates.index(puzzle.answer)] += 1
    assert min(counts) > 150


@given(seeds, st.sampled_from(["train", "heldout"]))
def test_a_question_belongs_to_the_split_that_was_asked_for(seed, split):
    puzzle = sample_puzzle(random.Random(seed), 5, split)
    assert split_of(puzzle.question) == split


@given(seeds, sizes)
def test_a_search_walks_along_edges_meets_new_leaves_and_ends_at_the_answer(seed, leaves):
    rng = random.Random(seed)
    puzzle = sample_puzzle(rng, leaves)
    tokens = walks(rng, puzzle)
    assert tokens[-1] == FOUND
    found = "".join(tokens[:-1]).split(DEAD)
    assert found[-1][-1] == puzzle.answer
    assert all(walk[0] == puzzle.root and walk[-1] in puzzle.leaves for walk in found)
    ends = [walk[-1] for walk in found]
    assert len(set(ends)) == len(ends)
    steps = read_steps(puzzle, "".join(tokens))
    assert (steps.right, steps.repeated, steps.walks) == (steps.moves, 0, len(found))


def test_wrong_moves_and_repeated_walks_are_counted():
    steps = read_steps(SMALL, "abc\nad\nabd\nxyz</think>c")
    assert (steps.walks, steps.moves, steps.right, steps.repeated) == (4, 11, 9, 1)
    assert read_steps(SMALL, "") == type(steps)(0, 0, 0, 0)


@pytest.mark.parametrize(
    "text", ["", "ab,bc", "ab,bc?a", "ab,b?a:c", "a1,bc?a:c", "ab,bc?ab:c", "ab,bc?a:"]
)
def test_text_that_is_no_question_is_refused(text):
    with pytest.raises(InputError):
        parse_question(text)


@pytest.mark.parametrize(
    ("edges", "root", "candidates"),
    [
        ((("a", "b"), ("c", "b")), "a", ("b", "x")),
        ((("a", "b"), ("x", "a")), "a", ("b", "y")),
        ((("a", "b"), ("a", "c")), "a", ("b", "c")),
        ((("a", "b"),), "a", ("x", "y")),
        ((("a", "b"),), "a", ("b", "b")),
    ],
)
def test_a_forest_without_one_answer_is_refused(edges, root, candidates):
    with pytest.raises(InputError):
        Puzzle(edges, root, candidates)


@pytest.mark.parametrize("leaves", [CHOICES - 1, MAX_LEAVES + 1])
def test_trees_out_of_range_are_refused(leaves):
    with pytest.raises(InputError, match=f"leaves={leaves}"):
        sample_puzzle(random.Random(0), leaves)
    with pytest.raises(InputError, match="leaves"):
        HiddenLeaf(leaves=(leaves, leaves))


# --- task ---------------------------------------------------------------------------------------


def test_the_task_is_one():
    task = HiddenLeaf()
    assert isinstance(task, Task)
    assert isinstance(task, Reads)
    problems = task.sample(3, 12)
    assert list(problems[:5]) == list(task.sample(3, 5))
    assert [p.meta["leaves"] for p in problems[:6]] == [8, 9, 10, 11, 12, 8]
    assert all(split_of(p.question) == "heldout" for p in problems)
    assert len({p.question for p in problems}) == 12


def test_answers_are_what_follows_the_thinking():
    task = HiddenLeaf()
    (problem,) = task.sample(0, 1)
    right = problem.answer
    wrong = next(c for c in problem.choices if c != right)
    for text in (right, f"abc</think>{right}<eos>", f"a</think></think>{right}", f" {right}\n"):
        assert task.verify(problem, text) == 1
    for text in (wrong, f"{right}</think>{wrong}", f"<think>{right}", "", f"ab\nc{right}"):
        assert task.verify(problem, text) == 0
    assert task.read(problem, "<think>abc") is None
    assert task.puzzle(problem).answer == right


# --- tokenizer ----------------------------------------------------------------------------------


@given(seeds)
def test_every_character_and_tag_is_one_token(seed):
    tokenizer = build_tokenizer()
    rng = random.Random(seed)
    puzzle = sample_puzzle(rng, 6)
    tokens = walks(rng, puzzle)
    text = render_prompt(puzzle.question) + "".join(tokens) + puzzle.answer + "<eos>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = ["<user>", *puzzle.question, "<assistant>", "<think>", *tokens, puzzle.answer, "<eos>"]
    known = vocabulary()
    assert ids == [known[part] for part in parts]
    assert tokenizer.decode(ids) == text
    assert tokenizer.get_vocab() == known


def test_unknown_characters_raise(tokenizer):
    with pytest.raises(Exception, match="UNK"):
        tokenizer("é")


def test_the_template_renders_the_prompt(tokenizer):
    chat = [{"role": "user", "content": "ab?a:bx"}]
    for thinking in (True, False):
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        assert text == render_prompt("ab?a:bx", thinking)


def test_the_longest_search_fits_the_window():
    rng = random.Random(0)
    longest = 0
    for _ in range(300):
        puzzle = sample_puzzle(rng, MAX_LEAVES)
        longest = max(longest, len(puzzle.question) + 5 + len(walks(rng, puzzle)))
    assert longest < CONTEXT - 40


# --- training -----------------------------------------------------------------------------------


def test_examples_are_held_out_cut_and_labelled(tokenizer):
    from itertools import islice

    from outlay.testbeds.packing import IGNORED
    from outlay.testbeds.searcher.train import TrainConfig, encode, examples

    config = TrainConfig(primer=20, ramp=100, cut=0.5)
    made = list(islice(examples(config), 400))
    assert all("".join(e.tokens) == e.question for e in made[:20])
    searches = made[20:]
    assert all(split_of(example.question) == "train" for example in made)
    cut = [e for e in searches if e.untrained >= 0]
    assert 120 < len(cut) < 260
    for example in searches:
        puzzle = parse_question(example.question)
        assert example.tokens[-2:] == (FOUND, puzzle.answer)
        ids, labels = encode(example, vocabulary())
        text = render_prompt(example.question) + "".join(example.tokens) + "<eos>"
        assert ids == tokenizer(text)["input_ids"]
        begin = len(ids) - len(example.tokens) - 1
        unlearnt = [k - begin for k in range(begin, len(ids)) if labels[k] == IGNORED]
        assert unlearnt == ([example.untrained] if example.untrained >= 0 else [])
        assert set(labels[:begin]) == {IGNORED}
    early, late = ([len(parse_question(e.question).leaves) for e in part]
                   for part in (searches[:40], searches[-200:]))  # fmt: skip
    assert max(early) < max(late) == 12


def test_parts_made_side_by_side_differ():
    from itertools import islice

    from outlay.testbeds.searcher.train import TrainConfig, examples

    config = TrainConfig(primer=0)
    parts = [{e.question for e in islice(examples(config, part, 2), 50)} for part in (0, 1)]
    assert not parts[0] & parts[1]
    assert {e.question for e in islice(examples(config, 0, 2), 50)} == parts[0]


def test_training_learns_and_is_repeatable():
    import torch

    from outlay.testbeds.searcher.train import TrainConfig, train

    torch.set_num_threads(1)
    losses: list[list[float]] = [[], []]
    config = TrainConfig(
        steps=20, hidden=32, layers=1, heads=2, batch_tokens=400, primer=0, warmup=2, lr=1e-2
    )
    made = []
    for run in losses:
        model, _ = train(config, lambda state, run=run: run.append(state.loss))
        made.append(model.model.embed_tokens.weight)
    assert losses[0] == losses[1]
    assert torch.equal(made[0], made[1])
    assert sum(losses[0][-5:]) < 0.9 * sum(losses[0][:5])


@pytest.mark.parametrize(
    "knobs",
    [
        {"steps": 0},
        {"hidden": 30},
        {"batch_tokens": 10},
        {"lr": 0.0},
        {"leaves": (3, 5)},
        {"leaves": (9, 5)},
        {"cut": 1.5},
        {"primer": -1},
        {"ramp": -1},
    ],
)
def test_training_knobs_out_of_range_are_named(knobs):
    from outlay.testbeds.searcher.train import TrainConfig

    with pytest.raises(InputError, match=next(iter(knobs))):
        TrainConfig(**knobs)


def test_the_command_writes_a_checkpoint_that_loads(tmp_path):
    from outlay.testbeds.searcher.__main__ import main

    out = tmp_path / "made"
    main(
        out, steps=4, hidden=32, layers=1, batch_tokens=400, primer=4, ramp=4, device="cpu",
        problems=4,
    )  # fmt: skip
    model, tokenizer = load(out)
    assert model.config.hidden_size == 32
    assert len(tokenizer) == len(vocabulary())
    card = (out / "README.md").read_text()
    measured = json.loads((out / "measured.json").read_text())
    assert "--steps 4" in card
    assert [row["mode"] for row in measured["rows"]][:2] == ["greedy", "sampled"]


# --- checkpoint ---------------------------------------------------------------------------------


def test_the_shipped_searcher_searches(checkpoint):
    from outlay.testbeds.searcher.evaluate import table

    model, tokenizer = checkpoint
    rows = {row.mode: row for row in table(model, tokenizer, 40, seed=5)}
    measured = json.loads((checkpoint_path() / "measured.json").read_text())["rows"]
    for row in measured:
        slack = 3 * (0.25 / 40) ** 0.5
        assert abs(rows[row["mode"]].accuracy - row["accuracy"]) < slack
    assert rows["sampled"].accuracy > rows["cut at 0"].accuracy + 0.2
    assert rows["cut at 20"].accuracy > rows["cut at 0"].accuracy
    assert rows["greedy"].right_steps > 0.8


def test_the_shipped_searcher_is_small():
    size = sum(file.stat().st_size for file in checkpoint_path().iterdir())
    assert size < 4_000_000


def test_a_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no checkpoint"):
        load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint_path(), broken)
    (broken / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="train the searcher anew"):
        load(broken)


def test_another_models_checkpoint_is_refused(tmp_path):
    from outlay.testbeds.reasoner import checkpoint_path as reasoner_path

    other = tmp_path / "other"
    shutil.copytree(checkpoint_path(), other)
    for file in reasoner_path("small").glob("tokenizer*.json"):
        shutil.copy(file, other / file.name)
    with pytest.raises(ModelError, match="is no searcher"):
        load(other)
    shutil.copytree(checkpoint_path(), tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper" / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="weights"):
        load(tmp_path / "deeper")
