"""The cascade: a cheap route shortlists labels, and the LLM chooses among them.

The LLM is skipped where the cheap route is sure: its best score is above `hi`, or all scores are
below `lo`. With the LLM off the cascade is the cheap route; with every label on the shortlist and
no skipping it is the LLM route.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from outlay.errors import InputError
from outlay.evals.basir.base import FloatArray
from outlay.evals.basir.labels import LabelSet
from outlay.evals.basir.llm import LLMRoute, Tagged
from outlay.evals.basir.threshold import Thresholds
from outlay.evals.checks import check_whole
from outlay.ledger import Ledger
from outlay.models.base import Model


@dataclass(frozen=True)
class Cascade:
    """A cheap route first, an LLM where it is needed.

    Args:
        shortlist: labels that the LLM sees: those with the highest scores, in label order.
        hi: skip the LLM where the best score is above it, and decide by the thresholds; None never
            skips.
        lo: skip the LLM where all scores are below it, and choose nothing; None never skips.
        llm: how the LLM is asked.

    Raises:
        InputError: for knobs out of range.
    """

    shortlist: int = 8
    hi: float | None = None
    lo: float | None = None
    llm: LLMRoute = LLMRoute()  # noqa: RUF009 - frozen

    name: ClassVar[str] = "cascade"

    def __post_init__(self) -> None:
        check_whole("shortlist", self.shortlist, least=1)
        for name in ("hi", "lo"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{name}={value}; give a finite score, or None")
        if self.hi is not None and self.lo is not None and self.lo > self.hi:
            raise InputError(f"lo={self.lo} is above hi={self.hi}; swap them")

    def tag(
        self,
        model: Model | None,
        texts: Sequence[str],
        scores_NL: FloatArray,
        thresholds: Thresholds,
        labels: LabelSet,
    ) -> Tagged:
        """Tag N excerpts.

        Args:
            model: asked about unsure excerpts; None for no LLM: the thresholds decide.
            texts: excerpts.
            scores_NL: of the cheap route.
            thresholds: of the cheap route.
            labels: all labels.

        Raises:
            InputError: if there is not one row of scores per text.
        """
        if scores_NL.shape != (len(texts), len(labels)):
            raise InputError(
                f"scores of shape {scores_NL.shape} for {len(texts)} texts and {len(labels)} labels"
            )
        decided_NL = thresholds.decide(scores_NL)
        if model is None:
            return Tagged(decided_NL, tuple(Ledger() for _ in texts), skipped=len(texts))
        best_N = scores_NL.max(axis=1)
        low_N = np.full(len(texts), False) if self.lo is None else best_N < self.lo
        high_N = np.full(len(texts), False) if self.hi is None else best_N > self.hi
        asked = [int(i) for i in np.flatnonzero(~(low_N | high_N))]
        chosen_NL = np.where(low_N[:, None], False, decided_NL)
        ledgers = [Ledger() for _ in texts]
        order_NL = np.argsort(-scores_NL, axis=1, kind="stable")[:, : self.shortlist]
        answered = self.llm.tag(
            model,
            [texts[i] for i in asked],
            labels,
            [sorted(int(label) for label in order_NL[i]) for i in asked],
        )
        chosen_NL[asked] = answered.chosen_NL
        for place, ledger in zip(asked, answered.ledgers, strict=True):
            ledgers[place] = ledger
        return Tagged(
            chosen_NL,
            tuple(ledgers),
            answered.invalid,
            answered.unread,
            len(texts) - len(asked),
        )
