"""ChainArith-RL: its problems, styles, verifier, corpus, shipped policy and training."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.testbeds.chainarith_rl import (
    BUDGET_TAGS,
    FORCED_END,
    FORCED_TEXT,
    FORMATS,
    MAX_OPS,
    MODULUS,
    STYLE_OF,
    Mix,
    build_tokenizer,
    correct,
    dataset,
    examples,
    load,
    problems,
    render_prompt,
    render_trace,
    verify,
)
from outlay.testbeds.chainarith_rl.__main__ import main
from outlay.testbeds.chainarith_rl.evaluate import MAX_NEW, complete
from outlay.testbeds.chainarith_rl.train import TrainConfig, train
from outlay.testbeds.reasoner import parse_question
from outlay.testbeds.reasoner.chains import split_of

relaxed = settings(deadline=None)  # a loaded machine stalls single examples
styles = st.sampled_from(FORMATS)
seeds = st.integers(0, 10**6)
counts = st.integers(1, MAX_OPS)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


# --- problems -----------------------------------------------------------------------------------


def test_columns_are_prompt_answer_and_operations():
    rows = dataset(16, seed=3)
    assert rows.column_names == ["prompt", "answer", "ops"]
    assert rows["ops"] == [*range(1, 9)] * 2
    for row in rows:
        question = row["prompt"].removeprefix("<user>").removesuffix("<assistant><think>")
        problem = parse_question(question, MODULUS)
        assert row["prompt"] == render_prompt(question)
        assert (row["answer"], row["ops"]) == (problem.answer, problem.operations)
        assert not any(tag in row["prompt"] for tag in BUDGET_TAGS)


def test_splits_share_no_question():
    train = {problem.question for problem in problems(3000, 0)}
    held = {problem.question for problem in problems(3000, 0, split="heldout")}
    assert not train & held
    assert {split_of(question) for question in train} == {"train"}


@relaxed
@given(seeds, st.integers(1, 40), st.integers(1, 40))
def test_a_smaller_sample_is_the_start_of_a_larger_one(seed, n, more):
    assert problems(n + more, seed)[:n] == problems(n, seed)


def test_seeds_differ_and_repeat():
    assert problems(20, 1, (4, 8)) != problems(20, 2, (4, 8))
    assert problems(20, 1, (4, 8)) == problems(20, 1, (4, 8))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 10**7}, "n=10000000"),
        ({"n": 1, "ops": (0, 3)}, "ops"),
        ({"n": 1, "ops": (4, 3)}, "ops"),
        ({"n": 1, "ops": (1, 9)}, "ops"),
        ({"n": 1, "split": "test"}, "split='test'"),
    ],
)
def test_a_sample_that_cannot_be_made_is_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        dataset(**arguments)


# --- verifier -----------------------------------------------------------------------------------


@relaxed
@given(seeds, counts, styles, st.sampled_from([None, *BUDGET_TAGS]))
def test_an_exact_completion_is_right_well_formed_and_counted(seed, ops, style, tag):
    (problem,) = problems(1, seed, (ops, ops))
    text = (tag or "") + render_trace(problem, style)
    ids = build_tokenizer()(text)["input_ids"]
    verdict = verify(ids, problem.answer)
    assert verdict == verify(text, problem.answer)
    assert verdict.right
    assert verdict.well_formed
    assert not verdict.truncated
    assert (verdict.style, verdict.budget, verdict.given) == (style, tag, problem.answer)
    step = {"direct": 0, "short": 6, "long": 12, "code": 9}[style]
    shown = step * ops + (2 if style == "code" else 0) + 1 + (tag is not None)
    assert (verdict.thinking_tokens, verdict.answer_tokens) == (shown, 4)
    assert verdict.tokens == len(ids)


@relaxed
@given(seeds, counts, styles, st.integers(1, 3))
def test_a_completion_without_its_end_is_truncated(seed, ops, style, missing):
    (problem,) = problems(1, seed, (ops, ops))
    ids = build_tokenizer()(render_trace(problem, style))["input_ids"]
    verdict = verify(ids[:-missing], problem.answer)
    assert verdict.truncated
    assert not verdict.well_formed
    assert verdict.right == (missing == 1)
    assert verdict.tokens == len(ids) - missing


@relaxed
@given(st.lists(st.integers(0, 210), max_size=30), st.integers(0, 9))
def test_any_tokens_get_a_verdict_whose_parts_sum_to_what_was_written(ids, answer):
    verdict = verify(ids, str(answer))
    written = ids[: ids.index(1) + 1] if 1 in ids else [token for token in ids if token != 0]
    assert verdict.tokens == len(written)
    assert not (verdict.well_formed and verdict.truncated)


@pytest.mark.parametrize(
    ("text", "right", "well_formed"),
    [
        ("<short>3+4=7;</think><answer>7<eos>", True, True),
        ("<short>3+4=7;</think><answer>7<eos><pad><pad>", True, True),
        ("<direct></think><answer>7<eos>", True, True),
        ("</think><answer>7<eos>", True, False),  # no style
        ("<b1></think><answer>7<eos>", True, False),
        ("<short><long>3+4=7;</think><answer>7<eos>", True, False),  # two styles
        ("<short>3+4=7;<b2></think><answer>7<eos>", True, False),
        ("<short>3+4=7;Wait</think><answer>7<eos>", True, False),
        ("<short>3+4=7;</think></think><answer>7<eos>", True, False),
        ("<short>3+4=7;</think><answer>7<answer>8<eos>", False, False),  # the last one counts
        ("<short>3+4=7;</think><answer>77<eos>", False, True),
        ("<short>3+4=7;</think><answer>7.<eos>", False, False),
        ("<short>3+4=7;</think>7<eos>", False, False),
        ("<short>3+4=7;<eos>", False, False),
        ("", False, False),
    ],
)
def test_the_grammar_decides_form_and_the_last_answer_decides_right(text, right, well_formed):
    verdict = verify(text, "7")
    assert (verdict.right, verdict.well_formed) == (right, well_formed)


def test_what_the_prompt_held_is_read_and_counted():
    whole = "<short>3+4=7;</think><answer>7<eos>"
    for cut in (7, 13, 21):  # between tags and characters
        assert verify(whole[cut:], "7", prefill=whole[:cut]) == verify(whole, "7")
    forced = verify("7<eos>", "7", prefill="<short>3+4" + FORCED_END)
    assert forced.right
    assert forced.well_formed
    assert forced.thinking_tokens == 7


def test_ids_of_another_vocabulary_and_endless_completions_are_refused():
    with pytest.raises(InputError, match="token id 5000"):
        verify([5000], "7")
    with pytest.raises(InputError, match="641 tokens"):
        verify([2] * 641, "7")
    with pytest.raises(InputError, match="100001 characters"):
        verify("7" * 100_001, "7")
    with pytest.raises(InputError, match="lacks"):
        verify("<short>3+4=é", "7")


def test_the_reward_is_one_for_right_answers_only(tokenizer):
    texts = ["<short>3+4=7;</think><answer>7<eos>", "<direct></think><answer>6<eos>", "<short>3+"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert correct(ids, ["7", "7", "7"], prompts=["x"] * 3, ops=[1] * 3) == [1.0, 0.0, 0.0]


# --- tokenizer and corpus -----------------------------------------------------------------------


def test_tags_are_one_token_each_and_survive_decoding(tokenizer):
    for tag in (*BUDGET_TAGS, *(f"<{name}>" for name in FORMATS), "</think>", "<answer>"):
        (index,) = tokenizer(tag)["input_ids"]
        assert tokenizer.decode([index], skip_special_tokens=True) == tag
    assert len(tokenizer(FORCED_END)["input_ids"]) == 5


def drawn(mix: Mix, n: int):
    stream = examples(mix, 7)
    return [next(stream) for _ in range(n)]


def test_the_corpus_survives_the_round_trip(tokenizer):
    for example in drawn(Mix(primer=200, ramp=200), 1000):
        ids = tokenizer(example.text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == example.text
        prompt = tokenizer(example.prompt)["input_ids"]
        assert len(ids) - len(prompt) == len(example.atoms) <= MAX_NEW


def test_style_does_not_depend_on_difficulty_and_a_tag_doubles_its_own():
    mix = Mix(primer=0, ramp=0, tagged=0.5, cut=0.0)
    rows = []
    for example in drawn(mix, 12000):
        text = "".join(atom.text for atom in example.atoms)
        verdict = verify(text, "0")
        assert verdict.well_formed
        question = example.prompt.removeprefix("<user>").split("<assistant>")[0]
        rows.append((parse_question(question, MODULUS).operations, verdict.budget, verdict.style))
    weights = dict(mix.styles)

    def share(style, chosen):
        return sum(found == style for _, _, found in chosen) / len(chosen)

    plain = [row for row in rows if row[1] is None]
    for ops in ((1,), (2, 3, 4), (5, 6, 7, 8)):
        chosen = [row for row in plain if row[0] in ops]
        for style in FORMATS:
            assert abs(share(style, chosen) - weights[style]) < 0.05
    for tag, style in STYLE_OF.items():
        chosen = [row for row in rows if row[1] == tag]
        expected = 2 * weights[style] / (1 + weights[style])
        assert abs(share(style, chosen) - expected) < 0.05


def test_budget_tags_and_forced_ends_are_shown_but_not_trained_on():
    for example in drawn(Mix(primer=0, ramp=0, tagged=1.0, cut=1.0), 300):
        texts = [atom.text for atom in example.atoms]
        untrained = [atom.text for atom in example.atoms if not atom.trained]
        tag, style = texts[:2]
        assert tag in BUDGET_TAGS
        forced = [*FORCED_TEXT, "</think>", "<answer>"] if style != "<direct>" else []
        assert untrained == [tag, *forced]
        question = example.prompt.removeprefix("<user>").split("<assistant>")[0]
        assert texts[-2:] == [parse_question(question, MODULUS).answer, "<eos>"]


def test_only_the_table_of_one_operation_is_shared_with_held_out_questions():
    held = set()
    for example in drawn(Mix(primer=300, ramp=300), 3000):
        question = example.prompt.removeprefix("<user>").split("<assistant>")[0]
        if split_of(question) == "heldout":
            held.add(parse_question(question, MODULUS).operations)
    assert held == {1}


def test_the_primer_is_short_and_the_ramp_grows_to_the_longest_chain():
    mix = Mix(primer=500, ramp=500, primer_ops=3)

    def longest(chosen):
        return max(
            parse_question(e.prompt.removeprefix("<user>").split("<assistant>")[0]).operations
            for e in chosen
        )

    found = drawn(mix, 2000)
    assert longest(found[:500]) == 3
    assert 3 < longest(found[500:800]) < 8
    assert longest(found[1000:]) == 8


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tagged": 1.5}, "tagged"),
        ({"cut": -0.1}, "cut"),
        ({"primer_direct": 2.0}, "primer_direct"),
        ({"ops": ()}, "ops"),
        ({"ops": (0.0, 0.0)}, "ops"),
        ({"styles": (("short", -1.0),)}, "styles"),
        ({"tag_bias": 0.0}, "tag_bias"),
        ({"primer_ops": 9}, "primer_ops"),
    ],
)
def test_a_mix_that_cannot_be_drawn_is_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        Mix(**arguments)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 5}, "stop=1300"),
        ({"stop": 0}, "stop=0"),
        ({"stop": 5, "settle": 6}, "settle"),
        ({"batch_tokens": 10}, "batch_tokens"),
        ({"lr": 0.0}, "lr"),
        ({"hidden": 97}, "hidden"),
    ],
)
def test_a_training_that_cannot_run_is_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        TrainConfig(**arguments)


def test_training_twice_gives_the_same_weights_and_a_falling_loss():
    config = TrainConfig(
        steps=12,
        stop=10,
        settle=6,
        hidden=32,
        layers=1,
        batch_tokens=640,
        warmup=2,
        mix=Mix(primer=0, ramp=0),
    )
    losses: list[float] = []
    first, _ = train(config, lambda state: losses.append(state.loss))
    second, _ = train(config)
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert bool((left == right).all())
    assert len(losses) == config.stop
    assert losses[-1] < losses[0] - 0.5


def test_the_command_writes_a_checkpoint_that_loads_with_its_card(tmp_path):
    out = tmp_path / "policy"
    main(out, steps=3, stop=2, settle=1, hidden=32, layers=1, batch_tokens=640, problems=0)
    model, tokenizer = load(out)
    assert len(complete(model, tokenizer, ["<user>3+4=?<assistant><think>"])) == 1
    record = json.loads((out / "measured.json").read_text())
    assert record["config"]["steps"] == 3
    card = (out / "README.md").read_text()
    assert "--steps 3 --stop 2 --settle 1" in card
    assert f"{model.num_parameters():,} parameters" in card
