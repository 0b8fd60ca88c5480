"""Trees train what rows train: masks, log-probabilities, gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from anytime_runs import METHOD, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outlay.errors import CapabilityError
from outlay.rl.anytime import AnytimeBRPO
from outlay.rl.anytime.cuts import branches
from outlay.rl.anytime.outcomes import Outcome
from outlay.rl.anytime.packing import Line, rows, tree, tree_mask, tree_positions
from outlay.rl.anytime.trainer import additive, check_attention, takes_masks
from outlay.rl.base import Judgement
from tiny_models import tiny_network

NOTHING = Judgement(False, 0.0, False, 1, 1, 0, False)
FORCED, NATURAL = (5, 6, 7), (9,)


def outcome(length: int, ended: bool, budgets: tuple[int, ...], n: int, seed: int) -> Outcome:
    """A thinking of random tokens with n random answers for every budget."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, 60, (size,), generator=generator).tolist())

    cuts = branches(length, ended, budgets)
    return Outcome(
        thinking=draw(length),
        ended=ended,
        cuts=tuple(cuts),
        suffixes=tuple(FORCED if one.forced else NATURAL for one in cuts),
        summaries=tuple(
            tuple(draw(1 + (seed + k) % 3) for k in range(n * len(one.slots))) for one in cuts
        ),
        rewards=tuple((0.0,) * n for _ in budgets),
        last=NOTHING,
    )


def chosen_of(one: Outcome) -> list[list[tuple[tuple[int, ...], float]]]:
    return [
        [(ids, 10.0 * at + k) for k, ids in enumerate(given)]
        for at, given in enumerate(one.summaries)
    ]


def forward(model: Any, question: list[int], line: Line) -> Tensor:
    """Log-probabilities of the line's tokens, each from the token before it in the line."""
    prompt_1P = torch.ones(1, len(question), dtype=torch.long)
    ones_1T = torch.ones(1, len(line.ids), dtype=torch.long)
    parts = [torch.tensor([values]) for values in (line.cut, line.branch, line.leaf)]
    seen = tree_mask(prompt_1P, ones_1T, *parts)
    logits = model(
        input_ids=torch.tensor([question + line.ids]),
        attention_mask=additive(seen, torch.float32),
        position_ids=tree_positions(prompt_1P, torch.tensor([line.position])),
    ).logits[0]
    logps = logits.log_softmax(-1)[len(question) - 1 : -1]
    return logps.gather(1, torch.tensor(line.ids)[:, None])[:, 0]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 24), st.booleans(), st.integers(1, 3), st.integers(0, 100))
def test_log_probabilities_of_a_tree_equal_those_of_rows(
    length: int, ended: bool, n: int, seed: int
) -> None:
    budgets = (4, 9, 24)
    one = outcome(length, ended or length < 24, budgets, n, seed)
    model = network("sdpa")
    question = [3, 4, 8, 11]
    dense = [0.5] * length
    with torch.no_grad():
        packed = tree(one, dense, chosen_of(one))
        logps = forward(model, question, packed)
        mine = [float(p) for p, t in zip(logps, packed.trained, strict=True) if t]
        theirs: list[float] = []
        for line in rows(one, dense, chosen_of(one)):
            out = forward(model, question, line)
            theirs += [float(p) for p, t in zip(out, line.trained, strict=True) if t]
    assert mine == pytest.approx(theirs, abs=1e-5)


def test_without_a_template_answers_follow_the_thinking_itself() -> None:
    one = replace(outcome(6, True, (3, 6), 2, 1), suffixes=((), ()))
    model, question = network("sdpa"), [3, 4]
    with torch.no_grad():
        packed = tree(one, [0.0] * 6, chosen_of(one))
        mine = [
            float(p)
            for p, t in zip(forward(model, question, packed), packed.trained, strict=True)
            if t
        ]
        theirs: list[float] = []
        for line in rows(one, [0.0] * 6, chosen_of(one)):
            out = forward(model, question, line)
            theirs += [float(p) for p, t in zip(out, line.trained, strict=True) if t]
    assert mine == pytest.approx(theirs, abs=1e-5)


def network(attention: str) -> Any:
    return tiny_network("Llama", attn_implementation=attention)


def test_eager_attention_takes_the_additive_mask() -> None:
    one = outcome(12, True, (4, 12), 2, 3)
    packed = tree(one, [0.0] * 12, chosen_of(one))
    with torch.no_grad():
        found = [forward(network(kind), [3, 4], packed) for kind in ("sdpa", "eager")]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_the_mask_equals_the_papers_rule_for_branches_with_their_own_template() -> None:
    """j <= i and (j < i - start_i or j >= i - end_i), with start = l2 + k - l1 and end = k."""
    cuts, sizes, question, length = (4, 4, 9), (3, 2, 4), 2, 9
    size = question + length + sum(sizes)
    start, end = [0] * size, [0] * size
    cut, branch = [0] * length, [-1] * length
    place = question + length
    for number, (l1, count) in enumerate(zip(cuts, sizes, strict=True)):
        for k in range(count):
            start[place + k] = (place - question) + k - l1
            end[place + k] = k
        place += count
        cut += [l1] * count
        branch += [number] * count
    rule = torch.zeros(size, size, dtype=torch.bool)
    for i in range(size):
        for j in range(i + 1):
            rule[i, j] = j < i - start[i] or j >= i - end[i]
    ones = torch.ones(1, size - question, dtype=torch.long)
    alone = torch.full((1, size - question), -1)
    found = tree_mask(
        torch.ones(1, question, dtype=torch.long),
        ones,
        torch.tensor([cut]),
        torch.tensor([branch]),
        alone,
    )
    assert torch.equal(found[0, 0], rule)


def test_left_padding_changes_neither_positions_nor_what_is_seen() -> None:
    line = tree(
        outcome(6, True, (3, 6), 2, 1), [0.0] * 6, chosen_of(outcome(6, True, (3, 6), 2, 1))
    )
    parts = [torch.tensor([v]) for v in (line.cut, line.branch, line.leaf)]
    ones = torch.ones(1, len(line.ids), dtype=torch.long)
    plain = tree_mask(torch.ones(1, 2, dtype=torch.long), ones, *parts)[0, 0]
    padded = tree_mask(torch.tensor([[0, 0, 0, 1, 1]]), ones, *parts)[0, 0]
    assert torch.equal(padded[3:, 3:], plain)
    assert not padded[3:, :3].any()
    assert padded.any(dim=1).all()
    position = torch.tensor([line.position])
    a = tree_positions(torch.ones(1, 2, dtype=torch.long), position)[0]
    b = tree_positions(torch.tensor([[0, 0, 0, 1, 1]]), position)[0]
    assert torch.equal(a, b[3:])


def test_trained_tokens_are_the_thinking_and_the_answers_exactly() -> None:
    one = outcome(12, True, (4, 8, 16), 2, 5)
    expected = sorted([*one.thinking, *(t for given in one.summaries for s in given for t in s)])
    packed = tree(one, [1.0] * 12, chosen_of(one))
    assert sorted(t for t, on in zip(packed.ids, packed.trained, strict=True) if on) == expected
    lines = rows(one, [1.0] * 12, chosen_of(one))
    assert (
        sorted(t for line in lines for t, on in zip(line.ids, line.trained, strict=True) if on)
        == expected
    )
    for line in (packed, *lines):
        context = [a for a, on in zip(line.advantage, line.trained, strict=True) if not on]
        assert not any(context)


def test_a_tree_is_shorter_than_its_rows() -> None:
    one = outcome(24, True, (4, 9, 24), 4, 5)
    whole = sum(len(line.ids) for line in rows(one, [0.0] * 24, chosen_of(one)))
    assert len(tree(one, [0.0] * 24, chosen_of(one)).ids) < whole / 2


# -- in training ----------------------------------------------------------------------------------

BASE = replace(METHOD, budgets=(8, 16, 32))


def trained(method: AnytimeBRPO, folder: Path, **changes: Any) -> Any:
    return train(method, folder, max_steps=1, **changes)


@pytest.fixture(scope="module")
def by_tree(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(replace(BASE, packing="tree"), tmp_path_factory.mktemp("tree"))


def test_trees_and_rows_give_the_same_gradient(by_tree: Any, tmp_path: Path) -> None:
    rows_of = trained(replace(BASE, packing="rows"), tmp_path)
    assert by_tree.gradients[-1].norm() > 0
    torch.testing.assert_close(by_tree.gradients[-1], rows_of.gradients[-1], rtol=1e-3, atol=1e-6)
    assert len(by_tree.batches[0]["completion_ids"]) == 16
    assert len(rows_of.batches[0]["completion_ids"]) == 16 * (1 + 3 * 2)


def test_answers_without_an_advantage_change_no_gradient(by_tree: Any, tmp_path: Path) -> None:
    fewer = trained(replace(BASE, packing="tree", skip_flat=True), tmp_path)
    torch.testing.assert_close(by_tree.gradients[-1], fewer.gradients[-1], rtol=1e-3, atol=1e-6)
    kept = [int(one.batches[0]["tool_mask"].sum()) for one in (by_tree, fewer)]
    assert kept[1] < kept[0]


def test_several_micro_batches_give_the_gradient_of_one(by_tree: Any, tmp_path: Path) -> None:
    settings_ = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    halves = trained(replace(BASE, packing="tree"), tmp_path, **settings_)
    torch.testing.assert_close(by_tree.gradients[-1], halves.gradients[-1], rtol=1e-3, atol=1e-6)


def test_auto_packs_trees_where_the_model_can(tmp_path: Path) -> None:
    assert "tree_cut" in trained(BASE, tmp_path).batches[0]


def test_old_and_reference_scores_of_trees_are_their_own(tmp_path: Path) -> None:
    """With a KL term every row is scored by the reference model, which equals the policy here."""
    trainer = trained(replace(BASE, packing="tree"), tmp_path, beta=0.1)
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kl
    assert abs(kl[0]) < 1e-6
    assert trainer.batches[0]["ref_per_token_logps"].shape == (
        trainer.batches[0]["completion_ids"].shape
    )


def test_attention_that_ignores_masks_is_refused() -> None:
    config = tiny_network("Llama").config
    config._attn_implementation = "flash_attention_2"
    assert not takes_masks(config)
    with pytest.raises(CapabilityError, match="flash_attention_2"):
        check_attention(config)
    assert not takes_masks(tiny_network("Mistral").config)
