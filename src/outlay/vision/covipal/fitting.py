"""Fitting CoViPAL: lessons, both stages, and what validation data say.

B rows, T prompt tokens, N visual tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Positions
from outlay.vision.covipal.guidance import Queries, Sinks, guidance_layer, targets, unpruned
from outlay.vision.covipal.lessons import Batch, Lessons, collect
from outlay.vision.covipal.losses import budgeted_sigmoid, counts
from outlay.vision.covipal.method import CoViPAL
from outlay.vision.covipal.pruning import Amount, Pruning, given, of_modules
from outlay.vision.covipal.soft import SoftMask
from outlay.vision.covipal.store import Trained, fingerprint
from outlay.vision.covipal.tokens import Tokens, Watch, answers, check_layers
from outlay.vision.covipal.training import Recipe, StageOne, StageTwo, frozen, train
from outlay.vision.parts import need_tower

Context = Callable[[Tensor | None], AbstractContextManager[Any]]
CALIBRATED = (0.5, 0.25, 0.125, 0.0625)


def fitted(
    method: CoViPAL,
    model: Any,
    batches: Sequence[Batch],
    recipe: Recipe | None,
    lessons: Lessons | None,
    validation: Sequence[Batch],
) -> Trained:
    """Modules of a method for a model; see `CoViPAL.fit`."""
    recipe = recipe or Recipe()
    layers = [layer for layer, _ in method.stairs]
    found = need_tower(model, "CoViPAL")
    check_layers(layers, found.num_layers)
    if bool(batches) == (lessons is not None):
        raise InputError("give batches, or the lessons that were made of them")
    guide = method.guidance_layer
    if guide is None and validation and lessons is None:
        guide = best_guidance(model, validation, method, recipe)
    with frozen(model):
        if lessons is None:
            lessons = collect(
                model,
                batches,
                prune_layers=layers,
                guidance=guidance_layer(found.num_layers, guide, max(layers)),
                queries=recipe.queries,
                sinks=recipe.sinks,
                keep_states=recipe.keep_states,
            )
        elif guide is not None:
            lessons = lessons.guided_by(guide)
        _check_lessons(lessons, model, layers)
        ppms = method.new_modules(model, recipe.seed)
        for ppm in ppms.values():
            ppm.to(model.device)
        losses = [train(StageOne(ppms, recipe, method.stage1_loss), lessons, recipe)]
        if method.stage2:
            ratios = {
                layer: method.ratio if not method.schedule else ratio
                for layer, ratio in method.stairs
            }
            if any(not isinstance(ratio, float | int) for ratio in ratios.values()):
                raise InputError(
                    "stage 2 trains one budget, and ratio has one for each image; fit with one "
                    "number, or stage2=False"
                )
            stage = StageTwo(ppms, model, ratios, recipe, method.gate, method.teacher)  # type: ignore[arg-type]
            losses.append(train(stage, lessons, recipe))
    for ppm in ppms.values():
        ppm.requires_grad_(False).eval()
    about: dict[str, Any] = {
        "stages": 1 + method.stage2,
        "steps": [len(part) for part in losses],
        "loss_first": [part[0] for part in losses],
        "loss_last": [sum(part[-10:]) / len(part[-10:]) for part in losses],
        "seed": recipe.seed,
    }
    calibration = {}
    if validation:
        much = method.amount()
        for ratio in CALIBRATED:
            if len(layers) > 1:
                break
            one = Amount(((layers[0], ratio),), min_keep=method.min_keep)
            calibration[ratio] = accuracy(model, validation, ppms, one, method.positions)
        hard = accuracy(model, validation, ppms, much, method.positions)
        budget = None if method.gate == "soft" else much
        soft = soft_accuracy(model, validation, ppms, budget)
        about |= {"hard": hard, "hard_minus_soft": hard - soft}
    return Trained(
        ppms,
        lessons.guide,
        fingerprint(model),
        str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
        recipe.ratios,
        calibration,
        about,
    )


def _check_lessons(lessons: Lessons, model: Any, layers: Sequence[int]) -> None:
    if lessons.model is not model:
        raise InputError("the lessons were made of another model; collect them with this one")
    if missing := [layer for layer in layers if layer not in lessons.prune_layers]:
        raise InputError(
            f"the lessons have no streams of layer {missing[0]}, only of {lessons.prune_layers}; "
            "collect them with prune_layers"
        )
    if lessons.guide <= max(layers):
        raise InputError(
            f"guidance_layer={lessons.guide} is not deeper than prune_layer={max(layers)}"
        )


@torch.no_grad()
def right(model: Any, batch: Batch, context: Context | None = None) -> Tensor:
    """(B,) True where every labelled token is the model's first choice, given those before it.

    Args:
        model: run as it is, or inside a context.
        batch: with labels.
        context: makes what is opened around the pass, of the mask of labelled tokens.

    Raises:
        InputError: for a batch without labels.
    """
    labels_BT = batch.get("labels")
    if labels_BT is None or not bool((labels_BT != -100).any()):
        raise InputError("a validation batch has no labels; mark the answer's tokens")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    opened = nullcontext() if context is None else context(answers(batch))
    with opened:
        logits_BTV = model(**inputs, use_cache=False).logits
    wanted_BT = labels_BT[:, 1:].to(logits_BTV.device)
    return ((logits_BTV[:, :-1].argmax(-1) == wanted_BT) | (wanted_BT == -100)).all(1)


def accuracy(
    model: Any,
    batches: Sequence[Batch],
    ppms: Any,
    much: Amount,
    positions: Positions = "original",
) -> float:
    """Share of rows that are right after hard removal; answers are given word by word."""

    def pruned(hide: Tensor | None) -> Pruning:
        return Pruning(model, much, of_modules(ppms), positions, hide)

    return _share(right(model, batch, pruned) for batch in batches)


def soft_accuracy(
    model: Any, batches: Sequence[Batch], ppms: Any, much: Amount | None = None
) -> float:
    """Share of rows that are right under soft removal.

    Args:
        model: frozen.
        batches: labelled.
        ppms: layer -> module.
        much: chances are sigmoids that sum to its counts, as the gate "st_topk" moves them; None
            takes the sigmoids of the scores, as the gate "soft" does.
    """
    ratios = None if much is None else dict(much.stairs)

    def chance(layer: int, ppm: Any) -> Any:
        def of(tokens: Tokens, so_far_BN: Tensor) -> Tensor:
            score_BN, real_BN = tokens.scores(ppm), tokens.visual_BN
            if ratios is None:
                return score_BN.sigmoid() * real_BN
            return budgeted_sigmoid(score_BN, counts(real_BN, ratios[layer]), real_BN, 1.0)

        return of

    chances = {layer: chance(layer, ppm) for layer, ppm in ppms.items()}

    def softened(hide: Tensor | None) -> SoftMask:
        return SoftMask(model, chances, hide=hide)

    return _share(right(model, batch, softened) for batch in batches)


def _share(found: Iterable[Tensor]) -> float:
    return float(torch.cat(list(found)).float().mean())


def oracle_accuracy(
    model: Any,
    batches: Sequence[Batch],
    layer: int,
    much: Amount,
    *,
    queries: Queries = "text",
    sinks: Sinks = "keep",
) -> float:
    """Share of rows that are right when tokens are ranked by a layer's true attention."""
    watch = Watch(model, attention=[layer])
    found = []
    for batch in batches:
        watch.hide = answers(batch)
        with watch:
            unpruned(model, batch)
            truth = targets(watch, layer, queries=queries, sinks=sinks)
        found.append(right(model, batch, _by(model, much, truth)))
    return _share(found)


def _by(model: Any, much: Amount, truth_BN: Tensor) -> Context:
    def pruned(hide: Tensor | None) -> Pruning:
        return Pruning(model, much, given(truth_BN))

    return pruned


def best_guidance(model: Any, validation: Sequence[Batch], method: CoViPAL, recipe: Recipe) -> int:
    """The guidance layer whose true attention prunes best on validation data; deeper wins ties."""
    depth = need_tower(model, "CoViPAL").num_layers
    much = method.amount()
    deepest = max(layer for layer, _ in much.stairs)
    guidance_layer(depth, None, deepest)  # refuses a decoder without a deeper layer
    with frozen(model):
        scored = {
            layer: oracle_accuracy(
                model, validation, layer, much, queries=recipe.queries, sinks=recipe.sinks
            )
            for layer in range(deepest + 1, depth)
        }
    return max(scored, key=lambda layer: (scored[layer], layer))
