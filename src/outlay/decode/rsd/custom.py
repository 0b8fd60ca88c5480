"""RSD inside transformers: `model.generate(..., custom_generate=rsd_generate, draft=...)`.

`generate` prepares processors, stopping criteria and lengths; the loop is this package's.
Processors run on every tree path with the tokens of that path, so that those that depend on the
history are exact, too.

Shapes: B sequences, T tokens, N nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from outlay.decode.rsd.attention import check_network
from outlay.decode.rsd.drafts import CountingDraft, Drafter, NetworkDraft
from outlay.decode.rsd.engine import Engine, Lane, Stats
from outlay.decode.rsd.ngram import NGram
from outlay.decode.rsd.trees import Mode, Shape
from outlay.errors import InputError
from outlay.models.base import Finish

_UNLIMITED = 2**62


def rsd_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft: Any = None,
    mode: Mode = "rsd_s",
    branching: tuple[int, ...] = (2, 2, 2),
    beam: int = 4,
    depth: int = 3,
    seed: int | None = None,
    on_stats: Callable[[list[Stats]], None] | None = None,
    **model_kwargs: Any,
) -> Any:
    """The decoding loop of `generate`; pass it as `custom_generate=`.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config: from `generate`.
        draft: a transformers model with the same tokens, or an `NGram`.
        mode, branching, beam, depth: as in `RSD`.
        seed: None takes one from torch's global generator.
        on_stats: called once with the statistics of every sequence.
        model_kwargs: from `generate`; only `attention_mask` is read.

    Returns:
        What `generate` returns: sequences_BT, or a `GenerateDecoderOnlyOutput`.

    Raises:
        InputError: without a draft, or with beams.
        CapabilityError: for a network that cannot take a tree mask.
    """
    if generation_config.num_beams not in (None, 1):
        raise InputError(f"num_beams={generation_config.num_beams}; RSD samples, use num_beams=1")
    check_network(model, type(model).__name__)
    vocabulary = int(model.config.get_text_config().vocab_size)
    shape = Shape(mode, tuple(branching), beam, depth).clipped(vocabulary)
    mask_BT = model_kwargs.get("attention_mask")
    prompts = _prompts(input_ids, mask_BT)
    limit = int(generation_config.max_length) - input_ids.shape[1]
    if seed is None:
        seed = int(torch.randint(2**62, (1,)).item())
    lanes = []
    for row, prompt in enumerate(prompts):
        first, second = np.random.SeedSequence([seed, row]).generate_state(2, dtype=np.uint64)
        noise = None
        if generation_config.do_sample:
            noise = torch.Generator(device=model.device).manual_seed(int(second) >> 1)
        uniforms = np.random.Generator(np.random.Philox(key=first))
        lanes.append(Lane(prompt, limit, _UNLIMITED, uniforms, noise))

    place = {id(lane): row for row, lane in enumerate(lanes)}

    def whole(lane: Lane, words: Sequence[int]) -> tuple[int, torch.Tensor]:
        """The lane's row, and what `generate` would show of it: all rows, padding included."""
        row = place[id(lane)]
        new_T = torch.tensor([*lane.tokens, *words], dtype=torch.long, device=input_ids.device)
        return row, torch.cat([input_ids[row], new_T]).expand(len(lanes), -1)

    def warp(lane: Lane, ahead: Sequence[Sequence[int]], logits_NV: torch.Tensor) -> torch.Tensor:
        scores = []
        for words, logits_V in zip(ahead, logits_NV, strict=True):
            row, ids_BT = whole(lane, words)
            # Some processors write into their input, others know the number of rows.
            scores_BV = logits_V.float().repeat(len(lanes), 1)
            scores.append(logits_processor(ids_BT, scores_BV)[row])
        return torch.stack(scores)

    def ends(lane: Lane) -> Finish | None:
        row, ids_BT = whole(lane, ())
        done = bool(stopping_criteria(ids_BT, None)[row])
        return "stop" if done else "length" if len(lane.tokens) >= lane.limit else None

    drafter = _drafter(draft, vocabulary, model.device)
    windows = [_window(model)] if isinstance(draft, NGram) else [_window(model), _window(draft)]
    engine = Engine(model, drafter, shape, warp, ends, min(windows))
    cache = engine.read_target(lanes)
    engine.read_draft(lanes)
    for _ in engine.run(lanes, cache):
        pass
    if on_stats is not None:
        on_stats([lane.stats() for lane in lanes])
    sequences_BT = _joined(input_ids, lanes, generation_config)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences_BT)
    return sequences_BT


def _window(network: Any) -> int:
    config = network.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or 2**20)


def _prompts(ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> list[list[int]]:
    """The real tokens of every row."""
    if mask_BT is None:
        return [list(row) for row in ids_BT.tolist()]
    real_BT = mask_BT.bool()
    prompts = [ids_T[real_T].tolist() for ids_T, real_T in zip(ids_BT, real_BT, strict=True)]
    if not all(prompts) or not bool(real_BT[:, -1].all()):
        raise InputError("every prompt needs a token, padded on the left")
    return prompts


def _drafter(draft: Any, vocabulary: int, device: torch.device) -> Drafter:
    if isinstance(draft, NGram):
        return CountingDraft(draft, vocabulary, device)
    if not hasattr(draft, "config"):
        raise InputError(
            f"draft={draft!r}; give a transformers model with the target's tokenizer, or an NGram"
        )
    check_network(draft, f"draft={type(draft).__name__}")
    return NetworkDraft(draft, vocabulary, device)


def _joined(ids_BT: torch.Tensor, lanes: Sequence[Lane], config: GenerationConfig) -> torch.Tensor:
    """Prompts with their continuations, padded on the right."""
    longest = max((len(lane.tokens) for lane in lanes), default=0)
    pad = config.pad_token_id
    pad = pad if isinstance(pad, int) else 0
    new_BT = torch.tensor(
        [[*lane.tokens, *[pad] * (longest - len(lane.tokens))] for lane in lanes],
        dtype=ids_BT.dtype,
        device=ids_BT.device,
    ).reshape(len(lanes), longest)
    return torch.cat([ids_BT, new_BT], dim=1)
