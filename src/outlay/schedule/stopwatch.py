"""TTFT, TBT, end-to-end time, throughput and goodput of a run.

TTFT counts from arrival, so queueing is in it. TBT is the gap between two tokens of one request;
its percentiles are over all gaps of all requests. Goodput counts the requests that meet both
limits: a first token in time, and a 99th percentile of their own gaps below the limit. Limits are
multiples of a measured decoding step, never copied milliseconds (serving-foundation sheet, section
5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from outlay.schedule.base import End


@dataclass
class Timing:
    """One request's times, in seconds on the run's clock.

    Args:
        arrival: when it came.
        tokens: when each token was there.
        token_ids: what they were.
        end: why it finished, None while it runs.
    """

    arrival: float
    tokens: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    end: End | None = None

    @property
    def ttft(self) -> float:
        """Arrival to first token."""
        return self.tokens[0] - self.arrival

    @property
    def e2e(self) -> float:
        """Arrival to last token."""
        return self.tokens[-1] - self.arrival

    @property
    def gaps(self) -> list[float]:
        """Between successive tokens."""
        return [b - a for a, b in zip(self.tokens, self.tokens[1:], strict=False)]


def percentile(values: Sequence[float], share: float) -> float:
    """The `share` quantile; NaN of nothing."""
    return float(np.quantile(values, share)) if len(values) else float("nan")


@dataclass(frozen=True)
class Summary:
    """A run in numbers; seconds on its clock.

    Args:
        requests: that had at least one token.
        ttft_mean, ttft_p50, ttft_p99: time to first token.
        tbt_p50, tbt_p95, tbt_p99, tbt_max: time between tokens, over all gaps.
        e2e_mean: arrival to last token.
        makespan: first arrival to last token.
        tokens_per_second: output tokens over the makespan.
    """

    requests: int
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    tbt_p50: float
    tbt_p95: float
    tbt_p99: float
    tbt_max: float
    e2e_mean: float
    makespan: float
    tokens_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, None for what is undefined."""
        return {key: None if value != value else value for key, value in vars(self).items()}


def summarise(timings: Iterable[Timing]) -> Summary:
    """The figures of all requests that had a token."""
    served = [timing for timing in timings if timing.tokens]
    ttft = [timing.ttft for timing in served]
    gaps = [gap for timing in served for gap in timing.gaps]
    first = min((timing.arrival for timing in served), default=0.0)
    last = max((timing.tokens[-1] for timing in served), default=0.0)
    output = sum(len(timing.tokens) for timing in served)
    return Summary(
        requests=len(served),
        ttft_mean=float(np.mean(ttft)) if served else float("nan"),
        ttft_p50=percentile(ttft, 0.5),
        ttft_p99=percentile(ttft, 0.99),
        tbt_p50=percentile(gaps, 0.5),
        tbt_p95=percentile(gaps, 0.95),
        tbt_p99=percentile(gaps, 0.99),
        tbt_max=max(gaps, default=float("nan")),
        e2e_mean=float(np.mean([timing.e2e for timing in served])) if served else float("nan"),
        makespan=last - first,
        tokens_per_second=output / (last - first) if last > first else float("nan"),
    )


def goodput(timings: Iterable[Timing], *, ttft: float, tbt: float) -> float:
    """Share of requests that finished with their first token and their gaps within the limits.

    Args:
        timings: of all requests, dropped ones included.
        ttft: most seconds to the first token.
        tbt: most seconds for the 99th percentile of a request's gaps.
    """
    every = list(timings)
    good = [
        timing
        for timing in every
        if timing.end in ("eos", "length")
        and timing.ttft <= ttft
        and (not timing.gaps or percentile(timing.gaps, 0.99) <= tbt)
    ]
    return len(good) / len(every) if every else 0.0
