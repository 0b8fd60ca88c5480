"""The trainer of this room, on the smallest reasoner: equal to TRL where nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from outlay.errors import BudgetError, CapabilityError, DependencyError, InputError, ResultsError
from outlay.rl import BudgetGRPOTrainer, Context, Method, Plain, Row, make_config
from outlay.rl.base import Prefix
from outlay.rl.contract import check_batch, check_class
from outlay.rl.rewards import GatedLength, accuracy
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.reasoner import ChainArith, load, render_prompt

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
SMALL = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 20,
    "learning_rate": 1e-3,
    "max_steps": 3,
    "seed": 3,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def data(n: int = 24) -> Dataset:
    problems = ChainArith((1, 4)).sample(1, n)
    rows = [
        {"prompt": render_prompt(p.question), "answer": p.answer, "ops": p.meta["difficulty"]}
        for p in problems
    ]
    return Dataset.from_list(rows)


def short(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Pays short completions: varies within every group."""
    return [-len(ids) / 10 for ids in completion_ids]


class Recorder(BudgetGRPOTrainer):
    batches: list[dict[str, Any]]

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        self.batches = [*getattr(self, "batches", []), dict(batch)]
        return batch


def budgeted(
    method: Method, folder: Path, dataset: Dataset | None = None, **settings: Any
) -> Recorder:
    model, tokenizer = load("small")
    args = make_config(method, folder, {**SMALL, **settings}, cpu=True)
    return Recorder(
        model,
        method,
        args,
        dataset if dataset is not None else data(),
        verifier=ChainArithVerifier(),
        processing_class=tokenizer,
        difficulty="ops",
    )


def plain_trl(folder: Path, **settings: Any) -> GRPOTrainer:
    model, tokenizer = load("small")
    args = make_config(Method(), folder, {**SMALL, **settings}, cpu=True)
    return GRPOTrainer(
        model=model,
        reward_funcs=[short],
        args=args,
        train_dataset=data(),
        processing_class=tokenizer,
    )


def weights(trainer: GRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def history(trainer: GRPOTrainer) -> list[dict[str, float]]:
    timed = ("time", "runtime", "second")
    return [
        {k: v for k, v in line.items() if not any(t in k for t in timed) and "rollouts/" not in k}
        for line in trainer.state.log_history
    ]


def same_weights(a: GRPOTrainer, b: GRPOTrainer) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_method_that_changes_nothing_trains_as_trl_bit_for_bit(tmp_path: Path, loss: str) -> None:
    level = "sequence" if loss == "luspo" else "token"
    settings = {"loss_type": loss, "importance_sampling_level": level}
    ours = budgeted(Plain(rewards=(short,)), tmp_path / "a", **settings)
    before = weights(ours)
    ours.train()
    theirs = plain_trl(tmp_path / "b", **settings)  # building a trainer seeds
    theirs.train()
    assert history(ours) == history(theirs)  # losses, gradient norms, rewards, clip ratios
    assert len([line for line in history(ours) if "grad_norm" in line]) == 3
    assert same_weights(ours, theirs)
    assert any(not torch.equal(before[k], v) for k, v in weights(ours).items())
    assert list(ours._logs["advantages"]) == list(theirs._logs["advantages"])


def test_steps_per_generation_and_iterations_stay_trls(tmp_path: Path) -> None:
    settings = {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "beta": 0.1,
        "per_device_train_batch_size": 4,
        "generation_batch_size": None,
    }
    ours = budgeted(Plain(rewards=(short,)), tmp_path / "a", **settings)
    ours.train()
    theirs = plain_trl(tmp_path / "b", **settings)
    theirs.train()
    assert history(ours) == history(theirs)
    assert same_weights(ours, theirs)


@dataclass(frozen=True)
class Given(Plain):
    """TRL's advantages, given back in another shape."""

    rewards: tuple[Any, ...] = (short,)
    shape: str = "dense"

    def advantages(self, context: Context) -> Any:
        a = context.advantages_N
        if self.shape == "row":
            return a
        if self.shape == "segments":
            lengths = context.lengths
            return [
                [(0, n // 2, float(v)), (n // 2, n + 5, float(v))]
                for n, v in zip(lengths, a.tolist(), strict=True)
            ]
        dense = a[:, None].repeat(1, context.width)
        for row, n in enumerate(context.lengths):
            dense[row, n:] = 0
        return dense


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """A trainer whose batches and losses are looked at one by one."""
    return budgeted(Plain(rewards=(short,)), tmp_path_factory.mktemp("shared"))


def scored(trainer: Recorder, method: Method, seed: int = 5) -> dict[str, Any]:
    """One generation batch under a method; the same rollouts for the same seed."""
    trainer.method = method
    trainer.model.train()
    torch.manual_seed(seed)
    return trainer._generate_and_score_completions([dict(row) for row in data(2) for _ in range(4)])


def gradient(trainer: Recorder, batches: Sequence[dict[str, Any]]) -> tuple[float, torch.Tensor]:
    """Loss and gradient, accumulated over micro-batches as the training loop does."""
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer.args.steps_per_generation = len(batches)
    trainer.model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        total += float(loss.detach())
    trainer.args.steps_per_generation = 1
    grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return total, torch.cat(grads).double()


@pytest.mark.parametrize("loss", LOSSES)
def test_constant_advantages_of_tokens_equal_advantages_of_rows(
    shared: Recorder, loss: str
) -> None:
    shared.loss_type = loss
    found, logged = [], []
    for shape in ("row", "dense", "segments"):
        batch = scored(shared, Given(shape=shape))
        assert batch["advantages"].dim() == (1 if shape == "row" else 2)
        found.append(gradient(shared, [batch]))
        logged.append(list(shared._logs["advantages"]))
    assert found[0][1].norm() > 1e-3
    for other in (1, 2):
        assert found[0][0] == pytest.approx(found[other][0], abs=1e-6)
        assert torch.allclose(found[0][1], found[other][1], rtol=1e-4, atol=1e-6)
        assert logged[0] == pytest.approx(logged[other], abs=1e-6)


@dataclass(frozen=True)
class Numbered(Plain):
    """Every row is paid its own number."""

    rewards: tuple[Any, ...] = ()
    seen: list[Context] = field(default_factory=list, compare=False)

    def assign(self, rows: Sequence[Row], step: int, total: int, group: int) -> Sequence[Row]:
        return [{**row, "number": float(i), "budget": 5 + i} for i, row in enumerate(rows)]

    def reward_functions(self) -> list[Any]:
        return [number]

    def advantages(self, context: Context) -> Any:
        self.seen.append(context)
        assert context.column("number") == context.rewards.tolist()
        return context.rewards

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        return {**batch, "number": torch.tensor(context.column("number")[context.local])}


def number(number: list[float], **_: Any) -> list[float]:
    return number


def test_a_reward_comes_back_on_its_own_row_after_shuffle_and_split(tmp_path: Path) -> None:
    method = Numbered()
    trainer = budgeted(
        method, tmp_path, per_device_train_batch_size=4, steps_per_generation=2, max_steps=2
    )
    trainer.train()
    pieces = trainer._buffered_inputs
    assert len(pieces) == 2
    numbers = torch.cat([piece["number"] for piece in pieces])
    assert sorted(numbers.tolist()) == [float(i) for i in range(8)]
    assert numbers.tolist() != sorted(numbers.tolist())  # it was shuffled
    for piece in pieces:
        assert torch.equal(piece["advantages"], piece["number"])
        for row, index in enumerate(piece["number"].int().tolist()):
            length = int(piece["completion_mask"][row].sum())
            ids = method.seen[-1].completion_ids[index]
            assert piece["completion_ids"][row, :length].tolist() == ids


@dataclass(frozen=True)
class Forced(Plain):
    """Prefixes and caps by the place in the group."""

    rewards: tuple[Any, ...] = (short,)
    caps: tuple[int | None, ...] = (None,)
    words: tuple[tuple[int, ...], ...] = ((),)
    prefix: Prefix = "trained"
    seen: list[Context] = field(default_factory=list, compare=False)

    def assign(self, rows: Sequence[Row], step: int, total: int, group: int) -> Sequence[Row]:
        for row in rows:
            row["hard_cap"] = self.caps[row["member"] % len(self.caps)]
            row["prefix_ids"] = list(self.words[row["member"] % len(self.words)])
        return rows

    def advantages(self, context: Context) -> Any:
        self.seen.append(context)
        return None


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


@dataclass(frozen=True)
class Doubled(Plain):
    """Trains on every row twice, or on rows plus fillers."""

    rewards: tuple[Any, ...] = (short,)
    extra: int = 0

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        keep = len(batch["completion_ids"]) - self.extra
        return {
            k: v[:keep] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()
        }


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_loss_leave_the_gradient_unchanged(shared: Recorder, loss: str) -> None:
    """5 of 8 rows: as they are, and padded to 8 in one and in two pieces."""
    shared.loss_type = loss
    bare = scored(shared, Doubled(extra=3))
    assert len(bare["completion_ids"]) == 5
    assert bare["row_scale"] == 1
    wanted = gradient(shared, [bare])
    shared.args.steps_per_generation = 4
    padded = scored(shared, Doubled(extra=3))
    assert len(padded["completion_ids"]) == 8
    assert padded["row_scale"] == 1.6
    assert padded["completion_mask"][5:].sum() == 0
    pieces = split_tensor_dict(padded, 2)
    for batches in ([padded], pieces[:1] + pieces[1:]):
        if loss == "bnpo" and len(batches) == 2:
            continue  # a mean over the tokens of each piece: pieces differ from the whole in TRL
        found = gradient(shared, batches)
        assert found[0] == pytest.approx(wanted[0], abs=1e-6)
        assert torch.allclose(found[1], wanted[1], rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Forgetful(Doubled):
    """Leaves out what the trainer can compute."""

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        kept = super().expand(batch, context)
        return {k: v for k, v in kept.items() if not k.endswith("_per_token_logps")}


def test_probabilities_that_a_method_leaves_out_are_computed(tmp_path: Path) -> None:
    settings = {
        "steps_per_generation": 2,
        "per_device_train_batch_size": 4,
        "beta": 0.1,
        "num_iterations": 2,
    }
    trainer = budgeted(Plain(rewards=(short,)), tmp_path, **settings)
    whole, again = scored(trainer, Doubled(extra=2)), scored(trainer, Forgetful(extra=2))
    for key in ("old_per_token_logps", "ref_per_token_logps"):
        mask = whole["completion_mask"].bool()
        assert torch.allclose(whole[key][mask], again[key][mask], atol=1e-5)
        assert whole[key][mask].abs().max() > 0


def test_a_truncated_row_without_loss_has_no_advantage(tmp_path: Path) -> None:
    settings = {"mask_truncated_completions": True, "max_completion_length": 8}
    trainer = budgeted(Plain(rewards=(short,)), tmp_path, **settings)
    batch = scored(trainer, Given(shape="dense"))
    masked = batch["completion_mask"].sum(dim=1) == 0
    assert masked.any()
    assert not masked.all()
    assert (batch["advantages"][masked] == 0).all()
    assert (batch["advantages"][~masked] != 0).any()


def test_trls_own_evaluation_works_too(tmp_path: Path) -> None:
    model, tokenizer = load("small")
    method = Forced(caps=(6,))
    args = make_config(
        method, tmp_path, {**SMALL, "per_device_eval_batch_size": 8, "max_steps": 1}, cpu=True
    )
    trainer = BudgetGRPOTrainer(
        model,
        method,
        args,
        data(),
        verifier=ChainArithVerifier(),
        eval_dataset=data(4),
        processing_class=tokenizer,
    )
    found = trainer.evaluate()
    assert found["eval_completions/max_length"] <= 6
    assert {context.mode for context in method.seen} == {"eval"}
    assert any("eval_rollouts/acc" in line for line in trainer.state.log_history)


def test_padding_reaches_training(tmp_path: Path) -> None:
    trainer = budgeted(
        Doubled(extra=3),
        tmp_path,
        loss_type="grpo",
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    assert len(trainer.batches[0]["completion_ids"]) == 6
    assert trainer.state.log_history[0]["grad_norm"] > 0


@dataclass(frozen=True)
class Asking(Plain):
    """Samples two tokens more after every completion."""

    rewards: tuple[Any, ...] = (short,)
    seen: list[Any] = field(default_factory=list, compare=False)

    def probe(self, rows: Any, prompt_ids: Any, completion_ids: Any, sampler: Any) -> None:
        asked = [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)]
        for row, ids in zip(rows, sampler(asked, [2] * len(asked)), strict=True):
            row["more"] = ids

    def advantages(self, context: Context) -> Any:
        self.seen.append(context.column("more"))
        return None


def test_probes_reach_the_rewards_and_the_ledger(tmp_path: Path) -> None:
    method = Asking()
    trainer = budgeted(method, tmp_path, max_steps=1)
    trainer.train()
    probes = [entry for entry in trainer.tokens if entry.note == "probe"]
    assert [len(more) <= 2 for more in method.seen[0]] == [True] * 8
    assert [entry.generated for entry in probes] == [sum(map(len, method.seen[0]))]


def test_the_ledger_equals_the_sum_of_lengths(tmp_path: Path) -> None:
    method = Forced()
    trainer = budgeted(method, tmp_path)
    trainer.train()
    totals = trainer.tokens.totals(stage="train")
    assert totals.generated == sum(sum(context.lengths) for context in method.seen)
    prompts = sum(int(batch["prompt_mask"].sum()) for batch in trainer.batches)
    assert totals.prompt_new == prompts


@pytest.mark.parametrize("steps_per_generation", [1, 2])
def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path, steps_per_generation: int) -> None:
    settings = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2 if steps_per_generation == 2 else 3,
        "steps_per_generation": steps_per_generation,
        "lr_scheduler_type": "linear",
    }
    stop = 4 if steps_per_generation == 2 else 3
    method = Plain(rewards=(accuracy, GatedLength(20)), weights=(1.0, 0.5))
    straight = budgeted(method, tmp_path / "a", **settings)
    straight.train()
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    resumed = budgeted(method, tmp_path / "a", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop}"))
    assert same_weights(straight, resumed)
    assert history(straight)[:6] == history(resumed)[:6]
    again = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()

    def stripped(lines: list[str]) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in lines]
        timed = ("time", "runtime", "second")
        return [
            {k: v for k, v in row.items() if not any(t in k for t in timed)}
            for row in rows
            if row["kind"] == "rollouts" or "loss" in row
        ]

    assert stripped(again) == stripped(lines)
    assert resumed.tokens.totals().generated == straight.tokens.totals().generated


def test_a_checkpoint_between_two_generations_is_refused(tmp_path: Path) -> None:
    settings = {
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "steps_per_generation": 2,
    }
    budgeted(Plain(), tmp_path, **settings).train()
    again = budgeted(Plain(), tmp_path, **settings)
    with pytest.raises(ResultsError, match="multiple of 2"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_every_checkpoint_says_how_it_came_about(tmp_path: Path) -> None:
    method = Plain(hard_cap=9)
    trainer = budgeted(method, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    manifest = json.loads((tmp_path / "checkpoint-1" / "manifest.json").read_text())
    assert manifest["method"] == "Plain"
    assert manifest["knobs"]["hard_cap"] == 9
    assert manifest["settings"]["learning_rate"] == 1e-3
    assert manifest["dataset"]["rows"] == 24
    assert manifest["seeds"]["seed"] == 3
    assert manifest["versions"].keys() >= {"trl", "torch", "transformers", "python"}
    assert manifest["tokens"]["generated"] == trainer.tokens.totals().generated > 0
    assert manifest["at_generation_boundary"]


def test_groups_whose_rewards_are_all_equal_are_logged(tmp_path: Path) -> None:
    def one(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [1.0] * len(completion_ids)

    trainer = budgeted(Plain(rewards=(one,)), tmp_path, max_steps=1)
    before = weights(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["rollouts/zero_variance"] == 1
    assert trainer.state.log_history[0]["grad_norm"] == 0
    assert all(torch.equal(before[k], v) for k, v in weights(trainer).items())


def test_an_adapter_is_trained_alone(tmp_path: Path) -> None:
    from peft import LoraConfig

    model, tokenizer = load("small")
    method = Forced(caps=(8, 4), words=((7,),))
    args = make_config(method, tmp_path, {**SMALL, "max_steps": 1}, cpu=True)
    trainer = BudgetGRPOTrainer(
        model,
        method,
        args,
        data(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    before = weights(trainer)
    trainer.train()
    changed = {k for k, v in weights(trainer).items() if not torch.equal(before[k], v)}
    assert changed
    assert all("lora" in name for name in changed)


@dataclass(frozen=True)
class Bad(Plain):
    """A method with one fault."""

    rewards: tuple[Any, ...] = (short,)
    fault: str = ""

    def assign(self, rows: Sequence[Row], step: int, total: int, group: int) -> Sequence[Row]:
        changes: Mapping[str, Any] = {
            "zero budget": {"budget": 0},
            "negative budget": {"budget": -3.5},
            "text budget": {"budget": "much"},
            "budget beyond context": {"budget": 100_000},
            "zero cap": {"hard_cap": 0},
            "long prefix": {"prefix_ids": [5] * 20},
        }
        if self.fault == "rows":
            return rows[:-1]
        if self.fault == "no prompt":
            return [{"answer": "1"} for _ in rows]
        return [{**row, **changes.get(self.fault, {})} for row in rows]

    def advantages(self, context: Context) -> Any:
        n, t = len(context.rows), context.width
        return {
            "shape": torch.zeros(n + 1),
            "infinite": torch.full((n,), float("inf")),
            "padding": torch.ones(n, t),
            "segments": [[]] * (n - 1),
            "overlap": [[(0, 3, 1.0), (2, 4, 1.0)]] * n,
        }.get(self.fault)

    def expand(self, batch: dict[str, Any], context: Context) -> dict[str, Any]:
        if self.fault == "lost key":
            return {k: v for k, v in batch.items() if k != "advantages"}
        if self.fault == "uneven":
            return {**batch, "advantages": batch["advantages"][:-1]}
        return batch


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("rows", InputError, "7 rows for 8"),
        ("no prompt", InputError, "without a prompt"),
        ("zero budget", BudgetError, "must be positive"),
        ("negative budget", BudgetError, "must be positive"),
        ("text budget", BudgetError, "a number of tokens"),
        ("budget beyond context", BudgetError, "context of 640"),
        ("zero cap", BudgetError, "hard_cap=0"),
        ("long prefix", BudgetError, "leaves none"),
        ("shape", InputError, r"give \(8,\) or"),
        ("infinite", InputError, "not all finite"),
        ("padding", InputError, "not zero on padding"),
        ("segments", InputError, "7 rows"),
        ("overlap", InputError, "overlap"),
        ("lost key", InputError, "left out advantages"),
        ("uneven", InputError, "7 rows of advantages"),
    ],
)
def test_a_faulty_method_is_told_what_is_wrong(
    shared: Recorder, fault: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        scored(shared, Bad(fault=fault))


def test_a_method_without_fault_is_taken_after_a_faulty_one(shared: Recorder) -> None:
    assert len(scored(shared, Bad())["completion_ids"]) == 8


def test_rewards_of_wrong_length_or_value_are_refused(tmp_path: Path) -> None:
    def few(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [1.0]

    def nan(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float("nan")] * len(completion_ids)

    with pytest.raises(InputError, match="few returned 1 rewards for 8"):
        budgeted(Plain(rewards=(few,)), tmp_path, max_steps=1).train()
    with pytest.raises(InputError, match="nan paid nan"):
        budgeted(Plain(rewards=(nan,)), tmp_path, max_steps=1).train()


def test_rewards_of_none_are_trls_business(tmp_path: Path) -> None:
    def sometimes(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completion_ids))]

    trainer = budgeted(Plain(rewards=(sometimes,)), tmp_path, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["rollouts/reward_mean"] == 1


def test_asynchronous_rewards_are_checked_too(tmp_path: Path) -> None:
    async def later(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return short(completion_ids)

    def run(name: str, reward: Any) -> Recorder:
        trainer = budgeted(Plain(rewards=(reward,)), tmp_path / name, max_steps=1)
        trainer.train()
        return trainer

    assert same_weights(run("a", later), run("b", short))


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        make_config(Plain(), "out", {"num_generations": 1})


def test_unknown_settings_are_named() -> None:
    with pytest.raises(InputError, match="no setting learning_speed"):
        make_config(Plain(), "out", {"learning_speed": 1})
    with pytest.raises(InputError, match="GRPOConfig refuses"):
        make_config(Plain(), "out", {"per_device_train_batch_size": 7, "use_cpu": True})


def test_data_sets_without_the_needed_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'prompt'"):
        budgeted(Plain(), tmp_path, data().rename_column("prompt", "question"))
    with pytest.raises(InputError, match="rename it"):
        budgeted(Plain(), tmp_path, data().rename_column("answer", "judgement"))
    with pytest.raises(InputError, match="difficulty='ops'"):
        budgeted(Plain(), tmp_path, data().remove_columns("ops"))
    with pytest.raises(InputError, match="no column 'answer'"):
        budgeted(Plain(), tmp_path, data().remove_columns("answer"), max_steps=1).train()


def test_a_schedule_needs_the_length_of_the_run(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Scheduled(Plain):
        needs_total_steps: bool = True

    trainer = budgeted(Scheduled(), tmp_path, max_steps=-1, num_train_epochs=1)
    with pytest.raises(InputError, match="set max_steps"):
        trainer._planned([{"prompt": "1"}] * 4, 4)
    budgeted(Scheduled(), tmp_path, max_steps=1).train()


def test_another_trl_is_refused_with_a_message() -> None:
    class Changed(GRPOTrainer):
        def _calculate_rewards(self, inputs: Any) -> Any:  # type: ignore[override]
            return None

    check_class(GRPOTrainer)
    with pytest.raises(DependencyError, match=r"_calculate_rewards\(self, inputs\) where"):
        check_class(Changed)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "advantages", "num_items_in_batch")
    with pytest.raises(DependencyError, match="lack completion_mask"):
        check_batch(dict.fromkeys(keys))


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


def test_extra_samples_are_checked(tmp_path: Path) -> None:
    trainer = budgeted(Plain(), tmp_path)
    with pytest.raises(InputError, match="one number"):
        trainer.sample([[5, 6]], [0])
    assert trainer.sample([], []) == []
    assert isinstance(trainer.args, GRPOConfig)
