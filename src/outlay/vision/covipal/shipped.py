"""Modules that come with the package: for seers, so that CoViPAL runs where nothing was trained.

They are made by `python -m outlay.vision.covipal`, from a fixed seed and a fixed number of steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outlay.errors import InputError
from outlay.vision.covipal.store import CONFIG, Trained, fingerprint, load

NAME = "seer"
RATIO, WIDTH = 0.125, 48
BATCHES, ROWS, VALIDATION = 64, 32, 4
SEED = 7000


def folders() -> list[Path]:
    """Of all shipped modules."""
    import outlay.testbeds

    home = Path(outlay.testbeds.__file__).parent / "seer"
    return sorted(path.parent for path in home.glob(f"ppm-*/{CONFIG}"))


def shipped(model: Any) -> Trained:
    """The shipped modules of a model.

    Raises:
        InputError: if none were made for it.
    """
    mark = fingerprint(model)
    found = {}
    for folder in folders():
        trained = load(folder)
        found[trained.model_id] = trained
        if trained.model == mark:
            return trained
    raise InputError(
        f"no shipped pruning module is for this {type(model).__name__}; there are some for "
        f"{', '.join(sorted(found)) or 'no model'}. CoViPAL is a trained method: call fit(model, "
        "batches), or name a folder of trained modules with saved="
    )


def make(size: str) -> Trained:
    """Train the modules of one seer, as they ship.

    Args:
        size: `S` or `M`.
    """
    from dataclasses import replace

    from outlay.testbeds.seer.store import load as load_seer
    from outlay.vision.covipal.method import CoViPAL
    from outlay.vision.covipal.seer_data import batches
    from outlay.vision.covipal.training import Recipe

    seer = load_seer(size)
    recipe = Recipe(
        epochs=(9.0, 1.0), lr=(5e-3, 2e-4), lr2=5e-4, ratios=(0.03, 0.5), queries="last"
    )
    # Scenes of any number of objects: these modules are not for dense ones alone.
    data = batches(seer, BATCHES, seed=SEED, rows=ROWS, min_objects=1)
    held = batches(seer, VALIDATION, seed=SEED + 1, rows=ROWS, min_objects=1)
    method = CoViPAL(ratio=RATIO, d_p=WIDTH, gate="st_topk").fit(
        seer.model, data, recipe, validation=held
    )
    assert method.fitted is not None
    return replace(method.fitted, model_id=f"{NAME}/{size}")
