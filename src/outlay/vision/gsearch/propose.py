"""One number by Bayesian optimisation: Optuna's Gaussian process (expected improvement) or TPE."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from outlay.errors import DependencyError


def propose(
    value: Callable[[float], float],
    span: tuple[float, float],
    sampler: Literal["gp", "tpe"],
    trials: int,
    seed: int,
    *,
    log: bool = False,
    limit: Callable[[float], float] | None = None,
    worth: Callable[[float], bool] | None = None,
) -> None:
    """Call `value` at numbers of a range that promise to be high.

    A whole number is tried once: where the sampler comes back to one, or to one that is not worth a
    trial any more, the nearest that is left is tried next, until none is left.

    Args:
        value: to maximise.
        span: of the number; two ints for whole numbers.
        sampler: of Optuna.
        trials: numbers that are tried.
        seed: of the sampler.
        log: on a logarithmic scale.
        limit: at most 0 where a number is allowed; given, the highest number, which must be
            allowed, is tried first.
        worth: whether a whole number is still worth a trial; None for all.

    Raises:
        DependencyError: without Optuna 5.
    """
    optuna = _optuna()
    whole = all(isinstance(end, int) for end in span)
    with _quiet(optuna):
        starts = max(2, trials // 4)  # at random, before the model of the function begins
        makers = {"gp": optuna.samplers.GPSampler, "tpe": optuna.samplers.TPESampler}
        chosen = makers[sampler](seed=seed, n_startup_trials=starts)
        study = optuna.create_study(direction="maximize", sampler=chosen)
        if limit is not None:
            study.enqueue_trial({"x": span[1]})
        left = set(range(int(span[0]), int(span[1]) + 1)) if whole else set()
        tried = 0
        while tried < trials and (left or not whole):
            trial = study.ask()
            ask = trial.suggest_int if whole else trial.suggest_float
            number = ask("x", *span, log=log)
            if whole and number not in left:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial({"x": min(left, key=lambda one: (abs(one - number), one))})
                continue
            if limit is not None:
                trial.set_constraint("limit", limit(number))
            study.tell(trial, value(number))
            tried += 1
            left = {one for one in left - {number} if worth is None or worth(one)}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise DependencyError(
            "this search needs Optuna: pip install 'outlay[vision]'; sampler='bisect' and 'grid' "
            "do without"
        ) from error
    if not hasattr(optuna.trial.Trial, "set_constraint"):
        raise DependencyError(
            f"Optuna {optuna.__version__} is too old: pip install 'optuna>=5'; sampler='bisect' "
            "and 'grid' do without"
        )
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """No line for every trial; the caller's settings come back."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
