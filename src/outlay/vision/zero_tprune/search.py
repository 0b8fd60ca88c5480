"""Searching a schedule with forward passes alone: no label, no gradient.

A trial draws how hard each block prunes and how much of that the S-stage does; one exponent then
makes the schedule cost what was asked, so that every trial is at the budget. Its value is how many
predictions on calibration images are those of the unpruned model. Random draws, or Optuna's TPE.

Shapes: B images, P patches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from outlay.errors import CapabilityError, DependencyError, InputError
from outlay.vision.zero_tprune.cost import Shape, macs
from outlay.vision.zero_tprune.method import ZeroTPrune
from outlay.vision.zero_tprune.schedule import Stage

if TYPE_CHECKING:
    from torch import Tensor

Sampler = Literal["random", "tpe"]
MOST_TRIALS, MOST_IMAGES = 10_000, 100_000
VOTES = (1, 2, 5)
SHARES = (0.0, 0.25, 0.5)  # of the patches that go, dropped as near copies


@dataclass(frozen=True)
class Trial:
    """One schedule and how it did.

    Args:
        stages: the schedule.
        agreement: share of calibration images predicted as by the unpruned model.
        macs: multiply-adds, as a share of the unpruned model's.
    """

    stages: tuple[Stage, ...]
    agreement: float
    macs: float


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Args:
        method: with the best schedule.
        trials: all, in order.
    """

    method: ZeroTPrune
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial of the highest agreement; the first of equals."""
        return max(self.trials, key=lambda trial: trial.agreement)


@torch.no_grad()
def predictions(model: Any, pixel_values: Tensor, batch: int = 64) -> Tensor:
    """(B,): the classes that a model says.

    Raises:
        InputError: for no images or too many.
        CapabilityError: for a model without logits.
    """
    if not 1 <= len(pixel_values) <= MOST_IMAGES:
        raise InputError(f"{len(pixel_values)} calibration images; need 1 to {MOST_IMAGES}")
    if batch < 1:
        raise InputError(f"batch={batch}; must be at least 1")
    said = []
    for part in pixel_values.split(batch):
        logits = getattr(model(pixel_values=part), "logits", None)
        if logits is None:
            raise CapabilityError(f"{type(model).__name__} gives no logits to agree with")
        said.append(logits.argmax(-1))
    return torch.cat(said)


def agreement(
    method: Any, model: Any, pixel_values: Tensor, wanted_B: Tensor, batch: int = 64
) -> float:
    """Share of images on which the pruned model says what was wanted."""
    with method(model):
        said_B = predictions(model, pixel_values, batch)
    return float((said_B == wanted_B).double().mean())


def scaled(
    shape: Shape,
    method: ZeroTPrune,
    weights: Sequence[float],
    plan: Sequence[tuple[float, int]],
    budget: float,
) -> ZeroTPrune:
    """The schedule of given proportions that costs at most `budget` of the whole model.

    After block i a share `2 ** (-g w_i)` of the patches stays, and the smallest g that meets the
    budget is taken.

    Args:
        shape: of the model.
        method: whose other knobs are kept.
        weights: w of the blocks 1, 2, ...; 0 is no stage.
        plan: of the same blocks: share dropped as near copies, and votes.
        budget: share of the unpruned multiply-adds.

    Raises:
        InputError: if even one patch behind every stage costs more.
    """
    allowed = budget * macs(shape)

    def made(strength: float) -> ZeroTPrune:
        stages, patches = [], shape.patches
        for block, (weight, (share, votes)) in enumerate(zip(weights, plan, strict=True), start=1):
            if weight <= 0 or patches <= 1:
                continue
            left = max(1, round(patches * 2.0 ** (-strength * weight)))
            copies = min(int(share * (patches - left)), (patches - 1) // 2)
            if left < patches:
                rate = min(1.0, left / (patches - copies))
                stages.append(Stage(block, rate, copies, votes))
                patches = stages[-1].left(patches, method.order)
        return replace(method, schedule=tuple(stages), ranges=None)

    lo, hi = 0.0, 1.0
    while macs(shape, made(hi)) > allowed:
        lo, hi = hi, hi * 2
        if hi > 1e6:
            raise InputError(
                f"budget={budget}: no schedule on these blocks is that cheap; raise it, or prune "
                "earlier blocks"
            )
    for _ in range(30):
        middle = (lo + hi) / 2
        lo, hi = (lo, middle) if macs(shape, made(middle)) <= allowed else (middle, hi)
    return made(hi)


def search_schedule(
    model: Any,
    pixel_values: Tensor,
    *,
    budget: float,
    method: ZeroTPrune | None = None,
    trials: int = 50,
    sampler: Sampler = "random",
    blocks: Sequence[int] | None = None,
    seed: int = 0,
    batch: int = 64,
    report: Callable[[Trial], None] | None = None,
) -> Found:
    """The schedule at a budget that keeps most predictions.

    Args:
        model: a classifier.
        pixel_values: calibration images, without labels.
        budget: multiply-adds, pruning layers included, as a share of the unpruned model's.
        method: gives the other knobs; None for the defaults.
        trials: schedules tried.
        sampler: "random", or "tpe" of Optuna.
        blocks: after which a stage may stand; None for all but the last.
        seed: of the draws.
        batch: images at once.
        report: called after each trial.

    Raises:
        InputError: for values out of range, or a budget that no schedule meets.
        DependencyError: for "tpe" without Optuna.
    """
    if not 0 < budget < 1:
        raise InputError(f"budget={budget}; a share of the unpruned cost lies in (0, 1)")
    if not 1 <= trials <= MOST_TRIALS:
        raise InputError(f"trials={trials}; need 1 to {MOST_TRIALS}")
    if sampler not in get_args(Sampler):
        raise InputError(f"sampler={sampler!r}; choose one of {get_args(Sampler)}")
    base = ZeroTPrune() if method is None else method
    shape = Shape.of(model)
    places = range(1, shape.depth) if blocks is None else blocks
    if not places or not set(places) <= set(range(1, shape.depth)):
        raise InputError(f"blocks={blocks}; a stage stands after blocks 1 to {shape.depth - 1}")
    wanted_B = predictions(model, pixel_values, batch)
    whole = macs(shape)
    done: list[tuple[ZeroTPrune, Trial]] = []

    def value(draw: _Draw) -> float:
        weights, plan = [0.0] * (shape.depth - 1), [(0.0, 1)] * (shape.depth - 1)
        for block in places:
            if draw.choice(f"on {block}", (0, 1)):
                weights[block - 1] = draw.real(f"weight {block}")
            plan[block - 1] = (
                draw.choice(f"copies {block}", SHARES),
                int(draw.choice(f"votes {block}", VOTES)),
            )
        if not any(weights):
            weights[max(places) - 1] = 1.0
        try:
            tried = scaled(shape, base, weights, plan, budget)
        except InputError:  # these blocks come too late for the budget
            return -1.0
        share = agreement(tried, model, pixel_values, wanted_B, batch)
        trial = Trial(tried.stages, share, macs(shape, tried) / whole)
        done.append((tried, trial))
        if report is not None:
            report(trial)
        return share

    (_tpe if sampler == "tpe" else _random)(value, trials, seed)
    if not done:
        raise InputError(f"budget={budget}: no schedule tried is that cheap; raise it or trials")
    best = max(done, key=lambda pair: pair[1].agreement)
    return Found(best[0], tuple(trial for _, trial in done))


class _Draw:
    """Where a trial's numbers come from: a generator, or an Optuna trial."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def choice(self, name: str, among: Sequence[float]) -> float:
        if isinstance(self.source, random.Random):
            return self.source.choice(among)
        return float(self.source.suggest_categorical(name, among))

    def real(self, name: str) -> float:
        if isinstance(self.source, random.Random):
            return self.source.uniform(0.05, 1.0)
        return float(self.source.suggest_float(name, 0.05, 1.0))


def _random(value: Callable[[_Draw], float], trials: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(trials):
        value(_Draw(rng))


def _tpe(value: Callable[[_Draw], float], trials: int, seed: int) -> None:
    try:
        import optuna
    except ImportError as error:
        raise DependencyError(
            "sampler='tpe' needs optuna: pip install 'outlay[vision]', or use sampler='random'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(lambda trial: value(_Draw(trial)), n_trials=trials)
