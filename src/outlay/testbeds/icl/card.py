"""Saving the in-context model with its measurements and its model card.

The card is written from the configuration and the measured rows alone, so it cannot disagree with
the checkpoint that it lies beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.testbeds.cards import facts, save_card, save_parts
from outlay.testbeds.icl.evaluate import Row, as_records
from outlay.testbeds.icl.train import TRAIN_MIX, TrainConfig
from outlay.testbeds.icl.world import FAMILIES, MAX_ITEMS
from outlay.testbeds.tiny_llama import Progress

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A tiny model that learns in context

A Llama of {parameters:,} parameters ({layers} layers, width {hidden}, {heads} heads), trained from
scratch on sequences of examples of one hidden rule. It exists for experiments on how many
demonstrations an input needs.

## How it writes

    AB>DE;WCA>FD;GB>BE;

Every item is a pair of symbols and its image; `;` is also the end of text, so it stops after an
answer. Three families of rules, which a question shows by its symbols:

- lower-case letters: one fixed map, stored in the weights; no example is needed;
- A to H: moved along their circle by a hidden offset; one example gives it away;
- five signs with a hidden image each, one of six of its own: an example shows two of them.

## How it was made

    python -m outlay.testbeds.icl --out DIR --steps {steps} --seed {seed} --hidden {hidden} \\
        --layers {layers} --lr {lr} --batch {batch}

{steps} steps of AdamW, {tokens:,} tokens, {minutes:.0f} minutes on one CPU thread of a shared
machine, loss of the last step {loss:.3f}. Sequences have nine items; the loss covers answers and
ends of items. Rules are drawn anew for every sequence; there are few shifts, so those repeat.
Families: {mix}.

## Measured

Greedy answers, {n} rules per cell. Both symbols must be right.

{measured}

## Limits

It knows these families, at most eight examples, and nothing else.
"""


def _grid(rows: Sequence[Row]) -> str:
    lines = ["| family | " + " | ".join(f"k={k}" for k in range(MAX_ITEMS)) + " |"]
    lines.append("|---|" + "---:|" * MAX_ITEMS)
    for family in FAMILIES:
        cells = [f"{row.accuracy:.2f}" for row in rows if row.family == family]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(
    out: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: TrainConfig,
    rows: Sequence[Row],
    progress: Progress,
) -> None:
    """Write checkpoint, tokenizer, `measured.json` and README.md into `out`."""
    save_parts(out, model, tokenizer)
    record = {"config": asdict(config), "training": asdict(progress), "rows": as_records(rows)}
    card = _CARD.format(
        **facts(model, config, progress),
        mix=", ".join(f"{n} {s:.0%}" for n, s in zip(FAMILIES, TRAIN_MIX, strict=True)),
        n=rows[0].n if rows else 0,
        measured=_grid(rows) if rows else "Not measured: trained with `--rules 0`.",
    )
    save_card(out, record, card)
