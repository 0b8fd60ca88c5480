"""One run of the training command: train a pair and its rival, measure them, write a folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from outlay.cache.kv_prediction.lora import factors
from outlay.cache.kv_prediction.store import save
from outlay.machine import machine, today
from outlay.models import embedded
from outlay.models.local import choose_device
from outlay.stats import mean_interval
from outlay.testbeds.cards import save_card
from outlay.testbeds.kv_predictors import ALONE
from outlay.testbeds.kv_predictors.data import (
    NEEDLES,
    PACKAGES,
    load_rows,
    save_rows,
    training_rows,
)
from outlay.testbeds.kv_predictors.evaluate import (
    Outcome,
    measure,
    needle_prompts,
    readers,
    texts,
)
from outlay.testbeds.kv_predictors.train import PairConfig, Trained, train_pair

PROMPT, FOLLOW = 256, 64
SEED = 77  # of the measured prompts


@dataclass(frozen=True)
class Job:
    """A folder to write, rows to train on, and how."""

    out: Path
    rows: Path
    config: PairConfig
    measure: int
    device: str | None
    threads: int


def prepare(path: Path, count: int) -> Path:
    """The file of training rows, made if it is not there."""
    if path.is_file():
        return path
    from transformers import AutoTokenizer

    folder, _ = embedded.fetch()
    return save_rows(training_rows(AutoTokenizer.from_pretrained(folder), count), path)


def run(job: Job) -> None:
    """Do a job; called in a process of its own."""
    torch.set_num_threads(job.threads)
    device = choose_device(job.device)
    model = embedded.load("fast" if device.type == "cuda" else "exact", device=device.type)
    rows_NT = load_rows(job.rows)
    with tempfile.TemporaryDirectory() as scratch:
        pair = train_pair(model.model, rows_NT, job.config, folder=scratch)
        rival = train_pair(
            model.model,
            rows_NT,
            replace(job.config, steps=pair.steps, seconds=0.0),
            folder=scratch,
            alone=True,
        )
    about = {
        "base": model.name,
        "recipe": asdict(job.config),
        "tokens": pair.tokens,
        "steps": pair.steps,
        "seconds": [round(pair.seconds), round(rival.seconds)],
        "packages": ["stdlib", *PACKAGES],
        "needles": f"one row in {NEEDLES}",
        "date": today(),
        "machine": _device(device),
    }
    save(pair.model, job.out, dtype=torch.bfloat16, about=about)
    if pair.model.origin.lora is None:
        rival.model.aux.save_pretrained(job.out / "alone")
    else:
        found = factors(rival.model.aux)
        save_file({n: t.bfloat16().cpu().contiguous() for n, t in found.items()}, job.out / ALONE)
        (job.out / ALONE).chmod(0o644)
    curves = {"pair": pair.log, "alone": rival.log}
    (job.out / "curves.json").write_text(json.dumps(curves) + "\n", encoding="utf-8")
    figures = _figures(model, pair, rival, job.measure)
    save_card(job.out, figures, card(about, figures, job.config))


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else str(machine()["cpu"])


def _figures(model: Any, pair: Trained, rival: Trained, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt": PROMPT, "follow": FOLLOW, "n": count, "materials": {}}
    if not count:
        return found
    tokenizer = model.tokenizer
    ways = readers(pair.model, PROMPT, alone=rival.model.aux)
    for material in (
        texts(tokenizer, count, prompt=PROMPT, follow=FOLLOW, seed=SEED),
        needle_prompts(tokenizer, count, length=PROMPT, seed=SEED, split="heldout"),
        needle_prompts(tokenizer, count, length=PROMPT, seed=SEED, split="train"),
    ):
        outcomes = measure(ways, material, autocast=True)
        found["materials"][material.name] = {n: _row(o) for n, o in outcomes.items()}
    return found


def _row(outcome: Outcome) -> dict[str, float | None]:
    found = mean_interval(outcome.nll_N.numpy())
    return {
        "flops": outcome.flops,
        "nll": found.mean,
        "lo": found.lo,
        "hi": found.hi,
        "exact": float(outcome.exact_N.mean()),
    }


def card(about: Mapping[str, Any], figures: Mapping[str, Any], config: PairConfig) -> str:
    """The model card."""
    what = f"rank-{config.lora_r} additions" if config.lora_r else "all weights"
    lines = [
        f"# Auxiliary and predictor for {about['base']}",
        "",
        f"The auxiliary is the base with {config.keep} of its layers ({what} trained); one linear "
        "map a layer predicts the base's raw keys and values from it (KV Prediction, arXiv "
        "2410.08391). `alone.safetensors` is its rival: the same layers, trained by themselves on "
        "the same rows.",
        "",
        f"Trained on {about['tokens']:,} tokens of local text ({', '.join(about['packages'])}: "
        f"documentation and source; {about['needles']} asks for facts said earlier) in "
        f"{about['steps']} steps, {about['seconds'][0]} s for the pair and {about['seconds'][1]} s "
        f"for the rival, on {about['machine']}, {about['date']}. Written by "
        "`python -m outlay.testbeds.kv_predictors`; recipe and losses are in `predictor.json` and "
        "`curves.json`. The base is Apache-2.0, so are these weights.",
        "",
    ]
    for name, ways in figures["materials"].items():
        lines += [
            f"## {name}",
            "",
            f"{figures['n']} prompts of {figures['prompt']} tokens, held out.",
            "",
            "| reads the prompt | FLOPs of the base's | loss, nats a token | all tokens right |",
            "| --- | --- | --- | --- |",
        ]
        for way, row in ways.items():
            share = row["flops"] / ways["base"]["flops"]
            lines.append(
                f"| {way} | {share:.2f} | {row['nll']:.3f} ({row['lo']:.3f} to {row['hi']:.3f}) "
                f"| {row['exact']:.2f} |"
            )
        lines.append("")
    lines += [
        "## Limits",
        "",
        "Meant to show the method. It was trained on little text of one kind, in English and "
        "Python; expect worse on other text. The errors of a predicted cache stay with everything "
        "that is generated from it.",
        "",
    ]
    return "\n".join(lines)
