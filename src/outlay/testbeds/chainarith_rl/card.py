"""Saving a starting policy with its measurements and its model card.

The card is written from the configuration and the measured rows alone, so it cannot disagree with
the checkpoint that it lies beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.testbeds.cards import facts, save_card, save_parts
from outlay.testbeds.chainarith_rl.corpus import MAX_OPS, STYLE_OF
from outlay.testbeds.chainarith_rl.evaluate import MODES, Row
from outlay.testbeds.chainarith_rl.train import TrainConfig
from outlay.testbeds.reasoner.tokenizer import FORMATS
from outlay.testbeds.tiny_llama import Progress

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# ChainArith-RL: a starting policy for budget-aware RL

A Llama of {parameters:,} parameters ({layers} layers, width {hidden}, {heads} heads, tied
embeddings), trained from scratch on chains of 1 to {max_ops} operations on one-digit numbers,
modulo {modulus}. It thinks in four styles whatever the difficulty, makes mistakes of its own, and
is worse when sampled than when greedy: reinforcement learning has something to gain in accuracy and
in tokens.

## How it writes

    <user>3+4*7=?<assistant><think><long>3+4=7;7-4=3;7*7=9;9/7=7;</think><answer>9<eos>

Chains are read from left to right. The first token of the thinking names its style: `<direct>`
(nothing), `<short>` (one equation per operation), `<long>` (every equation checked by the inverse
operation), `<code>` (a postfix program, then one equation per instruction). Before it a budget
tag may stand, which doubles the weight of one style: {tags}. The policy never writes a budget
tag unasked. After a cut, `..`, a line break and `</think><answer>` make it answer at once.

## How it was made

    {command}

{stop} steps of AdamW (of a schedule of {steps}; from step {settle} on with batches of mixed
lengths), {tokens:,} tokens, {minutes:.1f} minutes on {where}, loss of the last step {loss:.3f}. It
was stopped before it had finished learning, to leave room for RL. The loss covers
completions only; budget tags and forced ends are shown but not trained on. One question in eight is
held out by a hash of its text, except that the table of one operation (210 questions) was trained
on entirely. Weights of 1 to {max_ops} operations: {ops}. Styles: {styles}, independent of
difficulty. {tagged:.0%} of the examples show a budget tag; {cut:.0%} of thinking is cut at a random
token and answered. The first {primer:,} examples are short thinking about at most {primer_ops}
operations and ({primer_direct:.0%}) direct answers to one; then the longest chain grows over
{ramp:,} examples.

## Measured

{measured}

## Limits

It knows these problems and nothing else: no language, no other modulus, no longer chain, no
precedence of `*` over `+`. Direct answers to more than one operation are little better than
guesses (chance is {chance:.0%}).
"""

_MEASURED = """{n} held-out problems per cell (95 % intervals reach +-{margin:.0%}). `natural`: the
policy chooses its style; the other columns open a tag for it. Completions are at most 112 tokens.

Greedy accuracy:

{greedy}

Accuracy at temperature 1:

{sampled}

Mean tokens at temperature 1 (opened tags and `<eos>` included):

{tokens}

Lengths at temperature 1 over all difficulties:

{lengths}

Share of each style at temperature 1, over all difficulties (`natural` and after a budget tag):

{styles}

Answers (greedy) after sampled thinking is cut, over all difficulties:

{cuts}"""


def _grid(rows: Sequence[Row], temperature: float, cell: str, digits: int) -> str:
    lines = ["| operations | " + " | ".join(MODES) + " |", "|---:|" + "---:|" * len(MODES)]
    cells = {(r.mode, r.ops): getattr(r, cell) for r in rows if r.temperature == temperature}
    for ops in range(1, MAX_OPS + 1):
        values = [f"{cells[mode, ops]:.{digits}f}" for mode in MODES]
        lines.append(f"| {ops} | " + " | ".join(values) + " |")
    means = [sum(cells[mode, ops] for ops in range(1, MAX_OPS + 1)) / MAX_OPS for mode in MODES]
    lines.append("| mean | " + " | ".join(f"{mean:.{digits + 1}f}" for mean in means) + " |")
    return "\n".join(lines)


def quantile(values: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _lengths(rows: Sequence[Row]) -> str:
    lines = ["| mode | mean | p50 | p90 | max |", "|---|---:|---:|---:|---:|"]
    for mode in MODES:
        found = [x for r in rows if r.mode == mode and r.temperature == 1 for x in r.lengths]
        half, most = quantile(found, 0.5), quantile(found, 0.9)
        mean = sum(found) / len(found)
        lines.append(f"| {mode} | {mean:.1f} | {half} | {most} | {max(found)} |")
    return "\n".join(lines)


def _styles(rows: Sequence[Row]) -> str:
    names = (*FORMATS, "none")
    lines = ["| mode | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for mode in MODES:
        if mode in FORMATS:
            continue
        found = [r for r in rows if r.mode == mode and r.temperature == 1]
        shares = [sum(r.styles[name] for r in found) / len(found) for name in names]
        lines.append(f"| {mode} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    return "\n".join(lines)


def _measured(rows: Sequence[Row], cuts: dict[int, float]) -> str:
    if not rows:
        return "Not measured: trained with `--problems 0`."
    n = rows[0].n
    cut_lines = ["| thinking tokens | accuracy |", "|---:|---:|"]
    cut_lines += [f"| {cut} | {accuracy:.2f} |" for cut, accuracy in cuts.items()]
    return _MEASURED.format(
        n=n,
        margin=1.96 * (0.25 / n) ** 0.5,
        greedy=_grid(rows, 0.0, "accuracy", 2),
        sampled=_grid(rows, 1.0, "accuracy", 2),
        tokens=_grid(rows, 1.0, "tokens", 1),
        lengths=_lengths(rows),
        styles=_styles(rows),
        cuts="\n".join(cut_lines),
    )


def command(config: TrainConfig) -> str:
    """The command line that trains this configuration."""
    return (
        f"python -m outlay.testbeds.chainarith_rl --out DIR --steps {config.steps} "
        f"--stop {config.stop} --settle {config.settle} \\\n        --seed {config.seed} "
        f"--hidden {config.hidden} --layers {config.layers} --lr {config.lr} "
        f"--batch-tokens {config.batch_tokens}"
    )


def save(
    out: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: TrainConfig,
    rows: Sequence[Row],
    cuts: dict[int, float],
    progress: Progress,
    where: str,
) -> None:
    """Write checkpoint, tokenizer, `measured.json` and README.md into `out`."""
    save_parts(out, model, tokenizer)
    records = [{k: v for k, v in asdict(row).items() if k != "lengths"} for row in rows]
    record = {
        "config": asdict(config),
        "training": asdict(progress),
        "rows": records,
        "cuts": {str(cut): accuracy for cut, accuracy in cuts.items()},
    }
    mix = config.mix
    weight = sum(share for _, share in mix.styles)
    card = _CARD.format(
        **facts(model, config, progress),
        modulus=mix.modulus,
        max_ops=len(mix.ops),
        tags=", ".join(f"`{tag}` {style}" for tag, style in STYLE_OF.items()),
        command=command(config),
        where=where,
        ops=", ".join(f"{share:g}" for share in mix.ops),
        styles=", ".join(f"{name} {share / weight:.0%}" for name, share in mix.styles),
        tagged=mix.tagged,
        cut=mix.cut,
        primer=mix.primer,
        primer_ops=mix.primer_ops,
        primer_direct=mix.primer_direct,
        ramp=mix.ramp,
        chance=1 / mix.modulus,
        measured=_measured(rows, cuts),
    )
    save_card(out, record, card)
