"""Zero-TPrune's proof at its smallest: what holds at any size holds, parts are what they say."""

from __future__ import annotations

import json

import pytest
import torch
from tests.fashion import needs_fashion

from outlay.errors import InputError
from outlay.proofs import zero_tprune
from outlay.proofs.zero_tprune_runs import (
    KEPT,
    OURS,
    SIZES,
    Cell,
    answers,
    cheapest,
    cost_of,
    gap_of,
    methods,
    shown,
    stages_of,
)
from outlay.proofs.zero_tprune_when import enlarged, flows, scored
from outlay.testbeds import garments
from outlay.vision.zero_tprune.cost import Shape, macs
from outlay.vision.zero_tprune.graph import page_rank, start
from outlay.vision.zero_tprune.schedule import counts

pytestmark = needs_fashion


@pytest.fixture(scope="module")
def result():
    torch.set_num_threads(1)
    return zero_tprune.run("ci", seed=3)


@pytest.fixture(scope="module")
def model():
    return garments.load()


def test_the_result_is_json_with_a_table_and_a_picture(result, tmp_path) -> None:
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["system"] == "zero-tprune"
    assert data["seeds"] == [3, 4, 5]
    assert {row["size"] for row in data["data"]["cells"]} == set(SIZES)
    assert len(data["data"]["blocks"]) == 12
    assert "| claim |" in result.table()
    result.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 20_000
    with pytest.raises(InputError, match="ci-scale"):
        result.save(tmp_path)


def test_every_claim_with_a_target_says_so_and_is_decided(result) -> None:
    decided = [check for check in result.checks if check.holds is not None]
    assert len(decided) == 4 + 2 + 3 + 1
    assert all("target" in check.note for check in decided)
    assert all("target" not in check.note for check in result.checks if check.holds is None)


def test_every_trial_of_the_search_is_within_its_budget(result) -> None:
    trials = result.data["trials"]
    assert trials
    assert all(trial["macs"] <= zero_tprune.BUDGET for trial in trials)


def test_all_methods_at_a_budget_cost_about_the_same(result) -> None:
    for size in SIZES:
        cost = [c["macs"] for c in result.data["cells"] if c["size"] == size and c["budget"]]
        assert max(cost) - min(cost) < 0.05
        assert max(cost) < 0.7


@pytest.mark.parametrize("budget", sorted(KEPT))
@pytest.mark.parametrize("copies", [0.0, 0.5])
def test_stages_keep_what_they_were_made_for(budget, copies) -> None:
    seen = counts(stages_of(KEPT[budget], copies), 64, 6)
    assert seen == (64, 64, 64, *KEPT[budget])


def test_methods_prune_as_much_and_merging_is_no_dearer(model) -> None:
    shape = Shape.of(model)
    pixels = shown(28, 2, [0]).tensor()
    every = methods(shape, KEPT["middle"])
    allowed = macs(shape, every[OURS])
    for name, method in every.items():
        _, kept_BK = answers(model, method, pixels)
        if kept_BK is None:
            assert method.macs(shape) <= allowed, name
        else:
            assert kept_BK.shape[1] == KEPT["middle"][-1], name
            assert cost_of(shape, method) <= allowed * 1.01, name
    assert cheapest(shape, 1, 1) is None


def test_a_larger_canvas_of_the_same_size_is_the_same_model(model) -> None:
    pixels = shown(28, 3, [0]).tensor()
    with torch.no_grad():
        again = enlarged(model, 64)(pixel_values=pixels).logits
        torch.testing.assert_close(again, model(pixel_values=pixels).logits)
        wide = enlarged(model, 128)(pixel_values=shown(56, 2, [0], 128).tensor())
    assert wide.logits.shape == (2, 20)


def test_a_gap_is_the_mean_difference_of_the_same_scenes() -> None:
    one = torch.tensor([1.0, 1, 0, 1] * 20).double().numpy()
    other = torch.tensor([1.0, 0, 0, 1] * 20).double().numpy()
    gap = gap_of(Cell("a", "", 28, one, 1.0), Cell("b", "", 28, other, 1.0))
    assert gap.mean == pytest.approx(0.25)
    assert 0 < gap.lo < 0.25 < gap.hi
    assert gap.p < 0.01


def test_shares_of_two_groups_follow_the_recurrence_of_the_module() -> None:
    """The formula of `zero_tprune_when` is exact where patches of a group behave alike."""
    inside, gives, takes = 5, 0.3, 0.2
    graph = torch.zeros(13, 13).double()
    graph[0, 0] = 1  # the class token keeps to itself
    graph[1:6, 1:6], graph[1:6, 6:] = (1 - takes) / inside, takes / 7
    graph[6:, 1:6], graph[6:, 6:] = gives / inside, (1 - gives) / 7
    object_BP = torch.tensor([[True] * 5 + [False] * 7])
    to_object, to_ground = flows(graph[None, None], object_BP)
    assert float(to_object) == pytest.approx(gives)
    assert float(to_ground) == pytest.approx(takes)
    share = 5 / 12
    for votes in (1, 2, 5):
        share = 5 / 12
        for _ in range(votes):
            share = (1 - takes) * share + gives * (1 - share)
        patches = page_rank(graph[None, None], start(13, 0, graph), votes)[0, 0, 1:]
        assert float(patches[:5].sum() / patches.sum()) == pytest.approx(share)
    settled = gives / (gives + takes)
    assert share == pytest.approx(settled + (5 / 12 - settled) * (1 - gives - takes) ** 5)


def test_sharpening_raises_attention_to_a_power() -> None:
    graph = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)).softmax(-1)
    squared = graph**2 / (graph**2).sum(-1, keepdim=True)
    torch.testing.assert_close(scored(graph, 1, power=2.0), scored(squared, 1))
