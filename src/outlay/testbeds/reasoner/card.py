"""Saving a reasoner with its measurements and its model card.

The card is written from the configuration and the measured rows alone, so it cannot disagree with
the checkpoint that it lies beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.testbeds.cards import facts, save_card, save_parts
from outlay.testbeds.reasoner.evaluate import MODES, Row, as_records
from outlay.testbeds.reasoner.train import TrainConfig
from outlay.testbeds.tiny_llama import Progress

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A tiny reasoner

A Llama of {parameters:,} parameters ({layers} layers, width {hidden}, {heads} heads, tied
embeddings), trained from scratch on synthetic problems of arithmetic modulo {modulus} and synthetic
facts. It exists for experiments on token budgets: its accuracy depends on how long it thinks, its
steps can be judged exactly, and it runs anywhere.

## How it writes

    <user>3+4*7=?<assistant><think><long>3+4=7;7-4=3;7*7=9;9/7=7;</think><answer>9<eos>

Chains are read from left to right. The first token of the thinking names its format: `<direct>`
(nothing), `<short>` (one equation per operation), `<long>` (every equation checked by the inverse
operation), `<code>` (a postfix program, then each instruction and its result). The chat template
opens `<think>`; `format="short"` forces a format, `enable_thinking=False` closes the thinking at
once. After a forced `Wait` it repeats its last step; after a forced `</think><answer>` it gives the
answer where at most one operation is missing, else the value that it has reached. Joined problems,
`(3+4)+(7-2)=?`, open each chain with `[1]`, `[2]`, ... and the final sum with `[+]`.

Recall questions follow facts about {entities} entities: `c7.friend.size=?`. {known:.0%} of the
facts were in training; the others cannot be known, and chance is 1/{values}.

## How it was made

    python -m outlay.testbeds.reasoner --out DIR --steps {steps} --seed {seed} --hidden {hidden} \\
        --layers {layers} --lr {lr} --batch-tokens {batch_tokens} \\
        --joined {joined_share} --detour {detour}

{steps} steps of AdamW, {tokens:,} tokens, {minutes:.0f} minutes on {where}, loss of
the last step {loss:.3f}. The loss covers completions only; wrong results written on purpose, forced
`Wait`s and forced ends are shown but not trained on. One question in
eight is held out by a hash of its text. Mix: {recall:.0%} recall, {joined:.0%} joined chains, the
rest single chains of 1 to {max_operations} operations; formats {formats}, independent of
difficulty; {cut:.0%} of thinking is cut short. The first {primer:,} examples are clean and
short, so that tables and facts are learnt first; then the longest chain grows over {ramp:,}
examples.

## Measured

{measured}

## Limits

It knows these problems and nothing else: no language, no other modulus, no training on chains
longer than {max_operations} operations, no precedence of `*` over `+`. Errors are its own, so
accuracy falls with length. It prefers one format whatever the difficulty, by design: choosing well
is what budget-aware training should teach it.
"""

_MEASURED = """Greedy decoding, {n} held-out problems per cell (95 % intervals reach
+-{margin:.0%}). `natural`: the model chooses its format; `none`: thinking closed at once.

Accuracy:

{accuracy}

Mean thinking tokens:

{thinking}

Right steps among all written (result right, and left side continuing the chain):

{steps_right}

Unseen facts cannot be known, however long the thinking: chance is {chance:.0%}."""


def _grid(rows: Sequence[Row], cell: str, percent: bool) -> str:
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    lines = ["| family | difficulty | " + " | ".join(modes) + " |"]
    lines.append("|---|---:|" + "---:|" * len(modes))
    for family, difficulty in dict.fromkeys((row.family, row.difficulty) for row in rows):
        cells = []
        for mode in modes:
            found = [
                getattr(row, cell)
                for row in rows
                if (row.family, row.difficulty, row.mode) == (family, difficulty, mode)
            ]
            if not found or found[0] is None:
                cells.append("-")
            else:
                cells.append(f"{found[0]:.2f}" if percent else f"{found[0]:.1f}")
        lines.append(f"| {family} | {difficulty} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _measured(rows: Sequence[Row], values: int) -> str:
    if not rows:
        return "Not measured: trained with `--problems 0`."
    n = rows[0].n
    with_steps = [row for row in rows if row.step_accuracy is not None]
    return _MEASURED.format(
        n=n,
        margin=1.96 * (0.25 / n) ** 0.5,
        accuracy=_grid(rows, "accuracy", percent=True),
        thinking=_grid(rows, "thinking", percent=False),
        steps_right=_grid(with_steps, "step_accuracy", percent=True),
        chance=1 / values,
    )


def save(
    out: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: TrainConfig,
    rows: Sequence[Row],
    progress: Progress,
    where: str,
) -> None:
    """Write checkpoint, tokenizer, `measured.json` and README.md into `out`."""
    save_parts(out, model, tokenizer)
    record = {
        "config": asdict(config),
        "training": asdict(progress),
        "rows": as_records(rows),
    }
    mix, world = config.mix, config.world
    weight = sum(share for _, share in mix.formats)
    card = _CARD.format(
        **facts(model, config, progress),
        modulus=mix.modulus,
        entities=world.entities,
        known=world.known,
        values=world.values,
        where=where,
        recall=mix.recall,
        joined=mix.joined,
        joined_share=mix.joined,
        detour=mix.detour,
        max_operations=mix.max_operations,
        formats=", ".join(f"{name} {share / weight:.0%}" for name, share in mix.formats),
        cut=mix.cut,
        primer=mix.primer,
        ramp=mix.ramp,
        measured=_measured(rows, world.values),
    )
    save_card(out, record, card)
