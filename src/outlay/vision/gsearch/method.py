"""G-Search: how many visual tokens does every decoder layer really need?

"Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction"
(arXiv 2412.00556, CVPR 2025). Before a layer, visual tokens are ranked by the attention that they
receive in the layer before, and the best of them stay. How many is searched once for a model: with
no loss at least cost (mode I), or the best curve under a budget (mode II). The result is one rate a
layer, for all prompts; which tokens stay is decided in every prompt.

Where it differs from the paper. No code was released. Equal here: ranking by attention, the greedy
walk from shallow to deep, Bayesian optimisation of one number a layer, the sigmoid and its budget.
Our choices: rates are of the original count; the last prompt token asks by default; nothing is
dropped before layer 2 by default, because the first layer's ranking says little; the default search
is for the smallest rate that loses nothing beyond noise (the paper's weighted form is `lam`); the
result is checked on a second split; ranks may be normalised within heads.

One schedule serves one prefill. A later turn of a conversation may need tokens that deep layers
have dropped; where images are asked about again, prefill again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from outlay.errors import InputError
from outlay.vision.base import Kept
from outlay.vision.costs import Cost, match_budget
from outlay.vision.counts import counts_of
from outlay.vision.gsearch.calibration import (
    Batch,
    Calibration,
    Metric,
    accuracy,
    chosen,
    usable,
)
from outlay.vision.gsearch.measure import Measure, Perf, Value, shortfall
from outlay.vision.gsearch.price import cost_of, lengths
from outlay.vision.gsearch.schedule import QUERIES, KeepSchedule, Query, Rates, mean_rate
from outlay.vision.gsearch.search import (
    Found,
    Progress,
    Sampler,
    check_first_drop,
    check_numbers,
    check_sampler,
    greedy,
    silent,
    steepness,
)
from outlay.vision.gsearch.sigmoid import check_budget, least_budget, p_sigmoid
from outlay.vision.parts import Parts, parts

MAX_CALIBRATION = 1_000_000
STEEPNESS = 1.0
"""Of a P-Sigmoid that nobody has tuned: most of the fall lies within four layers."""


@dataclass(frozen=True)
class GSearch:
    """Keep rates of decoder layers, found by search.

    With a schedule it is a method of the room: `with GSearch(schedule=found)(model) as kept: ...`.
    Without one, `fit` searches it.

    Args:
        mode: "search" for least cost without loss (mode I), "budget" for the best P-Sigmoid of a
            mean keep rate (mode II).
        budget: mode II's mean over layers of the keep rate.
        eps: mode I: loss that is allowed, in units of the metric.
        margin: mode I: standard errors of the loss, paired by sample, that count as noise; a
            negative margin asks for evidence that nothing is lost.
        lam: mode I: weight of cost; each layer then takes the highest metric less weighted cost.
        cost: what `lam` weighs: "tokens", the mean keep rate, or "flops" of the prefill against
            the full one.
        first_drop: first layer that may have fewer tokens, from 1.
        min_rate: lowest keep rate of a layer.
        score_query: whose attention ranks tokens: "last" token of the prompt, mean of the text
            after the image, or mean of all tokens.
        rank_normalise: rank tokens within heads, without their trend along the image.
        sampler: "bisect", "grid", "gp" or "tpe"; None takes "bisect", or "gp" with `lam` and in
            mode II.
        trials: most evaluations for a layer, or of mode II.
        grid: levels of a rate are multiples of 1 / grid.
        stride: layers that share a searched rate.
        calib_size: most samples that are searched on.
        check_share: of the calibration batches, kept to check the result where no check is given.
        metric: "accuracy" of greedy answers, or a function of model and batch that gives a figure
            for each row.
        seed: of choosing data and of the sampler.
        schedule: what to apply.

    Raises:
        InputError: for knobs out of range, or that do not go together.
    """

    mode: Literal["search", "budget"] = "search"
    budget: float | None = None
    eps: float = 0.0
    margin: float = 1.0
    lam: float | None = None
    cost: Literal["tokens", "flops"] = "tokens"
    first_drop: int = 2
    min_rate: float = 0.0
    score_query: Query = "last"
    rank_normalise: bool = False
    sampler: Sampler | None = None
    trials: int = 20
    grid: int = 20
    stride: int = 1
    calib_size: int = 256
    check_share: float = 0.25
    metric: Literal["accuracy"] | Metric = "accuracy"
    seed: int = 0
    schedule: KeepSchedule | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("search", "budget"):
            raise InputError(f"mode={self.mode!r}; use 'search' or 'budget'")
        if self.cost not in ("tokens", "flops"):
            raise InputError(f"cost={self.cost!r}; use 'tokens' or 'flops'")
        if self.score_query not in QUERIES:
            raise InputError(f"score_query={self.score_query!r}; use one of {', '.join(QUERIES)}")
        if self.metric != "accuracy" and not callable(self.metric):
            raise InputError(f"metric={self.metric!r}; use 'accuracy' or give a function")
        check_first_drop(self.first_drop)
        check_numbers(
            self.eps, self.margin, self.trials, self.grid, self.stride, self.min_rate, self.lam
        )
        _check_mode(self)
        size, share = self.calib_size, self.check_share
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_CALIBRATION:
            raise InputError(f"calib_size={size!r}; need an int of 1 to {MAX_CALIBRATION}")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise InputError(f"check_share={share!r}; need a share in [0, 1); 0 checks nothing")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed={self.seed!r}; need an int >= 0")

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """A context in which prompts of `model` follow the schedule.

        Raises:
            InputError: without a schedule, or with one for another number of layers.
            CapabilityError: for a model without decoder layers.
        """
        from outlay.vision.dropper import Dropper
        from outlay.vision.gsearch.scoring import AttentionScore

        found = self._schedule()
        score = AttentionScore(found.scoring, found.rank_normalise)
        return Dropper(model, rates=found.rates, score=score)

    def with_rates(self, rates: Sequence[float], model_id: str = "") -> GSearch:
        """The same method with these rates as its schedule.

        Args:
            rates: of every layer.
            model_id: a label.

        Raises:
            InputError: for rates that cannot be applied.
        """
        found = KeepSchedule(
            model_id, len(rates), tuple(rates), self.score_query, self.rank_normalise
        )
        return replace(self, schedule=found)

    def within(self, tokens: int, total: int, layers: int) -> GSearch:
        """The P-Sigmoid of a budget as a schedule, without a search.

        Its steepness is that of the schedule at hand, if mode II made it, else `STEEPNESS`.

        Args:
            tokens: of one image, the mean over the decoder's layers.
            total: of one image before anything is dropped.
            layers: of the decoder.

        Raises:
            InputError: for a budget below what the first layers keep anyway (the message gives the
                smallest one).
        """
        check_first_drop(self.first_drop, layers)
        least = least_budget(layers, self.first_drop, self.min_rate)
        share = min(1.0, tokens / total)
        check_budget(share, layers, self.first_drop, self.min_rate)
        k = None if self.schedule is None else self.schedule.k
        k = STEEPNESS if k is None else k

        def rates(budget: float) -> Rates:
            return p_sigmoid(k, budget, layers, self.first_drop, lo=self.min_rate).rates

        budget = match_budget(
            lambda budget: sum(counts_of(rates(budget), total)) / layers, tokens, lo=least
        )
        made = KeepSchedule(
            "", layers, rates(budget), self.score_query, self.rank_normalise, budget=budget, k=k
        )
        return replace(self, schedule=made)

    def fit(
        self,
        model: Any,
        calibration: Perf | Iterable[Batch],
        *,
        check: Perf | Iterable[Batch] | None = None,
        progress: Progress = silent,
    ) -> GSearch:
        """Search a schedule.

        Args:
            model: to search for.
            calibration: batches with answers, in any order; or a function that measures keep rates
                (higher is better) and gives one figure, or better one for each sample.
            check: a second split, batches or a function; None takes `check_share` of the batches.
            progress: gets a line a step.

        Returns:
            The same method with a schedule. A schedule of mode I that loses more on the second
            split than was allowed is kept, marked `held=False`, and warned about.

        Raises:
            InputError: for data without images, figures that are not finite, or a budget that
                cannot be met.
            CapabilityError: for a model without decoder layers.
            DependencyError: without Optuna, where a sampler needs it.
        """
        model_parts = parts(model)
        perf, second, digest = self._measures(model, model_parts, calibration, check)
        found = self._search(model_parts, perf, progress)
        checked = None if second is None else self._check(second, found.rates)
        held = None if checked is None or not self._promises else checked[2]
        made = KeepSchedule(
            model_id=_name(model),
            n_layers=model_parts.num_layers,
            rates=found.rates,
            scoring=self.score_query,
            rank_normalise=self.rank_normalise,
            calib_hash=digest,
            budget=self.budget,
            k=None if found.curve is None else found.curve.k,
            perf_full=found.full.mean,
            perf_kept=found.kept.mean,
            check_full=None if checked is None else checked[0].mean,
            check_kept=None if checked is None else checked[1].mean,
            held=held,
            calls=found.calls,
        )
        if held is False:
            warnings.warn(
                f"the schedule does not hold on the second split: {made.check_kept:.4g} against "
                f"{made.check_full:.4g} with nothing dropped; search on more samples, with a "
                "smaller eps, or with a lower margin",
                stacklevel=2,
            )
        return replace(self, schedule=made)

    def prefill(self, config: Any, text: int, visual: int, *, asking: int = 1) -> Cost:
        """What one prompt's prefill costs under the schedule, its ranking included.

        Args:
            config: of the model or its decoder.
            text: tokens that are not visual.
            visual: tokens that are.
            asking: query rows of a ranking: 1 for "last"; the text after the image, or for
                "all_mean" 0, which stands for all.

        Raises:
            InputError: without a schedule, or with one for another number of layers.
        """
        return cost_of(self._schedule().rates, config, text, visual, asking)

    @property
    def _promises(self) -> bool:
        """Whether the search bounds the loss."""
        return self.mode == "search" and self.lam is None

    def _schedule(self) -> KeepSchedule:
        if self.schedule is None:
            raise InputError(
                "no schedule yet: call fit(model, calibration), or give "
                "schedule=KeepSchedule.load(path)"
            )
        return self.schedule

    def _measures(
        self,
        model: Any,
        model_parts: Parts,
        calibration: Perf | Iterable[Batch],
        check: Perf | Iterable[Batch] | None,
    ) -> tuple[Perf, Perf | None, str]:
        """Perfs of both splits, and the first one's hash."""
        metric: Metric = accuracy if self.metric == "accuracy" else self.metric
        second: Perf | None = None
        if check is not None:
            if callable(check):
                second = check
            else:
                batches = usable(check, model_parts, "check")
                second = Calibration(self, model, batches, metric)
        if callable(calibration):
            return calibration, second, ""
        batches = usable(calibration, model_parts, "calibration")
        share = self.check_share if second is None else 0.0
        taken, kept_back = chosen(batches, self.calib_size, share, self.seed)
        first = Calibration(self, model, taken, metric)
        if kept_back:
            second = Calibration(self, model, kept_back, metric)
        return first, second, first.hash

    def _search(self, model_parts: Parts, perf: Perf, progress: Progress) -> Found:
        layers = model_parts.num_layers
        if self.mode == "budget":
            assert self.budget is not None
            return steepness(
                perf,
                layers,
                self.budget,
                first_drop=self.first_drop,
                sampler=self.sampler,
                trials=self.trials,
                min_rate=self.min_rate,
                seed=self.seed,
                progress=progress,
            )
        return greedy(
            perf,
            layers,
            first_drop=self.first_drop,
            eps=self.eps,
            margin=self.margin,
            lam=self.lam,
            sampler=self.sampler,
            trials=self.trials,
            grid=self.grid,
            stride=self.stride,
            min_rate=self.min_rate,
            cost=self._cost(model_parts, perf),
            seed=self.seed,
            progress=progress,
        )

    def _check(self, perf: Perf, rates: Rates) -> tuple[Value, Value, bool]:
        measure = Measure(perf)
        full, kept = measure((1.0,) * len(rates)), measure(rates)
        return full, kept, shortfall(full, kept, self.eps, self.margin) <= 0

    def _cost(self, model_parts: Parts, perf: Perf) -> Callable[[Rates], float]:
        if self.cost == "tokens" or self.lam is None:
            return mean_rate
        if not isinstance(perf, Calibration):
            raise InputError(
                "cost='flops' needs to know how long prompts are; give calibration batches, or "
                "use cost='tokens'"
            )
        text, visual = lengths(perf.batches, model_parts)
        config = model_parts.text_config
        whole = cost_of((1.0,) * model_parts.num_layers, config, text, visual, 1).flops
        return lambda rates: cost_of(rates, config, text, visual, 1).flops / whole


def _name(model: Any) -> str:
    """A label for the model: its id, or the name of its folder."""
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return Path(name).name if Path(name).is_absolute() else name


def _check_mode(method: GSearch) -> None:
    """Raise `InputError` for knobs that do not go together."""
    if method.mode == "search":
        if method.budget is not None:
            raise InputError(
                f"budget={method.budget!r} is a knob of mode='budget'; set that mode, or leave the "
                "budget out"
            )
        sampler = method.sampler or ("bisect" if method.lam is None else "gp")
        check_sampler(sampler, method.trials, method.grid, method.lam)
        return
    if method.budget is None:
        raise InputError("mode='budget' needs budget, the mean keep rate over layers, in (0, 1]")
    if not 0 < method.budget <= 1:
        raise InputError(
            f"budget={method.budget!r}; the mean keep rate is in (0, 1], and 1 keeps everything"
        )
    if method.lam is not None:
        raise InputError("lam is a knob of mode='search'; under a budget the cost is fixed")
    if method.sampler not in (None, "gp", "tpe"):
        raise InputError(f"sampler={method.sampler!r} cannot tune a steepness; use 'gp' or 'tpe'")
