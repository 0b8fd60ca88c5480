"""Scorers that ask a model: a grade per sector, a winner per pair, or one ordered list.

Where the model can score given text, grades and winners are read from the probabilities of the
options (their expectation), which never fails to parse; else the model writes its answer. A model
may know how markets moved after a speech that it has read: test on the latest events only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.evals.basir.llm import chat
from outlay.evals.basir.scorers import FloatArray, Mentions, Untrained
from outlay.evals.checks import check_positive, check_whole
from outlay.ledger import Ledger
from outlay.models.base import Account, Model, SamplingParams

GRADES = ("-2", "-1", "0", "1", "2")


@dataclass
class Tally:
    """What a scorer's calls cost, and the replies that could not be read."""

    ledger: Ledger = field(default_factory=Ledger)
    unread: int = 0


def _cut(text: str, words: int) -> str:
    parts = text.split()
    return text if len(parts) <= words else " ".join(parts[:words]) + " ..."


def _options(
    model: Model, request: str, options: Sequence[str], tally: Tally, method: str
) -> FloatArray | None:
    """Probability of each option as the reply; None if the reply names no option."""
    account = Account(tally.ledger, method=method)
    if model.capabilities.prompt_logprobs:
        root = model.open(chat(model, request), account=account)
        try:
            rows = model.score(root, list(options), account=account)
        finally:
            model.release(root)
        logits = np.array([math.fsum(row) for row in rows])
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())
    reply = model.generate(
        chat(model, request), None, SamplingParams(max_tokens=16), account=account
    ).text
    found = re.search(
        r"(?<![\w.+-])\+?(" + "|".join(sorted(map(re.escape, options), key=len)[::-1]) + r")(?!\w)",
        reply,
    )
    if found is None:
        tally.unread += 1
        return None
    return np.array([float(option == found.group(1)) for option in options])


@dataclass(frozen=True)
class LLMPoint(Untrained):
    """The expected effect on each sector, from -2 to +2.

    Args:
        model: any model.
        words: excerpts are cut after so many words.
        tally: what was spent.
    """

    model: Model = field(repr=False)
    words: int = 150
    tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    name: ClassVar[str] = "llm-point"

    def __post_init__(self) -> None:
        check_whole("words", self.words, least=1)

    def score(self, mentions: Mentions) -> FloatArray:
        """Expected grades; 0 for a reply that names none."""
        scores = []
        for name, text in zip(mentions.names, mentions.joined(), strict=True):
            request = (
                f"A budget speech said about the sector {name}: {_cut(text, self.words)}\n"
                "How will the share prices of this sector move on the next trading day? Reply with "
                "one number: -2 (fall strongly), -1, 0, 1 or 2 (rise strongly)."
            )
            chance = _options(self.model, request, GRADES, self.tally, self.name)
            scores.append(0.0 if chance is None else float(chance @ np.arange(-2, 3)))
        return np.array(scores)


@dataclass(frozen=True)
class LLMPair(Untrained):
    """Which of two sectors does better, for pairs in both orders; Bradley-Terry strengths.

    Args:
        model: any model.
        max_pairs: pairs drawn per event; None for all.
        words: excerpts are cut after so many words.
        seed: of the drawing.
        tally: what was spent.
    """

    model: Model = field(repr=False)
    max_pairs: int | None = None
    words: int = 80
    seed: int = 0
    tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    name: ClassVar[str] = "llm-pair"

    def __post_init__(self) -> None:
        check_whole("words", self.words, least=1)
        check_whole("seed", self.seed)
        if self.max_pairs is not None:
            check_whole("max_pairs", self.max_pairs, least=1)

    def score(self, mentions: Mentions) -> FloatArray:
        """Log-strengths; a pair whose reply names no sector counts as a draw."""
        size, texts = len(mentions.sectors), mentions.joined()
        pairs = list(combinations(range(size), 2))
        if self.max_pairs is not None and len(pairs) > self.max_pairs:
            pairs = sorted(Random(f"{self.seed}:{mentions.event}").sample(pairs, self.max_pairs))
        wins_NN = np.zeros((size, size))
        for i, j in pairs:
            for first, second in ((i, j), (j, i)):  # both orders: a model may prefer a place
                request = (
                    "A budget speech said about two sectors:\n"
                    f"A. {mentions.names[first]}: {_cut(texts[first], self.words)}\n"
                    f"B. {mentions.names[second]}: {_cut(texts[second], self.words)}\n"
                    "Whose share prices will rise more on the next trading day? Reply with A or B."
                )
                chance = _options(self.model, request, ("A", "B"), self.tally, self.name)
                share = 0.5 if chance is None else float(chance[0])
                wins_NN[first, second] += share
                wins_NN[second, first] += 1.0 - share
        return bradley_terry(wins_NN)


def bradley_terry(
    wins_NN: npt.ArrayLike, *, prior: float = 0.1, tolerance: float = 1e-10, limit: int = 10_000
) -> FloatArray:
    """Log-strengths of N items from wins, by the MM algorithm; their mean is 0.

    Args:
        wins_NN: wins_NN[i, j] is how often i beat j; fractions are draws.
        prior: a win and a loss of this size against an item of average strength, for each item;
            it keeps strengths finite and the comparison graph connected.
        tolerance: largest change of a log-strength at which the iteration ends.
        limit: iterations.

    Raises:
        InputError: for a matrix that is not square, negative or not finite, or prior <= 0.
    """
    wins = np.asarray(wins_NN, dtype=float)
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or not len(wins):
        raise InputError(f"wins have shape {wins.shape}; give a square matrix")
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise InputError("wins must be finite and >= 0")
    check_positive("prior", prior)
    games_NN = wins + wins.T
    np.fill_diagonal(games_NN, 0.0)
    won_N = wins.sum(axis=1) - np.diag(wins) + prior
    strength_N = np.ones(len(wins))
    for _ in range(limit):
        against = (games_NN / (strength_N[:, None] + strength_N[None, :])).sum(axis=1)
        new_N = won_N / (against + 2 * prior / (strength_N + 1.0))
        moved = float(np.abs(np.log(new_N / strength_N)).max())
        strength_N = new_N
        if moved < tolerance:
            break
    logs = np.log(strength_N)
    return np.asarray(logs - logs.mean())


@dataclass(frozen=True)
class LLMList(Untrained):
    """One request per event: all sectors, ordered by the model.

    Args:
        model: any model.
        words: excerpts are cut after so many words.
        answer_tokens: at most this many tokens of the reply.
        tally: what was spent.
    """

    model: Model = field(repr=False)
    words: int = 60
    answer_tokens: int = 200
    tally: Tally = field(default_factory=Tally, repr=False, compare=False)

    name: ClassVar[str] = "llm-list"

    def __post_init__(self) -> None:
        check_whole("words", self.words, least=1)
        check_whole("answer_tokens", self.answer_tokens, least=1)

    def score(self, mentions: Mentions) -> FloatArray:
        """N for the first of the list, N - 1 for the next; sectors left out share 0."""
        lines = [
            f"{i}. {name}: {_cut(text, self.words)}"
            for i, (name, text) in enumerate(zip(mentions.names, mentions.joined(), strict=True), 1)
        ]
        request = (
            "A budget speech said about these sectors:\n" + "\n".join(lines) + "\nOrder the "
            "sectors by how much their share prices will rise on the next trading day, the highest "
            "first. Reply with a JSON list of their numbers."
        )
        reply = self.model.generate(
            chat(self.model, request),
            None,
            SamplingParams(max_tokens=self.answer_tokens),
            account=Account(self.tally.ledger, method=self.name),
        ).text
        order = parse_order(reply, len(lines))
        if order is None:
            self.tally.unread += 1
            return np.zeros(len(lines))
        scores_N = np.zeros(len(lines))
        scores_N[list(order)] = len(lines) - np.arange(len(order))
        return scores_N


def parse_order(reply: str, size: int) -> tuple[int, ...] | None:
    """Positions in the order of the first JSON list; repeats and foreign numbers are dropped."""
    for match in re.finditer(r"\[[\d\s,\"]*\]", reply):
        try:
            entries = [int(entry) for entry in json.loads(match.group())]
        except (ValueError, TypeError):
            continue
        kept = dict.fromkeys(entry - 1 for entry in entries if 1 <= entry <= size)
        return tuple(kept) if kept else None
    return None
