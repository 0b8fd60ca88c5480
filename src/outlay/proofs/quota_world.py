"""Clips, questions and scores of QuoTA's proof, in the seer's own language.

The seer knows 82 words, so what a frame is asked is said in them: "is there red" for an object,
answered yes or no. A question without objects cannot be put as "is there enough information to
answer"; in its place stands how sure the model is of an answer, given that frame alone.

Shapes: B clips, T frames, K tokens of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay.models.base import Account
from outlay.testbeds.seer.check_clips import is_needle
from outlay.testbeds.seer.clips import clips
from outlay.testbeds.seer.evaluate import Examples, examples
from outlay.testbeds.seer.model import Seer
from outlay.testbeds.seer.questions import BOS, FRAME, IMG, VOCABULARY, encode
from outlay.testbeds.seer.scenes import COLOURS
from outlay.vision.costs import prefill
from outlay.vision.quota.assigners import assign
from outlay.vision.quota.decoupling import Asked
from outlay.vision.quota.scorers import LetterScorer

LENGTH = 16
NEEDLE, WHOLE = "needle", "whole clip"
KINDS = {NEEDLE: ("digit", "garment"), WHOLE: ("count", "frames", "first")}


@dataclass(frozen=True)
class Part:
    """Questions of one kind.

    Args:
        group: `NEEDLE`: about an object that is there in one to three frames; `WHOLE`: about all.
        seed: of the clips.
        asked: clips and questions.
    """

    group: str
    seed: int
    asked: Examples

    @property
    def names(self) -> list[str]:
        """Of the examples."""
        return [f"{self.seed}/{self.asked.kind}/{at}" for at in range(len(self.asked))]


def parts(seed: int, count: int, *, needles_only: bool = False) -> list[Part]:
    """Held-out clips of one seed with their questions.

    Args:
        seed: of the clips.
        count: clips; needles are asked for in all, whole clips in half of them.
        needles_only: leave the others out.
    """
    seen = clips(count, length=LENGTH, seed=(seed, 9))
    made = []
    for group, kinds in KINDS.items():
        if group == WHOLE and needles_only:
            continue
        for asked in examples(seen if group == NEEDLE else seen[: count // 2], kinds).values():
            if group == NEEDLE:
                some = np.flatnonzero(is_needle(asked))
                if not len(some):
                    continue
                questions = tuple(asked.questions[at] for at in some)
                asked = Examples(asked.kind, asked.seen[some], questions)
            made.append(Part(group, seed, asked))
    return made


def text_of(words: Sequence[str]) -> str:
    """A question as a user would type it."""
    return " ".join(words)


@dataclass
class SeerScorer:
    """Scores frames by the seer itself: the best over the colours that are looked for.

    Args:
        seer: model and language.
        side: of the grid at which frames are looked at; the tower's own, or fewer.
        account: where the scorer's tokens are booked.
        literal: without objects, read the word yes after the question, which no question of that
            kind is answered with; False reads how sure the answer is.
    """

    seer: Seer
    side: int
    account: Account
    literal: bool = False

    @cached_property
    def letters(self) -> LetterScorer:
        """The paper's scorer, with the words yes and no for letters."""
        yes, no = (VOCABULARY["yes"],), (VOCABULARY["no"],)
        return LetterScorer(self.seer.model, self.encode, yes, no, account=self.account)

    def encode(self, frames: Sequence[Tensor], text: str) -> Mapping[str, Any]:
        """Every frame as a clip of its own, and the text after it."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        native = self.seer.size.grid
        shown = [
            assign(frame.unflatten(0, (native, native)), (self.side, self.side)).flatten(0, 1)
            for frame in frames
        ]
        row = [BOS, FRAME, *[IMG] * self.side**2, *encode(text.split())]
        ids_TL = torch.tensor([row] * len(frames))
        return {
            "input_ids": ids_TL,
            "attention_mask": torch.ones_like(ids_TL),
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=shown)},
        }

    def __call__(self, frames: Sequence[Tensor], asked: Asked) -> list[float]:
        """One probability a frame."""
        wanted = [word for entity in asked.entities for word in entity.split() if word in COLOURS]
        if not wanted and self.literal:
            return self.letters(frames, replace(asked, text=asked.question))
        if not wanted:
            return self.sure(frames, asked.question)
        found = [
            self.letters(frames, replace(asked, text=text_of(("is", "there", colour))))
            for colour in wanted
        ]
        return [max(values) for values in zip(*found, strict=True)]

    @torch.no_grad()
    def sure(self, frames: Sequence[Tensor], question: str) -> list[float]:
        """How likely the likeliest answer to the question is, from each frame alone."""
        inputs = self.encode(frames, question)
        logits_TV = self.seer.model(**inputs, logits_to_keep=1).logits[:, -1]
        self.account.ledger.record(
            self.account.stage,
            self.account.role,
            prompt_new=inputs["input_ids"].numel(),
            method=self.account.method,
        )
        return [float(value) for value in logits_TV.softmax(-1).amax(-1)]


def oracle(asked: Examples) -> list[list[float]]:
    """1 for frames that show what is asked about, 0 for the others: the upper bound.

    A question about all things is about every frame that shows one; one about the order of two,
    about the frames of both.
    """
    seen: Any = asked.seen
    shown_BTO = seen.visible()
    found = []
    for at, question in enumerate(asked.questions):
        named = [COLOURS.index(word) for word in question.words if word in COLOURS]
        about_O = np.isin(seen.colours[at], named) if named else seen.kinds[at] >= 0
        found.append(shown_BTO[at][:, about_O].any(1).astype(float).tolist())
    return found


def flops(seer: Seer, text: int, visual: int | Sequence[int]) -> int:
    """Of one prefill of the seer's decoder, with visual tokens of all layers or of each."""
    config = seer.model.config
    layers = config.text_config.num_hidden_layers
    each = [visual] * layers if isinstance(visual, int) else visual
    return prefill(config, text, each).flops


__all__ = [
    "KINDS",
    "LENGTH",
    "NEEDLE",
    "WHOLE",
    "Part",
    "SeerScorer",
    "flops",
    "oracle",
    "parts",
    "text_of",
]
