"""Saving a draft with its measurements and its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from outlay.machine import machine
from outlay.testbeds.cards import save_card
from outlay.testbeds.drafts.store import WEIGHTS
from outlay.testbeds.drafts.train import Agreement, DraftConfig, State

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A draft for SmolLM2-135M-Instruct

{layers} of the target's 30 layers (numbers {keep}) with rank-{rank} updates of every linear layer
and trained norms; embedding and head are the target's. The file holds the updates alone, in bf16
({size:.1f} MB), and is merged into a truncated copy of the target by
`outlay.testbeds.drafts.draft_for`. It exists for speculative decoding: it says quickly what the
target would probably say. It is no model to talk to.

## How it was made

    python -m outlay.testbeds.drafts --out DIR --steps {steps} --rows {rows} --length {length} \\
        --rank {rank} --lr {lr} --chats {chats} --minutes {minutes} --seed {seed}

{done} steps of AdamW on {tokens:,} tokens in {took:.1f} minutes on {where}, KL of the last step
{kl:.3f}. Loss: KL(target || draft) at temperature 1 plus {ce} cross-entropy, bf16 autocast. Half of
the rows are text that comes with Python (`outlay.testbeds.text`), half are answers that the target
sampled itself to {asked:,} questions made from templates. One document in ten and one chat in
twenty are held out.

## Measured on held-out text

| text | draft | overlap | same top token | NLL | target's NLL | positions |
|---|---|---:|---:|---:|---:|---:|
{table}

`overlap` is the mean of sum_x min(p(x), q(x)) at temperature 1: the chance that one draft token is
accepted. "as cut" is the truncated copy before training.

## Limits

It follows this target only: on a fine-tuned SmolLM2 it still gives exact speculative decoding, but
fewer of its tokens are accepted.
"""


def save(
    out: Path,
    state: Mapping[str, torch.Tensor],
    config: DraftConfig,
    measured: Mapping[tuple[str, str], Agreement],
    progress: State,
    device: torch.device,
    asked: int,
) -> None:
    """Write the updates, `measured.json` and README.md into `out`.

    Args:
        out: a folder; made where it is missing.
        state: the updates.
        config: how they were trained.
        measured: (text, draft) to figures.
        progress: the last step's.
        device: that they were trained on.
        asked: questions answered by the target.
    """
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    path = out / WEIGHTS
    save_file(dict(state), path, metadata={"keep": json.dumps(list(config.keep))})
    path.chmod(0o644)
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else str(machine()["cpu"])
    rows = [
        {"text": text, "draft": draft, **asdict(found)} for (text, draft), found in measured.items()
    ]
    record = {"config": asdict(config), "training": asdict(progress), "on": where, "rows": rows}
    lines = [
        f"| {text} | {draft} | {found.overlap:.3f} | {found.top:.3f} | {found.nll:.2f} | "
        f"{found.target_nll:.2f} | {found.positions:,} |"
        for (text, draft), found in measured.items()
    ]
    card = _CARD.format(
        layers=len(config.keep),
        keep=", ".join(map(str, config.keep)),
        rank=config.rank,
        size=path.stat().st_size / 1e6,
        steps=config.steps,
        rows=config.rows,
        length=config.length,
        lr=config.lr,
        chats=config.chats,
        minutes=config.minutes,
        seed=config.seed,
        done=progress.step,
        tokens=progress.tokens,
        took=progress.seconds / 60,
        where=where,
        kl=progress.kl,
        ce=config.ce,
        asked=asked,
        table="\n".join(lines),
    )
    save_card(out, record, card)
