"""Saving a seer with its measurements and its model card.

The card is written from the record beside the weights alone, so it cannot disagree with it.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outlay.testbeds.seer.check import TARGETS, check, holds, rows
from outlay.testbeds.seer.evaluate import as_records
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.recipe import TrainConfig, Training
from outlay.testbeds.seer.shapes import DIGITS_IN_ALL, TRAIN_SHARE
from outlay.testbeds.seer.store import MEASURED, digest, load, record, write

_HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
"""
_PARAGRAPHS = (
    "# Seer {size}: a tiny model that reads pictures",
    "{model} of {parameters:,} parameters: a CLIP tower ({tower_layers} layers), LLaVA's projector "
    "and a Llama ({layers} layers), all {width} wide. {pictures} It exists for experiments on how "
    "few visual tokens an answer needs.",
    "## What it sees and is asked",
    "Coloured garments (Fashion-MNIST) and digits (scikit-learn) on a textured canvas; each colour "
    "once. It answers in a word, or two: {kinds}. Its language has {words} words.",
    "## How it was made",
    "    python -m outlay.testbeds.seer --size {size} --out DIR",
    "{start}{recipe} Process time on one CPU thread: {minutes}. AdamW (betas 0.9 and 0.98, weight "
    "decay {weight_decay}), cosine to 3 %, bf16 autocast, seed {seed}. {drop}",
    "SHA-256 of the weights (fp16):",
    "    {sha256}",
    "## Measured",
    "Exact answers on held-out scenes: other garments and other digits than in training. Blind: "
    "the same questions without a picture.{shown}",
    "{table}",
    "{checks}",
    "## Limits",
    "It knows this vocabulary and these pictures, and nothing else. Digits come from {digits} "
    "source pictures and some garments are hard to tell apart, so both stay well below 1. How "
    "methods rank may carry over to real models; accuracies do not.",
)
_WIDTH = 100
_PICTURES = {
    "S": "Pictures of 64 x 64 are 64 visual tokens.",
    "M": "Pictures of 96 x 96 with up to six objects are 144 visual tokens.",
    "HR": "Pictures of 48 to 96 a side are a thumbnail and up to four tiles of 48 x 48: up to 192 "
    "visual tokens, newlines included.",
    "V": "A clip's frames of 64 x 64 are up to 64 visual tokens each, after a mark for every frame;"
    " it was trained on frames pooled to random grids.",
}

_SHOWN = {
    "M": " Scenes of up to six objects.",
    "HR": " Scenes of 96 x 96 with a large garment and one to four digits in one corner of it.",
    "V": " Clips of 16 frames, each pooled to 4 x 4 tokens. `needle`: digits and garments that are "
    "there in at most three frames. `frame`: `exist`, asked about a single frame at 8 x 8.",
}


def save(out: Path, seer: Seer, config: TrainConfig, training: Training) -> None:
    """Write weights, configuration and the record of the training into `out`."""
    sha256 = write(out, seer)
    _write(out, {"config": asdict(config), "training": asdict(training), "sha256": sha256})


def _write(out: Path, found: dict[str, Any]) -> None:
    (out / MEASURED).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(out: Path, n: int = 1000) -> None:
    """Measure the seer in `out` on `n` held-out scenes as it is on disk; write record and card."""
    found = record(out)
    size = found["config"]["size"]
    seer = load(size, out)
    if size == "V":
        from outlay.testbeds.seer.check_clips import clip_rows

        found["rows"] = clip_rows(seer, n)
    else:
        found["rows"] = as_records(rows(seer, n))
    if size in ("S", "M"):
        found["check"] = check(seer, n)
    found["sha256"] = digest(out)
    _write(out, found)
    (out / "README.md").write_text(card(seer, found), encoding="utf-8")


def card(seer: Seer, found: dict[str, Any]) -> str:
    """The model card."""
    config, size = found["config"], seer.size
    seconds = found["training"]["seconds"].items()
    facts = {
        "size": size.name,
        "model": "A LLaVA-NeXT" if size.tiled else "A LLaVA",
        "parameters": seer.model.num_parameters(),
        "tower_layers": size.tower_layers,
        "layers": size.layers,
        "width": size.width,
        "pictures": _PICTURES[size.name],
        "kinds": ", ".join(f"`{row['kind']}`" for row in found["rows"]),
        "words": seer.model.config.text_config.vocab_size,
        "start": "" if size.name == "S" else "It starts from size S. ",
        "recipe": _recipe(config, found["training"]["tower"]),
        "minutes": ", ".join(f"{stage} {spent / 60:.1f} minutes" for stage, spent in seconds),
        "weight_decay": config["weight_decay"],
        "seed": config["seed"],
        "drop": _drop(size.name, config["token_drop"]),
        "sha256": found["sha256"],
        "shown": _SHOWN.get(size.name, ""),
        "table": _table(found["rows"]),
        "checks": _checks(size.name, found.get("check")),
        "digits": int(TRAIN_SHARE * DIGITS_IN_ALL),
    }
    made = [paragraph.format(**facts) for paragraph in _PARAGRAPHS]
    kept = [
        part if part.startswith(("    ", "|", "#")) else textwrap.fill(part, _WIDTH)
        for part in made
        if part
    ]
    return _HEAD + "\n" + "\n\n".join(kept) + "\n"


def _recipe(config: dict[str, Any], heads: dict[str, float]) -> str:
    batch, steps = config["batch"], []
    if config["tower_steps"]:
        steps.append(
            f"The tower alone for {config['tower_steps']} steps of {batch} scenes (peak rate "
            f"{config['tower_lr']}), with linear heads for names, colours and places of patches "
            "and a CLS token that names what is there; right on held-out patches of objects: "
            f"{heads['name']:.2f} of names, {heads['colour']:.2f} of colours."
        )
    if config["llm_steps"]:
        steps.append(
            f"Then projector and language model for {config['llm_steps']} steps of at most {batch}"
            f" (peak rate {config['lr']}), the tower frozen."
        )
    return " ".join(steps)


def _drop(size: str, token_drop: bool) -> str:
    if size == "V":
        return "Frames are resized to random grids."
    if token_drop:
        return "Two of three batches keep a random part of the visual tokens."
    return "All visual tokens are always kept."


def _table(found: list[dict[str, Any]]) -> str:
    lines = ["| question | n | accuracy | blind |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row['kind']} | {row['n']} | {row['accuracy']:.3f} | {row['blind']:.3f} |"
        for row in found
    ]
    return "\n".join(lines)


def _checks(size: str, figures: dict[str, float] | None) -> str:
    if figures is None:
        return ""
    text = (
        f"One-token questions, every kind counting the same: {figures['all']:.3f}, blind "
        f"{figures['blind']:.3f}. Of the quarter of patches that the CLS token attends to most, "
        f"{figures['precision']:.2f} show an object (of all patches: {figures['base']:.2f}). With "
        f"an eighth of the tokens: by CLS {figures['cls']:.3f}, at random {figures['random']:.3f}, "
        f"objects first {figures['oracle']:.3f}."
    )
    if size != "S":
        return text
    missed = [name for name, good in holds(figures).items() if not good]
    verdict = f"Missed: {', '.join(missed)}." if missed else "All are met."
    return (
        f"{text} Targets, written down before: all at least {TARGETS['all']}, blind at most "
        f"{TARGETS['blind']}, precision at least {TARGETS['precision']}, CLS above random. "
        f"{verdict}"
    )
