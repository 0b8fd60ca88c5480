"""KV Prediction: seconds to the first token against the base's own reading of the prompt.

In turns (A B A B), on the embedded model with the shipped pair, one thread, fp32; and the same
auxiliary by itself, which is the floor. The last column says what FLOPs promise; the target is to
be within 25 % of that.

    python benchmarks/kv_prediction.py
"""

from __future__ import annotations

import torch

from common import Row, faster, turns, warn_if_busy, write
from outlay.cache.kv_prediction import KVPrediction
from outlay.cache.loop import FullCache, kv_bytes
from outlay.models import embedded
from outlay.models.base import Account
from outlay.models.local import LocalModel
from outlay.testbeds.kv_predictors import alone

WIDTHS = (128, 512, 1024)
REPEATS = 5
WITHIN = 0.25


def main() -> None:
    warn_if_busy()
    torch.set_num_threads(1)
    model = embedded.load(device="cpu")
    small = LocalModel(alone(model.model), model.tokenizer, "auxiliary")
    rows = [row for width in WIDTHS for row in _rows(model, small, width)]
    rows.append(_memory(model))
    write("kv_prediction", rows)


def _rows(model: LocalModel, small: LocalModel, width: int) -> list[Row]:
    generator = torch.Generator().manual_seed(width)
    ids_BT = torch.randint(3, model.vocabulary, (1, width), generator=generator)
    method, full = KVPrediction(), FullCache()
    flops = []
    for way in (full, method):
        account = Account()
        way.prefill(model, ids_BT, account=account)
        flops.append(account.ledger.totals().flops)
    seconds = turns(
        {
            "ours": lambda: int(method.prefill(model, ids_BT).logits_BV.argmax()),
            "base": lambda: int(full.prefill(model, ids_BT).logits_BV.argmax()),
            "auxiliary": lambda: int(full.prefill(small, ids_BT).logits_BV.argmax()),
        },
        REPEATS,
        clock="cpu",
    )
    promised = flops[0] / flops[1]
    note = f"CPU time; FLOPs promise {promised:.2f}; target: within {WITHIN:.0%} of that"
    case = f"first token after {width} tokens"
    return [
        faster(case, seconds["ours"], seconds["base"], "the base reads the prompt", note),
        faster(
            case,
            seconds["ours"],
            seconds["auxiliary"],
            "the auxiliary alone, which also answers",
            "CPU time; the paper reports 10 to 20 % more than the auxiliary alone",
        ),
    ]


def _memory(model: LocalModel) -> Row:
    """What is resident while a prompt is read, beside the base."""
    pair = KVPrediction().pair(model.model)

    def size(part: torch.nn.Module) -> float:
        return sum(p.numel() * p.element_size() for p in part.parameters()) / 2**20

    cache = KVPrediction().prefill(model, torch.full((1, 1024), 7)).cache
    return Row(
        "auxiliary and predictor beside the base",
        "MiB",
        size(pair.aux) + size(pair.predictor),
        size(pair.base),
        "the base",
        note=f"fp32; only while a prompt is read; cache of 1024 tokens: "
        f"{kv_bytes(cache) / 2**20:.0f} MiB either way",
    )


if __name__ == "__main__":
    main()
