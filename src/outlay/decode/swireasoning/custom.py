"""SwiReasoning inside transformers: `model.generate(..., custom_generate=swir_generate)`.

Everything that `generate` prepares is used as it stands: logits processors (temperature, top-k,
top-p, min-p, whatever was added), stopping criteria, `do_sample` and its random state. The prompt
is taken as it is; it should end inside thinking.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import torch

from outlay.decode.swireasoning.controller import SwiController
from outlay.decode.swireasoning.embeddings import Embeddings, entropies
from outlay.decode.swireasoning.markers import resolve
from outlay.decode.swireasoning.method import SwiReasoning
from outlay.decode.swireasoning.rows import Rows, prefilled
from outlay.decode.swireasoning.setup import rules_of
from outlay.errors import CapabilityError, InputError


def swir_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    swir_tokenizer: Any = None,
    swir_method: SwiReasoning | None = None,
    swir_plan: AbstractSet[int] | None = None,
    swir_streamer: Any = None,
    **model_kwargs: Any,
) -> Any:
    """A decoding method for `generate`; ids_BT of the prompts and what followed, padded.

    Args:
        model: a transformers causal LM.
        input_ids: prompts, left-padded.
        logits_processor, stopping_criteria, generation_config: from `generate`.
        swir_tokenizer: of the model; needed for the markers.
        swir_method: the knobs; None for the defaults.
        swir_plan: steps at which the mode switches, whatever the entropy; an empty set never
            switches (Soft Thinking).
        swir_streamer: gets tokens as they are chosen (one prompt only). `generate` does not hand
            its own `streamer` to custom methods.
        model_kwargs: from `generate`; the attention mask is used.

    Raises:
        CapabilityError: for a model that takes no embeddings, beams, or several sequences a prompt.
        InputError: for right padding, several prompts without a pad token, unknown markers.
        ModelError: for logits that are not finite.

    Example:
        >>> model.generate(
        ...     **inputs, custom_generate=swir_generate, swir_tokenizer=tokenizer, do_sample=True,
        ...     temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=4096,
        ... )
    """
    method = swir_method or SwiReasoning()
    if swir_tokenizer is None:
        raise InputError("SwiReasoning needs to know the think markers; give swir_tokenizer=")
    if generation_config.num_beams > 1 or generation_config.return_dict_in_generate:
        raise CapabilityError(
            "SwiReasoning returns one sequence of ids a prompt; use num_beams=1 and "
            "return_dict_in_generate=False"
        )
    name = type(model).__name__
    rows, width = input_ids.shape
    prompts, pad = _prompts(input_ids, model_kwargs.get("attention_mask"), generation_config)
    if swir_streamer is not None and rows > 1:
        raise InputError(f"a streamer shows one sequence, and there are {rows}; give one prompt")
    longest = generation_config.max_length - width
    if longest < 1:
        raise InputError(
            f"the prompt of {width} tokens leaves nothing to generate; raise max_length"
        )
    found = resolve(swir_tokenizer, method.think_token, method.end_think_token, name)
    rules, anchors = rules_of(method, swir_tokenizer, name, found)
    if method.start_mode == "latent":
        _warn_unless_thinking(prompts, found.think_id, found.end_think_id)
    embeddings = Embeddings(model, anchors, method.top_k_soft)
    with torch.inference_mode():
        batch = Rows(model, embeddings, *prefilled(model, prompts, input_ids.device))
        controllers = [
            SwiController(replace(rules, steps=longest, plan=swir_plan)) for _ in prompts
        ]
        out_BT = torch.full((rows, width + longest), pad, device=input_ids.device)
        out_BT[:, :width] = input_ids
        if swir_streamer is not None:
            swir_streamer.put(input_ids.cpu())
        active, at = list(range(rows)), width
        while active:
            probs_NV = batch.probs()
            said_NT = out_BT[active, :at]
            scores_NV = logits_processor(said_NT, batch.logits_BV.clone())
            if generation_config.do_sample:
                picked = torch.multinomial(scores_NV.softmax(-1), 1).squeeze(1).tolist()
            else:
                picked = scores_NV.argmax(-1).tolist()
            decisions = [
                controllers[row].step(entropy, token, at - width)
                for row, entropy, token in zip(active, entropies(probs_NV), picked, strict=True)
            ]
            out_BT[active, at] = out_BT.new_tensor([each.token for each in decisions])
            if swir_streamer is not None:
                swir_streamer.put(out_BT[0, at : at + 1].cpu())
            at += 1
            done = stopping_criteria(out_BT[active, :at], None).tolist()
            over = [stop or each.stop for stop, each in zip(done, decisions, strict=True)]
            keep = [k for k, ended in enumerate(over) if not ended]
            if keep:
                batch.feed(decisions, probs_NV, keep)
            active = [active[k] for k in keep]
    if swir_streamer is not None:
        swir_streamer.end()
    return out_BT[:, :at].clone()


def _prompts(
    input_ids: torch.Tensor, mask: torch.Tensor | None, config: Any
) -> tuple[list[list[int]], int]:
    """The prompts without their padding, and the id to pad results with."""
    pad = config.pad_token_id
    if pad is None and len(input_ids) > 1:
        raise InputError(
            "several prompts need a pad token; set tokenizer.pad_token and pass pad_token_id="
        )
    if mask is None:
        mask = torch.ones_like(input_ids)
    if mask.shape != input_ids.shape:
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}; need one entry per token")
    if bool((mask[:, -1] == 0).any()):
        raise InputError("the prompts are padded on the right; set tokenizer.padding_side='left'")
    if bool((mask.long().diff(dim=1) < 0).any()):
        raise InputError("attention_mask has holes; pad prompts on the left only")
    prompts = [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask, strict=True)]
    return prompts, int(pad or 0)


def _warn_unless_thinking(prompts: list[list[int]], think_id: int, end_id: int) -> None:
    for row, ids in enumerate(prompts):
        last = {token: at for at, token in enumerate(ids) if token in (think_id, end_id)}
        if last.get(think_id, -1) <= last.get(end_id, -1):
            warnings.warn(
                f"prompt {row} does not end inside thinking, and latent mode begins at once; let "
                "the chat template open it, or use start_mode='explicit'",
                stacklevel=2,
            )
            return
