"""What rollouts begin with, and where each is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trainer_runs import Forced, budgeted, data

from outlay.errors import CapabilityError
from outlay.rl.base import Prefix
from outlay.testbeds.reasoner import load


def test_no_row_is_longer_than_its_own_cap(tmp_path: Path) -> None:
    method = Forced(caps=(3, 7, None, 12))
    trainer = budgeted(method, tmp_path)
    trainer.train()
    longest: dict[int | None, int] = dict.fromkeys(method.caps, 0)
    for context in method.seen:
        for row, length in zip(context.rows, context.lengths, strict=True):
            longest[row["hard_cap"]] = max(longest[row["hard_cap"]], length)
            assert length <= (row["hard_cap"] or 20)
    assert longest[3] == 3
    assert longest[None] > 12
    clipped = trainer.state.log_history[0]["completions/clipped_ratio"]
    assert clipped >= 0.25  # cut rows count as truncated, not as finished


def test_caps_only_cut_what_would_have_been_sampled(tmp_path: Path) -> None:
    free, capped = Forced(), Forced(caps=(3, 20, 20, 20))
    for name, method in (("free", free), ("capped", capped)):
        budgeted(method, tmp_path / name, max_steps=1).train()
    for row, whole, cut in zip(
        capped.seen[0].rows,
        free.seen[0].completion_ids,
        capped.seen[0].completion_ids,
        strict=True,
    ):
        assert cut == whole[: row["hard_cap"]]


@pytest.mark.parametrize("where", ["trained", "masked", "prompt"])
def test_a_prefix_begins_the_completion_or_ends_the_prompt(tmp_path: Path, where: Prefix) -> None:
    _, tokenizer = load("small")
    word = tokenizer("<short>")["input_ids"]
    method = Forced(words=(tuple(word), ()), prefix=where)
    trainer = budgeted(method, tmp_path, max_steps=1)
    trainer.train()
    batch, context = trainer.batches[0], method.seen[0]
    for index, row in enumerate(context.rows):
        prompt = batch["prompt_ids"][index][batch["prompt_mask"][index].bool()].tolist()
        own = tokenizer(row["prompt"])["input_ids"]
        forced = row["prefix_ids"]
        assert row["judgement"].style == "short" if forced else True
        if where == "prompt":
            assert prompt == own + forced
        else:
            assert prompt == own
            assert context.completion_ids[index][: len(forced)] == forced
    if where == "masked":
        kept = (batch["tool_mask"] * batch["completion_mask"]).sum()
        assert kept == batch["completion_mask"].sum() - 4 * len(word)
        assert batch["num_items_in_batch"] == kept
        assert batch["tool_mask"][0, : len(word)].sum() == 0
    else:
        assert "tool_mask" not in batch
        assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    forced_total = trainer.tokens.totals(stage="train").forced
    assert forced_total == 4 * len(word)
    assert max(context.lengths) <= 20


def test_gradients_of_a_masked_prefix_are_those_of_a_prompt(tmp_path: Path) -> None:
    _, tokenizer = load("small")
    words = (tuple(tokenizer("<short>")["input_ids"]),)
    norms = []
    for where in ("masked", "prompt"):
        method = Forced(words=words, prefix=where)
        trainer = budgeted(
            method, tmp_path / where, max_steps=1, max_completion_length=19 + (where == "masked")
        )
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] > 0


def test_a_vllm_server_takes_no_prompts_of_members(tmp_path: Path) -> None:
    method = Forced(words=((7,), ()))
    trainer = budgeted(method, tmp_path)
    rows = trainer._planned([dict(row) for row in data(2) for _ in range(4)], 4)
    assert trainer._whole_plan(rows, 4).limit == 20
    trainer.use_vllm, trainer.vllm_mode = True, "server"
    with pytest.raises(CapabilityError, match="colocate"):
        trainer._whole_plan(rows, 4)
    for row in rows:
        row["prefix_ids"] = [7]
    trainer._whole_plan(rows, 4)


def test_log_probabilities_of_a_backend_stay_with_their_tokens(tmp_path: Path) -> None:
    """A backend that, as vLLM does, samples to its limit and says how probable each token was."""

    class Backend:
        max_completion_length = 20

        def sync_weights(self) -> None:
            pass

        def generate(self, prompts: list[list[int]], **_: Any) -> Any:
            self.asked, n = prompts, self.max_completion_length
            self.limit = n
            logprobs = [[[-float(t)] for t in range(n)] for _ in prompts]
            return prompts, [list(range(10, 10 + n)) for _ in prompts], logprobs, None

    trainer = budgeted(Forced(caps=(3, 6), words=((7, 8), ())), tmp_path)
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, "colocate", -1
    backend = trainer.vllm_generation = Backend()
    trainer._plan = trainer._whole_plan(trainer._planned([dict(data(1)[0])] * 4, 4), 4)
    ids, logprobs = trainer._generate_single_turn([[1], [1], [1], [1]], None, {}, 4)
    assert ids == [[7, 8, 10], [10, 11, 12, 13, 14, 15]] * 2
    assert logprobs == [[None, None, 0.0], [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]] * 2
    assert backend.asked == [[1, 7, 8], [1]] * 2
    assert (backend.limit, backend.max_completion_length) == (6, 20)


def test_caps_are_refused_where_rollouts_sample_by_themselves(tmp_path: Path) -> None:
    trainer = budgeted(Forced(caps=(5,)), tmp_path, max_steps=1)
    trainer.rollout_func = lambda prompts, trainer: {}
    with pytest.raises(CapabilityError, match="rollout_func"):
        trainer.train()
