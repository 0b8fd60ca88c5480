"""The baseline: a discriminative process reward model on the same base.

A step is judged in one forward pass, by the probability of "+" against "-" right after it (Math-
Shepherd's form, two of the vocabulary's tokens as classes). It is trained on the same labelled
solutions as ThinkPRM, without critiques: labels after the first wrong step are not trained on.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlay.errors import BudgetError, InputError
from outlay.models.base import Account, Message, elapsed
from outlay.reason.base import Question
from outlay.reason.think_prm.data import Source
from outlay.reason.think_prm.format import LayoutName, layout_of

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

_IGNORED = -100


@dataclass(frozen=True)
class DiscriminativePRM:
    """P(+) after every step, in one pass over the solution.

    Args:
        model: the network; a local one, since logits are read.
        layout: of the request, as for `ThinkPRM`.
        classes: texts of one token each, for a right and a wrong step.
        number_steps: number the steps, as for `ThinkPRM`.
        batch_tokens: padded tokens of one pass.

    Raises:
        InputError: for classes that are not one token each.
    """

    model: LocalModel
    layout: LayoutName = "boxed"
    classes: tuple[str, str] = ("+", "-")
    number_steps: bool = True
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        layout_of(self.layout)
        sizes = [self.model.count(name) for name in self.classes]
        if sizes != [1, 1] or self.classes[0] == self.classes[1]:
            raise InputError(f"classes={self.classes} have {sizes} tokens; two of one token each")
        if self.batch_tokens < 1:
            raise InputError(f"batch_tokens={self.batch_tokens}; at least 1")

    def score(
        self,
        questions: Sequence[Question],
        paths: Sequence[Sequence[str]],
        known: Sequence[Sequence[float]],
        *,
        accounts: Sequence[Account],
    ) -> list[list[float]]:
        """P(+) of every step without a score; the whole path is read once for all of them.

        Where a budget has no room for the reading, the remaining steps stay at 0.5.
        """
        rows = [list(scores) for scores in known]
        due = [i for i, path in enumerate(paths) if len(rows[i]) < len(path)]
        encoded = {
            i: encode(self, questions[i].text, paths[i]) for i in due if any(map(str, paths[i]))
        }
        order = sorted(encoded, key=lambda i: len(encoded[i][0]))
        while order:
            width = len(encoded[order[-1]][0])
            group = order[-max(1, self.batch_tokens // width) :]
            order = order[: -len(group)]
            self._read(group, encoded, rows, accounts)
        return rows

    def _read(
        self,
        group: Sequence[int],
        encoded: dict[int, tuple[list[int], list[int]]],
        rows: list[list[float]],
        accounts: Sequence[Account],
    ) -> None:
        import torch

        start = time.perf_counter()
        holds, funded = {}, []
        for i in group:
            size = len(encoded[i][0])
            try:
                flops = self.model.flops(size)
                holds[i] = accounts[i].hold([], prompt=size, flops_fixed=flops)
                funded.append(i)
            except BudgetError:
                rows[i] += [0.5] * (len(encoded[i][1]) - len(rows[i]))
        if not funded:
            return
        ids_BT = _padded([encoded[i][0] for i in funded], 0)
        pair = [self.model.encode(name)[0] for name in self.classes]
        with torch.inference_mode():
            ids_BT = ids_BT.to(self.model.device)
            logits_BT2 = self.model.model(ids_BT, use_cache=False).logits[..., pair].float()
            right_BT = logits_BT2.softmax(-1)[..., 0].cpu()
        seconds = elapsed(start)
        for row, i in enumerate(funded):
            size, flops = len(encoded[i][0]), self.model.flops(len(encoded[i][0]))
            scores = [float(right_BT[row, at]) for at in encoded[i][1]]
            rows[i] += scores[len(rows[i]) :]
            accounts[i].settle(holds[i], 0, flops=flops)
            accounts[i].ledger.record(
                accounts[i].stage,
                accounts[i].role,
                prompt_new=size,
                method=accounts[i].method,
                seconds=seconds / len(funded),
                flops=flops,
            )


def encode(
    prm: DiscriminativePRM, question: str, steps: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Token ids of a request, and the index of every step's last token."""
    layout, model = layout_of(prm.layout), prm.model
    text = layout.render(question, steps, prm.number_steps)
    lines = [layout.strip(step) for step in steps]
    if prm.number_steps:
        lines = [layout.numbered(i, line) for i, line in enumerate(lines, start=1)]
    body = layout.between.join(lines)
    chat = bool(getattr(model.tokenizer, "chat_template", None))
    rendered = model.render([Message(role="user", content=text)]) if chat else text
    begin = rendered[: rendered.rindex(body)]
    ids = model.encode(begin) if chat else model.prompt_ids(begin)
    ends: list[int] = []
    for number, line in enumerate(lines):
        ids += model.encode(line if number == 0 else layout.between + line)
        ends.append(len(ids) - 1)
    if len(ids) >= model.context_length:
        raise InputError(
            f"the solution has {len(ids)} tokens with its question, the window of {model.name} is "
            f"{model.context_length}; verify shorter solutions"
        )
    return ids, ends


@dataclass(frozen=True)
class DiscriminativeSettings:
    """How the baseline is trained; the paper's values for 1.5B.

    Args:
        epochs: passes over the solutions.
        batch: solutions per step.
        lr: peak learning rate, constant after the warm-up.
        warmup: share of the steps that warm up.
        seed: of the order.

    Raises:
        InputError: for values out of range.
    """

    epochs: int = 1
    batch: int = 64
    lr: float = 1e-4
    warmup: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.lr > 0 or not 0 <= self.warmup <= 1:
            raise InputError(
                f"epochs={self.epochs}, batch={self.batch}, lr={self.lr}, warmup={self.warmup}; "
                "need at least 1, 1, a positive rate and a share"
            )


def fit(
    prm: DiscriminativePRM,
    sources: Sequence[Source],
    settings: DiscriminativeSettings | None = None,
) -> list[float]:
    """Train the network behind `prm` on step labels, in place.

    Returns:
        The loss of every step.

    Raises:
        InputError: without sources.
    """
    import torch

    if not sources:
        raise InputError("no labelled solutions to train on; give at least one")
    settings = settings or DiscriminativeSettings()
    network: Any = prm.model.model
    pair = [prm.model.encode(name)[0] for name in prm.classes]
    rows = [_targets(prm, source) for source in sources]
    batches = math.ceil(len(rows) / settings.batch)
    total = batches * settings.epochs
    ramp = max(1, round(settings.warmup * total))
    network.requires_grad_(True)
    network.train()
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / ramp))
    rng, losses = random.Random(f"discriminative:{settings.seed}"), []
    for _ in range(settings.epochs):
        rng.shuffle(rows)
        for at in range(0, len(rows), settings.batch):
            part = rows[at : at + settings.batch]
            ids_BT = _padded([ids for ids, _ in part], 0).to(prm.model.device)
            labels_BT = _padded([labels for _, labels in part], _IGNORED).to(prm.model.device)
            logits_BT2 = network(ids_BT, use_cache=False).logits[..., pair].float()
            loss = torch.nn.functional.cross_entropy(
                logits_BT2.flatten(0, 1), labels_BT.flatten(), ignore_index=_IGNORED
            )
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
    network.train(False)
    network.requires_grad_(False)
    return losses


def _targets(prm: DiscriminativePRM, source: Source) -> tuple[list[int], list[int]]:
    """Ids, and at the end of each judged step 0 for right or 1 for wrong."""
    ids, ends = encode(prm, source.question, source.steps)
    labels = [_IGNORED] * len(ids)
    for at, label in zip(ends, source.judged, strict=False):
        labels[at] = int(label == "bad")
    return ids, labels


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Any:
    """Right-padded (B, T): causal attention keeps the padding out of every real position."""
    import torch

    ids_BT = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for at, row in enumerate(rows):
        ids_BT[at, : len(row)] = torch.tensor(row)
    return ids_BT
