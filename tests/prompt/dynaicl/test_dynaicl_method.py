"""The controller, its training, and DynaICL as a whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dynaicl_tables import KINDS, K, made_table
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import BudgetError, InputError, ModelError
from outlay.prompt.base import Compressor
from outlay.prompt.dynaicl import (
    Controller,
    DynaICL,
    Example,
    UniformDemonstrations,
    saving,
)
from outlay.prompt.dynaicl.allocation import spent, uniform, utility
from outlay.prompt.dynaicl.config import Training
from outlay.prompt.dynaicl.controller import ordinal_policy
from outlay.prompt.dynaicl.serving import break_even, prefix_cached
from outlay.prompt.dynaicl.training import (
    network,
    policy_loss,
    policy_of,
    reinforce,
    rewards,
    weights_of,
)

FAST = DynaICL(K=K, controller="hash", training=Training(epochs=120, hidden=24))


@pytest.fixture(scope="module")
def table():
    torch.set_num_threads(1)
    return made_table()


@pytest.fixture(scope="module")
def fitted(table):
    return {head: replace(FAST, head=head).fit(table[0]) for head in ("ordinal", "curve")}


# -- stage 1 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["ordinal", "curve"])
def test_the_controller_tells_new_inputs_of_each_kind_apart(fitted, head):
    fresh, kind = made_table(90, seed=1)
    needed = fitted[head].predict(fresh.inputs).needed_N
    means = [needed[kind == k].mean() for k in range(3)]
    assert means[0] < 0.5 < means[1] < 1.7 < means[2]


@pytest.mark.parametrize("head", ["ordinal", "curve"])
def test_the_network_in_numpy_equals_the_one_in_torch(fitted, head):
    controller = fitted[head].trained()
    texts = ["easy 3", "hard word 7", ""]
    net = network(512, head, K, FAST.training, 0)
    state = {
        "0.weight": controller.weights["inner.weight"],
        "0.bias": controller.weights["inner.bias"],
        "2.weight": controller.weights["outer.weight"],
        "2.bias": controller.weights["outer.bias"],
    }
    net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    x = torch.tensor(controller.features(texts), dtype=torch.float32)
    expected = net(x).sigmoid().detach().numpy()
    assert controller.outputs(texts) == pytest.approx(expected, abs=1e-5)


@given(st.integers(0, 10**6))
def test_a_policy_sums_to_one_and_the_two_forms_agree(seed):
    logits = np.random.default_rng(seed).normal(size=(5, K)) * 3
    ours = ordinal_policy(1 / (1 + np.exp(-logits)))
    assert ours.sum(axis=1) == pytest.approx(1)
    assert (ours >= 0).all()
    assert policy_of(torch.tensor(logits)).numpy() == pytest.approx(ours, abs=2e-6)


def test_training_twice_gives_the_same_controller(table):
    a, b = FAST.fit(table[0]).trained(), FAST.fit(table[0]).trained()
    assert all((a.weights[name] == b.weights[name]).all() for name in a.weights)


def test_a_prediction_does_not_depend_on_the_other_inputs(fitted):
    texts = ["easy 3", "one more 5", "hard word 7"]
    alone = [fitted["ordinal"].predict([text]).needed_N[0] for text in texts]
    assert fitted["ordinal"].predict(texts).needed_N == pytest.approx(alone, abs=1e-12)


# -- stage 2 --------------------------------------------------------------------------------------


def logits_and_rewards(seed=0, n=6):
    rng = np.random.default_rng(seed)
    logits = np.sort(rng.normal(size=(n, K)), axis=1)[:, ::-1].copy()
    return torch.tensor(logits), torch.tensor(rng.random((n, K + 1)))


def gradient(logits, reward, pg, generator=None):
    logits = logits.clone().requires_grad_()
    policy_loss(policy_of(logits), reward, pg, generator).backward()
    return logits.grad


def test_the_exact_gradient_equals_finite_differences():
    logits, reward = logits_and_rewards()
    found = gradient(logits, reward, "exact")
    step = 1e-6
    for i, j in np.ndindex(*logits.shape):
        moved = logits.clone()
        moved[i, j] += step
        up = (policy_of(moved) * reward).sum(1).mean()
        moved[i, j] -= 2 * step
        down = (policy_of(moved) * reward).sum(1).mean()
        assert float(found[i, j]) == pytest.approx(-float(up - down) / (2 * step), abs=1e-7)


def test_the_exact_gradient_is_the_mean_of_many_sampled_ones():
    logits, reward = logits_and_rewards(1, n=2)
    exact = gradient(logits, reward, "exact")
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([gradient(logits, reward, "reinforce", generator) for _ in range(3000)])
    error = samples.std(0) / len(samples) ** 0.5
    assert (samples.std(0) > 0).any()
    assert ((samples.mean(0) - exact).abs() <= 4.5 * error + 1e-9).all()


def test_a_dearer_demonstration_lowers_the_mean_number(table):
    means = []
    for lam in (0.0, 0.3, 1.0, 3.0):
        method = replace(FAST, lam=lam, training=replace(FAST.training, rl_epochs=30, rl_lr=3e-3))
        policy = method.fit(table[0]).predict(table[0].inputs).policy_NK
        means.append(float((policy @ np.arange(K + 1)).mean()))
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1] + 0.5


def test_reinforcement_raises_the_expected_reward(table):
    labels = table[0]
    reward = rewards(labels, 0.5)
    config = replace(FAST.training, rl_epochs=15, kl=0.0, entropy=0.0)
    features = FAST.fit(labels).trained().features(labels.inputs)
    for pg in ("exact", "reinforce"):
        net = network(512, "ordinal", K, config, 0)
        x = torch.tensor(features, dtype=torch.float32)
        before = float((policy_of(net(x)).detach().numpy() * reward).sum(1).mean())
        after_net = reinforce(net, x, reward, pg, config, 0)
        after = float((policy_of(after_net(x)).detach().numpy() * reward).sum(1).mean())
        assert after > before
        assert weights_of(after_net).keys() == weights_of(net).keys()


def test_rewards_are_accuracy_minus_the_share_of_the_dearest_prompt(table):
    labels = table[0]
    assert (rewards(labels, 0.0) == labels.accuracy_NK).all()
    by_k = labels.accuracy_NK - rewards(labels, 0.4, "k")
    assert by_k == pytest.approx(np.tile(0.4 * np.arange(K + 1) / K, (len(labels), 1)))
    by_tokens = labels.accuracy_NK - rewards(labels, 0.4)
    assert by_tokens[:, -1].mean() == pytest.approx(0.4)


# -- allocation with a controller -----------------------------------------------------------------


def costs_of(labels):
    return labels.tokens_NKD[:, :, 0] - labels.tokens_NKD[:, :1, 0]


def accuracy(labels, k):
    return float(np.take_along_axis(labels.accuracy_NK, k[:, None], axis=1).mean())


@pytest.mark.parametrize("head", ["ordinal", "curve"])
@pytest.mark.parametrize("allocation", ["proportional", "utility"])
def test_oracle_beats_controller_beats_random_on_the_training_table(
    table, fitted, head, allocation
):
    labels = table[0]
    costs = costs_of(labels)
    budget = int(1.4 * costs[:, 1].sum())  # what all need on average
    method = replace(fitted[head], allocation=allocation, budget_tokens=budget)
    ours = method.allocate(labels.inputs, costs)
    oracle = utility(labels.accuracy_NK, costs, budget)
    dealt = np.random.default_rng(0).permutation(ours)
    assert spent(costs, ours) <= budget
    assert accuracy(labels, oracle) >= accuracy(labels, ours) >= accuracy(labels, dealt)
    assert accuracy(labels, ours) > accuracy(labels, uniform(costs, budget)) + 0.05


def test_a_floor_is_met_on_held_out_inputs_with_fewer_tokens_than_uniform(table):
    held, fresh = made_table(150, seed=5)[0], made_table(200, seed=6)[0]
    method = replace(FAST, head="curve", allocation="floor", target_acc=0.8).fit(table[0], held)
    k = method.allocate(fresh.inputs, costs_of(fresh))
    assert accuracy(fresh, k) >= 0.8 - 0.06  # 200 inputs
    enough = next(j for j in range(K + 1) if fresh.accuracy_NK[:, j].mean() >= 0.8)
    assert spent(costs_of(fresh), k) < costs_of(fresh)[:, enough].sum()
    with pytest.raises(InputError, match="at most"):
        replace(method, target_acc=1.0).allocate(fresh.inputs, costs_of(fresh))


def test_a_stream_keeps_its_mean(fitted):
    fresh = made_table(600, seed=7)[0]
    costs = costs_of(fresh)
    method = replace(fitted["curve"], allocation="stream", mean_k=1.0)
    k = method.allocate(fresh.inputs, costs)
    assert spent(costs, k) == pytest.approx(costs[:, 1].sum(), rel=0.05)


# -- a workload -----------------------------------------------------------------------------------

POOL = [Example(f"d{i}", f"thing {i}", f"answer {i}") for i in range(9)]


def count(text):
    return len(text.split())


@pytest.mark.parametrize("cache_friendly", [False, True])
def test_a_workload_sends_the_prompts_that_it_budgets(fitted, cache_friendly):
    method = replace(fitted["ordinal"], mean_k=1.5, cache_friendly=cache_friendly, selector="fixed")
    inputs = [Example(f"x{i}", KINDS[i % 3].format(i), "yes") for i in range(12)]
    served = method.run(lambda prompts: ["yes"] * len(prompts), inputs, {"": POOL}, count=count)
    load = served.workload
    template = method.template()
    for x, k, prompt, tokens in zip(inputs, load.k_N, load.prompts, load.tokens_N, strict=True):
        assert prompt == template.prompt(x, POOL[:k])
        assert tokens == count(prompt)
    target = served.ledger.totals(role="target")
    assert target.prompt == sum(count(prompt) for prompt in load.prompts)
    assert served.ledger.totals(role="scorer").prompt == load.controller_tokens
    assert load.demo_tokens_N.sum() <= 1.5 * 12 * count(template.written(POOL[0]))
    assert served.accuracy == 1.0


def test_appended_demonstrations_share_more_of_the_prompts(fitted):
    inputs = [Example(f"x{i}", KINDS[i % 3].format(i), "yes") for i in range(12)]
    method = replace(fitted["ordinal"], mean_k=2, selector="fixed")
    shared = []
    for appended in (False, True):
        load = replace(method, cache_friendly=appended).plan(inputs, {"": POOL}, count=count)
        shared.append(prefix_cached([prompt.split() for prompt in load.prompts]))
    assert shared[1] > shared[0]


def test_answers_and_demonstrations_do_not_reach_the_controller(fitted):
    method = replace(fitted["ordinal"], mean_k=1)
    inputs = [Example(f"x{i}", KINDS[i % 3].format(i), "yes") for i in range(9)]
    other = [replace(x, answer="no") for x in inputs]
    swapped = [replace(d, answer="different", input=f"other {d.input[6:]}") for d in POOL]
    a = method.plan(inputs, {"": POOL}, count=count)
    b = method.plan(other, {"": swapped}, count=count)
    assert (a.k_N == b.k_N).all()


def test_a_window_lowers_k_and_says_so(fitted):
    method = replace(fitted["ordinal"], mean_k=4, max_context=20)
    inputs = [Example(f"x{i}", KINDS[2].format(i)) for i in range(4)]
    load = method.plan(inputs, {"": POOL}, count=count)
    assert load.tokens_N.max() <= 20
    assert "window" in load.warnings[0]


def test_a_budget_of_the_call_takes_the_place_of_the_methods_own(fitted):
    inputs = [Example(f"x{i}", KINDS[i % 3].format(i)) for i in range(9)]
    method = replace(fitted["ordinal"], mean_k=4)
    budget = Budget(tokens=30, counts="prompt")
    load = method.plan(inputs, {"": POOL}, count=count, budget=budget)
    assert 24 < load.demo_tokens_N.sum() <= 30
    with pytest.raises(BudgetError, match="prompt"):
        method.plan(inputs, {"": POOL}, count=count, budget=Budget(tokens=30))


# -- one input at a time --------------------------------------------------------------------------

CONTEXT = "".join(f"demonstration {i};" for i in range(6))


def characters(text):
    return len(text)


def test_compress_keeps_whole_demonstrations_within_the_cap(fitted):
    for limit in (0, 10, 16, 40, 500):
        for head in ("ordinal", "curve"):
            method = replace(fitted[head], delimiter=";", lam=0.0)
            budget = Budget(tokens=max(1, limit), counts="prompt")
            made = method.compress(CONTEXT, "hard word 1", budget, count=characters)
            assert made.tokens == len(made.text) <= max(1, limit)
            assert made.text == CONTEXT[len(CONTEXT) - len(made.text) :]
            assert made.text.count(";") == made.report["k"] <= K


def test_compress_gives_hard_inputs_more_and_meets_the_mean(fitted):
    method = replace(fitted["curve"], delimiter=";", mean_k=1.0)
    fresh, kind = made_table(300, seed=9)
    budget = Budget(tokens=10_000, counts="prompt")
    ks = np.array(
        [
            method.compress(CONTEXT, text, budget, count=characters).report["k"]
            for text in fresh.inputs
        ]
    )
    assert ks[kind == 0].mean() < ks[kind == 1].mean() + 0.2 < ks[kind == 2].mean() + 0.4
    assert ks.mean() == pytest.approx(1.0, abs=0.25)


def test_the_uniform_baseline_keeps_what_fits():
    budget = Budget(tokens=40, counts="prompt")
    last = UniformDemonstrations(delimiter=";").compress(CONTEXT, "x", budget, count=characters)
    assert last.text == "demonstration 4;demonstration 5;"
    first = UniformDemonstrations(k=1, delimiter=";", first=True)
    assert first.compress(CONTEXT, "x", budget, count=characters).text == "demonstration 0;"
    assert isinstance(first, Compressor)
    assert isinstance(FAST, Compressor)


# -- reports --------------------------------------------------------------------------------------


def test_savings_are_measured_at_equal_accuracy():
    made = saving(15, 0.75, [0, 10, 20, 30], [0.2, 0.6, 0.7, 0.8])
    assert made.uniform == pytest.approx(25)
    assert made.normalised == pytest.approx(0.4)
    assert saving(15, 0.9, [0, 10], [0.2, 0.6]).normalised is None
    assert saving(0, 0.1, [0, 10], [0.2, 0.6]).normalised is None


def test_break_even_is_the_ratio_of_tokens_read_to_tokens_saved():
    assert break_even(100, 25) == 4
    assert break_even(100, 0) == float("inf")


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=8))
def test_prefix_caching_saves_what_a_trie_would(prompts):
    nodes = {tuple(prompt[:i]) for prompt in prompts for i in range(1, len(prompt) + 1)}
    assert prefix_cached(prompts) == sum(map(len, prompts)) - len(nodes)


# -- saving, and bad input ------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["ordinal", "curve"])
def test_a_saved_controller_predicts_the_same(fitted, head, tmp_path):
    folder = fitted[head].save(tmp_path / "c")
    again = DynaICL(K=K, saved=str(folder))
    texts = ["easy 1", "hard word 4"]
    assert again.predict(texts).needed_N == pytest.approx(
        fitted[head].predict(texts).needed_N, abs=1e-5
    )
    with pytest.raises(InputError, match="K=4"):
        DynaICL(K=8, saved=str(folder)).trained()
    other = fitted["curve" if head == "ordinal" else "ordinal"]
    other.save(folder)  # what is read is what is there now
    assert again.trained().head == other.head


def test_a_broken_or_missing_controller_is_refused(fitted, tmp_path):
    with pytest.raises(ModelError, match="no controller"):
        Controller.load(tmp_path / "nowhere")
    folder = fitted["ordinal"].save(tmp_path / "c")
    (folder / "controller.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="can be read"):
        Controller.load(folder)
    with pytest.raises(InputError, match="saved="):
        FAST.predict(["x"])
    controller = fitted["ordinal"].trained()
    with pytest.raises(ModelError, match="K=5"):
        replace(controller, K=5)
    with pytest.raises(ModelError, match="not finite"):
        replace(controller, weights={n: w * np.nan for n, w in controller.weights.items()})


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"K": 0}, "K=0"),
        ({"t": 1.0}, "t=1"),
        ({"lam": -0.1}, "lam"),
        ({"beta": 0.0}, "beta"),
        ({"budget_tokens": -1}, "budget_tokens"),
        ({"mean_k": 9.0}, "mean_k"),
        ({"target_acc": 1.1}, "target_acc"),
        ({"head": "tail"}, "head"),
        ({"pg": "ppo"}, "pg"),
        ({"allocation": "fair"}, "allocation"),
        ({"selector": "best"}, "selector"),
        ({"delimiter": ""}, "delimiter"),
        ({"margin": -1.0}, "margin"),
    ],
)
def test_a_knob_out_of_range_is_named(knobs, match):
    with pytest.raises(InputError, match=match):
        DynaICL(**knobs)


@pytest.mark.parametrize(
    "knobs", [{"epochs": 0}, {"lr": 0.0}, {"rl_epochs": -1}, {"kl": -1.0}, {"cost": "money"}]
)
def test_impossible_trainings_are_refused(knobs):
    with pytest.raises(InputError, match=next(iter(knobs))):
        Training(**knobs)


def test_what_cannot_be_allocated_or_fitted_is_refused(table, fitted):
    labels, method = table[0], fitted["ordinal"]
    with pytest.raises(InputError, match="empty"):
        method.predict([])
    with pytest.raises(InputError, match="budget"):
        method.allocate(labels.inputs, costs_of(labels))
    with pytest.raises(InputError, match="target_acc"):
        replace(method, allocation="floor").allocate(labels.inputs, costs_of(labels))
    with pytest.raises(InputError, match="costs"):
        replace(method, mean_k=1).allocate(labels.inputs, costs_of(labels)[:, :-1])
    with pytest.raises(InputError, match="both tables"):
        FAST.fit(labels, labels)
    with pytest.raises(InputError, match="K=4"):
        DynaICL(K=8, controller="hash").fit(labels)
    with pytest.raises(InputError, match="question"):
        method.compress(CONTEXT, " ", Budget(tokens=9, counts="prompt"), count=characters)
    with pytest.raises(InputError, match="lam"):
        rewards(labels, -1.0)
