"""Training a seer: its tower with linear heads, then, the tower frozen, projector and Llama.

The questions of a scene stand side by side in one sequence, each seeing the image and itself, at
the positions of a prompt of its own: so a training sequence is ten prompts for the price of one
image. The loss covers answers and their ends. In two of three batches most visual tokens are left
out (`token_drop`): it stands for the robustness of a large model to missing tokens, without which a
tiny one counts objects by the share of tokens that they cover.

Shapes: B scenes, n visual tokens, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from outlay.errors import InputError
from outlay.testbeds.adam import Adam
from outlay.testbeds.seer.model import Seer, Size, build, look, normalised, size_of, tiles
from outlay.testbeds.seer.questions import BOS, Packed, draw, pack
from outlay.testbeds.seer.recipe import Report, TrainConfig, Training, drawing
from outlay.testbeds.seer.scenes import Scenes, generator, scenes
from outlay.testbeds.seer.tower import Heads, measure, resize_positions, views

LOWEST = 0.03
"""Of the peak learning rate, at the end."""
FULL_SHARE = 1 / 3
LEAST_KEPT = 0.1
PULLS = (0.0, 0.5, 2.0)
"""How much a dropped batch prefers tokens that the CLS token attends to."""


class Optimiser(Adam):
    """AdamW with warm-up, cosine decay and clipped gradients over some modules."""

    def __init__(self, modules: list[nn.Module], lr: float, steps: int, config: TrainConfig):
        def rate(step: int) -> float:
            if step < config.warmup:
                return (step + 1) / config.warmup
            part = (step - config.warmup) / max(1, steps - config.warmup)
            return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))

        super().__init__(
            [p for module in modules for p in module.parameters()],
            lr=lr,
            weight_decay=config.weight_decay,
            clip=config.clip,
            schedule=lambda adam: torch.optim.lr_scheduler.LambdaLR(adam, rate),
        )

    def step(self, loss: torch.Tensor) -> float:
        """One update; returns the loss."""
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(f"the loss is {value}; choose a smaller learning rate")
        self.update(loss)
        return value


def train(
    config: TrainConfig, start: Seer | None = None, report: Report | None = None
) -> tuple[Seer, Training]:
    """Train a seer.

    The same configuration, start, thread count and library versions give the same weights bit for
    bit.

    Args:
        config: of the training.
        start: a seer to start from; its positions are interpolated to the new grid, and language
            layers that it lacks start as the identity.
        report: called after every step.

    Raises:
        InputError: if the loss is not finite, or `start` is of other widths.
    """
    size = size_of(config.size)
    model = build(size, config.seed)
    if start is not None:
        adopt(model, start)
    record = Training()
    model.set_attn_implementation("eager")  # bf16 on CPU wins with eager attention alone
    train_tower(model, size, config, record, report)
    model.model.vision_tower.requires_grad_(False)
    train_llm(model, size, config, record, report)
    model.set_attn_implementation("sdpa")
    return Seer(size, model.train(False)), record


def adopt(model: Any, start: Seer) -> None:
    """Copy a seer into a model with another grid or more language layers.

    Raises:
        InputError: if widths differ, or there are fewer layers.
    """
    source, target = start.model.model, model.model
    if start.size.width != target.config.text_config.hidden_size:
        raise InputError(
            f"start is {start.size.width} wide and the new model "
            f"{target.config.text_config.hidden_size}; start from one of the same width"
        )
    known, wanted = len(source.language_model.layers), len(target.language_model.layers)
    if wanted < known:
        raise InputError(f"start has {known} layers, the new model {wanted}; it needs as many")
    resize_positions(source.vision_tower, target.vision_tower)
    target.multi_modal_projector.load_state_dict(source.multi_modal_projector.state_dict())
    target.language_model.load_state_dict(source.language_model.state_dict(), strict=False)
    model.lm_head.load_state_dict(start.model.lm_head.state_dict())
    with torch.no_grad():
        for layer in target.language_model.layers[known:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()


def train_tower(
    model: Any, size: Size, config: TrainConfig, record: Training, report: Report | None
) -> None:
    """Train the tower of `model` in place."""
    if not config.tower_steps:
        return
    tower = model.model.vision_tower
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        heads = Heads(size)
    optimiser = Optimiser([tower, heads], config.tower_lr, config.tower_steps, config)
    began = time.process_time()
    for step in range(config.tower_steps):
        shown = scenes(
            config.batch, split="train", seed=(config.seed, 0, step), **drawing(config, step)
        )
        seen = views(shown, size)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = tower(seen.pixels).last_hidden_state
            loss = heads.loss(hidden, seen)
        _note(record, report, "tower", step, config.tower_steps, optimiser.step(loss))
    record.seconds["tower"] = time.process_time() - began
    record.tower = measure(tower, heads, size, drawing(config))


def train_llm(
    model: Any, size: Size, config: TrainConfig, record: Training, report: Report | None
) -> None:
    """Train projector and language model of `model` in place; its tower is left alone."""
    if not config.llm_steps:
        return
    modules = [model.model.multi_modal_projector, model.model.language_model, model.lm_head]
    if size.tiled:
        modules.append(nn.ParameterList([model.model.image_newline]))
    optimiser = Optimiser(modules, config.lr, config.llm_steps, config)
    began = time.process_time()
    if size.name == "V":
        from outlay.testbeds.seer.train_clips import clip_batches

        batches = clip_batches(model, config)
    else:
        batches = scene_batches(model, size, config)
    for step, (prefix, packed) in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, prefix, packed)
        _note(record, report, "llm", step, config.llm_steps, optimiser.step(loss))
        if step + 1 == config.llm_steps:
            break
    record.seconds["llm"] = time.process_time() - began


def _note(
    record: Training, report: Report | None, stage: str, step: int, steps: int, loss: float
) -> None:
    if step % max(1, steps // 20) == 0 or step == steps - 1:
        record.losses.append((stage, step + 1, loss))
    if report is not None:
        report(stage, step + 1, loss)


@dataclass(frozen=True)
class Prefix:
    """The image part of training sequences, padded on the right.

    Args:
        visual: (B, n, C) projected features where `ids` says so; anything elsewhere.
        ids: (B, n) `FEATURE`, `NEWLINE`, `NOTHING` (padding), or a token.
        positions: (B, n) places of the tokens.
        after: (B,) place of a question's first word.
    """

    visual: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    after: torch.Tensor


FEATURE, NEWLINE, NOTHING = -1, -2, -3


def answer_loss(model: Any, prefix: Prefix, packed: Packed) -> torch.Tensor:
    """Mean cross-entropy of all answers, and of where they end."""
    targets_BT = torch.from_numpy(packed.targets)
    block_BT = torch.from_numpy(packed.block)
    embed = model.get_input_embeddings()
    image_BnC = embed(prefix.ids.clamp_min(0))
    image_BnC = torch.where(
        (prefix.ids == FEATURE)[..., None], prefix.visual.to(image_BnC.dtype), image_BnC
    )
    newline_Bn = prefix.ids == NEWLINE
    if newline_Bn.any():
        image_BnC = torch.where(newline_Bn[..., None], model.model.image_newline, image_BnC)
    places_BT = prefix.after[:, None] + torch.from_numpy(packed.offset)
    group_BT = torch.cat([-(prefix.ids == NOTHING).long(), block_BT - (block_BT == 0).long()], 1)
    hidden_BTC = model.model.language_model(
        inputs_embeds=torch.cat([image_BnC, embed(torch.from_numpy(packed.ids))], 1),
        attention_mask=block_mask(group_BT),
        position_ids=torch.cat([prefix.positions, places_BT], 1),
        use_cache=False,
    ).last_hidden_state
    text_BTC = hidden_BTC[:, prefix.ids.shape[1] :]
    wanted_BT = targets_BT != -100
    logits_NV = model.lm_head(text_BTC[wanted_BT]).float()
    return nn.functional.cross_entropy(logits_NV, targets_BT[wanted_BT])


def block_mask(group_BT: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, T) additive mask: a token sees earlier ones of its own group, and of group 0.

    Padding has group -1 and sees only padding, which keeps its softmax finite.
    """
    keys, queries = group_BT[:, None, None, :], group_BT[:, None, :, None]
    steps = torch.arange(group_BT.shape[1])
    earlier = steps[None, :] <= steps[:, None]
    seen = earlier & ((keys == queries) | ((keys == 0) & (queries > 0)))
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def kept(
    saliency_Bn: torch.Tensor, rng: np.random.Generator, config: TrainConfig
) -> torch.Tensor | None:
    """(B, k) which visual tokens a training batch keeps, in order; None keeps all."""
    if not config.token_drop or rng.random() < FULL_SHARE:
        return None
    n = saliency_Bn.shape[1]
    share = math.exp(rng.uniform(math.log(LEAST_KEPT), 0.0))
    pull = PULLS[rng.integers(len(PULLS))]
    standard = (saliency_Bn - saliency_Bn.mean(1, keepdim=True)) / saliency_Bn.std(1, keepdim=True)
    noise = torch.from_numpy(rng.standard_normal(tuple(saliency_Bn.shape)).astype(np.float32))
    count = max(1, math.floor(share * n + 0.5))
    return (pull * standard + noise).topk(count, 1).indices.sort(1).values


def scene_batches(model: Any, size: Size, config: TrainConfig) -> Iterator[tuple[Prefix, Packed]]:
    """Endless training batches of scenes, with random visual tokens left out."""
    inner = model.model
    for step in itertools.count():
        shown = scenes(
            config.batch, split="train", seed=(config.seed, 1, step), **drawing(config, step)
        )
        rng = generator((config.seed, 2, step), "train")
        packed = pack(draw(shown, rng, mix=config.question_mix))
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BnC, saliency_Bn, ids_n = laid_out(inner, shown, size)
            visual_BnC = inner.multi_modal_projector(hidden_BnC)
        ids_Bn = ids_n.expand(config.batch, -1)
        positions_Bn = torch.arange(ids_n.shape[0]).expand(config.batch, -1) + 1
        after = 1 + ids_n.shape[0]
        keep = kept(saliency_Bn, rng, config)
        if keep is not None:
            visual_BnC = visual_BnC.gather(1, keep[..., None].expand(-1, -1, visual_BnC.shape[-1]))
            ids_Bn = ids_Bn.gather(1, keep)
            if rng.random() < config.compact:
                positions_Bn = torch.arange(keep.shape[1]).expand(config.batch, -1) + 1
                after = 1 + keep.shape[1]
            else:
                positions_Bn = keep + 1
        first = (config.batch, 1)
        yield (
            Prefix(
                visual=torch.cat([torch.zeros_like(visual_BnC[:, :1]), visual_BnC], 1),
                ids=torch.cat([torch.full(first, BOS), ids_Bn], 1),
                positions=torch.cat([torch.zeros(first, dtype=torch.long), positions_Bn], 1),
                after=torch.full((config.batch,), after),
            ),
            packed,
        )


def laid_out(
    inner: Any, shown: Scenes, size: Size
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tower features (B, n, C) of scenes in the order of their prompt, their saliency (B, n), and
    what stands at each place, (n,): `FEATURE` or `NEWLINE`.

    The order of a tiled picture is taken from transformers' own packing, run on indices.
    """
    pixels = normalised(shown.images)
    if not size.tiled:
        hidden, saliency = look(inner.vision_tower, pixels)
        return hidden, saliency, torch.full((hidden.shape[1],), FEATURE)
    parts = tiles(pixels, size)
    hidden, saliency = look(inner.vision_tower, parts.flatten(0, 1))
    hidden = hidden.unflatten(0, parts.shape[:2]).flatten(1, 2)
    saliency = saliency.unflatten(0, parts.shape[:2]).flatten(1, 2)
    index = torch.arange(hidden.shape[1], dtype=torch.float32).view(parts.shape[1], -1, 1)
    (order,), _ = inner.pack_image_features(
        [index], torch.tensor([shown.size]), "default", image_newline=torch.tensor([-1.0])
    )
    places = order[:, 0].long()
    newline = places < 0
    at = places.clamp_min(0)
    saliency = saliency[:, at]
    # A newline is as salient as its row's mean: it goes when its row goes.
    saliency = torch.where(newline, saliency.mean(1, keepdim=True), saliency)
    return hidden[:, at], saliency, torch.where(newline, NEWLINE, FEATURE)
