"""Light modules stay light: what importing outlay costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "tree_sitter")
LIGHT = (
    "budget",
    "ledger",
    "cost",
    "shape",
    "frontier",
    "records",
    "stats",
    "paired",
    "stack",
    "registry",
    "errors",
    "files",
    "runs",
    "example",
    "comparison",
    "report",
    "api",
    "machine",
    "models",
    "models.base",
    "models.memo",
    "models.store",
    "models.embedded",
    "prompt.base",
    "decode.base",
    "evals.base",
    "proofs.base",
    "cli",
)


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has after `code`."""
    full = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_outlay_takes_less_than_a_third_of_a_second() -> None:
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import outlay"], check=True)
        best = min(best, time.perf_counter() - start)
    assert best < 0.3


def test_importing_outlay_imports_nothing_heavy() -> None:
    assert not loaded_by("import outlay") & {*HEAVY, "numpy", "scipy", "matplotlib", "pydantic"}


def test_no_light_module_imports_torch() -> None:
    found = loaded_by("\n".join(f"import outlay.{name}" for name in LIGHT))
    assert not found & set(HEAVY)


@pytest.mark.parametrize("name", ["Budget", "Ledger", "Stack", "Record", "ask", "compare"])
def test_public_names_need_no_torch(name: str) -> None:
    assert not loaded_by(f"from outlay import {name}") & set(HEAVY)


def test_every_public_name_exists_and_is_listed() -> None:
    import outlay

    for name in outlay.__all__:
        assert getattr(outlay, name) is not None
        assert name in dir(outlay)
    assert set(outlay.__all__) == set(outlay._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = outlay.nothing
