"""A keep schedule: how many of the visual tokens every decoder layer keeps, as a small file.

It is what a search returns and what the dropper applies. Which tokens are kept is decided anew in
every prompt; how many is not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from outlay.errors import InputError
from outlay.files import read_text
from outlay.vision.counts import check_schedule, counts_of

Query = Literal["last", "text_mean", "all_mean"]
"""Whose attention ranks visual tokens: the last token of the prompt, the text after the image, or
every token."""
QUERIES: tuple[str, ...] = get_args(Query)
Rates = tuple[float, ...]
"""Keep rate of every decoder layer, relative to the original number of visual tokens."""
MAX_LAYERS = 1000
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class KeepSchedule:
    """Keep rates of a model's decoder layers, and where they come from.

    Args:
        model_id: the model that it was searched for; a label, which is not compared.
        n_layers: decoder layers.
        rates: of every layer, relative to the original number of visual tokens; never rising, the
            first is 1.
        scoring: whose attention ranks tokens.
        rank_normalise: whether heads are ranked one by one, without their trend along the image.
        calib_hash: of the calibration data, whatever their order; "" if a callable was searched.
        budget: the mean rate that was asked for; None if the search chose it.
        k: steepness of the P-Sigmoid; None for rates that lie on none.
        perf_full: on the calibration data, nothing dropped.
        perf_kept: on the calibration data, under these rates.
        check_full: on the second split, nothing dropped.
        check_kept: on the second split, under these rates.
        held: whether the second split confirms what the search promised; None if there was none, or
            nothing was promised.
        calls: evaluations that the search made.

    Raises:
        InputError: for rates that cannot be applied, or figures that are no numbers.
    """

    model_id: str
    n_layers: int
    rates: Rates
    scoring: Query = "last"
    rank_normalise: bool = False
    calib_hash: str = ""
    budget: float | None = None
    k: float | None = None
    perf_full: float | None = None
    perf_kept: float | None = None
    check_full: float | None = None
    check_kept: float | None = None
    held: bool | None = None
    calls: int = 0

    def __post_init__(self) -> None:
        check_layers(self.n_layers)
        for layer, rate in enumerate(self.rates):
            if isinstance(rate, bool) or not isinstance(rate, (int, float)):
                raise InputError(f"rate {rate!r} of layer {layer} is not a number in [0, 1]")
        object.__setattr__(self, "rates", tuple(map(float, self.rates)))
        check_schedule(self.rates, self.n_layers, before_first=False)
        if self.scoring not in QUERIES:
            raise InputError(f"scoring={self.scoring!r}; use one of {', '.join(QUERIES)}")
        for name in ("budget", "k", "perf_full", "perf_kept", "check_full", "check_kept"):
            value = getattr(self, name)
            if value is not None and not _finite(value):
                raise InputError(f"{name}={value!r} is not a finite number")

    @property
    def mean_rate(self) -> float:
        """Mean over layers: the share of (token, layer) pairs that is left."""
        return mean_rate(self.rates)

    @property
    def first_drop(self) -> int:
        """The layer before which tokens go first; the number of layers if none go."""
        return next((i for i, rate in enumerate(self.rates) if rate < 1), self.n_layers)

    def counts(self, n: int) -> list[int]:
        """Visual tokens of every layer, of `n` in the prompt."""
        return counts_of(self.rates, n)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "rates": list(self.rates)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON; returns the path."""
        place = Path(path)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        place.write_text(text + "\n", encoding="utf-8")
        return place

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeepSchedule:
        """Read what `save` wrote.

        Raises:
            InputError: for a file that is missing, too large, no JSON, or no schedule.
        """
        text = read_text(path, max_bytes=_MAX_BYTES).text
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is no JSON: {error}") from error
        return cls.from_dict(found, str(path))

    @classmethod
    def from_dict(cls, found: Any, where: str = "the schedule") -> KeepSchedule:
        """From a decoded JSON object.

        Args:
            found: the object.
            where: named in errors.

        Raises:
            InputError: for missing or unknown fields, or values of another type.
        """
        if not isinstance(found, Mapping):
            raise InputError(f"{where} holds a {type(found).__name__}, not a schedule's object")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(found) - known):
            raise InputError(f"{where} has unknown fields: {', '.join(map(str, unknown))}")
        if missing := sorted({"model_id", "n_layers", "rates"} - set(found)):
            raise InputError(f"{where} lacks {', '.join(missing)}")
        if not isinstance(found["rates"], (list, tuple)):
            raise InputError(f"{where} has rates={found['rates']!r}; need a list of numbers")
        for name, kind in (("model_id", str), ("calib_hash", str), ("rank_normalise", bool)):
            if name in found and not isinstance(found[name], kind):
                raise InputError(f"{where} has {name}={found[name]!r}; need a {kind.__name__}")
        return cls(**{**found, "rates": tuple(found["rates"])})


def mean_rate(rates: Rates) -> float:
    """Mean over layers of the keep rates."""
    return math.fsum(rates) / len(rates)


def check_layers(n_layers: int) -> None:
    """Raise `InputError` unless it is a number of decoder layers."""
    if isinstance(n_layers, bool) or not isinstance(n_layers, int):
        raise InputError(f"n_layers={n_layers!r}; need an int >= 1")
    if not 1 <= n_layers <= MAX_LAYERS:
        raise InputError(f"n_layers={n_layers}; need 1 to {MAX_LAYERS}")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
