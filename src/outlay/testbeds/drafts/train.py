"""Distilling a draft: KL from the target at every position, and a little cross-entropy.

Half of the rows are real text, half the target's own answers to questions, since a draft has to
agree with what its target writes. Loss: KL(target || draft) + 0.1 CE at temperature 1, over the
whole vocabulary (the target runs beside the draft; nothing is cached or cut to a top-k).

Shapes: B rows, T tokens, C width, V vocabulary, N positions of a chunk.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch

from outlay.errors import InputError
from outlay.testbeds import text
from outlay.testbeds.drafts import lowrank
from outlay.testbeds.drafts.chats import questions
from outlay.testbeds.drafts.store import KEEP

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

_CHUNK = 4096  # positions whose logits exist at once
_CHAT_BATCH = 1024
HELD_OUT = 20  # one chat in so many is never trained on
Rows = tuple[torch.Tensor, torch.Tensor]
"""(ids_BT, real_BT): token ids, and which of them are no padding."""


@dataclass(frozen=True)
class DraftConfig:
    """A training.

    Args:
        keep: layers of the target that the draft keeps.
        rank: of the updates.
        steps: optimiser steps.
        rows: rows per step.
        length: tokens per row.
        lr: peak learning rate of AdamW.
        ce: weight of the cross-entropy beside the KL.
        chats: answers sampled from the target; 0 trains on text alone.
        minutes: training ends after so many, with the schedule run out; 0 is no limit.
        seed: of everything.

    Raises:
        InputError: for values out of range.
    """

    keep: tuple[int, ...] = KEEP
    rank: int = 32
    steps: int = 2000
    rows: int = 48
    length: int = 256
    lr: float = 2e-3
    ce: float = 0.1
    chats: int = 4096
    minutes: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; must be >= 1")
        if self.length < 16:
            raise InputError(f"length={self.length}; rows need at least 16 tokens")
        if not (self.lr > 0 and self.ce >= 0 and self.minutes >= 0 and self.chats >= 0):
            raise InputError("lr= must be > 0; ce=, minutes= and chats= must be >= 0")


@dataclass(frozen=True)
class State:
    """Where a training stands."""

    step: int
    kl: float
    lr: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Agreement:
    """How close a draft is to its target on some text.

    Args:
        overlap: mean of `sum_x min(p(x), q(x))`, the acceptance rate of one draft token.
        top: share of positions with the same most likely token.
        nll, target_nll: mean negative log-likelihood of the text, in nats.
        positions: how many.
    """

    overlap: float
    top: float
    nll: float
    target_nll: float
    positions: int


@torch.inference_mode()
def sample_chats(target: LocalModel, config: DraftConfig) -> Rows:
    """Questions and the target's answers, half at temperature 1 and half at 0.3, as rows."""
    tokenizer: Any = target.tokenizer
    asked = list(islice(cycle(questions(config.chats, config.seed)), config.chats))
    prompts = [target.render([{"role": "user", "content": question}]) for question in asked]
    pad = int(tokenizer.pad_token_id or 0)
    ids_NT = torch.full((len(prompts), config.length), pad)
    real_NT = torch.zeros((len(prompts), config.length), dtype=torch.bool)
    torch.manual_seed(config.seed)
    for part in (0, 1):
        chosen = list(range(part, len(prompts), 2))
        for at in range(0, len(chosen), _CHAT_BATCH):
            group = chosen[at : at + _CHAT_BATCH]
            rows = _answers(target, [prompts[i] for i in group], config.length, (1.0, 0.3)[part])
            for i, row in zip(group, rows, strict=True):
                row = row[: config.length]
                ids_NT[i, : len(row)] = torch.tensor(row)
                real_NT[i, : len(row)] = True
    return ids_NT, real_NT


def _answers(
    target: LocalModel, prompts: Sequence[str], length: int, temperature: float
) -> list[list[int]]:
    """Prompts with their sampled answers, end-of-text included, without padding."""
    rows = [target.encode(prompt) for prompt in prompts]
    width = max(map(len, rows))
    pad = int(target.tokenizer.pad_token_id or 0)
    ids_BT = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=target.device)
    mask_BT = torch.tensor(
        [[0] * (width - len(r)) + [1] * len(r) for r in rows], device=target.device
    )
    out_BT = target.model.generate(
        ids_BT,
        attention_mask=mask_BT,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(1, length - width),
        eos_token_id=sorted(target.eos_ids),
        pad_token_id=pad,
    )
    answers = []
    for row, new in zip(rows, out_BT[:, width:].tolist(), strict=True):
        ends = [i for i, token in enumerate(new) if token in target.eos_ids]
        answers.append(row + new[: ends[0] + 1 if ends else len(new)])
    return answers


def _batches(target: LocalModel, config: DraftConfig, chats: Rows) -> Iterator[Rows]:
    """Endless batches: real text and chats by halves."""
    stream = text.rows(target.tokenizer, length=config.length, seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    half = config.rows // 2 if len(chats[0]) else 0
    order: list[int] = []
    while True:
        written = torch.stack([next(stream) for _ in range(config.rows - half)])
        if len(order) < half:
            order += torch.randperm(len(chats[0]), generator=generator).tolist()
        picked, order = order[:half], order[half:]
        yield (
            torch.cat([written, chats[0][picked]]),
            torch.cat([torch.ones_like(written, dtype=torch.bool), chats[1][picked]]),
        )


def split_chats(chats: Rows) -> tuple[Rows, Rows]:
    """(trained on, held out)."""
    held_N = torch.arange(len(chats[0])) % HELD_OUT == HELD_OUT - 1
    return (chats[0][~held_N], chats[1][~held_N]), (chats[0][held_N], chats[1][held_N])


def train(
    target: LocalModel,
    draft: Any,
    config: DraftConfig,
    chats: Rows,
    report: Callable[[State], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Train updates of `draft`, a truncated copy in fp32, towards `target`.

    Returns:
        The updates, for `lowrank.merge` on a fresh truncated copy.
    """
    torch.manual_seed(config.seed)
    device = target.device
    network = copy.deepcopy(draft)
    trained = lowrank.attach(network, config.rank)
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0)
    started, tokens = time.perf_counter(), 0
    for step, (ids_BT, real_BT) in enumerate(_batches(target, config, chats), start=1):
        spent = (time.perf_counter() - started) / 60
        part = max((step - 1) / config.steps, spent / config.minutes if config.minutes else 0.0)
        rate = config.lr * min(1.0, step / 30) * (0.02 + 0.98 * _cosine(part))
        for group in optimizer.param_groups:
            group["lr"] = rate
        kl = _step(target, network, ids_BT.to(device), real_BT.to(device), config.ce)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += int(real_BT.sum())
        if report is not None:
            report(State(step, kl, rate, tokens, time.perf_counter() - started))
        if step == config.steps or part >= 1:
            break
    return lowrank.extract(network)


def _cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


def _cast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def _step(
    target: LocalModel, network: Any, ids_BT: torch.Tensor, real_BT: torch.Tensor, ce: float
) -> float:
    """Gradients of one batch; the logits exist a chunk at a time. Returns the mean KL."""
    with torch.no_grad(), _cast(target.device):
        wanted_BTC = target.model.base_model(ids_BT, use_cache=False).last_hidden_state
    with _cast(target.device):
        hidden_BTC = network.base_model(ids_BT, use_cache=False).last_hidden_state
    kept_BT = real_BT[:, :-1] & real_BT[:, 1:]
    wanted_MC, labels_M = wanted_BTC[:, :-1][kept_BT], ids_BT[:, 1:][kept_BT]
    leaf_MC = hidden_BTC[:, :-1][kept_BT].detach().requires_grad_(True)
    head, count, total = network.get_output_embeddings(), len(labels_M), 0.0
    for at in range(0, count, _CHUNK):
        chunk = slice(at, at + _CHUNK)
        with _cast(target.device):
            with torch.no_grad():
                aim_NV = target.model.get_output_embeddings()(wanted_MC[chunk])
            logits_NV = head(leaf_MC[chunk])
        aim_NV = aim_NV.float().log_softmax(-1)
        said_NV = logits_NV.float().log_softmax(-1)
        kl = (aim_NV.exp() * (aim_NV - said_NV)).sum() / count
        nll = -said_NV.gather(1, labels_M[chunk, None]).sum() / count
        torch.autograd.backward(kl + ce * nll)
        total += float(kl.detach())
    torch.autograd.backward([hidden_BTC[:, :-1][kept_BT]], [leaf_MC.grad])
    return total


@torch.inference_mode()
def agreement(target: LocalModel, network: Any, rows: Rows, *, at_once: int = 8) -> Agreement:
    """Compare a draft with its target at every position of `rows` that has a next token."""
    overlap = top = nll = target_nll = 0.0
    positions = 0
    for at in range(0, len(rows[0]), at_once):
        ids_BT, real_BT = (each[at : at + at_once].to(target.device) for each in rows)
        kept_BT = real_BT[:, :-1] & real_BT[:, 1:]
        labels_N1 = ids_BT[:, 1:][kept_BT][:, None]
        aim_NV, said_NV = (
            model(ids_BT, use_cache=False).logits[:, :-1][kept_BT].float().log_softmax(-1)
            for model in (target.model, network)
        )
        overlap += float(torch.minimum(aim_NV.exp(), said_NV.exp()).sum())
        top += float((aim_NV.argmax(-1) == said_NV.argmax(-1)).sum())
        nll -= float(said_NV.gather(1, labels_N1).sum())
        target_nll -= float(aim_NV.gather(1, labels_N1).sum())
        positions += len(labels_N1)
    n = max(1, positions)
    return Agreement(overlap / n, top / n, nll / n, target_nll / n, positions)
