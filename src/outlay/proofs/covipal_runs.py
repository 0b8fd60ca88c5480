"""Runs behind the proof of CoViPAL: data, trained modules, answers under every way of pruning.

N questions, V vocabulary, R resamples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from outlay import paired
from outlay.errors import InputError
from outlay.paired import Difference
from outlay.proofs.base import Progress
from outlay.stats import FloatArray
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.questions import ONE_TOKEN, VOCABULARY, Question, one_each, possible
from outlay.testbeds.seer.scenes import Scenes, generator
from outlay.vision.base import Pruner
from outlay.vision.baselines import GivenTokens, RandomTokens, UniformTokens
from outlay.vision.cls_attention import ClassToken
from outlay.vision.counts import half_up
from outlay.vision.covipal import CoViPAL, Lessons, Trained, collect
from outlay.vision.covipal.fitting import accuracy, oracle_accuracy, right, soft_accuracy
from outlay.vision.covipal.guidance import targets, unpruned
from outlay.vision.covipal.pruning import amount
from outlay.vision.covipal.seer_data import batches, drawn
from outlay.vision.covipal.store import fingerprint
from outlay.vision.covipal.tokens import Watch
from outlay.vision.covipal.training import Recipe, StageOne, StageTwo, train

TYPES: Mapping[str, tuple[str, ...]] = {
    "which": ("digit", "garment"),
    "kind": ("kind",),
    "count": ("count",),
    "exist": ("exist",),
}
"""Question types: "which digit|garment is C", "what kind is C", "how many", "is there C"."""
NAMED = ("which", "kind")
"""Types that name one object: a ranking without the question must keep them all."""
BATCH = 64


@dataclass(frozen=True)
class Size:
    """How much is run.

    Args:
        batches: of training rows.
        rows: of a training batch.
        validation: batches that choose the guidance layer.
        scenes: held out, for the small ratios.
        wide: of these, for the large ratios.
        seeds: of the modules.
        epochs: of both stages.
        timed: prefills on the clock; 0 for none.
    """

    batches: int
    rows: int
    validation: int
    scenes: int
    wide: int
    seeds: tuple[int, ...]
    epochs: tuple[float, float]
    timed: int = 0


@dataclass(frozen=True)
class Prompts:
    """Questions of one type: inputs with features, and right answers.

    Args:
        scenes: which scene each is about.
        inputs: of each batch.
        gold: (n,) of each batch.
    """

    scenes: np.ndarray
    inputs: Sequence[dict[str, Any]]
    gold: Sequence[torch.Tensor]

    def __len__(self) -> int:
        return len(self.scenes)

    def first(self, n: int) -> Prompts:
        """Whole batches, of at most n questions but at least one batch."""
        keep = max(1, n // BATCH)
        size = sum(len(gold) for gold in self.gold[:keep])
        return Prompts(self.scenes[:size], self.inputs[:keep], self.gold[:keep])


@dataclass
class World:
    """What all runs share.

    Args:
        seer: frozen.
        recipe: whose attention guides.
        lessons: with the attention of every layer.
        guide: the guidance layer.
        oracles: accuracy on validation data when tokens are ranked by each layer's attention.
        validation: those data.
        asked: type -> held-out questions.
        cls_NK: class-token attention of every held-out scene.
    """

    seer: Seer
    recipe: Recipe
    lessons: Lessons
    guide: int
    oracles: Mapping[int, float]
    validation: Sequence[Any]
    asked: Mapping[str, Prompts]
    cls_NK: torch.Tensor
    cache: dict[str, FloatArray] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Visual tokens of a prompt."""
        return self.seer.size.tokens

    def best_below(self, layer: int) -> int:
        """The best guidance layer that is deeper than one."""
        deeper = {at: value for at, value in self.oracles.items() if at > layer}
        return max(deeper, key=lambda at: (deeper[at], at))

    @property
    def depth(self) -> int:
        """Layers of the decoder."""
        return self.seer.size.layers


def world(
    seer: Seer, size: Size, recipe: Recipe, ratio: float, seed: int, progress: Progress
) -> World:
    """Data, guidance and held-out questions.

    Args:
        seer: of size S or M.
        size: how much.
        recipe: whose attention guides.
        ratio: at which the guidance layer is chosen.
        seed: of the scenes.
        progress: is told.
    """
    model = seer.model
    progress("training scenes")
    data = batches(seer, size.batches, seed=seed, rows=size.rows, kinds=ONE_TOKEN)
    progress("guidance attention, once for every row")
    depth = seer.size.layers
    lessons = collect(
        model,
        data,
        prune_layers=(0, 1),
        guidance=range(depth),
        queries=recipe.queries,
        sinks=recipe.sinks,
    )
    held = batches(seer, size.validation, seed=seed + 1, rows=size.rows, kinds=ONE_TOKEN)
    much = amount(ratio, (), 0, None, 1)
    oracles = {
        layer: oracle_accuracy(model, held, layer, much, queries=recipe.queries, sinks=recipe.sinks)
        for layer in range(1, depth)
    }
    guide = max(oracles, key=lambda layer: (oracles[layer], layer))
    progress("held-out scenes")
    seen = drawn(seer, size.scenes, seed=seed + 2, split="test")
    features, cls_NK = _encoded(seer, seen)
    asked = _all_types(seer, seen, features, seed)
    return World(seer, recipe, lessons.guided_by(guide), guide, oracles, held, asked, cls_NK)


def prompts_of(seer: Seer, n: int, seed: int) -> dict[str, Prompts]:
    """Questions of every type about n held-out scenes.

    Args:
        seer: of size S or M.
        n: scenes.
        seed: of the scenes.
    """
    seen = drawn(seer, n, seed=seed, split="test")
    return _all_types(seer, seen, _encoded(seer, seen)[0], seed)


def _all_types(
    seer: Seer, seen: Scenes, features_NKC: torch.Tensor, seed: int
) -> dict[str, Prompts]:
    return {name: _prompts(seer, seen, features_NKC, kinds, seed) for name, kinds in TYPES.items()}


@torch.no_grad()
def _encoded(seer: Seer, seen: Scenes) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, K, C) and class-token attention (N, K) of scenes."""
    token = ClassToken(seer.model)
    features, looks = [], []
    token.open()
    for start in range(0, len(seen), BATCH):
        features.append(seer.features(seen[start : start + BATCH])[:, 0])
        looks.append(token.rows().sum(1))
    token.close()
    return torch.cat(features), torch.cat(looks)


def _prompts(
    seer: Seer, seen: Scenes, features_NKC: torch.Tensor, kinds: Sequence[str], seed: int
) -> Prompts:
    """One question a scene, of any of these kinds."""

    def ask(scene: int, rng: np.random.Generator) -> list[Question]:
        return [question for kind in kinds for question in possible(seen, scene, kind, rng)]

    index, questions = one_each(len(seen), ask, generator((seed, 3), "test"))
    inputs, gold = [], []
    for start in range(0, len(index), BATCH):
        part = index[start : start + BATCH]
        words = questions[start : start + BATCH]
        inputs.append(seer.inputs_of_features([[features_NKC[scene]] for scene in part], words))
        gold.append(torch.tensor([VOCABULARY[question.answer[0]] for question in words]))
    return Prompts(index, inputs, gold)


Make = Callable[[Prompts, int], Pruner]
"""A pruner for one batch of prompts."""


@torch.no_grad()
def answered(seer: Seer, prompts: Prompts, make: Make | None) -> FloatArray:
    """(N,) 1 where the answer is right.

    Args:
        seer: who answers.
        prompts: of one type.
        make: the pruner of each batch; None prunes nothing.
    """
    found = []
    model = seer.model
    for index, (inputs, gold) in enumerate(zip(prompts.inputs, prompts.gold, strict=True)):
        if make is None:
            logits = model(**inputs, use_cache=False, logits_to_keep=1).logits
        else:
            with make(prompts, index)(model):
                logits = model(**inputs, use_cache=False, logits_to_keep=1).logits
        found.append(logits[:, -1].argmax(-1).cpu() == gold)
    return torch.cat(found).numpy().astype(float)


def always(method: Pruner) -> Make:
    """The same pruner for every batch."""
    return lambda prompts, index: method


def random(ratio: float, seed: int) -> Make:
    """Other tokens in every batch."""
    return lambda prompts, index: RandomTokens(rate=ratio, seed=1000 * seed + index)


def uniform(ratio: float) -> Make:
    """An even grid."""
    return always(UniformTokens(rate=ratio))


def class_token(world: World, ratio: float) -> Make:
    """What the class token looks at."""

    def make(prompts: Prompts, index: int) -> Pruner:
        scenes = prompts.scenes[BATCH * index : BATCH * (index + 1)]
        return GivenTokens(list(world.cls_NK[scenes]), rate=ratio)

    return make


def oracle(world: World, ratio: float) -> Make:
    """The true attention of the guidance layer, from the question alone."""
    model, known = world.seer.model, world.cache

    def make(prompts: Prompts, index: int) -> Pruner:
        key = f"{id(prompts.inputs[index])}"
        if key not in known:
            with Watch(model, attention=[world.guide]) as watch:
                unpruned(model, prompts.inputs[index])
                found = targets(
                    watch, world.guide, queries=world.recipe.queries, sinks=world.recipe.sinks
                )
                known[key] = found.numpy().astype(float)
        return GivenTokens(list(torch.tensor(known[key])), rate=ratio)

    return make


# -- modules --------------------------------------------------------------------------------------

METHOD = CoViPAL(d_p=48, ratio=0.125, gate="st_topk")


@dataclass(frozen=True)
class Modules:
    """One training: after stage 1, and after stage 2 where there was one.

    Args:
        one: a method with the modules of stage 1.
        two: of stage 2; None without.
        loss: first and last of each stage.
    """

    one: CoViPAL
    two: CoViPAL | None
    loss: tuple[tuple[float, float], ...]

    @property
    def last(self) -> CoViPAL:
        """After the last stage."""
        return self.one if self.two is None else self.two


def modules(
    world: World, method: CoViPAL, recipe: Recipe, *, guide: int | None = None, stage2: bool = True
) -> Modules:
    """Train modules on the shared lessons.

    Args:
        world: lessons and the frozen seer.
        method: its knobs.
        recipe: of the training.
        guide: another guidance layer than the world's; any layer, to show what it is worth.
        stage2: whether to go on end to end.
    """
    model = world.seer.model
    lessons = world.lessons if guide is None else world.lessons.guided_by(guide)
    ppms = method.new_modules(model, recipe.seed)
    losses = train(StageOne(ppms, recipe, method.stage1_loss), lessons, recipe)
    shown = [(losses[0], float(np.mean(losses[-10:])))]
    one = _with(method, ppms, lessons, world)
    if not stage2:
        return Modules(one, None, tuple(shown))
    ratios = dict(method.stairs)
    stage = StageTwo(ppms, model, ratios, recipe, method.gate, method.teacher)
    losses = train(stage, lessons, recipe)
    shown.append((losses[0], float(np.mean(losses[-10:]))))
    return Modules(one, _with(method, ppms, lessons, world), tuple(shown))


def second_stage(world: World, start: CoViPAL, method: CoViPAL, recipe: Recipe) -> CoViPAL:
    """Another second stage from the modules of a first one."""
    assert start.fitted is not None
    ppms = {layer: copy.deepcopy(ppm) for layer, ppm in start.fitted.ppms.items()}
    for ppm in ppms.values():
        ppm.requires_grad_(True)
    ratios = dict(method.stairs)
    stage = StageTwo(ppms, world.seer.model, ratios, recipe, method.gate, method.teacher)
    train(stage, world.lessons, recipe)
    return _with(method, ppms, world.lessons, world)


def _with(method: CoViPAL, ppms: Mapping[int, Any], lessons: Lessons, world: World) -> CoViPAL:
    kept = {layer: copy.deepcopy(ppm).requires_grad_(False).eval() for layer, ppm in ppms.items()}
    mark = fingerprint(world.seer.model)
    trained = Trained(kept, lessons.guide, mark, f"seer {world.seer.size.name}")
    return replace(method, fitted=trained)


def at(method: CoViPAL, ratio: float) -> CoViPAL:
    """The same modules at another ratio."""
    return replace(method, ratio=ratio)


def hard_minus_soft(world: World, method: CoViPAL) -> float:
    """How much worse (or better) hard removal is than the soft one."""
    assert method.fitted is not None
    model, data = world.seer.model, world.validation
    hard = accuracy(model, data, method.fitted.ppms, method.amount())
    budget = None if method.gate == "soft" else method.amount()
    return hard - soft_accuracy(model, data, method.fitted.ppms, budget)


def full_accuracy(world: World) -> float:
    """Of the unpruned seer on validation data."""
    found = [right(world.seer.model, batch) for batch in world.validation]
    return float(torch.cat(found).float().mean())


# -- differences ----------------------------------------------------------------------------------


def difference(ours_N: FloatArray, theirs_N: FloatArray, seed: int = 0) -> Difference:
    """Paired difference over the same questions; seeds were averaged before.

    Raises:
        InputError: for unequal numbers.
    """
    if ours_N.shape != theirs_N.shape:
        raise InputError(f"{len(ours_N)} and {len(theirs_N)} answers; compare the same questions")
    return paired.difference(ours_N - theirs_N, seed=seed)


def ratio_count(ratio: float, tokens: int) -> int:
    """Tokens that a ratio keeps."""
    return max(1, half_up(ratio * tokens))
