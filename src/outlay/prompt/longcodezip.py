"""LongCodeZip: pick whole functions by their relevance to the question, then blocks inside them.

"LongCodeZip: Compress Long Context for Code Language Models", arXiv 2510.00446 (ASE 2025).
Training-free. A small causal language model ranks functions by how much more predictable each makes
the question; the best ones are kept up to a coarse budget. Inside them, lines are grouped into
blocks at spikes of perplexity, and a knapsack keeps the most relevant blocks within each function's
share of the budget.

Differs from the paper and its package:

- The budget is a promise. Markers count, the final text is counted as a whole, and what is left
  over is filled: with lines of the selected functions, then blocks of the best function that did
  not fit, then single lines.
- All line losses of a function come from one pass, relevance passes are batched, and only functions
  that must shrink are cut into blocks: linear in the length of the context.
- A coarse pick that does not fit is skipped (`overshoot=True`: kept, then the stage stops).
- Line counts alone say whether a function is small; a function of one block that must shrink is
  handed to single-line blocks.
- Rates are rescaled until they meet the budget (`alloc="paper"`: once); blocks are joined with the
  source's own line breaks (`join="paper"`: a blank line); functions are found by parsers.
- `score="nll"` offers the difference of log-likelihoods: a query with one rare token dominates a
  difference of perplexities (the default, eq. 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.models.base import Account, Scorer
from outlay.prompt.base import Compressed, CountTokens, check_text, prompt_limit
from outlay.prompt.blocks import AlphaRule, SpikeStat
from outlay.prompt.rates import Alloc
from outlay.prompt.relevance import Score
from outlay.prompt.selection import Selection

Value = Literal["normalised", "raw"]
Join = Literal["source", "paper"]
Preserve = Literal["package", "none"]


@dataclass(frozen=True)
class LongCodeZip:
    """Coarse-to-fine compression of code (arXiv 2510.00446).

    Args:
        scorer: language model that judges relevance.
        chunker_scorer: language model for line losses; the default is `scorer`.
        rate: also keep at most this share of the source's tokens, in (0, 1].
        r_fine: R_fine in (0, 1]: the coarse stage may keep budget / r_fine tokens. 1 is rank-only.
        beta: how strongly relevance changes a function's rate, in [0, 1].
        alpha: spike threshold in units of spread (k of the package: 0.2 with its rule).
        alpha_rule: "std_only" (paper) or "package" (adds the mean).
        spike_stat: location and spread of the threshold.
        min_lines: functions with fewer lines are kept whole.
        value: block values min-max normalised within a function (paper), or raw (package), where
            blocks with a negative value are never taken.
        score: relevance as difference of mean log-likelihoods or of perplexities (paper). The
            ranking is the same; rates and block values are not.
        overshoot: the coarse stage keeps the first function that does not fit, and stops.
        slack: tokens that the coarse stage may go over.
        rank_only: whole functions only, no fine stage.
        preserve: "package" keeps blocks that begin with a definition or a comment or hold a
            `return`; "none" keeps only pins.
        pins: ranges (first, last) of line numbers, from 1, that are kept whatever happens.
        alloc: rates rescaled until they meet the budget, or once ("paper").
        join: blocks joined as in the source, or with a blank line ("paper").
        marker: comment for omitted lines; "" is `# ...` or the language's own comment.
        fill: spend what is left over on single lines.
        separator: line that separates files in the context; "" for none.
        fallback: cut code without parser at lines that look like definitions.

    Raises:
        InputError: for knobs out of range.
        CapabilityError: for a scorer without losses.
    """

    scorer: Scorer
    chunker_scorer: Scorer | None = None
    rate: float | None = None
    r_fine: float = 0.8
    beta: float = 0.5
    alpha: float = 1.0
    alpha_rule: AlphaRule = "std_only"
    spike_stat: SpikeStat = "std"
    min_lines: int = 5
    value: Value = "normalised"
    score: Score = "ppl"
    overshoot: bool = False
    slack: int = 0
    rank_only: bool = False
    preserve: Preserve = "package"
    pins: tuple[tuple[int, int], ...] = ()
    alloc: Alloc = "exact"
    join: Join = "source"
    marker: str = ""
    fill: bool = True
    separator: str = ""
    fallback: bool = True

    def __post_init__(self) -> None:
        for scorer in (self.scorer, self.chunker_scorer or self.scorer):
            if not isinstance(scorer, Scorer):
                raise CapabilityError(
                    f"scorer {type(scorer).__name__} cannot give losses; "
                    "pass a causal language model such as outlay.models.LocalModel"
                )
        if self.rate is not None and not 0 < self.rate <= 1:
            raise InputError(f"rate={self.rate} is outside (0, 1]")
        if not 0 < self.r_fine <= 1:
            raise InputError(f"r_fine={self.r_fine} is outside (0, 1]")
        if not 0 <= self.beta <= 1:
            raise InputError(f"beta={self.beta} is outside [0, 1]")
        if not self.alpha >= 0:
            raise InputError(f"alpha={self.alpha} is negative; give a number >= 0")
        if self.min_lines < 0 or self.slack < 0:
            raise InputError(f"min_lines={self.min_lines}, slack={self.slack}; both must be >= 0")
        for name, kind in (
            ("alpha_rule", AlphaRule),
            ("spike_stat", SpikeStat),
            ("value", Value),
            ("score", Score),
            ("alloc", Alloc),
            ("join", Join),
            ("preserve", Preserve),
        ):
            if (given := getattr(self, name)) not in get_args(kind):
                raise InputError(f"{name}={given!r}; choose one of {', '.join(get_args(kind))}")
        if "\n" in self.marker:
            raise InputError(f"marker={self.marker!r} holds a line break; give one line")

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """Shorten `prompt` to at most `budget.tokens`, keeping what `question` needs.

        With a blank question nothing can be ranked: whole functions are kept in original order, and
        the scorer is not called.

        Raises:
            BudgetError: without a prompt limit, or below what pins (or one marker) take.
            InputError: for empty or binary text, pins out of range, a query beyond the window.
            ModelError: for scores that are not numbers.
        """
        limit = prompt_limit(budget)
        text = check_text(prompt)
        original = count(prompt)
        if self.rate is not None:
            limit = min(limit, max(1, math.floor(self.rate * original)))
        # Line ends alone may decide whether the source fits: CRLF can take more tokens.
        for whole, size in ((prompt, original), (text, count(text))):
            if size <= limit:
                report = {"method": "longcodezip", "stage": "unchanged", "limit": limit}
                return Compressed(whole, size, original, ((0, len(prompt)),), report=report)
        account = Account(meter=budget.meter(), stage="prompt", role="scorer", method="longcodezip")
        run = Selection(self, prompt, text, question, limit, count, language, account)
        run.go()
        return Compressed(
            text=run.assembly.text(),
            tokens=run.assembly.tokens,
            original_tokens=original,
            kept=run.assembly.spans(),
            ledger=account.ledger,
            report=run.report(),
            warnings=tuple(dict.fromkeys(run.warnings)),
        )
