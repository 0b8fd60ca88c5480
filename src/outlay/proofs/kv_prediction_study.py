"""The paper's comparison on a small model that really reasons: chains of arithmetic.

The base is the reasoner testbed. Pairs are trained for it, and their auxiliaries by themselves, on
the same rows for the same steps: KVP-LP with half of the base's layers, KVP-C with the testbed's
smaller sibling. All maps start from ridge regression. A question has two tokens an operation; it is
read in one of these ways, then the model thinks and answers, greedily. Nothing in a question can be
left out.

Shapes: B questions, T tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback

from outlay.cache.base import CacheMethod
from outlay.cache.kv_prediction import KVPrediction
from outlay.cache.kv_prediction.baselines import RandomTokens, RecentTokens, affordable
from outlay.cache.kv_prediction.losses import IGNORED
from outlay.cache.kv_prediction.model import KVPredictionModel
from outlay.cache.kv_prediction.ridge import ridge_start
from outlay.cache.kv_prediction.training import KVPredictionConfig, KVPredictionTrainer, Rows
from outlay.cache.loop import FullCache, forward
from outlay.evals.base import Problem
from outlay.models.base import Account
from outlay.models.local import LocalModel
from outlay.stats import FloatArray
from outlay.testbeds.reasoner import (
    ChainArith,
    FactWorld,
    Mix,
    Noise,
    checkpoint_path,
    examples,
    load,
)
from outlay.testbeds.reasoner.traces import Format
from outlay.testbeds.reasoner.train import encode

OPERATIONS = (4, 8)
TASK = ChainArith(operations=OPERATIONS)
FORMAT: Format = "short"
MIX = Mix(
    recall=0,
    joined=0,
    primer=0,
    ramp=0,
    cut=0,
    max_operations=OPERATIONS[1],
    formats=((FORMAT, 1.0),),
    noise=Noise(0, 0, 0, 0),
)
WIDTH = 80  # tokens of the longest example
START, SHORTEST = 200, 40  # rows of the regression, and their tokens
KEPT = (0, 1)  # layers of the pruned auxiliary, of four
LONGEST = 80  # tokens of an answer and its thinking
ALONE = {"lambda_base": 0.0, "lambda_kv": 0.0}
LP, C = "KVP-LP", "KVP-C"
NO_KV, SUM = "KVP-LP, lambda_kv=0", "KVP-LP, sum"
VARIANTS: dict[str, dict[str, Any]] = {NO_KV: {"lambda_kv": 0.0}, SUM: {"kv_reduce": "sum"}}


@dataclass(frozen=True)
class Training:
    """How long pairs are trained: steps, examples a step, peak learning rate."""

    steps: int
    batch: int = 16
    lr: float = 1e-3


@dataclass(frozen=True)
class Answered:
    """Which questions of one seed each way answers, and FLOPs to the first token of its reading."""

    seed: int
    right: Mapping[str, FloatArray]
    flops: Mapping[str, float]


def prompt(problem: Problem) -> str:
    """The question, and the format of thinking that pairs are trained on."""
    return f"{TASK.prompt(problem, '')}<{FORMAT}>"


def training_rows(model: LocalModel, count: int, seed: int) -> Rows:
    """`count` chains with their thinking, padded on the right; completions are learnt."""
    stream = examples(MIX, FactWorld(), 1000 + seed)
    pairs = encode([next(stream) for _ in range(count)], model.tokenizer)
    ids_NT = torch.zeros((count, WIDTH), dtype=torch.int32)
    labels_NT = torch.full((count, WIDTH), IGNORED, dtype=torch.int32)
    mask_NT = torch.zeros((count, WIDTH), dtype=torch.int32)
    for row, (ids, labels) in enumerate(pairs):
        ids_NT[row, : len(ids)] = torch.tensor(ids)
        labels_NT[row, : len(ids)] = torch.tensor(labels)
        mask_NT[row, : len(ids)] = 1
    return Rows(ids_NT, labels_NT, mask_NT)


def fit_pair(
    pair: KVPredictionModel, data: Rows, recipe: Training, seed: int, **weights: Any
) -> tuple[KVPredictionModel, list[float]]:
    """Train a pair in place; returns it and the losses along the way."""
    with tempfile.TemporaryDirectory() as scratch:
        args = KVPredictionConfig(
            output_dir=scratch,
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.lr,
            warmup_steps=min(20, recipe.steps // 4),
            use_cpu=pair.base.device.type == "cpu",
            logging_steps=max(1, recipe.steps // 12),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
            data_seed=seed,
            **weights,
        )
        trainer = KVPredictionTrainer(pair, args, data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    pair.requires_grad_(False)
    log = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return pair.eval(), log


@torch.inference_mode()
def answer(
    model: LocalModel, way: CacheMethod, problems: Sequence[Problem]
) -> tuple[FloatArray, float]:
    """Which problems are answered right, and FLOPs of reading, as shares of the base's sums."""
    right = np.zeros(len(problems))
    account = Account()
    ids = [model.prompt_ids(prompt(problem)) for problem in problems]
    order = sorted(range(len(problems)), key=lambda index: len(ids[index]))
    for _, group in groupby(order, key=lambda index: len(ids[index])):
        rows = list(group)
        ids_BT = torch.tensor([ids[index] for index in rows], device=model.device)
        read = way.prefill(model, ids_BT, account=account)
        logits_BV, written = read.logits_BV, []
        done_B = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
        eos_E = torch.tensor(sorted(model.eos_ids), device=model.device)
        for _ in range(LONGEST):
            token_B = logits_BV.argmax(-1)
            written.append(token_B)
            done_B |= torch.isin(token_B, eos_E)
            if bool(done_B.all()):
                break
            logits_BV = forward(model, token_B[:, None], read.cache)
        for index, tokens in zip(rows, torch.stack(written, 1).tolist(), strict=True):
            right[index] = TASK.verify(problems[index], model.decode(tokens))
    return right, account.ledger.totals().flops


def study(
    recipe: Training,
    problems: int,
    seed: int,
    ways: Sequence[str],
    *,
    progress: Callable[[str], None] = lambda message: None,
) -> Answered:
    """Train and measure everything for one seed.

    Args:
        recipe: of every training.
        problems: held-out questions.
        seed: of new weights and of the rows.
        ways: of `LP`, `C`, `NO_KV` and `SUM`; the first two come with their rivals.
        progress: told what is going on.
    """
    torch.set_num_threads(1)
    model = LocalModel.load(checkpoint_path(), name="reasoner", device="cpu")
    base = model.model
    asked = list(TASK.sample(500, problems))  # the same for all seeds: differences are paired
    data = training_rows(model, recipe.steps * recipe.batch, seed)
    right: dict[str, FloatArray] = {}
    flops: dict[str, float] = {}

    def measured(name: str, way: CacheMethod, network: Any = None) -> None:
        progress(f"seed {seed}: {name}")
        who = model if network is None else LocalModel(network, model.tokenizer, name)
        right[name], flops[name] = answer(who, way, asked)

    def trained(make: Callable[[], KVPredictionModel], **weights: Any) -> KVPredictionModel:
        torch.manual_seed(seed)
        pair = make()
        ridge_start(pair, data.rows_NT[:START, :SHORTEST])
        return fit_pair(pair, data, recipe, seed, **weights)[0]

    def pruned() -> KVPredictionModel:
        return KVPredictionModel.pruned(base, KEPT)

    def sibling() -> KVPredictionModel:
        network, _ = load(checkpoint_path("small"))
        return KVPredictionModel(base, network.requires_grad_(True))

    measured("base", FullCache())
    makers: dict[str, Callable[[], KVPredictionModel]] = {LP: pruned, C: sibling}
    for ours in [name for name in makers if name in ways]:
        make, kind = makers[ours], ours.removeprefix("KVP-")
        pair = trained(make)
        measured(ours, KVPrediction(fitted=pair))
        measured(f"{kind} of the pair", FullCache(), pair.aux)
        measured(f"{kind} alone", FullCache(), trained(make, **ALONE).aux)
        typical = int(np.median([model.count(prompt(problem)) for problem in asked]))
        shape = pair.shapes[0]
        assert shape is not None
        share = affordable(shape, sum(pair.flops(typical)), typical) / typical
        measured(f"recent, as {ours}", RecentTokens(share))
        measured(f"random, as {ours}", RandomTokens(share, seed))
    for name in [name for name in VARIANTS if name in ways]:
        measured(name, KVPrediction(fitted=trained(pruned, **VARIANTS[name])))
    return Answered(seed, right, flops)
