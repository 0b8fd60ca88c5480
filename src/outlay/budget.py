"""Budget: how much may be spent, split over stages; and Meter, which enforces it.

A `Budget` is a value: limits on tokens, money, FLOPs, seconds and calls, whichever is hit first.
A `Meter` is the running account of one budget: room is *reserved* before it is spent and *settled*
after, so that concurrent spenders cannot overshoot together.

Splitting an integer total over parts uses largest remainders: the parts sum to exactly the total.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, get_args

from outlay.errors import BudgetError

Counts = Literal["generated", "think", "prompt", "vision", "all"]
Remainder = Literal["largest", "priority"]


def _whole(name: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BudgetError(f"{name}={value!r} is not a whole number; give an int >= {least}")
    if value < least:
        raise BudgetError(f"{name}={value} is too small; give an int >= {least}")
    return value


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BudgetError(f"{name}={value!r} is not a finite number; give a number > 0")
    if value <= 0:
        raise BudgetError(f"{name}={value} leaves nothing to spend; give a number > 0")


def split_even(total: int, parts: int) -> list[int]:
    """Split `total` tokens over `parts` equal shares; the first shares take the remainder."""
    return split_weighted(total, [1.0] * _whole("parts", parts, least=1))


def split_weighted(
    total: int, weights: Sequence[float], *, remainder: Remainder = "largest"
) -> list[int]:
    """Split `total` tokens in proportion to `weights`; the result sums to exactly `total`.

    Args:
        total: tokens to hand out, >= 0.
        weights: one finite, non-negative weight per part, not all zero.
        remainder: "largest" gives left-over tokens to the largest fractional parts (Hamilton's
            method); "priority" gives them one each in decreasing order of weight, the rule of the
            published Plan-and-Budget code (arXiv 2505.16122). Ties go to the earlier part.

    Raises:
        BudgetError: for a negative total or weights that are empty, negative or not finite.
    """
    _whole("total", total, least=0)
    if not weights:
        raise BudgetError("no weights to split over; give at least one part")
    for index, weight in enumerate(weights):
        if not math.isfinite(weight) or weight < 0:
            raise BudgetError(f"weight {index} is {weight}; weights must be finite and >= 0")
    largest = max(weights)
    if largest == 0:
        raise BudgetError("all weights are zero; give at least one part a positive weight")
    # Scaled first: sums of tiny (subnormal) or huge weights would lose or overflow the shares.
    scaled = [weight / largest for weight in weights]
    norm = math.fsum(scaled)
    exact = [total * weight / norm for weight in scaled]
    shares = [math.floor(part) for part in exact]
    left = total - sum(shares)
    key = [part - share for part, share in zip(exact, shares, strict=True)]
    order = sorted(
        range(len(shares)), key=lambda i: (-(key[i] if remainder == "largest" else scaled[i]), i)
    )
    step = 1 if left >= 0 else -1
    while left:  # one round suffices but for rounding errors of huge totals
        for index in order:
            if left and shares[index] + step >= 0 and scaled[index] > 0:
                shares[index] += step
                left -= step
    return shares


def decaying_weights(parts: int, *, decay: float = 0.9) -> list[float]:
    """Weights `decay**j` for part j, so that earlier parts get more; `0 < decay <= 1`."""
    _whole("parts", parts, least=1)
    if not 0 < decay <= 1:
        raise BudgetError(f"decay={decay} is outside (0, 1]")
    return [decay**j for j in range(parts)]


@dataclass(frozen=True)
class Budget:
    """A limit on what one call, question or run may spend; whichever limit is hit first holds.

    Args:
        tokens: token limit, or None for no token limit.
        counts: which tokens the limit counts. "generated": every token sampled for the call,
            drafts, verifiers and discarded branches included. "think": sampled tokens of the
            stage "think". "prompt": the size of the prompt that a compressor returns. "vision":
            visual tokens of an image, the mean over the decoder's layers. "all": prompt tokens
            (new and cached), generated and forced.
        stages: a split of `tokens` over named stages; the parts never sum to more.
        usd: money limit in US dollars.
        flops: limit in floating point operations.
        seconds: wall-clock limit.
        calls: limit on model calls.

    Raises:
        BudgetError: if a limit is not a positive number or the stages exceed `tokens`.
    """

    tokens: int | None = None
    counts: Counts = "generated"
    stages: Mapping[str, int] | None = None
    usd: float | None = None
    flops: float | None = None
    seconds: float | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        if self.counts not in get_args(Counts):
            raise BudgetError(
                f"counts={self.counts!r}; choose one of {', '.join(get_args(Counts))}"
            )
        if self.tokens is not None:
            _whole("tokens", self.tokens, least=1)
        if self.calls is not None:
            _whole("calls", self.calls, least=1)
        for name in ("usd", "flops", "seconds"):
            if (value := getattr(self, name)) is not None:
                _positive(name, value)
        if self.stages is not None:
            for stage, share in self.stages.items():
                _whole(f"stages[{stage!r}]", share, least=0)
            if self.tokens is None:
                raise BudgetError("stages split a token limit; give tokens= as well")
            if (total := sum(self.stages.values())) > self.tokens:
                raise BudgetError(
                    f"stages sum to {total} tokens, more than the budget of {self.tokens}; "
                    "lower a stage or raise tokens="
                )
            object.__setattr__(self, "stages", MappingProxyType(dict(self.stages)))

    def __hash__(self) -> int:
        return hash(self.label())

    def __reduce__(self) -> tuple[object, ...]:
        stages = None if self.stages is None else dict(self.stages)
        values = (self.tokens, self.counts, stages, self.usd, self.flops, self.seconds, self.calls)
        return Budget, values

    def split(self, weights: Mapping[str, float], *, remainder: Remainder = "largest") -> Budget:
        """This budget with its tokens split over stages in proportion to `weights`."""
        if self.tokens is None:
            raise BudgetError("only a token limit can be split over stages; give tokens=")
        shares = split_weighted(self.tokens, list(weights.values()), remainder=remainder)
        return replace(self, stages=dict(zip(weights, shares, strict=True)))

    @property
    def shapes_prompt(self) -> bool:
        """True if the tokens are those of the prompt a method makes; they limit no answer."""
        return self.counts in ("prompt", "vision")

    def stage(self, name: str) -> int | None:
        """Tokens that stage `name` may spend, None where nothing limits it."""
        if self.stages is not None and name in self.stages:
            return self.stages[name]
        return self.tokens

    def label(self) -> str:
        """A short, stable name: the same limits give the same label on every machine."""
        parts = []
        if self.tokens is not None:
            parts.append(f"{self.tokens} {self.counts} tokens")
        if self.stages:
            parts.append("+".join(f"{name}:{share}" for name, share in self.stages.items()))
        for name, unit in (
            ("usd", "usd"),
            ("flops", "FLOPs"),
            ("seconds", "s"),
            ("calls", "calls"),
        ):
            if (value := getattr(self, name)) is not None:
                exact = f"{value:g}" if float(f"{value:g}") == value else repr(value)
                parts.append(f"{exact} {unit}")
        return ", ".join(parts) or "unlimited"

    def meter(self) -> Meter:
        """A fresh account of this budget."""
        return Meter(self)


@dataclass(frozen=True)
class Reservation:
    """Room set aside by `Meter.reserve`; settle it exactly once, also after a failure."""

    tokens: int
    usd: float = 0.0
    flops: float = 0.0
    stage: str | None = None


@dataclass
class Meter:
    """The running account of one `Budget`; safe to share between threads."""

    budget: Budget
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _spent: int = 0
    _held: int = 0
    _stage_used: dict[str, int] = field(default_factory=dict)
    _usd: float = 0.0
    _flops: float = 0.0
    _calls: int = 0
    _start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> int:
        """Tokens settled so far."""
        return self._spent

    @property
    def calls(self) -> int:
        """Calls reserved so far."""
        return self._calls

    @property
    def usd(self) -> float:
        """Dollars reserved and settled so far."""
        return self._usd

    @property
    def flops(self) -> float:
        """FLOPs reserved and settled so far."""
        return self._flops

    @property
    def deadline(self) -> float | None:
        """`time.monotonic()` at which the time limit passes, None without one."""
        return None if self.budget.seconds is None else self._start + self.budget.seconds

    def remaining(self, stage: str | None = None) -> int | None:
        """Tokens that can still be reserved (for `stage`), or None where nothing limits them."""
        with self._lock:
            return self._remaining(stage)

    def _remaining(self, stage: str | None) -> int | None:
        limits = []
        if self.budget.tokens is not None:
            limits.append(self.budget.tokens - self._spent - self._held)
        if stage is not None and self.budget.stages is not None and stage in self.budget.stages:
            limits.append(self.budget.stages[stage] - self._stage_used.get(stage, 0))
        return max(0, min(limits)) if limits else None

    def exhausted(self, stage: str | None = None) -> bool:
        """True when no token, dollar, FLOP, second or call is left."""
        with self._lock:
            return self._remaining(stage) == 0 or self._stop() is not None

    def _stop(self) -> str | None:
        budget = self.budget
        if budget.calls is not None and self._calls >= budget.calls:
            return f"all {budget.calls} calls are used"
        if budget.seconds is not None and time.monotonic() - self._start >= budget.seconds:
            return f"the time limit of {budget.seconds:g} s has passed"
        if budget.usd is not None and self._usd >= budget.usd:
            return f"the money limit of {budget.usd:g} usd is used"
        if budget.flops is not None and self._flops >= budget.flops:
            return f"the limit of {budget.flops:g} FLOPs is used"
        return None

    def reserve(
        self,
        tokens: int,
        *,
        stage: str | None = None,
        least: int = 1,
        usd: float = 0.0,
        flops: float = 0.0,
    ) -> Reservation:
        """Set room aside for one call: as much of `tokens` as is left, at least `least`.

        Raises:
            BudgetError: if fewer than `least` tokens are left or another limit is hit.
        """
        _whole("tokens", tokens, least=0)
        with self._lock:
            if (reason := self._stop()) is not None:
                raise BudgetError(f"budget exhausted: {reason}; raise that limit")
            for name, cost, used in (("usd", usd, self._usd), ("flops", flops, self._flops)):
                limit = getattr(self.budget, name)
                if limit is not None and used + cost > limit:
                    raise BudgetError(
                        f"budget exhausted: the call may cost {cost:g} {name}, "
                        f"{limit - used:g} of {limit:g} are left; raise {name}="
                    )
            left = self._remaining(stage)
            granted = tokens if left is None else min(tokens, left)
            if granted < least:
                where = f" for stage {stage!r}" if stage else ""
                raise BudgetError(
                    f"budget exhausted: {left} of {self.budget.label()} left{where}, "
                    f"{least} needed; raise tokens="
                )
            self._held += granted
            self._usd += usd
            self._flops += flops
            self._calls += 1
            if stage is not None:
                self._stage_used[stage] = self._stage_used.get(stage, 0) + granted
            return Reservation(granted, usd, flops, stage)

    def settle(
        self,
        reservation: Reservation,
        tokens: int,
        *,
        usd: float | None = None,
        flops: float | None = None,
    ) -> None:
        """Replace a reservation by what was really spent.

        Spending more than was reserved is recorded in full: the books stay true, and the next
        `reserve` is refused. None for `usd` or `flops` settles what was reserved.
        """
        _whole("tokens", tokens, least=0)
        with self._lock:
            self._held -= reservation.tokens
            self._spent += tokens
            if reservation.stage is not None:
                self._stage_used[reservation.stage] += tokens - reservation.tokens
            self._usd += (reservation.usd if usd is None else usd) - reservation.usd
            self._flops += (reservation.flops if flops is None else flops) - reservation.flops
