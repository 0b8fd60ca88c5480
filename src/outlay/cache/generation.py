"""transformers' `generate`, decoding over a compacted cache.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from outlay.errors import CapabilityError, InputError

if TYPE_CHECKING:
    from outlay.cache.compacted import CompactedCache, Retention


def decode(
    method: Retention,
    network: Any,
    ids_BT: torch.Tensor,
    processors: Any,
    criteria: Any,
    config: Any,
    given: Mapping[str, Any],
) -> Any:
    """What `generate` returns: ids, or its dictionary where that is asked for."""
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    _check(config, given)
    width = ids_BT.shape[1]
    cache = method.open(network, width)
    step = method.chunk if method.mode == "stream" else width
    for at in range(0, width, step):
        logits_BV = _feed(network, ids_BT[:, at : at + step], cache)
    cache.active = method.mode != "prefill_once"
    pad = config._pad_token_tensor
    ends = any(hasattr(each, "eos_token_id") for each in criteria)
    open_B = torch.ones(len(ids_BT), dtype=torch.bool, device=ids_BT.device)
    kept: dict[str, list[torch.Tensor]] = {"scores": [], "logits": []}
    while True:
        scores_BV = processors(ids_BT, logits_BV.float())
        kept["scores"].append(scores_BV)
        kept["logits"].append(logits_BV)
        if config.do_sample:
            token_B = torch.multinomial(scores_BV.softmax(-1), 1)[:, 0]
        else:
            token_B = scores_BV.argmax(-1)
        if ends and pad is not None:
            token_B = torch.where(open_B, token_B, pad.to(token_B.device))
        ids_BT = torch.cat([ids_BT, token_B[:, None]], dim=-1)
        open_B &= ~criteria(ids_BT, scores_BV)
        if not open_B.any():
            break
        logits_BV = _feed(network, token_B[:, None], cache)
        if not config.output_scores:
            kept["scores"].clear()
        if not config.output_logits:
            kept["logits"].clear()
    if not config.return_dict_in_generate:
        return ids_BT
    return GenerateDecoderOnlyOutput(
        sequences=ids_BT,
        scores=tuple(kept["scores"]) if config.output_scores else None,
        logits=tuple(kept["logits"]) if config.output_logits else None,
        cache=cache,
    )


@torch.inference_mode()
def _feed(network: Any, ids_BT: torch.Tensor, cache: CompactedCache) -> torch.Tensor:
    position_T = cache.get_seq_length() + torch.arange(ids_BT.shape[1], device=ids_BT.device)
    logits_BTV: torch.Tensor = network(
        ids_BT,
        cache=cache,
        position_ids=position_T[None].expand(ids_BT.shape),
        use_cache=True,
        logits_to_keep=1,
    ).logits
    cache.compact()
    return logits_BTV[:, -1]


def _check(config: Any, given: Mapping[str, Any]) -> None:
    if (config.num_beams or 1) > 1:
        raise CapabilityError(
            f"num_beams={config.num_beams}: beams are not decoded over a compacted cache; "
            "use num_beams=1"
        )
    if given.get("attention_mask") is not None:
        raise InputError(
            "the prompts are padded, and a compacted cache counts padding as tokens; "
            "give prompts of equal length, or one at a time"
        )
    if given.get("inputs_embeds") is not None:
        raise CapabilityError("prompts as embeddings are not supported here; give input_ids")
    cache = given.get("cache")
    if cache is not None and cache.get_seq_length():
        raise InputError(
            f"the given cache already holds {cache.get_seq_length()} rows; leave cache= out, "
            "the method makes its own"
        )
