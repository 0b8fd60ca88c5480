"""Saving a searcher with its measurements and its model card, written from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.testbeds.cards import facts, save_card, save_parts
from outlay.testbeds.searcher.evaluate import Row
from outlay.testbeds.searcher.train import TrainConfig
from outlay.testbeds.searcher.trees import CHOICES, DECOYS, HELD_OUT
from outlay.testbeds.tiny_llama import Progress

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A tiny searcher

A Llama of {parameters:,} parameters ({layers} layers, width {hidden}, {heads} heads, tied
embeddings), trained from scratch to search random trees. It exists for experiments on thinking that
branches: at every fork it can only guess, and everything else that it writes is certain.

## How it writes

    <user>ab,bc,ad,xy,yz,...?a:cz..<assistant><think>ad\\nabc</think>c<eos>

The question is a forest of two trees, its edges in random order, then the root of one of them and
{choices} leaves of which exactly one hangs below that root. The thinking is a search: walks from
the root down to a leaf, each ended by a line break, until a walk meets one of those leaves. The
answer is that leaf. `</think>` may be forced anywhere; the answer is then the best guess. Names are
single letters drawn anew for every question. The chat template opens `<think>`;
`enable_thinking=False` closes it at once.

## How it was made

    python -m outlay.testbeds.searcher --out DIR --steps {steps} --seed {seed} --hidden {hidden} \\
        --layers {layers} --lr {lr} --batch-tokens {batch_tokens} --primer {primer} --ramp {ramp} \\
        --workers {workers}

{steps} steps of AdamW, {tokens:,} tokens, {minutes:.1f} minutes on {device}, matrix products in
bf16, loss of the last step {loss:.3f}. The tree that is asked about has {low} to {high} leaves, the
other one {decoys}. {cut:.0%} of the searches are cut at a random place and closed by force; that
end is not trained on. The first {primer:,} examples recite their question. One question in
{held_out} is held out by a hash of its text.

## Measured

{measured}

## Limits

It knows these questions and nothing else.
"""


def _measured(rows: Sequence[Row]) -> str:
    if not rows:
        return "Not measured: trained with `--problems 0`."
    lines = [
        f"{rows[0].n} held-out questions of 8 to 12 leaves. `cut at N`: the greedy thinking, closed"
        f" after N tokens. Guessing among the candidates gives {1 / CHOICES:.2f}.",
        "",
        "| mode | accuracy | thinking tokens | right moves | repeated walks |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.mode} | {row.accuracy:.3f} | {row.thinking:.1f} | {row.right_steps:.3f} | "
        f"{row.repeated:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def save(
    out: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: TrainConfig,
    rows: Sequence[Row],
    progress: Progress,
    *,
    device: str,
    workers: int,
) -> None:
    """Write checkpoint, tokenizer, `measured.json` and README.md into `out`."""
    save_parts(out, model, tokenizer)
    record = {
        "config": asdict(config),
        "workers": workers,
        "device": device,
        "training": asdict(progress),
        "rows": [asdict(row) for row in rows],
    }
    card = _CARD.format(
        **facts(model, config, progress),
        choices=CHOICES,
        workers=workers,
        device=device,
        low=config.leaves[0],
        high=config.leaves[1],
        decoys=DECOYS,
        held_out=HELD_OUT,
        measured=_measured(rows),
    )
    save_card(out, record, card)
