"""Both stages of training, on accelerate; only pruning modules learn.

Stage 1 fits scores to the guidance attention of a deeper layer. Stage 2 runs the frozen model with
soft removal and fits its answers. The paper's rates, data and losses were not available: these are
our choice.

B rows, T prompt tokens, N visual tokens of a row, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import DataLoader

from outlay.errors import InputError
from outlay.vision.counts import half_up
from outlay.vision.covipal.lessons import Lessons
from outlay.vision.covipal.losses import (
    Gate,
    Stage1Loss,
    Teacher,
    answer_loss,
    budget_terms,
    counts,
    stage_one,
    straight_through,
    teacher_loss,
)
from outlay.vision.covipal.ppm import PPM
from outlay.vision.covipal.soft import EPS, SoftMask
from outlay.vision.covipal.tokens import Tokens, answers

LEAST_EPS = 1e-7
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Recipe:
    """How the modules are trained.

    Args:
        epochs: of stage 1 and stage 2 over the lessons.
        max_steps: of both stages, in batches; -1 leaves it to `epochs`.
        lr: of stage 1, first and last; cosine in between.
        lr2: of stage 2.
        warmup: steps of each stage in which the rate rises.
        ratios: stage 1's labels, and the budgets of `st_topk`, are drawn between these.
        tau: temperature of the KL loss.
        gate_tau: temperature of the budgeted sigmoid.
        lambda_b: weight of the budget in stage 2 (soft gate).
        lambda_h: weight of p (1 - p) at the end of stage 2, from 0 (soft gate).
        eps: what is left of a key of chance 0.
        queries: whose attention guides: all "text" after the image, or the question's "last" token.
        sinks: of guidance attention: "keep", "clip" or "baseline".
        keep_states: keep the streams of all lessons in memory.
        checkpointing: recompute the frozen decoder's layers in the backward pass of stage 2.
        clip: of the gradient's norm.
        seed: of weights, order and drawn ratios.

    Raises:
        InputError: for a number out of range.
    """

    epochs: tuple[float, float] = (1.0, 1.0)
    max_steps: tuple[int, int] = (-1, -1)
    lr: tuple[float, float] = (1e-3, 1e-4)
    lr2: float = 1e-4
    warmup: int = 20
    ratios: tuple[float, float] = (0.1, 0.75)
    tau: float = 1.0
    gate_tau: float = 1.0
    lambda_b: float = 10.0
    lambda_h: float = 0.1
    eps: float = EPS
    queries: Literal["text", "last"] = "text"
    sinks: Literal["keep", "clip", "baseline"] = "keep"
    keep_states: bool = True
    checkpointing: bool = False
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lr2", "tau", "gate_tau", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name}={getattr(self, name)!r}; must be above 0")
        for name in ("lambda_b", "lambda_h"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}={getattr(self, name)!r}; must be at least 0")
        if not 0 < self.lr[1] <= self.lr[0] < float("inf"):
            raise InputError(f"lr={self.lr}; give the first and a smaller last rate, above 0")
        if not 0 < self.ratios[0] <= self.ratios[1] <= 1:
            raise InputError(f"ratios={self.ratios}; need 0 < lowest <= highest <= 1")
        if not LEAST_EPS <= self.eps < 1:
            raise InputError(
                f"eps={self.eps!r}; below {LEAST_EPS} gradients of log(p) overflow in half "
                f"precision; {EPS} is usual"
            )
        if min(self.epochs) <= 0 or any(n != -1 and n < 1 for n in self.max_steps):
            raise InputError(
                f"epochs={self.epochs}, max_steps={self.max_steps}; need epochs above 0, and steps "
                "of at least 1 (or -1)"
            )
        if self.warmup < 0:
            raise InputError(f"warmup={self.warmup}; must be at least 0")


class StageOne(nn.Module):
    """Loss of stage 1 over one batch of lessons.

    Args:
        ppms: layer -> module.
        recipe: of the training.
        kind: which loss.
    """

    def __init__(self, ppms: Mapping[int, PPM], recipe: Recipe, kind: Stage1Loss) -> None:
        super().__init__()
        self.ppms = nn.ModuleDict({str(layer): ppm for layer, ppm in ppms.items()})
        self.recipe, self.kind = recipe, kind

    def forward(
        self, streams: Mapping[str, Mapping[str, Tensor]], target: Tensor, inputs: Any = None
    ) -> dict[str, Tensor]:
        """`loss`, mean over modules."""
        low, high = self.recipe.ratios
        ratio = low + (high - low) * float(torch.rand(()))
        losses = []
        for layer, ppm in self.ppms.items():
            tokens = Tokens(**streams[layer])
            losses.append(
                stage_one(
                    tokens.scores(ppm),  # type: ignore[arg-type]
                    target,
                    tokens.visual_BN,
                    kind=self.kind,
                    ratio=ratio,
                    tau=self.recipe.tau,
                )
            )
        return {"loss": torch.stack(losses).mean()}


class StageTwo(nn.Module):
    """Loss of stage 2 over one batch: the frozen model's answers under soft removal.

    Args:
        ppms: layer -> module.
        model: frozen; it is no part of this module, so that nothing saves or trains it.
        ratios: layer -> reserve ratio, of the original tokens.
        recipe: of the training.
        gate: "soft", or "st_topk".
        teacher: "ce", "kl", "both", or "auto": "ce" where there are labels, else "kl".
    """

    def __init__(
        self,
        ppms: Mapping[int, PPM],
        model: Any,
        ratios: Mapping[int, float],
        recipe: Recipe,
        gate: Gate = "soft",
        teacher: Teacher = "auto",
    ) -> None:
        super().__init__()
        self.ppms = nn.ModuleDict({str(layer): ppm for layer, ppm in ppms.items()})
        self._frozen = (model,)  # a tuple hides it from nn.Module
        self.ratios, self.recipe = dict(ratios), recipe
        self.gate, self.teacher = gate, teacher
        self.progress = 0.0

    def forward(
        self, inputs: Mapping[str, Any], streams: Any = None, target: Any = None
    ) -> dict[str, Tensor]:
        """`loss` and its parts.

        Raises:
            InputError: for teacher="ce" or "both" without labels.
        """
        model = self._frozen[0]
        inputs = dict(inputs)
        labels_BT = inputs.pop("labels", None)
        teacher = self.teacher
        if teacher == "auto":
            teacher = "kl" if labels_BT is None else "ce"
        if teacher != "kl" and labels_BT is None:
            raise InputError(
                f"teacher={teacher!r} needs labels, and the batch has none; add labels (-100 off "
                "the answer), or use teacher='kl'"
            )
        full = None
        if teacher != "ce":
            with torch.no_grad():
                full = model(**inputs, use_cache=False).logits
        # Another share of the budgets in every step, so that one module serves all of them.
        low, high = self.recipe.ratios
        scale = low + (high - low) * float(torch.rand(()))
        chances = {int(layer): self._chance(int(layer), scale) for layer in self.ppms}
        hide_BT = answers({"labels": labels_BT})
        with SoftMask(model, chances, self.recipe.eps, hide_BT) as soft:
            logits_BTV = model(**inputs, use_cache=False).logits
        loss = logits_BTV.new_zeros(())
        if labels_BT is not None and teacher != "kl":
            loss = loss + answer_loss(logits_BTV, labels_BT)
        if full is not None:
            where_BT = _asked(inputs, labels_BT, logits_BTV)
            loss = loss + teacher_loss(logits_BTV, full, where_BT)
        result = {"task": loss.detach()}
        if self.gate == "soft":
            tokens = soft.watch.tokens(min(chances))
            for layer, ratio in self.ratios.items():
                budget, spread = budget_terms(soft.kept[layer], tokens.visual_BN, ratio)
                loss = loss + self.recipe.lambda_b * budget
                loss = loss + self.recipe.lambda_h * self.progress * spread
                result |= {f"budget_{layer}": budget.detach(), f"spread_{layer}": spread.detach()}
        return {"loss": loss, **result}

    def _chance(self, layer: int, scale: float) -> Any:
        ppm, lowest = self.ppms[str(layer)], min(self.ratios)

        def chance(tokens: Tokens, so_far_BN: Tensor) -> Tensor:
            score_BN = tokens.scores(ppm)  # type: ignore[arg-type]
            if self.gate == "soft":
                return score_BN.sigmoid() * tokens.visual_BN
            ratio = scale * self.ratios[layer] / self.ratios[lowest]
            k_B = counts(tokens.visual_BN, ratio)
            alive_BN = tokens.visual_BN & (so_far_BN.detach() > 0.5)
            return straight_through(score_BN, k_B, alive_BN, self.recipe.gate_tau)

        return chance


def _asked(inputs: Mapping[str, Any], labels_BT: Tensor | None, logits_BTV: Tensor) -> Tensor:
    """(B, T): places whose next token is compared with the unpruned model's."""
    where_BT = torch.zeros(logits_BTV.shape[:2], dtype=torch.bool, device=logits_BTV.device)
    if labels_BT is not None and bool((labels_BT != -100).any()):
        where_BT[:, :-1] = (labels_BT[:, 1:] != -100).to(where_BT.device)
        return where_BT
    mask_BT = inputs.get("attention_mask")
    if mask_BT is None:
        where_BT[:, -1] = True
        return where_BT
    index_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B1 = (mask_BT.bool() * index_T).amax(1, keepdim=True)
    return where_BT.scatter_(1, last_B1, True)


def learning_rate(recipe: Recipe, stage: Literal[1, 2], step: int, steps: int) -> float:
    """Of one step: a linear warm-up, then a cosine (stage 1) or the same rate (stage 2).

    Args:
        recipe: of the training.
        stage: 1 or 2.
        step: from 0.
        steps: in all.
    """
    warm = min(recipe.warmup, max(1, steps // 10))
    rise = min(1.0, (step + 1) / warm) if warm else 1.0
    if stage == 2:
        return recipe.lr2 * rise
    first, last = recipe.lr
    done = min(1.0, max(0, step - warm) / max(1, steps - 1 - warm))
    return rise * (last + (first - last) * (1 + math.cos(math.pi * done)) / 2)


def train(stage: StageOne | StageTwo, lessons: Lessons, recipe: Recipe) -> list[float]:
    """Train a stage's modules; returns the loss of every step of this process.

    Under `accelerate launch` every process takes other batches, and gradients are averaged.

    Args:
        stage: what learns.
        lessons: what from.
        recipe: how.

    Raises:
        InputError: for a loss that is no number.
    """
    number: Literal[1, 2] = 1 if isinstance(stage, StageOne) else 2
    accelerator = Accelerator(device_placement=False)
    order = torch.Generator().manual_seed(recipe.seed)
    loader = DataLoader(lessons, batch_size=1, shuffle=True, collate_fn=_only, generator=order)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=recipe.lr[0], weight_decay=WEIGHT_DECAY)
    ready, optimizer, loader = accelerator.prepare(stage.train(), optimizer, loader)
    limit = recipe.max_steps[number - 1]
    steps = limit if limit > 0 else max(1, half_up(recipe.epochs[number - 1] * len(loader)))
    losses: list[float] = []
    with (
        frozen(lessons.model, checkpointing=recipe.checkpointing and number == 2),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(recipe.seed + number)
        while len(losses) < steps:
            for lesson in loader:
                step = len(losses)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, number, step, steps)
                if isinstance(stage, StageTwo):
                    stage.progress = step / max(1, steps - 1)
                loss = ready(**lesson)["loss"]
                if not bool(torch.isfinite(loss)):
                    raise InputError(
                        f"the loss of step {step} of stage {number} is no number; use a lower "
                        "learning rate, or look at that batch"
                    )
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(stage.parameters(), recipe.clip)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                if len(losses) == steps:
                    break
    stage.eval()
    return losses


def _only(items: list[Any]) -> Any:
    return items[0]


@contextmanager
def _frozen(model: Any, checkpointing: bool) -> Any:
    wanted = [weight.requires_grad for weight in model.parameters()]
    modes = {module: module.training for module in model.modules()}
    model.requires_grad_(False)
    model.eval()
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", None) is not None]
    before = [layer.gradient_checkpointing for layer in layers]
    try:
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            for layer in layers:  # the flag alone: dropout inside stays off
                layer.training = True
        yield
    finally:
        if checkpointing:
            model.activation_checkpointing_disable()
        for layer, flag in zip(layers, before, strict=True):
            layer.gradient_checkpointing = flag
        for module, mode in modes.items():
            module.training = mode
        for weight, flag in zip(model.parameters(), wanted, strict=True):
            weight.requires_grad_(flag)


def frozen(model: Any, *, checkpointing: bool = False) -> AbstractContextManager[None]:
    """A context in which no weight of the model asks for gradients and dropout is off.

    Args:
        model: left as it was.
        checkpointing: recompute decoder layers in the backward pass, which saves memory.
    """
    return _frozen(model, checkpointing)
