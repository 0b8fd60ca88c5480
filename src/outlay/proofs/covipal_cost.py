"""What a prefill costs with and without CoViPAL: FLOPs and cache by the ledger, and the clock."""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from outlay.proofs.base import Check
from outlay.proofs.covipal_runs import World
from outlay.vision import costs as ledger
from outlay.vision.covipal import CoViPAL

CACHE = "bytes of a pruned prefill's cache, of the full one"


@dataclass
class Costs:
    """Checks, and rows for the result's data."""

    checks: list[Check] = field(default_factory=list)
    rows: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def costs(world: World, method: CoViPAL, timed: int) -> Costs:
    """One prompt's prefill, full and pruned.

    Args:
        world: the seer and its prompts.
        method: fitted, at one ratio.
        timed: prefills on the clock; 0 for none.
    """
    model, seer = world.seer.model, world.seer
    inputs = world.asked["which"].inputs[0]
    one = {
        "input_ids": inputs["input_ids"][:1],
        "attention_mask": inputs["attention_mask"][:1],
    }
    features = inputs["mm_encoder_outputs"]["image"].pooler_output[:1]
    one["mm_encoder_outputs"] = {
        "image": type(inputs["mm_encoder_outputs"]["image"])(pooler_output=list(features))
    }
    with method(model) as kept:
        cache = model(**one, use_cache=True).cache
    text = kept.text[0]
    visual = [layer[0] for layer in kept.counts()]
    plain = ledger.prefill(model.config, text, [seer.size.tokens] * world.depth, itemsize=4)
    ours = ledger.prefill(model.config, text, visual, itemsize=4)
    assert method.fitted is not None
    module = sum(p.flops(seer.size.tokens, text) for p in method.fitted.ppms.values())
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    found = Costs()
    found.rows = {
        "ratio": method.ratio,
        "flops_full": plain.flops,
        "flops_pruned": ours.flops,
        "flops_module": module,
        "kv_bytes_full": plain.kv_bytes,
        "kv_bytes_pruned": ours.kv_bytes,
        "kv_bytes_measured": held,
    }
    found.checks.append(
        Check(
            CACHE,
            "",
            ours.kv_bytes / plain.kv_bytes,
            held == ours.kv_bytes,
            None,
            f"{held} bytes at {method.ratio:g}; target: the cache holds what the ledger says",
        )
    )
    found.checks.append(
        Check(
            f"FLOPs of a prefill at {method.ratio:g} with the module's own, of the full one",
            "",
            (ours.flops + module) / plain.flops,
            None,
            None,
            f"decoder {ours.flops / plain.flops:.3f}, module {module / plain.flops:.3f}",
        )
    )
    if timed:
        seconds = {
            "full": _median(model, one, nullcontext(), timed),
            "pruned": _median(model, one, method(model), timed),
        }
        found.rows["seconds"] = seconds
        found.checks.append(
            Check(
                "time of a prefill, pruned over full",
                "",
                seconds["pruned"] / seconds["full"],
                None,
                None,
                f"medians of {timed}, batch 1, features ready: {1e3 * seconds['pruned']:.1f} and "
                f"{1e3 * seconds['full']:.1f} ms; at this size launching costs more than counting",
            )
        )
    return found


def _median(model: Any, inputs: Any, context: AbstractContextManager[Any], times: int) -> float:
    took = []
    with context:
        for _ in range(times + 2):
            started = time.perf_counter()
            model(**inputs, use_cache=True, logits_to_keep=1)
            took.append(time.perf_counter() - started)
    return statistics.median(took[2:])
