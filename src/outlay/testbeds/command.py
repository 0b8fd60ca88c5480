"""How every training command begins and ends."""

from __future__ import annotations

from pathlib import Path

import typer


def prepare(threads: int) -> None:
    """Compute on so many CPU threads, which are part of a recipe; transformers shows no bars."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()


def show(out: Path) -> None:
    """Print the model card in `out`, and where it is."""
    typer.echo((out / "README.md").read_text(encoding="utf-8"))
    typer.echo(f"saved to {out}")
