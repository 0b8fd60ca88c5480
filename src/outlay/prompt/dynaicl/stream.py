"""Allocation when inputs arrive one by one: a price per token instead of a split.

Every input takes the number of demonstrations that is worth its price, `argmax_k p(k) - mu c(k)`.
Either the price is fixed beforehand so that calibration inputs take `mean_k` demonstrations on
average (`Price`), or it follows what was spent (`Stream`, dual ascent).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_HIGHEST = 1e6  # a price at which nobody buys
_BANK = 4.0  # how far savings may push the price below 0, where they wait to be spent


def at_price(curves_NK: FloatArray, costs_NK: FloatArray | IntArray, price: float) -> IntArray:
    """(N,) `argmax_k p(k) - price * c(k)`; the fewest on ties."""
    return np.asarray((curves_NK - price * costs_NK).argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Price:
    """A fixed price of one demonstration.

    Inputs that look alike change their mind at the same price, so that a mean between two plateaus
    needs both: `share` of the inputs, chosen by a hash of their text, pay `low`, the others `high`.

    Args:
        low, high: prices, `low <= high`.
        share: of inputs that pay `low`.
    """

    low: float
    high: float
    share: float

    @classmethod
    def of(cls, curves_NK: FloatArray, mean_k: float) -> Price:
        """The price at which these curves take `mean_k` demonstrations on average.

        Raises:
            InputError: for a mean outside 0..K.
        """
        K = curves_NK.shape[1] - 1
        if not 0 <= mean_k <= K:
            raise InputError(f"mean_k={mean_k}; need 0 <= mean_k <= K={K}")
        costs_NK = np.broadcast_to(np.arange(K + 1.0), curves_NK.shape)

        def mean(price: float) -> float:
            return float(at_price(curves_NK, costs_NK, price).mean())

        low, high = 0.0, _HIGHEST
        if mean(low) <= mean_k:  # more than anybody wants
            return cls(low, low, 1.0)
        for _ in range(200):
            middle = (low + high) / 2
            if middle in (low, high):
                break
            if mean(middle) > mean_k:
                low = middle
            else:
                high = middle
        above, below = mean(low), mean(high)
        return cls(low, high, (mean_k - below) / (above - below))

    def take(self, text: str, curve_K: FloatArray, fits: int) -> int:
        """Demonstrations for one input, at most `fits`."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        price = self.low if int.from_bytes(digest, "big") / 2**64 < self.share else self.high
        reach_K = curve_K[: fits + 1]
        return int((reach_K - price * np.arange(len(reach_K))).argmax())


class Stream:
    """Allocation to inputs that arrive one by one, at a price that follows what was spent.

    Args:
        target: mean tokens of demonstrations per input.
        scale: tokens of K demonstrations, in which prices and steps are measured.
        rate: step of the price per input that spends `scale` more than the target.
        price: where it begins, per `scale` tokens.

    Raises:
        InputError: for a negative target or price, or a scale or rate that is not positive.
    """

    def __init__(
        self, target: float, scale: float, *, rate: float = 0.5, price: float = 0.0
    ) -> None:
        if not target >= 0 or not price >= 0:
            raise InputError(f"target={target}, price={price}; both must be >= 0")
        if not scale > 0 or not rate > 0:
            raise InputError(f"scale={scale}, rate={rate}; both must be > 0")
        self.target, self.scale, self.rate = target, scale, rate
        self._level = price
        self.count = 0
        self.tokens = 0

    def take(self, curve_K: FloatArray, cost_K: IntArray) -> int:
        """Demonstrations for the next input; the price moves."""
        share_K = cost_K / self.scale
        k = int(at_price(curve_K[None], share_K[None], self.price)[0])
        self.count += 1
        self.tokens += int(cost_K[k])
        over = float(share_K[k]) - self.target / self.scale
        self._level = max(-_BANK, self._level + self.rate * over)
        return k

    @property
    def price(self) -> float:
        """Price of `scale` tokens now."""
        return max(0.0, self._level)

    @property
    def mean(self) -> float:
        """Mean tokens per input so far."""
        return self.tokens / self.count if self.count else 0.0
