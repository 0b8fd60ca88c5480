"""The slow reference: nothing is dropped, layers are told not to look."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def masked_logits(model: Any, ids_BT: Tensor, embeds_BTD: Tensor, gone: list[Tensor]) -> Tensor:
    """Logits of a Llama-like decoder in which layer i does not see the keys `gone[i]` (B, T).

    Rows without padding; positions are 0..T-1.
    """
    decoder = model.model.language_model if hasattr(model.model, "language_model") else model.model
    length = ids_BT.shape[1]
    places = torch.arange(length)[None]
    rotary = decoder.rotary_emb(embeds_BTD, position_ids=places)
    causal_TT = torch.ones(length, length, dtype=torch.bool).tril()
    hidden = embeds_BTD
    for layer, gone_BT in zip(decoder.layers, gone, strict=True):
        open_BTT = causal_TT[None] & ~gone_BT[:, None]
        open_BTT = open_BTT | torch.eye(length, dtype=torch.bool)[None]  # dropped rows: no NaN
        mask = torch.zeros(len(ids_BT), 1, length, length)
        mask.masked_fill_(~open_BTT[:, None], float("-inf"))
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, position_ids=places)
    return model.lm_head(decoder.norm(hidden))


def merged(model: Any, ids_BT: Tensor, pixels: Tensor) -> Tensor:
    """Embeddings with image features in place."""
    embeds = model.get_input_embeddings()(ids_BT)
    features = torch.cat(list(model.get_image_features(pixel_values=pixels).pooler_output))
    return embeds.masked_scatter((ids_BT == model.config.image_token_id)[..., None], features)


def greedy(model: Any, ids_BT: Tensor, pixels: Tensor, gone: list[Tensor], steps: int) -> Tensor:
    """Greedy continuation, everything recomputed with masks at every step."""
    embeds = merged(model, ids_BT, pixels)
    for _ in range(steps):
        logits = masked_logits(model, ids_BT, embeds, gone)
        new = logits[:, -1:].argmax(-1)
        ids_BT = torch.cat([ids_BT, new], 1)
        embeds = torch.cat([embeds, model.get_input_embeddings()(new)], 1)
        gone = [torch.cat([one, torch.zeros_like(new, dtype=torch.bool)], 1) for one in gone]
    return ids_BT
