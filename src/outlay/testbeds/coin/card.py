"""Saving the heads with their card, which is written from what was measured alone."""

from __future__ import annotations

from pathlib import Path

from outlay.audit.heads import Heads
from outlay.testbeds.coin.train import TrainConfig

_CARD = """---
license: apache-2.0
library_name: outlay
---

# Matching heads for audits of hidden tokens

Two heads on all-MiniLM-L6-v2 embeddings (384 numbers; a shared linear map, a scale and a bias
each), two learned verifiers (DeepSets, RNN) and a rule, for `outlay audit`.

## How they were made

    python -m outlay.testbeds.coin --out DIR --train {train} --calibrate {held} --block {block} \\
        --seed {seed} --epochs {epochs} --lr {lr}

{minutes:.1f} CPU minutes. Text: worked solutions of single templates of reasoning-gym's
gsm_symbolic, and documentation pages of Python, numpy, scipy and scikit-learn (the body as the
hidden part, the lead paragraphs as the answer: a proxy for long traces). Templates and pages are
split: {train} traces per source train the heads; of {held} others per source, a third trains the
verifiers, and two thirds set thresholds and bounds.

## Measured on the calibration traces

| head | AUC | raw cosine |
|---|---:|---:|
| Tokens-to-Block | {tokens_head:.3f} | {tokens_cosine:.3f} |
| Block-to-Answer | {answer_head:.3f} | {answer_cosine:.3f} |

Negatives are half random, half hard. The smallest rate of inflation that four of five audits
detect: {detectable} (None: none up to 3).

## Limits

Rates of error hold for text like this, in blocks of {block} tokens. Text of another domain raises
false alarms: train and calibrate heads of your own on it. Padding that is like the own reasoning
(retrieved near text, paraphrases, a cheaper model's reasoning) is not detected reliably.
"""


def save(out: Path, heads: Heads, config: TrainConfig, minutes: float) -> None:
    """Write the heads and README.md into `out`."""
    heads.save(out)
    about = heads.about
    auc = about["auc"]
    card = _CARD.format(
        train=about["traces"]["train"],
        held=about["traces"]["calibrate"],
        block=config.block,
        seed=config.seed,
        epochs=config.epochs,
        lr=config.lr,
        minutes=minutes,
        tokens_head=auc["tokens"]["head"],
        tokens_cosine=auc["tokens"]["cosine"],
        answer_head=auc["answer"]["head"],
        answer_cosine=auc["answer"]["cosine"],
        detectable=about["detectable"],
    )
    (out / "README.md").write_text(card, encoding="utf-8")
