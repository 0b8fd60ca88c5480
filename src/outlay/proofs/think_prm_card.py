"""The model card of the verifier that the think-prm proof trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from outlay.proofs.think_prm_runs import OPERATIONS, TUNING, N

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A tiny verifier that thinks

A Llama of {parameters:,} parameters that critiques every step of a chain of arithmetic modulo 20,
then says whether the solution is correct: ThinkPRM (arXiv 2504.16828) at the size of the reasoner
beside it. It exists for experiments on verified search and voting.

## How it writes

    <user>3+4*7=?
    3+4=A7;7*7=B8;=C8<assistant><think>1:3+4=7-A7=0y;2:7*7=9-B8=1n;</think>?n<eos>

The request marks every stated result with a letter. The critique of a step is what it should say,
less the stated result after its letter, the distance, and the verdict (`y` or `n`). It stops at the
first wrong step. `?` asks for the verdict on the solution.

    from outlay.reason.think_prm import ThinkPRM
    verifier = ThinkPRM.load("reasoner")

## How it was made

From the reasoner's smaller checkpoint (weights' SHA-256 {source}...), by the proof of think-prm:

1. Reading practice: {practice:,} solutions with random slips, worked out again without verdicts.
2. Fine-tuning on {kept:,} critiques of solutions sampled from the reasoner, half of them wrong.
   The teacher is made of templates with known faults; chains whose decisions disagree with the
   exact step labels are filtered out. {epochs:g} epochs, batch {batch}, constant rate {lr:g}.

## Measured

On {questions} held-out questions, {solutions} solutions sampled by the reasoner at temperature 0.8:

{rows}

## Limits

It knows single chains of {low} to {high} operations in the reasoner's format `<short>`, and nothing
else: no joined problems, no checks, no facts. Its scores pile up near 0 and 1 and are no
probabilities.
"""


def describe(
    folder: Path,
    reasoner: str,
    size: Mapping[str, int],
    test: Mapping[str, object],
    row: Mapping[str, object],
) -> None:
    """Write the model card of a saved verifier from what was run and measured."""
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    names = {
        "first_error_f1": "first-error F1",
        "exact_on_wrong": "first error found, of wrong solutions",
        "exact_on_right": "left alone, of right solutions",
        "best_of_n": f"accuracy of best-of-{N}, weighted",
        "invalid": "ill-formed critiques",
        "ece": "expected calibration error",
    }
    lines = ["| measure | value |", "|---|---:|"]
    lines += [f"| {label} | {row[name]} |" for name, label in names.items()]
    card = _CARD.format(
        parameters=sum(value.size for value in weights.values()),
        source=reasoner,
        practice=size["practice"],
        kept=size["kept"],
        epochs=TUNING.epochs,
        batch=TUNING.batch,
        lr=TUNING.lr,
        questions=test["questions"],
        solutions=test["solutions"],
        rows="\n".join(lines),
        low=OPERATIONS[0],
        high=OPERATIONS[1],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
