"""Line losses to blocks: a function is cut after the lines that surprise a language model.

LongCodeZip, arXiv 2510.00446, section 3.3: a line whose perplexity stands out against both its
neighbours ends a block. The paper's threshold is `alpha` standard deviations; the authors' package
adds the mean (`alpha_rule="package"`, where k=0.2 is usual).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

AlphaRule = Literal["std_only", "package"]
SpikeStat = Literal["std", "robust_std", "iqr", "mad"]

FEW_THRESHOLD = 0.5  # bits per token; used when fewer than three lines have a loss


def spike_threshold(
    bits: Sequence[float], alpha: float, rule: AlphaRule = "std_only", stat: SpikeStat = "std"
) -> float:
    """By how many bits per token a line must exceed a neighbour to be a spike.

    Args:
        bits: h, mean bits per token of every line; only finite, positive ones count.
        alpha: multiple of the spread; inf gives no spikes.
        rule: "std_only" is alpha * spread (paper); "package" adds the location.
        stat: location and spread: mean and standard deviation; median and 1.4826 MAD; third
            quartile and interquartile range; median and MAD.
    """
    values = np.array([h for h in bits if math.isfinite(h) and h > 0])
    if len(values) < 3:
        return FEW_THRESHOLD
    median = float(np.median(values))
    deviation = float(np.median(np.abs(values - median)))
    low, high = (float(q) for q in np.percentile(values, [25, 75]))
    location, spread = {
        "std": (float(values.mean()), float(values.std())),
        "robust_std": (median, 1.4826 * deviation),
        "iqr": (high, high - low),
        "mad": (median, deviation),
    }[stat]
    return alpha * spread + (location if rule == "package" else 0.0)


def spikes(bits: Sequence[float], threshold: float) -> list[int]:
    """Interior lines that exceed one neighbour by `threshold` and fall below neither.

    A line that is not finite is no spike, and as a neighbour it counts as equal. A line equal to
    both neighbours is no spike either, whatever the threshold.
    """
    found = []
    for j in range(1, len(bits) - 1):
        if not math.isfinite(bits[j]):
            continue
        rises = [bits[j] - h if math.isfinite(h) else 0.0 for h in (bits[j - 1], bits[j + 1])]
        if min(rises) >= 0 and max(rises) > 0 and max(rises) >= threshold:
            found.append(j)
    return found


def cut_blocks(bits: Sequence[float], threshold: float) -> list[tuple[int, int]]:
    """Blocks [first, stop) of lines: a new one begins after every spike."""
    borders = [0, *(j + 1 for j in spikes(bits, threshold)), len(bits)]
    return [(a, b) for a, b in pairwise(borders) if a < b]
