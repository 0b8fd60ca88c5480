"""Ada-GRPO: what a reward is scaled by, which formats count, reductions, against references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.reason.adaptive.presets import PRESETS
from outlay.rl import BudgetGRPOTrainer, make_config
from outlay.rl.ada_grpo import AdaGRPO, all_formats
from outlay.rl.base import Context, Judgement, Method, Row
from outlay.rl.rewards import accuracy
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.chainarith_rl import build_tokenizer, dataset, load, problems, render_trace

T = 200


def judged(style: str | None, *, right: bool = True, ok: bool = True) -> Judgement:
    return Judgement(right, float(right), ok, 9, 5, 4, truncated=False, style=style)


def context(
    rewards: Sequence[float], styles: Sequence[str | None], *, step: int = 0, group: int = 8
) -> Context:
    rows: list[Row] = [{"prompt": "p", "judgement": judged(style)} for style in styles]
    return Context(
        rows=rows,
        completion_ids=[[1]] * len(rows),
        rewards_NF=torch.tensor(rewards, dtype=torch.float64).view(-1, 1),
        weights_F=torch.ones(1, dtype=torch.float64),
        advantages_N=torch.zeros(len(rows)),
        group=group,
        step=step,
        total_steps=T,
        local=slice(0, len(rows)),
    )


# -- alpha ----------------------------------------------------------------------------------------


@given(st.integers(2, 64), st.data(), st.integers(0, 2 * T))
def test_alpha_is_the_papers_factor_in_either_form(group: int, data: Any, step: int) -> None:
    same = data.draw(st.integers(1, group))
    alpha = AdaGRPO(group_size=group).alpha(group, same, step, T)
    t = min(step, T)
    cosine = 0.5 * (1 + math.cos(math.pi * t / T))
    paper = group / same * (same / group + (1 - same / group) * cosine)
    assert alpha == pytest.approx(paper, rel=1e-12)
    assert 1 - 1e-12 <= alpha <= group / same + 1e-12


def test_alpha_begins_at_the_rarity_and_ends_at_1_and_stays_there() -> None:
    method = AdaGRPO()
    assert method.alpha(8, 2, 0, T) == 4
    assert method.alpha(8, 2, T, T) == 1
    assert method.alpha(8, 2, T + T // 2, T) == 1  # the cosine alone would rise again
    assert {method.alpha(8, 8, step, T) for step in (0, 50, 199)} == {1.0}


def test_the_other_decays() -> None:
    assert replace(AdaGRPO(), decay="none").alpha(8, 2, T, T) == 4
    assert replace(AdaGRPO(), decay="linear").alpha(8, 2, T // 2, T) == pytest.approx(2.5)
    hold = replace(AdaGRPO(), decay="hold", hold_steps=10)
    assert (hold.alpha(8, 2, 9, T), hold.alpha(8, 2, 10, T)) == (4, 1)
    assert replace(AdaGRPO(), alpha_cap=3.0).alpha(8, 1, 0, T) == 3
    assert replace(AdaGRPO(), t_total=10).alpha(8, 2, 10, T) == 1


def test_only_a_decay_without_an_end_of_its_own_needs_the_last_step() -> None:
    assert AdaGRPO().needs_total_steps
    assert not replace(AdaGRPO(), t_total=5).needs_total_steps
    assert not replace(AdaGRPO(), decay="none").needs_total_steps


# -- advantages -----------------------------------------------------------------------------------


def reference(
    rewards: Sequence[float], styles: Sequence[str | None], step: int, method: AdaGRPO
) -> list[float]:
    """Equations of section 3.2, rollout by rollout."""
    out = []
    for start in range(0, len(rewards), 8):
        paid, named = rewards[start : start + 8], styles[start : start + 8]
        alphas = [method.alpha(8, list(named).count(name), step, T) for name in named]
        scaled = [a * r for a, r in zip(alphas, paid, strict=True)]
        mean = sum(scaled) / 8
        std = math.sqrt(sum((r - mean) ** 2 for r in scaled) / 7)
        out += [(r - mean) / (std + method.eps) for r in scaled]
    return out


STYLES = st.lists(st.sampled_from(["direct", "short", "long", None]), min_size=16, max_size=16)
REWARDS = st.lists(st.sampled_from([0.0, 1.0]), min_size=16, max_size=16)


@given(REWARDS, STYLES, st.integers(0, T))
def test_advantages_equal_the_reference(
    rewards: list[float], styles: list[str | None], step: int
) -> None:
    found = AdaGRPO().advantages(context(rewards, styles, step=step))
    expected = torch.tensor(reference(rewards, styles, step, AdaGRPO()), dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_a_group_that_is_all_wrong_teaches_nothing_at_any_step() -> None:
    styles = ["direct", "short"] * 4
    for step in (0, 77, T):
        found = AdaGRPO().advantages(context([0.0] * 8, styles, step=step))
        torch.testing.assert_close(found, torch.zeros(8, dtype=torch.float64))


def test_all_right_in_one_format_teaches_nothing() -> None:
    found = AdaGRPO().advantages(context([1.0] * 8, ["long"] * 8))
    torch.testing.assert_close(found, torch.zeros(8, dtype=torch.float64))


def test_of_all_right_answers_the_rarer_format_gains_until_the_end() -> None:
    styles = ["direct"] + ["short"] * 2 + ["long"] * 5
    begun = AdaGRPO().advantages(context([1.0] * 8, styles))
    assert begun[0] > begun[1] > begun[3]
    ended = AdaGRPO().advantages(context([1.0] * 8, styles, step=T))
    torch.testing.assert_close(ended, torch.zeros(8, dtype=torch.float64))


def test_advantages_can_be_scaled_instead_of_rewards() -> None:
    styles = ["direct"] + ["long"] * 7
    rewards = [1.0, 0, 0, 0, 1, 1, 0, 0]
    plain = replace(AdaGRPO(), decay="hold", hold_steps=1).advantages(
        context(rewards, styles, step=5)
    )
    scaled = replace(AdaGRPO(), scale_on="advantage").advantages(context(rewards, styles))
    alphas = torch.tensor([8.0] + [8 / 7] * 7, dtype=torch.float64)
    torch.testing.assert_close(scaled, plain * alphas)


# -- formats --------------------------------------------------------------------------------------

ARM = PRESETS["arm"]


class Characters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, ids))


def paid(*texts: str, right: bool = True) -> list[float]:
    method = AdaGRPO(formats="arm").tokenized(Characters())
    ids = [[ord(c) for c in text] for text in texts]
    return method.formatted([judged(None, right=right)] * len(texts), ids)


def test_only_an_answer_in_a_format_of_its_own_pays() -> None:
    name = ARM.names[1]
    good = ARM.render(name, ["steps"] * len(ARM[name].blocks), "42")
    other = ARM.names[-1]
    foreign = ARM[other].blocks[0].opening
    assert paid(good) == [1.0]
    assert paid(good, right=False) == [0.0]
    assert paid("so " + good) == [0.0]  # the tag must come first
    assert paid(good + foreign) == [0.0]
    assert paid(good.replace(ARM.answer.opening, "")) == [0.0]
    assert paid("42") == [0.0]


@pytest.mark.parametrize("name", ARM.names)
def test_formats_are_those_of_the_first_tag(name: str) -> None:
    method = AdaGRPO(formats="arm").tokenized(Characters())
    text = ARM.render(name, ["x"] * len(ARM[name].blocks), "1")
    one = context([1.0], [None], group=1)
    read = replace(one, completion_ids=[[ord(c) for c in text]])
    assert method.formats_of(read) == [name]
    assert method.formats_of(replace(read, completion_ids=[[65]])) == ["unknown"]


def test_every_question_is_shown_in_every_format() -> None:
    some = problems(3, seed=1, ops=(1, 3))
    styles: tuple[Any, ...] = ("direct", "short", "long", "code")
    data = all_formats(
        (problem.question, {style: render_trace(problem, style) for style in styles})
        for problem in some
    )
    assert len(data) == 12
    assert data.column_names == ["prompt", "completion", "format"]
    assert data["format"][:4] == list(styles)
    with pytest.raises(InputError, match="every question needs the same"):
        all_formats([("a", {"x": "1", "y": "2"}), ("b", {"x": "1"})])
    with pytest.raises(InputError, match="no solutions"):
        all_formats([])


# -- in training ----------------------------------------------------------------------------------

SETTINGS = {
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_completion_length": 64,
    "max_steps": 2,
    "learning_rate": 1e-4,
    "seed": 6,
}


class Flat(Method):
    """TRL's own advantages under the same reward."""

    def reward_functions(self) -> list[Any]:
        return [AdaGRPO().formatted]


def weights(method: Method, folder: Path) -> torch.Tensor:
    torch.set_num_threads(1)
    model, tokenizer = load()
    trainer = BudgetGRPOTrainer(
        model,
        method,
        make_config(method, folder, {**SETTINGS, "beta": 0.0}, cpu=True),
        dataset(40, seed=2, ops=(1, 4)),
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
    )
    trainer.train()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_once_decayed_it_is_plain_grpo_bit_for_bit(tmp_path: Path) -> None:
    over = AdaGRPO(decay="hold", hold_steps=1, t_total=1, kl=0.0, eps=1e-4)
    decayed = replace(over, decay="cosine", t_total=1)
    plain = weights(Flat(), tmp_path / "plain")
    begun = weights(decayed, tmp_path / "begun")
    assert not torch.equal(plain, begun)  # the first step is scaled
    never = replace(decayed, alpha_cap=1.0)
    assert torch.equal(plain, weights(never, tmp_path / "never"))


def test_its_defaults_reach_trls_settings(tmp_path: Path) -> None:
    args = make_config(AdaGRPO(), tmp_path, {}, cpu=True)
    assert (args.num_generations, args.epsilon, args.beta) == (8, 0.2, 1e-3)
    assert accuracy([judged("x")]) == [1.0]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"decay": "step"}, "choose one of cosine, linear, hold, none"),
        ({"scale_on": "loss"}, "choose one of reward, advantage"),
        ({"group_size": 1}, "at least 2 rollouts"),
        ({"t_total": 0}, "t_total=0"),
        ({"decay": "hold"}, "hold_steps=0"),
        ({"alpha_cap": 0.5}, "alpha_cap=0.5"),
        ({"kl": -1.0}, "kl=-1.0"),
        ({"formats": "nobody"}, "choose one of judged, arm"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        AdaGRPO(**knobs)


def test_groups_tags_and_counts_that_cannot_be() -> None:
    with pytest.raises(InputError, match="num_generations=4 and group_size=8 differ"):
        AdaGRPO().assign([], 0, T, 4)
    with pytest.raises(InputError, match="9 of 8 rollouts"):
        AdaGRPO().alpha(8, 9, 0, T)
    with pytest.raises(InputError, match="use AdaGRPO"):
        AdaGRPO(formats="arm").formatted([judged(None)], [[65]])

    class Dropping(Characters):
        def decode(self, ids: Sequence[int], **_: Any) -> str:
            return ""

    with pytest.raises(InputError, match="add it to the vocabulary"):
        AdaGRPO(formats="arm").tokenized(Dropping())


def test_the_testbeds_tags_survive_its_tokenizer() -> None:
    assert AdaGRPO(formats="reasoner").tokenized(build_tokenizer()).tokenizer is not None
