"""What an auditor could do instead, with the same openings: evidence of padding, higher for more.

Each baseline gives one number per audit; its threshold is set on honest calibration audits, as
CoIn's is. "trust" and the length predictor open nothing; full disclosure opens all.

Shapes: N traces, F features.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from outlay.audit.coin import CoIn
from outlay.audit.embedding import Embedder
from outlay.audit.heads import Heads, cosine
from outlay.audit.simulation import Seen, look, path
from outlay.errors import InputError

Evidence = Callable[[Seen], float]


def trust(seen: Seen) -> float:
    """The bill is right."""
    return 0.0


def types(seen: Seen) -> float:
    """Distance of the type/token ratio of the opened tokens from a half."""
    return abs(len(set(seen.texts)) / max(1, len(seen.texts)) - 0.5)


def compressed(seen: Seen) -> float:
    """How badly the opened tokens compress together with zlib."""
    text = "".join(seen.texts).encode()
    return len(zlib.compress(text, 9)) / max(1, len(text))


def raw_cosine(seen: Seen) -> float:
    """How little tokens fit blocks and blocks the answer, by plain cosines."""
    if not len(seen.blocks_BD):
        return 0.0
    means = np.stack([tokens.mean(axis=0) for tokens in seen.tokens])
    answers = np.repeat(seen.subject.answer_D[None], len(means), axis=0)
    both = cosine(means, seen.blocks_BD) + cosine(seen.blocks_BD, answers)
    return -float(both.mean())


BASELINES: dict[str, Evidence] = {
    "trust": trust,
    "type/token ratio": types,
    "zlib": compressed,
    "raw cosine": raw_cosine,
}


@dataclass(frozen=True)
class Disclosed:
    """Full disclosure: every block and every token is opened and judged by the same heads.

    The most that they can tell; no provider that hides its reasoning allows it.

    Args:
        heads: whose verifier decides.
        coin: the audit that it is compared with.
        embed: the agreed embedder.
    """

    heads: Heads
    coin: CoIn
    embed: Embedder = field(repr=False)

    def __call__(self, seen: Seen) -> float:
        """Evidence from all of a subject."""
        tokens = len(seen.subject.padded.tokens)
        coin = replace(
            self.coin, max_block_exposure=1.0, max_token_exposure=1.0, b_1=tokens, q=self.coin.block
        )
        view = look(coin, [seen.subject], self.embed)[0]
        return path(view, self.heads, self.heads.verifiers[coin.verifier], dedup=coin.dedup)[-1]


@dataclass(frozen=True)
class LengthPredictor:
    """Ridge regression of the log of the hidden length on the answer's embedding.

    Evidence is how far the bill exceeds the prediction.
    """

    weights_F: npt.NDArray[np.float64] = field(repr=False)

    @classmethod
    def fit(
        cls, answers_ND: npt.ArrayLike, lengths: Sequence[int], ridge: float = 1.0
    ) -> LengthPredictor:
        """Fit on honest answers and lengths.

        Raises:
            InputError: without traces, or for a length below 1.
        """
        if not len(lengths) or min(lengths) < 1:
            raise InputError("a length predictor needs traces of at least one token")
        inputs = _with_one(answers_ND)
        gram = inputs.T @ inputs + ridge * np.eye(inputs.shape[1])
        return cls(np.linalg.solve(gram, inputs.T @ np.log(np.asarray(lengths, float))))

    def __call__(self, seen: Seen) -> float:
        """Log of the bill over the predicted length."""
        predicted = float((_with_one(seen.subject.answer_D[None]) @ self.weights_F)[0])
        return math.log(seen.subject.padded.billed) - predicted


def _with_one(values_ND: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(values_ND, np.float64)
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)


def threshold(honest: Sequence[float], rate: float) -> float:
    """Evidence that at most `rate` of audits like these exceed; infinite for too few of them."""
    rank = math.ceil((len(honest) + 1) * (1 - rate))
    return sorted(honest)[rank - 1] if rank <= len(honest) else math.inf
