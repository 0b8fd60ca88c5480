"""From a table to a trained controller: both stages and the calibration."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from outlay.errors import DependencyError, InputError
from outlay.prompt.dynaicl.config import Gradient, Training
from outlay.prompt.dynaicl.controller import Controller, Head
from outlay.prompt.dynaicl.table import Table, targets


def fit_controller(
    table: Table,
    held_out: Table | None,
    *,
    K: int,
    t: float,
    margin: float,
    head: Head,
    lam: float,
    pg: Gradient,
    encoder: str,
    instruction: str,
    config: Training,
    seed: int,
    calibration: int,
) -> Controller:
    """Train a controller; the arguments are `DynaICL`'s knobs.

    Raises:
        InputError: for a table of another K, or the same inputs in both tables.
        DependencyError: without torch.
    """
    try:
        from outlay.prompt.dynaicl import training
        from outlay.prompt.dynaicl.seq2seq import Writer
    except ImportError as error:
        raise DependencyError(
            f"training a controller needs torch ({error}); pip install 'outlay[local]'"
        ) from error
    for name, labels in (("table", table), ("held_out", held_out)):
        if labels is not None and labels.K != K:
            raise InputError(f"{name} has labels for K={labels.K}, the method has K={K}")
    if held_out is not None and (shared := set(table.ids) & set(held_out.ids)):
        raise InputError(
            f"{len(shared)} inputs are in both tables ({min(shared)!r}); calibrate on others"
        )
    goal = targets(table, t, margin)
    read = [f"{instruction}\n{text}" if instruction else text for text in table.inputs]
    net, x_NF = training.start(encoder, read, head, K, config, seed)
    net = training.supervise(net, x_NF, table, goal, head, config, seed)
    reinforced = head != "curve" and config.rl_epochs > 0
    if reinforced:
        reward_NK = training.rewards(table, lam, config.cost)
        net = training.reinforce(net, x_NF, reward_NK, pg, config, seed, head)
    about: dict[str, Any] = {
        "inputs": len(table),
        "hopeless": int(goal.hopeless_N.sum()),
        "k_star": np.bincount(goal.needed_N, minlength=K + 1).tolist(),
        "lam": lam,
        "pg": pg if reinforced else "none",
        "seed": seed,
    }
    empty = np.zeros((0, K + 1))
    writer, weights = None, {}
    if head == "seq2seq":
        assert isinstance(net, Writer)
        writer = net
    else:
        weights = training.weights_of(net)
    made = Controller(head, K, encoder, instruction, t, weights, empty, about=about, writer=writer)
    step = math.ceil(len(table) / calibration)
    curves_MK = made.predict(table.inputs[::step]).curves_NK
    knots: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    if held_out is not None:
        knots = _isotonic(made.predict(held_out.inputs).curves_NK, held_out.accuracy_NK)
    return replace(made, calibration_MK=curves_MK, knots=knots)


def _isotonic(
    predicted_NK: np.ndarray, true_NK: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError as error:
        raise DependencyError(
            "calibration needs scikit-learn; pip install 'outlay[eval]', or fit without held_out"
        ) from error
    line = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    line.fit(predicted_NK.ravel(), true_NK.ravel())
    return (
        tuple(float(x) for x in line.X_thresholds_),
        tuple(float(y) for y in line.y_thresholds_),
    )
