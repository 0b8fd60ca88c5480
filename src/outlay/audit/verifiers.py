"""From the scores of opened blocks to evidence of inflation, and when to stop.

Every verifier turns the pairs (a, b) of the blocks seen so far into one number, higher for padding:

- "rule": the log-likelihood ratio of Wald's sequential test on the count of bad blocks. A block is
  bad if a or b lies below its threshold; honest ones are bad at the rate p0 of the calibration,
  padded traces at p1.
- "deepset": the log-odds of `rho(mean_j phi(a_j, b_j))`, which does not see the order of blocks.
- "rnn": the log-odds of a recurrent network over the blocks in their order.

An audit says "malicious" where the number reaches the upper bound and "benign" where it falls to
the lower one. Both bounds are calibrated on audits as a whole, all rounds of them, since blocks of
one trace are alike and looking often adds chances: Wald's bounds alone would promise too much. A
learned number is noisier the fewer blocks it comes from, so its bounds move with the number of
blocks: so many spreads above the mean of honest audits, so many below that of padded ones.

Shapes: N blocks, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError

Kind = Literal["rule", "deepset", "rnn"]
Weights = Mapping[str, npt.NDArray[np.float32]]
NEEDED: Mapping[str, tuple[str, ...]] = {
    "rule": (),
    "deepset": ("phi1", "phi1b", "phi2", "phi2b", "rho1", "rho1b", "rho2", "rho2b"),
    "rnn": ("in", "rec", "recb", "out", "outb"),
}


@dataclass(frozen=True)
class Track:
    """Evidence of calibration audits, by the number of blocks it comes from.

    Args:
        means, spreads: after 1, 2, ... blocks; beyond the last one they stay.
        extremes: of each audit, the evidence furthest towards the bound over all its rounds, in
            spreads from the mean.
    """

    means: tuple[float, ...] = field(repr=False)
    spreads: tuple[float, ...] = field(repr=False)
    extremes: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.means or len(self.means) != len(self.spreads) or min(self.spreads) <= 0:
            raise InputError("a track needs as many means as spreads, the latter above 0")

    def level(self, blocks: int, spreads: float) -> float:
        """Evidence that lies so many spreads from the mean after so many blocks."""
        at = min(blocks, len(self.means)) - 1
        return self.means[at] + spreads * self.spreads[at]

    @classmethod
    def of(cls, paths: Sequence[Sequence[float]], sign: int, first: int) -> Track:
        """The track of audits, each as its evidence after every block.

        Args:
            paths: of the audits.
            sign: 1 where the bound lies above, -1 where it lies below.
            first: blocks of the first round; an audit may end after any number from there on.

        Raises:
            InputError: for audits without a block.
        """
        if not paths or not all(paths):
            raise InputError("a track needs audits of at least one block each")
        means, spreads = _profile(paths)
        plain = cls(means, spreads, ())
        found = []
        for path in paths:
            looks = range(min(first, len(path)), len(path) + 1)
            far = [
                (path[n - 1] - plain.level(n, 0)) / (plain.level(n, 1) - plain.level(n, 0))
                for n in looks
            ]
            found.append(sign * max(sign * each for each in far))
        return cls(means, spreads, tuple(found))


FEW = 30  # audits that a mean and a spread of their own need


def _profile(paths: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and spreads by number of blocks, as far as enough audits reach."""
    means, spreads = [], []
    for n in range(1, max(map(len, paths)) + 1):
        own = [path[n - 1] for path in paths if len(path) >= n]
        if n > 1 and len(own) < FEW:
            break
        means.append(float(np.mean(own)))
        spreads.append(max(float(np.std(own)), 1e-6))
    return tuple(means), tuple(spreads)


@dataclass(frozen=True)
class Verifier:
    """A verifier with its bounds.

    Args:
        kind: see the module.
        weights: of a learned one.
        honest: of honest calibration audits, None without any.
        padded: of padded ones.
        prior: rates (p0, p1) of bad blocks for the rule.

    Raises:
        InputError: for an unknown kind, missing weights, or rates that do not fit.
    """

    kind: Kind
    weights: Weights = field(default_factory=dict, repr=False)
    honest: Track | None = field(default=None, repr=False)
    padded: Track | None = field(default=None, repr=False)
    prior: tuple[float, float] = (0.05, 0.4)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"verifier={self.kind!r}; choose {', '.join(get_args(Kind))}")
        if missing := [name for name in NEEDED[self.kind] if name not in self.weights]:
            raise InputError(f"verifier {self.kind}: no weights {', '.join(missing)}")
        if not 0 < self.prior[0] < self.prior[1] < 1:
            raise InputError(f"rates of bad blocks {self.prior}; need 0 < p0 < p1 < 1")

    def evidence(self, scores: npt.ArrayLike, bad: Sequence[bool]) -> float:
        """Log-odds of inflation after blocks with these scores.

        Args:
            scores: (N, 2) pairs (a, b).
            bad: whether each block is bad by the rule.

        Raises:
            InputError: for no block.
        """
        pairs_N2 = np.asarray(scores, dtype=np.float64).reshape(-1, 2)
        if not len(pairs_N2) or len(pairs_N2) != len(bad):
            raise InputError("evidence needs the scores of at least one block")
        if self.kind == "rule":
            return llr(sum(bad), len(bad), *self.prior)
        with np.errstate(over="ignore"):
            return self._deepset(pairs_N2) if self.kind == "deepset" else self._rnn(pairs_N2)

    def bounds(self, delta_fp: float, delta_fn: float, blocks: int) -> tuple[float, float]:
        """Evidence from so many blocks at which an audit ends: benign at most, inflated at least.

        With confidence `SURE` over the draw of calibration audits, at most `delta_fp` of audits
        like the honest ones ever reach the upper one, and at most `delta_fn` of those like the
        padded ones the lower one. With too few of them for such a promise, a bound is never
        reached. Without any, Wald's stand; the rule never has tighter ones.

        Raises:
            InputError: for rates that leave no room.
        """
        lower, upper = wald(delta_fp, delta_fn)
        if self.honest is not None:
            far = tolerance(self.honest.extremes, delta_fp)
            found = self.honest.level(blocks, float(np.nextafter(far, math.inf)))
            upper = max(upper, found) if self.kind == "rule" else found
        if self.padded is not None:
            far = -tolerance([-each for each in self.padded.extremes], delta_fn)
            found = self.padded.level(blocks, float(np.nextafter(far, -math.inf)))
            lower = min(lower, found) if self.kind == "rule" else found
        return min(lower, float(np.nextafter(upper, -math.inf))), upper

    def _deepset(self, pairs_N2: npt.NDArray[np.float64]) -> float:
        w = self.weights
        # In an order of its own, so that the blocks' order shows not even in the last bits.
        pairs_N2 = pairs_N2[np.lexsort(pairs_N2.T)]
        hidden_NH = np.maximum(pairs_N2 @ w["phi1"].T + w["phi1b"], 0)
        hidden_NH = np.maximum(hidden_NH @ w["phi2"].T + w["phi2b"], 0)
        mean_H = hidden_NH.mean(axis=0)
        hidden_H = np.maximum(w["rho1"] @ mean_H + w["rho1b"], 0)
        return float((w["rho2"] @ hidden_H + w["rho2b"])[0])

    def _rnn(self, pairs_N2: npt.NDArray[np.float64]) -> float:
        w = self.weights
        state_H = np.zeros(len(w["recb"]))
        for pair in pairs_N2:
            state_H = np.tanh(w["in"] @ pair + w["rec"] @ state_H + w["recb"])
        return float((w["out"] @ state_H + w["outb"])[0])


SURE = 0.9


def tolerance(values: Sequence[float], rate: float) -> float:
    """What at most `rate` of further values exceed, with confidence `SURE`; infinite if unknown.

    An order statistic: the smallest that enough of the values lie below (Wilks, 1941).
    """
    n = len(values)
    sure = 0.0  # probability that at most so many of n further values lie below the quantile
    for rank in range(1, n + 1):
        below = rank - 1
        sure += math.comb(n, below) * (1 - rate) ** below * rate ** (n - below)
        if sure >= SURE:
            return sorted(values)[rank - 1]
    return math.inf


def llr(bad: int, blocks: int, p0: float, p1: float) -> float:
    """Log-likelihood ratio of `bad` of `blocks` bad ones: rate p1 against rate p0."""
    return bad * math.log(p1 / p0) + (blocks - bad) * math.log((1 - p1) / (1 - p0))


def wald(delta_fp: float, delta_fn: float) -> tuple[float, float]:
    """Wald's bounds of a sequential likelihood-ratio test, as (accept, reject).

    Raises:
        InputError: for error rates that leave no room.
    """
    if not (0 < delta_fp < 1 and 0 < delta_fn < 1 and delta_fp + delta_fn < 1):
        raise InputError(
            f"delta_fp={delta_fp}, delta_fn={delta_fn}; both above 0, together below 1"
        )
    return math.log(delta_fn / (1 - delta_fp)), math.log((1 - delta_fn) / delta_fp)


def binomial_p(bad: int, blocks: int, rate: float) -> float:
    """Probability of at least `bad` bad blocks among `blocks` independent ones, bad at `rate`."""
    total = sum(
        math.comb(blocks, k) * rate**k * (1 - rate) ** (blocks - k) for k in range(bad, blocks + 1)
    )
    return min(1.0, total)
