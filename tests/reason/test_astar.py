"""A*-decoding: the order of expansions, costs, budgets, books, and what happens at the end."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError, ModelError
from outlay.models.base import Account, Capabilities, SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import solve_many
from outlay.reason.astar import AStarDecoding
from outlay.reason.astar_states import COSTS, Cost, State, step_cost
from outlay.reason.search import Node
from outlay.testbeds.reasoner import parse_question
from outlay.testbeds.reasoner.oracle import ChainOracle

from .astar_trees import Path, Policy, Tree, slow_search
from .conftest import Broken, Constant, questions

SAMPLING = SamplingParams(temperature=1.0, max_tokens=120, seed=3)
ANY = Constant()
BOTH = (Constant(), ChainOracle(auc=0.7))


# -- the order of the search ----------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 4),
    texts=st.integers(1, 4),
    levels=st.sampled_from([1, 2, 4, 1000]),
    cost=st.sampled_from(COSTS),
    agg=st.sampled_from(["last", "min", "prod"]),
    cap=st.sampled_from([None, 1, 3]),
    width=st.sampled_from([1, 2, 50]),
    r_min=st.sampled_from([0.0, 0.3]),
    merge=st.booleans(),
    max_steps=st.sampled_from([2, 40]),
)
def test_states_are_expanded_in_the_order_of_a_slow_search(
    seed: int, k: int, texts: int, levels: int, cost: Cost, agg: str, cap: int | None, width: int,
    r_min: float, merge: bool, max_steps: int,
) -> None:  # fmt: skip
    tree = Tree(seed, texts=texts, levels=levels)
    method = AStarDecoding(
        ANY, k, cost, 0.25, agg, frontier_cap=cap, width=width, r_min=r_min,  # type: ignore[arg-type]
        merge_duplicates=merge, max_steps=max_steps, max_expansions=10**6,
    )  # fmt: skip
    answer = tree.search(method)
    expanded, goal = slow_search(tree, method)
    assert tree.expanded[: len(expanded)] == expanded
    assert answer.detail["expansions"] == len(expanded)
    if goal is not None:
        assert (answer.status, answer.text) == ("goal", goal)
    else:
        assert answer.status in ("budget_goal", "completed_greedily")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), shuffle=st.integers(1, 3), cost=st.sampled_from(COSTS))
def test_the_order_of_siblings_does_not_matter(seed: int, shuffle: int, cost: Cost) -> None:
    method = AStarDecoding(ANY, 4, cost)
    trees = [Tree(seed, levels=10**9, shuffle=turn) for turn in (0, shuffle)]
    first, second = (tree.search(method) for tree in trees)
    assert trees[0].expanded == trees[1].expanded
    assert first.text == second.text


def test_equal_scores_go_straight_down_one_chain() -> None:
    costs: tuple[Cost, ...] = ("increase", "zero")
    for cost in costs:
        tree = Tree(depth=6, ends=0.0, reward=lambda path: 0.5)
        answer = tree.search(AStarDecoding(ANY, 3, cost))
        assert [len(path) for path in tree.expanded] == list(range(6))
        assert all(path == tree.expanded[-1][: len(path)] for path in tree.expanded)
        assert answer.detail["nodes"] == 3 * 6


def test_a_perfect_verifier_expands_one_path_and_judges_k_states_a_step() -> None:
    wanted: Path = ("2;", "0;", "3;", "1;", "A2")
    tree = Tree(depth=5, ends=0.0, reward=lambda path: float(path == wanted[: len(path)]))
    answer = tree.search(AStarDecoding(ANY, 4))
    assert answer.text == "".join(wanted)
    assert answer.detail["expansions"] == 5
    assert answer.detail["passes"] == len(tree.asked) == 4 * 5
    assert answer.detail["expansions_by_depth"] == [1] * 5


def test_a_parents_scores_are_known_to_the_verifier() -> None:
    tree = Tree(7)
    tree.search(AStarDecoding(ANY, 3))
    assert tree.asked
    assert all(known == steps - 1 for steps, known in tree.asked)


def test_a_cap_of_one_never_goes_back() -> None:
    for seed in range(20):
        tree = Tree(seed, levels=10**9, ends=0.0)
        tree.search(AStarDecoding(ANY, 4, frontier_cap=1))
        for path, longer in pairwise(tree.expanded):
            assert longer[:-1] == path
            best = max(tree.score((*path, tree.step(path, i)[0])) for i in range(4))
            assert tree.score(longer) == best


def test_an_unlimited_width_expands_level_by_level() -> None:
    for seed in range(10):
        tree = Tree(seed, ends=0.0, depth=4)
        tree.search(AStarDecoding(ANY, 2, width=10**6, max_expansions=10**6))
        assert [len(path) for path in tree.expanded] == [0, 1, 1, 2, 2, 2, 2, *([3] * 8)]


def test_a_search_goes_back_to_an_older_sibling_when_its_branch_decays() -> None:
    scores = {("0;",): 0.9, ("0;", "0;"): 0.1, ("0;", "1;"): 0.1, ("1;",): 0.6, ("1;", "1;"): 0.6}
    tree = Tree(depth=3, ends=0.0, texts=2, reward=lambda path: scores.get(path, 0.2))
    tree.search(AStarDecoding(ANY, 2))
    assert tree.expanded[:4] == [(), ("0;",), ("1;",), ("1;", "1;")]


# -- costs ----------------------------------------------------------------------------------------

REWARDS = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def _path(cost: Cost, rewards: list[float], lam: float = 0.1) -> list[State]:
    states = [State(Node(None))]  # type: ignore[arg-type]
    for reward in rewards:
        parent, h = states[-1], 1 - reward
        paid = step_cost(cost, lam, parent, h, (-1.0, -2.0))
        states.append(replace(parent, reward=reward, h=h, g=parent.g + paid, depth=len(states)))
    return states[1:]


@given(rewards=REWARDS)
def test_an_increase_is_paid_for_ever(rewards: list[float]) -> None:
    states = _path("increase", rewards)
    assert all(b.g >= a.g for a, b in pairwise(states))
    drops = sum(max(0.0, a - b) for a, b in pairwise(rewards))
    assert states[-1].g == pytest.approx(drops)


@given(rewards=REWARDS)
def test_with_decrease_f_never_falls_along_a_path(rewards: list[float]) -> None:
    assert all(b.f >= a.f - 1e-12 for a, b in pairwise(_path("decrease", rewards)))


@given(rewards=REWARDS)
def test_without_cost_f_is_what_is_missing(rewards: list[float]) -> None:
    assert [state.f for state in _path("zero", rewards)] == [1 - reward for reward in rewards]


@given(rewards=REWARDS, lam=st.floats(0, 1))
def test_length_and_log_probability_are_charged_per_step(rewards: list[float], lam: float) -> None:
    n = len(rewards)
    assert _path("length", rewards, lam)[-1].g == pytest.approx(lam * n)
    assert _path("logprob", rewards, lam)[-1].g == pytest.approx(1.5 * lam * n)
    assert step_cost("logprob", lam, State(Node(None)), 0.5, None) == 0  # type: ignore[arg-type]


# -- with the reasoner ----------------------------------------------------------------------------


@pytest.mark.parametrize("cost", COSTS)
def test_one_successor_is_plain_sampling_step_by_step(reasoner: LocalModel, cost: Cost) -> None:
    (question,) = questions(1, (5, 5))
    branch = reasoner.open(question.prompt)
    step = replace(SAMPLING, stop=(question.delimiter,))
    while branch.finish != "eos":
        [[branch]] = reasoner.extend([branch], step)
    for verifier in BOTH:
        answer = AStarDecoding(verifier, 1, cost).solve(reasoner, question, sampling=SAMPLING)
        assert answer.text == branch.completion()
        assert answer.chosen is not None
        assert answer.chosen.completion_ids() == branch.completion_ids()
        assert answer.ledger.totals().discarded == 0


def test_many_questions_at_a_time_search_as_one_does(reasoner: LocalModel) -> None:
    some = questions(5, (4, 7))
    for method in (
        AStarDecoding(ChainOracle(auc=0.8), 3),
        AStarDecoding(ChainOracle(auc=0.8), 4, k_min=1, width=2, calibrate=True),
    ):
        alone = [method.solve(reasoner, q, Budget(tokens=250), SAMPLING) for q in some]
        batch = solve_many(method, reasoner, some, Budget(tokens=250), SAMPLING, together=3)
        assert [a.text for a in alone] == [a.text for a in batch]
        assert [a.detail for a in alone] == [a.detail for a in batch]
        assert [a.ledger.totals().generated for a in alone] == [
            a.ledger.totals().generated for a in batch
        ]


def test_the_truth_expands_as_often_as_the_chain_is_long(reasoner: LocalModel) -> None:
    some = questions(8, (4, 6))
    found = solve_many(AStarDecoding(ChainOracle(), 8), reasoner, some, sampling=SAMPLING)
    whole = [a for a in found if a.scores and max(a.scores) == 1]
    assert len(whole) >= 4
    for answer in whole:
        steps = len(answer.text.split(";"))
        assert answer.detail["expansions"] == steps
        assert answer.value is not None
    right = [a.value == parse_question(q.text).answer for a, q in zip(found, some, strict=True)]
    assert all(r for r, a in zip(right, found, strict=True) if a in whole)


@pytest.mark.parametrize("tokens", [1, 9, 40, 150])
def test_no_budget_is_exceeded_and_every_token_is_accounted_for(
    reasoner: LocalModel, tokens: int
) -> None:
    for method in (
        AStarDecoding(ANY, 3),
        AStarDecoding(ChainOracle(auc=0.6), 5, width=2, merge_duplicates=False),
        AStarDecoding(ChainOracle(auc=0.6), 2, stop_rule="m_goals"),
    ):
        for answer in solve_many(method, reasoner, questions(4), Budget(tokens=tokens), SAMPLING):
            total = answer.ledger.totals()
            assert total.generated <= tokens
            assert total.generated + total.forced == total.delivered + total.discarded
            assert answer.status in ("goal", "budget_goal", "completed_greedily")


def test_passes_are_those_in_the_ledger(reasoner: LocalModel) -> None:
    verifier = ChainOracle(auc=0.75)
    for answer in solve_many(
        AStarDecoding(verifier, 4), reasoner, questions(4, (6, 8)), sampling=SAMPLING
    ):
        assert answer.detail["passes"] == answer.ledger.totals(role="verifier").calls
        assert answer.detail["passes"] <= answer.detail["nodes"]
        assert answer.detail["nodes"] == 4 * answer.detail["expansions"]


def test_an_expansion_that_does_not_fit_is_not_started(reasoner: LocalModel) -> None:
    (question,) = questions(1, (8, 8))
    for knobs, stopped in (
        ({"max_expansions": 3}, "max_expansions"),
        ({"max_passes": 13}, "max_passes"),
        ({"max_expansions": 3, "width": 2}, "max_expansions"),
    ):
        method = AStarDecoding(ANY, 4, merge_duplicates=False, **knobs)  # type: ignore[arg-type]
        answer = method.solve(reasoner, question, sampling=SAMPLING)
        assert answer.detail["stopped"] == stopped
        assert answer.detail["expansions"] == 3
        assert answer.detail["passes"] == 12
    short = AStarDecoding(ANY, 4).solve(reasoner, question, Budget(tokens=100), SAMPLING)
    assert short.detail["stopped"] == "tokens"
    assert short.status == "completed_greedily"


def test_a_search_that_runs_out_completes_its_best_state(reasoner: LocalModel) -> None:
    (question,) = questions(1, (4, 4))
    question = replace(question, prompt=f"{question.prompt}<short>")
    method = AStarDecoding(ChainOracle(), 6, max_expansions=3)
    answer = method.solve(reasoner, question, sampling=SAMPLING)
    assert answer.status == "completed_greedily"
    assert answer.value == parse_question(question.text).answer
    assert answer.chosen is not None
    assert answer.chosen.depth == 4
    only = AStarDecoding(ANY, 6).solve(reasoner, question, Budget(tokens=8), SAMPLING)
    plain = reasoner.generate(question.prompt, sampling=replace(SAMPLING, temperature=0.0))
    assert plain.text.startswith(only.text)


def test_siblings_never_compute_their_prefix_again(reasoner: LocalModel) -> None:
    (question,) = questions(1, (8, 8))
    before = reasoner.computed_tokens
    method = AStarDecoding(ChainOracle(auc=0.7), 4)
    answer = method.solve(reasoner, question, sampling=SAMPLING)
    total = answer.ledger.totals(role="target")
    computed = reasoner.computed_tokens - before
    assert computed <= 1.05 * (total.prompt_new + total.generated + total.forced)
    assert total.prompt_new == len(reasoner.prompt_ids(question.prompt))


# -- states, goals and the end --------------------------------------------------------------------


def test_without_its_goal_a_search_returns_the_next_best() -> None:
    tree = Tree(3, levels=10**9)
    first = tree.search(AStarDecoding(ANY, 3))
    second = tree.search(AStarDecoding(ANY, 3), refused=[first.text])
    assert (first.status, second.status) == ("goal", "goal")
    assert second.text != first.text
    assert second.detail["dead"] == 1


def test_a_finished_text_without_an_answer_is_no_goal() -> None:
    tree = Tree(depth=1, texts=2, reward=lambda path: 1.0)
    answer = tree.search(AStarDecoding(ANY, 2), refused=["A0", "A1"])
    assert answer.detail["dead"] == 2
    assert (answer.status, answer.detail["stopped"]) == ("completed_greedily", "exhausted")


def test_several_goals_vote_by_their_scores() -> None:
    scores: dict[Path, float] = {("A0",): 0.9, ("0;",): 0.8, ("1;",): 0.7}

    def reward(path: Path) -> float:
        return scores.get(path, 0.6 if path[-1] == "A1" else 0.1)

    class Ends(Tree):
        def step(self, path: Path, i: int) -> tuple[str, bool]:
            return [("A0", True), ("0;", False), ("1;", False)][i] if not path else ("A1", True)

    one = Ends(reward=reward).search(AStarDecoding(ANY, 3))
    three = Ends(reward=reward).search(AStarDecoding(ANY, 3, stop_rule="m_goals", m=3))
    assert (one.value, three.value) == ("0", "1")
    assert three.status == "goal"
    assert sorted(three.scores) == [0.6, 0.6, 0.9]


def test_the_best_goal_made_so_far_answers_when_the_search_is_cut() -> None:
    def reward(path: Path) -> float:
        return {"A0": 0.2, "A1": 0.3}.get(path[-1], 0.9) - 0.1 * (len(path) - 1)

    class Ends(Tree):
        def step(self, path: Path, i: int) -> tuple[str, bool]:
            return [("A0", True), ("A1", True), ("2;", False)][i]

    answer = Ends(reward=reward).search(AStarDecoding(ANY, 3, max_expansions=2))
    assert (answer.status, answer.value) == ("budget_goal", "1")


def test_equal_successors_are_merged_and_blank_ones_not_pushed() -> None:
    class Blank(Tree):
        def step(self, path: Path, i: int) -> tuple[str, bool]:
            return (" ;", False) if i == 0 else super().step(path, i)

    merged = Tree(1, texts=1, ends=0.0).search(AStarDecoding(ANY, 4))
    assert merged.detail["duplicates"] == 3 * 4
    assert merged.detail["passes"] == 4
    apart = Tree(1, texts=1, ends=0.0).search(AStarDecoding(ANY, 4, merge_duplicates=False))
    assert apart.detail["duplicates"] == 0
    assert apart.detail["passes"] == apart.detail["nodes"]
    blank = Blank(1, texts=1, ends=0.0).search(AStarDecoding(ANY, 1))
    assert (blank.detail["duplicates"], blank.detail["passes"]) == (1, 0)


def test_fewer_successors_where_the_verifier_is_sure() -> None:
    class Counted(Tree):
        def step(self, path: Path, i: int) -> tuple[str, bool]:
            counts[path] = max(counts.get(path, 0), i + 1)
            return super().step(path, i)

    counts: dict[Path, int] = {}
    tree = Counted(2, depth=5, ends=0.0)
    tree.search(AStarDecoding(ANY, 4, k_min=2))
    assert counts.pop(()) == 4
    assert counts
    for path, count in counts.items():
        assert count == 2 + round((1 - tree.score(path)) * 2)


def test_calibration_lets_a_drifting_verifier_go_down() -> None:
    tree = Tree(depth=6, ends=0.0, reward=lambda path: 0.9 - 0.1 * len(path))
    plain = tree.search(AStarDecoding(ANY, 2, "zero", max_expansions=10**4))
    calibrated = tree.search(AStarDecoding(ANY, 2, "zero", calibrate=True))
    assert plain.detail["expansions"] == 2**6 - 1
    assert calibrated.detail["expansions"] == 6


def test_a_stride_halves_the_looks_of_the_verifier_and_changes_no_score() -> None:
    wanted: Path = ("2;", "0;", "3;", "1;", "1;", "A2")
    tree = Tree(depth=6, ends=0.0, reward=lambda path: float(path == wanted[: len(path)]))
    two = tree.search(AStarDecoding(ANY, 4, stride=2, max_expansions=10**4))
    assert all(steps - known == 2 for steps, known in tree.asked)
    assert two.detail["passes"] == len(tree.asked)
    single = Tree(depth=6, ends=0.0, texts=1).search(AStarDecoding(ANY, 1))
    double = Tree(depth=6, ends=0.0, texts=1).search(AStarDecoding(ANY, 1, stride=2))
    assert (single.text, single.detail["passes"]) == (double.text, 2 * double.detail["passes"])


def test_a_stride_ends_where_a_path_does_and_at_max_steps() -> None:
    tree = Tree(depth=5, ends=0.0, texts=2)
    answer = tree.search(AStarDecoding(ANY, 2, stride=3))
    assert answer.text.count("A") == 1
    assert max(len(path) for path in tree.expanded) == 4
    short = Tree(depth=50, ends=0.0, texts=2)
    cut = short.search(AStarDecoding(ANY, 2, stride=3, max_steps=5, max_expansions=10**4))
    assert cut.status == "completed_greedily"
    deepest = max(len(path) for path in short.expanded[:-1])  # the last one completes
    assert deepest == 4  # five steps at most


def test_equal_siblings_of_a_stride_go_on_in_different_ways(reasoner: LocalModel) -> None:
    class Seen(Constant):
        def score(self, questions, paths, known, *, accounts):  # type: ignore[no-untyped-def]
            looks.append([tuple(path) for path in paths])
            return super().score(questions, paths, known, accounts=accounts)

    looks: list[list[tuple[str, ...]]] = []
    (question,) = questions(1, (6, 6))
    hot = replace(SAMPLING, temperature=1.8)
    AStarDecoding(Seen(), 6, stride=2, max_expansions=4).solve(reasoner, question, sampling=hot)
    firsts = [path[0] for path in looks[0]]
    assert len(set(looks[0])) == len(looks[0])
    assert len(set(firsts)) < len(firsts)  # one first step, several second ones


def test_one_successor_with_a_stride_is_plain_sampling_too(reasoner: LocalModel) -> None:
    for question in questions(3, (4, 5)):
        one, two = (
            AStarDecoding(ANY, 1, stride=n).solve(reasoner, question, sampling=SAMPLING)
            for n in (1, 2)
        )
        assert one.text == two.text
        assert one.ledger.totals().generated == two.ledger.totals().generated


def test_agreement_saves_passes_and_is_judged_later() -> None:
    class Agreed(Tree):
        def step(self, path: Path, i: int) -> tuple[str, bool]:
            return super().step(path, 0 if len(path) % 2 else i)

    tree = Agreed(3, depth=5, ends=0.0, levels=10**9)
    always = AStarDecoding(ANY, 3, max_expansions=10**4)
    tree.search(replace(always, judge_agreed=False))
    assert {steps - known for steps, known in tree.asked} == {1, 2}
    assert all(steps % 2 for steps, _ in tree.asked)
    same = Tree(1, texts=1, ends=0.0)
    answer = same.search(replace(always, judge_agreed=False))
    assert same.asked == []
    assert (answer.status, answer.detail["passes"]) == ("goal", 0)
    split = [Tree(5, texts=4, ends=0.0) for _ in range(2)]  # where nothing agrees nothing changes
    first, second = (
        tree.search(replace(always, judge_agreed=agreed))
        for tree, agreed in zip(split, (True, False), strict=True)
    )
    assert (first.text, split[0].asked) == (second.text, split[1].asked)


@pytest.mark.parametrize("knobs", [{"stride": 3}, {"judge_agreed": False}])
@pytest.mark.parametrize("tokens", [5, 30, 90])
def test_fewer_looks_stay_in_the_budget_too(
    reasoner: LocalModel, knobs: dict[str, object], tokens: int
) -> None:
    method = AStarDecoding(ChainOracle(auc=0.8), 3, **knobs)  # type: ignore[arg-type]
    for question in questions(3, (4, 6)):
        answer = method.solve(reasoner, question, Budget(tokens=tokens), SAMPLING)
        total = answer.ledger.totals()
        assert total.generated <= tokens
        assert total.generated == total.delivered + total.discarded
        assert answer.detail["passes"] == answer.ledger.totals(role="verifier").calls


def test_dropped_and_pruned_states_give_their_memory_back(reasoner: LocalModel) -> None:
    (question,) = questions(1, (6, 6))
    method = AStarDecoding(ChainOracle(auc=0.6), 4, frontier_cap=2, r_min=0.1)
    answer = method.solve(reasoner, question, sampling=SAMPLING)
    assert answer.detail["pruned"] > 0
    assert answer.text


def test_a_delimiter_that_never_comes_is_reported(reasoner: LocalModel) -> None:
    (question,) = questions(1, (3, 3))
    with pytest.warns(UserWarning, match="step_tokens=5"):
        answer = AStarDecoding(ANY, 2, step_tokens=5).solve(
            reasoner, replace(question, delimiter="@"), sampling=SAMPLING
        )
    assert answer.value is not None


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"k": 0}, "k=0"),
        ({"width": 0}, "width=0"),
        ({"frontier_cap": 0}, "frontier_cap=0"),
        ({"m": 0}, "m=0"),
        ({"k_min": 5}, "k_min=5"),
        ({"max_passes": 0}, "max_passes=0"),
        ({"cost": "dear"}, "cost='dear'"),
        ({"stop_rule": "never"}, "stop_rule='never'"),
        ({"agg": "median"}, "agg='median'"),
        ({"lam": float("nan")}, "lam=nan"),
        ({"r_min": 2.0}, "r_min=2.0"),
        ({"answer_reserve": 0}, "answer_reserve=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"step_tokens": 0}, "step_tokens=0"),
        ({"stride": 0}, "stride=0"),
        ({"judge_agreed": False, "merge_duplicates": False}, "judge_agreed=False"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        AStarDecoding(ANY, **knobs)  # type: ignore[arg-type]


def test_a_search_without_any_limit_is_refused() -> None:
    with pytest.raises(InputError, match="nothing limits the search"):
        Tree().search(AStarDecoding(ANY, max_expansions=None))
    assert Tree().search(AStarDecoding(ANY, max_expansions=None, max_passes=100)).text


def test_a_prompt_without_room_for_an_answer_is_refused(reasoner: LocalModel) -> None:
    (question,) = questions(1)
    method = AStarDecoding(ANY, answer_reserve=reasoner.context_length)
    with pytest.raises(InputError, match="answer_reserve=640"):
        method.solve(reasoner, question, Budget(tokens=50), SAMPLING)


def test_models_without_stop_strings_or_log_probabilities_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Policy, "capabilities", Capabilities(stop=True))
    Tree().search(AStarDecoding(ANY))
    with pytest.raises(CapabilityError, match="logprobs"):
        Tree().search(AStarDecoding(ANY, cost="logprob"))
    monkeypatch.setattr(Policy, "capabilities", Capabilities())
    with pytest.raises(CapabilityError, match="stop"):
        Tree().search(AStarDecoding(ANY))


def test_a_verifier_that_answers_nonsense_is_named(reasoner: LocalModel) -> None:
    (question,) = questions(1)
    for value, said in ((float("nan"), "nan"), (1.5, "1.5")):
        broken = Broken(lambda paths, value=value: [[value] * len(p) for p in paths])
        with pytest.raises(ModelError, match=said):
            AStarDecoding(broken).solve(reasoner, question, sampling=SAMPLING)


def test_what_the_verifier_costs_is_in_the_questions_books(reasoner: LocalModel) -> None:
    (question,) = questions(1)
    account = Account.open(Budget(tokens=300))
    answer = AStarDecoding(Constant(), 2).solve(
        reasoner, question, sampling=SAMPLING, account=account
    )
    assert answer.ledger is account.ledger
    assert answer.ledger.totals(role="verifier").prompt > 0
    assert answer.ledger.totals(role="verifier").generated == 0
