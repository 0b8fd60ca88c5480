"""What the seer of clips can do, on held-out ones: every frame pooled to 4 x 4 tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from outlay.testbeds.seer.check import blind_right
from outlay.testbeds.seer.clips import clips
from outlay.testbeds.seer.evaluate import Examples, Row, answered, as_records, examples, right
from outlay.testbeds.seer.grids import uniform_inputs
from outlay.testbeds.seer.model import Seer

LENGTH = 16


@torch.no_grad()
def uniform_right(seer: Seer, asked: Examples, *, side: int = 4, batch: int = 32) -> np.ndarray:
    """(n,) exact answers with side x side tokens a frame."""
    found = []
    for start in range(0, len(asked), batch):
        part: Any = asked[start : start + batch]
        inputs = uniform_inputs(seer, part.seen, part.questions, side=side)
        found.append(answered(seer, part, inputs))
    return np.concatenate(found)


def clip_rows(seer: Seer, n: int = 1000, seed: int = 1) -> list[dict[str, Any]]:
    """Accuracies on `n` clips of 16 frames, by kind; `needle` are digits and garments that are
    there in at most three frames, `frame` is `exist` about one frame at full resolution."""
    seen = clips(n, length=LENGTH, seed=(seed,))
    made = []
    needles: list[np.ndarray] = []
    for kind, asked in examples(seen, seed=seed).items():
        both_2n = np.stack([uniform_right(seer, asked), blind_right(seer, asked)])
        made.append(_row(kind, both_2n))
        if kind in ("digit", "garment"):
            needles.append(both_2n[:, is_needle(asked)])
    made.append(_row("needle", np.concatenate(needles, 1)))
    single = clips(n, length=8, seed=(seed, 1)).each_frame()[np.arange(n) * 8 + np.arange(n) % 8]
    asked = examples(single, ["exist"], seed=seed)["exist"]
    made.append(_row("frame", np.stack([right(seer, asked), blind_right(seer, asked)])))
    return as_records(made)


def _row(kind: str, both_2n: np.ndarray) -> Row:
    full, blind = both_2n.mean(1)
    return Row(kind, both_2n.shape[1], float(full), float(blind))


def is_needle(asked: Examples, most: int = 3) -> np.ndarray:
    """(n,) whether a question's object is there in at most `most` frames."""
    seen: Any = asked.seen
    subjects = np.array([question.subject for question in asked.questions])
    frames = seen.visible().sum(1)[np.arange(len(subjects)), subjects]
    return np.asarray(frames <= most)
