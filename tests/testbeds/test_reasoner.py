"""The reasoner: its worlds, step labels, tokenizer, traces, shipped checkpoint and training."""

import json
import random
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError, ModelError
from outlay.evals.base import Task
from outlay.testbeds.reasoner import (
    MODULUS,
    Chain,
    ChainArith,
    ChainProblem,
    ChainRecall,
    FactWorld,
    Mix,
    build_tokenizer,
    checkpoint_path,
    examples,
    label_steps,
    load,
    parse_question,
    render_prompt,
    render_trace,
    sample_problem,
    shipped,
)
from outlay.testbeds.reasoner.chains import HELD_OUT, apply, multipliers, split_of
from outlay.testbeds.reasoner.evaluate import held_out, measure, read_answer, read_thinking
from outlay.testbeds.reasoner.tokenizer import TAGS, vocabulary
from outlay.testbeds.reasoner.traces import Noise, think

relaxed = settings(deadline=None)  # a loaded machine stalls single examples
seeds = st.integers(0, 10**6)
styles = st.sampled_from(["short", "long"])
moduli = st.sampled_from([3, 7, 10, 20, 100])


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def checkpoint():
    import torch

    torch.set_num_threads(1)
    return load()


def slow_value(question: str, modulus: int) -> int:
    """Counts with integers only, reading the text character by character."""
    total = 0
    for part in question.removesuffix("=?").strip("()").split(")+("):
        value, number, sign = 0, "", "+"
        for character in part + "+":
            if character.isdigit():
                number += character
                continue
            amount = int(number)
            if sign == "+":
                value += amount
            elif sign == "-":
                value -= amount
            else:
                value = sum(value for _ in range(amount))
            number, sign = "", character
        total += value
    return total % modulus


# --- chains -------------------------------------------------------------------------------------


@relaxed
@given(seeds, moduli, st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_the_answer_equals_a_slow_evaluation_of_the_text(seed, modulus, counts):
    problem = sample_problem(random.Random(seed), counts, modulus)
    assert int(problem.answer) == slow_value(problem.question, modulus)
    assert problem.operations == sum(counts) + len(counts) - 1


@relaxed
@given(seeds, moduli, st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_parsing_a_question_gives_the_problem_back(seed, modulus, counts):
    problem = sample_problem(random.Random(seed), counts, modulus)
    assert parse_question(problem.question, modulus) == problem


@relaxed
@given(seeds, moduli)
def test_every_operation_is_undone_by_its_inverse(seed, modulus):
    chain = sample_problem(random.Random(seed), [8], modulus).chains[0]
    for index, (sign, operand) in enumerate(chain.operations):
        inverse = {"+": "-", "-": "+", "*": "/"}[sign]
        back = apply(inverse, chain.values[index + 1], operand, modulus)
        assert back == chain.values[index]


def test_multipliers_are_the_units():
    assert multipliers(10) == [3, 7, 9]
    assert multipliers(7) == [2, 3, 4, 5, 6]
    assert 1 not in multipliers(20)


def test_guessing_is_right_one_time_in_m_at_every_length():
    rng = random.Random(0)
    for operations in (1, 4, 9):
        answers = [int(sample_problem(rng, [operations]).answer) for _ in range(3000)]
        for value in range(MODULUS):
            assert abs(Fraction(answers.count(value), 3000) - Fraction(1, MODULUS)) < 0.02


def test_splits_are_disjoint_and_one_in_eight_is_held_out():
    rng = random.Random(1)
    problems = [sample_problem(rng, [4]) for _ in range(4000)]
    share = sum(split_of(p.question) == "heldout" for p in problems) / 4000
    assert abs(share - 1 / HELD_OUT) < 0.02
    assert split_of(sample_problem(rng, [3], split="train").question) == "train"


@pytest.mark.parametrize(
    ("operations", "modulus", "signs"),
    [([0], 10, "+"), ([2], 2, "+"), ([2], 101, "+"), ([2], 10, "/"), ([2], 10, "")],
)
def test_a_chain_that_cannot_be_made_is_refused(operations, modulus, signs):
    with pytest.raises(InputError):
        sample_problem(random.Random(0), operations, modulus, signs)


def test_no_chains_and_too_many_chains_are_refused():
    with pytest.raises(InputError, match="0 chains"):
        ChainProblem(())
    with pytest.raises(InputError, match="6 chains"):
        ChainProblem((Chain(1, (("+", 2),)),) * 6)


@pytest.mark.parametrize("text", ["", "3=?", "3+=?", "hello", "(3+4)+5=?", "3/4=?"])
def test_a_text_that_is_no_question_is_refused(text):
    with pytest.raises(InputError):
        parse_question(text)


def test_dividing_by_a_number_without_inverse_is_refused():
    with pytest.raises(InputError, match="no inverse"):
        apply("/", 3, 5, 10)


# --- step labels --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seeds, st.lists(st.integers(1, 8), min_size=1, max_size=4), st.sampled_from(["short", "long"])
)
def test_every_step_of_an_exact_trace_is_right_and_on_path(seed, counts, format):
    problem = sample_problem(random.Random(seed), counts)
    thinking = read_thinking("<think>" + render_trace(problem, format))
    labels = label_steps(problem, thinking)
    assert len(labels) == problem.operations * (2 if format == "long" else 1)
    assert all(label.right and label.on_path for label in labels)


@relaxed
@given(seeds, st.integers(1, 12))
def test_every_result_of_an_exact_program_is_right(seed, operations):
    problem = sample_problem(random.Random(seed), [operations])
    labels = label_steps(problem, read_thinking("<think>" + render_trace(problem, "code")))
    assert [label.text for label in labels] == [str(v) for v in problem.chains[0].values[1:]]
    assert all(label.right and label.on_path for label in labels)


def judged(question: str, thinking: str) -> list[tuple[bool, bool, bool]]:
    labels = label_steps(parse_question(question, 10), thinking)
    return [(label.result_right, label.continues, label.on_path) for label in labels]


def test_a_wrong_result_does_not_make_the_following_steps_wrong():
    assert judged("3+4*7=?", "<short>3+4=8;8*7=6;") == [(False, True, False), (True, True, False)]


def test_a_left_side_that_is_not_the_stated_value_is_wrong_though_its_result_is_right():
    assert judged("3+4*7=?", "3+4=7;8*7=6;") == [(True, True, True), (True, False, False)]


def test_a_skipped_operation_is_wrong():
    assert judged("3+4*7=?", "3*7=1;")[0][:2] == (True, False)


def test_a_step_after_the_end_of_the_chain_is_wrong():
    assert judged("3+4=?", "3+4=7;7+4=1;")[1] == (True, False, False)


def test_a_check_that_exposes_an_error_is_right_itself_but_off_the_path():
    labels = label_steps(parse_question("3+4*7=?", 10), "<long>3+4=8;8-4=4;Wait3+4=7;7-4=3;")
    assert [label.kind for label in labels] == ["step", "check", "recheck", "check"]
    assert [label.right for label in labels] == [False, True, True, True]
    assert [label.on_path for label in labels] == [False, False, True, True]


def test_a_program_that_miscopies_an_operation_is_wrong_from_there_on():
    program = "<code>3,4+,5*,2-:7,5,3;"
    assert judged("3+4*5-2=?", program) == [(True, True, True)] * 3
    assert judged("3+4*7-2=?", program)[1:] == [(True, False, False), (True, False, False)]
    assert judged("3+4=?", program)[1:] == [(False, False, False)] * 2


def test_the_final_sum_is_judged_against_the_values_that_the_chains_stated():
    right = judged("(3+4)+(7-2)=?", "[1]3+4=8;[2]7-2=5;[+]8+5=3;")
    assert right == [(False, True, False), (True, True, True), (True, True, False)]


def test_a_chain_cut_by_its_budget_passes_on_what_it_had():
    labels = judged("(3+4+1)+(7-2)=?", "[1]3+4=7;7+[2]7-2=5;[+]7+5=2;")
    assert labels == [(True, True, True), (True, True, True), (True, True, False)]


@relaxed
@given(st.text(alphabet="0123456789+-*/=;Wait[]<>longcode:,x", max_size=60))
def test_labelling_any_text_never_fails(text):
    for tag in ("", "<long>", "<code>"):
        label_steps(parse_question("3+4*7=?"), tag + text)


# --- facts --------------------------------------------------------------------------------------


def test_the_world_has_600_facts_of_which_70_percent_are_known():
    world = FactWorld()
    assert len(world.facts) == 600
    assert len(world.known_facts) == 420
    assert world.facts == FactWorld().facts
    assert world.facts != FactWorld(seed=1).facts


@relaxed
@given(seeds, st.sampled_from([1, 2]), st.booleans())
def test_a_recall_problem_follows_its_facts(seed, hops, known):
    world = FactWorld()
    problem = world.sample(random.Random(seed), hops, known)
    at = problem.question.split(".")[0]
    used = []
    for relation in problem.question.removesuffix("=?").split(".")[1:]:
        used.append((at, relation))
        at = world.facts[at, relation]
    assert at == problem.answer
    assert all(fact in world.known_facts for fact in used) == known == problem.known


def test_training_never_shows_an_unknown_fact_or_a_held_out_question():
    world, mix = FactWorld(), Mix(recall=0.6, primer=0, ramp=0)
    stream = examples(mix, world, seed=0)
    unknown = {f"{e}.{r}={world.facts[e, r]};" for e, r in set(world.facts) - world.known_facts}
    for _ in range(1500):
        text = next(stream).text
        question = text.split("<user>")[1].split("<assistant>")[0]
        if "." not in question:
            assert split_of(question) == "train"
        else:
            assert not any(f"{step};" in unknown for step in read_thinking(text).split(";"))
            assert question.count(".") == 1 or split_of(question) == "train"


@pytest.mark.parametrize("settings", [{"entities": 1}, {"values": 101}, {"known": 1.0}])
def test_an_impossible_world_is_refused(settings):
    with pytest.raises(InputError):
        FactWorld(**settings)


def test_an_unknown_fact_name_and_a_third_hop_are_refused():
    with pytest.raises(InputError, match="no fact"):
        FactWorld().problem("z1", "home")
    with pytest.raises(InputError, match="hops=3"):
        FactWorld().sample(random.Random(0), 3, True)


# --- tokenizer ----------------------------------------------------------------------------------


@relaxed
@given(st.lists(st.sampled_from(sorted(vocabulary())), max_size=40))
def test_any_text_made_of_the_vocabulary_survives_the_round_trip(tokenizer, pieces):
    text = "".join(pieces)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_skipping_special_tokens_keeps_every_tag(tokenizer):
    text = "".join(TAGS) + "Wait[1]"
    ids = tokenizer(text + "<eos>")["input_ids"]
    assert len(ids) == len(TAGS) + 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_step_costs_six_tokens(tokenizer):
    assert len(tokenizer("17+8=5;")["input_ids"]) == 6


@pytest.mark.parametrize("text", ["é", "3 ± 4", "思"])
def test_a_character_outside_the_vocabulary_raises(tokenizer, text):
    with pytest.raises(Exception, match="Missing"):
        tokenizer(text)


def test_the_chat_template_renders_what_render_prompt_gives(tokenizer):
    chat = [{"role": "user", "content": "3+4=?"}]

    def render(**options):
        return tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, **options
        )

    assert render() == render_prompt("3+4=?") == "<user>3+4=?<assistant><think>"
    assert render(format="short") == render_prompt("3+4=?", "short")
    assert render(enable_thinking=False) == render_prompt("3+4=?", thinking=False)
    assert "<think>" in tokenizer.chat_template
    assert "</think>" in tokenizer.chat_template


# --- traces -------------------------------------------------------------------------------------


def test_every_training_example_is_atoms_of_one_token_each(tokenizer):
    from outlay.testbeds.reasoner.train import encode

    stream = examples(Mix(primer=50, ramp=150), FactWorld(), seed=3)
    batch = [next(stream) for _ in range(500)]
    for example, (ids, labels) in zip(batch, encode(batch, tokenizer), strict=True):
        assert len(ids) == len(labels)
        assert sum(label >= 0 for label in labels) == sum(atom.trained for atom in example.atoms)


@relaxed
@given(seeds, st.integers(1, 10), styles)
def test_slips_are_shown_but_not_trained_on_and_are_corrected(seed, operations, format):
    rng = random.Random(seed)
    problem = sample_problem(rng, [operations])
    atoms, answer = think(problem, format, rng, Noise(slip=0.5, wait=0.2, last_wait=0.5))
    assert answer == problem.answer
    labels = label_steps(problem, f"<{format}>" + "".join(atom.text for atom in atoms))
    wrong = [label for label in labels if not label.result_right]
    slips = [i for i, atom in enumerate(atoms) if not atom.trained and atom.text != "Wait"]
    assert len(wrong) == len(slips)
    assert all(label.continues for label in labels)
    assert labels[-1].on_path


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_a_cut_is_answered_by_the_truth_only_where_it_is_derivable(seed):
    mix = Mix(recall=0, joined=0, cut=1.0, noise=Noise(), formats=(("short", 1.0),))
    example = mix.example(random.Random(seed), FactWorld(), index=mix.primer + mix.ramp)
    problem = parse_question(example.text.split("<user>")[1].split("<assistant>")[0])
    thinking = read_thinking(example.text)
    done = len(label_steps(problem, thinking))
    # A result whose ";" was cut off counts as reached.
    unfinished = thinking.removeprefix("<short>").split(";")[-1].strip()
    done += unfinished[-1:].isdigit() and "=" in unfinished
    missing = problem.operations - done
    derivable = done == 0 or missing <= 1
    value = problem.answer if derivable else str(problem.chains[0].values[done])
    assert read_answer(example.text) == value


@relaxed
@given(seeds)
def test_a_detour_states_a_wrong_entity_untrained_and_follows_it(seed):
    rng, world = random.Random(seed), FactWorld()
    problem = world.led_astray(world.sample(rng, 2, known=True), rng)
    atoms, answer = think(problem, "short")
    (entity, link, other), (start, relation, value) = problem.hops
    assert start == other
    assert (start, relation) in world.known_facts
    assert value == world.facts[start, relation] == answer
    untrained = "".join(atom.text for atom in atoms if not atom.trained)
    assert untrained == other
    written = f"{entity}.{link}={other};{start}.{relation}={value};"
    assert "".join(atom.text for atom in atoms) == written


def test_the_primer_is_clean_and_short():
    mix = Mix(primer=300, primer_operations=3)
    stream = examples(mix, FactWorld(), seed=0)
    for _ in range(300):
        text = next(stream).text
        assert "Wait" not in text
        assert "(" not in text
        assert text.count("=") <= 4
        assert "<long>" not in text


def test_forced_ends_are_not_trained_on():
    mix = Mix(recall=0, joined=0, cut=1.0, primer=0, formats=(("long", 1.0),))
    stream = examples(mix, FactWorld(), seed=0)
    for _ in range(50):
        atoms = {atom.text: atom for atom in next(stream).atoms}
        assert not atoms["</think>"].trained
        assert not atoms["<answer>"].trained
        assert atoms["<eos>"].trained


def test_code_is_for_single_chains_only():
    problem = sample_problem(random.Random(0), [2, 2])
    with pytest.raises(InputError, match="single chains"):
        render_trace(problem, "code")


# --- tasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [ChainArith(), ChainRecall()])
def test_a_task_is_reproducible_extends_and_accepts_its_own_answers(task):
    assert isinstance(task, Task)
    few, many = task.sample(5, 6), task.sample(5, 12)
    assert list(many[:6]) == list(few)
    assert task.sample(6, 6) != few
    assert len({problem.id for problem in many}) == 12
    for problem in many:
        wrong = str((int(problem.answer) + 1) % 20)
        assert task.prompt(problem, "").endswith("<think>")
        completion = f"<short>...;</think><answer>{problem.answer}<eos>"
        assert task.verify(problem, completion) == 1.0
        assert task.verify(problem, problem.answer) == 1.0
        assert task.verify(problem, completion.replace(f">{problem.answer}<", f">{wrong}<")) == 0.0
        assert task.verify(problem, "") == 0.0
        assert task.verify(problem, "<think><short>1+1=2;") == 0.0


def test_difficulties_take_turns_and_problems_are_held_out():
    problems = ChainArith(operations=(2, 10)).sample(0, 18)
    assert [p.meta["difficulty"] for p in problems] == list(range(2, 11)) * 2
    assert all(split_of(p.question) == "heldout" for p in problems)


def test_known_and_unseen_facts_can_be_asked_for():
    assert all(p.meta["known"] for p in ChainRecall(facts="known").sample(0, 20))
    assert not any(p.meta["known"] for p in ChainRecall(facts="unseen").sample(0, 20))
    mixed = [p.meta["known"] for p in ChainRecall().sample(0, 8)]
    assert mixed == [True, True, False, False] * 2


def test_a_foreign_model_is_judged_by_its_last_number():
    task = ChainArith(template="plain")
    problem = task.sample(0, 1)[0]
    assert task.prompt(problem, "") == problem.question
    assert task.verify(problem, f"First 99. The answer is {problem.answer}.") == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChainArith(operations=(0, 3)),
        lambda: ChainArith(operations=(4, 3)),
        lambda: ChainArith(template="other"),
        lambda: ChainRecall(facts="some"),
        lambda: ChainRecall(hops=(1, 3)),
    ],
)
def test_a_task_out_of_range_is_refused(make):
    with pytest.raises(InputError):
        make()


def test_the_worlds_and_tasks_need_no_torch():
    code = (
        "import sys; import outlay.testbeds.reasoner as r; r.ChainArith().sample(0, 3); "
        "r.ChainRecall().sample(0, 3); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the shipped checkpoint ---------------------------------------------------------------------


def test_an_unknown_checkpoint_is_refused():
    with pytest.raises(ModelError, match="base"):
        checkpoint_path("nosuch")


def test_the_shipped_checkpoint_is_small_and_has_its_card():
    assert "base" in shipped()
    path = checkpoint_path()
    assert sum(file.stat().st_size for file in path.iterdir()) < 12e6
    assert (path / "model.safetensors").is_file()
    assert "Measured" in (path / "README.md").read_text()


def test_the_shipped_checkpoint_reaches_its_stated_accuracy(checkpoint):
    model, tokenizer = checkpoint
    measured = json.loads((checkpoint_path() / "measured.json").read_text())
    stated = {
        (row["family"], row["difficulty"], row["mode"]): row["accuracy"] for row in measured["rows"]
    }
    difficulties = (2, 4, 6, 8, 10)
    right = 0.0
    for difficulty in difficulties:
        problems = held_out("compute", difficulty, 12, MODULUS, FactWorld(), seed=99)
        right += measure(model, tokenizer, problems, "natural").accuracy * 12
    expected = sum(stated["compute", d, "natural"] for d in difficulties) / len(difficulties)
    # Four standard errors of 60 problems; a share near 1 is not known to be 1.
    spread = max(expected * (1 - expected), 0.02)
    assert abs(right / 60 - expected) < 4 * (spread / 60) ** 0.5


def test_thinking_grows_with_difficulty_and_buys_accuracy(checkpoint):
    model, tokenizer = checkpoint
    easy = measure(model, tokenizer, held_out("compute", 2, 20, MODULUS, FactWorld()), "natural")
    problems = held_out("compute", 6, 20, MODULUS, FactWorld())
    hard = measure(model, tokenizer, problems, "natural")
    unthinking = measure(model, tokenizer, problems, "none")
    assert hard.thinking > 2 * easy.thinking
    assert unthinking.thinking == 0
    assert hard.accuracy > unthinking.accuracy + 0.2


def test_measuring_nothing_or_an_unknown_mode_is_refused(checkpoint):
    with pytest.raises(InputError, match="no problems"):
        measure(*checkpoint, [], "natural")
    with pytest.raises(InputError, match="mode"):
        measure(*checkpoint, held_out("compute", 2, 1, MODULUS, FactWorld()), "loud")


# --- training -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    import torch

    from outlay.testbeds.reasoner.train import TrainConfig, train

    torch.set_num_threads(1)

    def weights(seed):
        config = TrainConfig(steps=3, seed=seed, hidden=32, layers=1, batch_tokens=640)
        return train(config)[0].state_dict()

    a, b, c = weights(1), weights(1), weights(2)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_the_training_command_writes_a_checkpoint_that_loads(tmp_path):
    command = [sys.executable, "-m", "outlay.testbeds.reasoner", "--out", str(tmp_path / "tiny")]
    command += ["--steps", "2", "--hidden", "32", "--layers", "1", "--batch-tokens", "640"]
    command += ["--problems", "0"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "saved to" in run.stdout
    model, tokenizer = load(tmp_path / "tiny")
    assert model.config.hidden_size == 32
    assert model.config.vocab_size == len(tokenizer)
    assert json.loads((tmp_path / "tiny" / "measured.json").read_text())["config"]["steps"] == 2


def test_training_lowers_the_loss():
    from outlay.testbeds.reasoner.train import TrainConfig, train

    losses = []
    config = TrainConfig(steps=25, hidden=32, layers=1, batch_tokens=640, warmup=5, lr=1e-2)
    train(config, lambda state: losses.append(state.loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"hidden": 36}, {"layers": 0}, {"batch_tokens": 10}, {"lr": 0.0}]
)
def test_a_training_that_cannot_work_is_refused(settings):
    from outlay.testbeds.reasoner.train import TrainConfig

    with pytest.raises(InputError):
        TrainConfig(**settings)
