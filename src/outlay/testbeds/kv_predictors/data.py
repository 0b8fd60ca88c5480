"""What a pair is trained on: rows of local text, every eighth with facts to be recalled.

Shapes: N rows, T tokens.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from outlay.errors import InputError
from outlay.testbeds import text
from outlay.testbeds.kv_predictors import needles

PACKAGES = ("numpy", "scipy", "sklearn", "torch", "transformers")
LENGTH = 512
NEEDLES = 8  # one row in so many has facts


def training_rows(
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    length: int = LENGTH,
    seed: int = 0,
    packages: tuple[str, ...] = PACKAGES,
) -> torch.Tensor:
    """`count` rows, ids_NT."""
    stream = text.rows(tokenizer, length=length, seed=seed, packages=packages)
    rng = random.Random(f"kv-predictors:{seed}")
    found = torch.empty((count, length), dtype=torch.int32)
    for index in range(count):
        row_T = next(stream)
        if index % NEEDLES == NEEDLES - 1:
            row_T = needles.row(tokenizer, row_T, rng)
        found[index] = row_T
    return found


def save_rows(rows_NT: torch.Tensor, path: str | Path) -> Path:
    """Write rows to one file, 2 bytes a token where ids allow it; returns the path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    kind = torch.uint16 if int(rows_NT.max()) < 2**16 else torch.int32
    save_file({"rows": rows_NT.to(kind).contiguous()}, target)
    return target


def load_rows(path: str | Path) -> torch.Tensor:
    """Rows that `save_rows` wrote, ids_NT.

    Raises:
        InputError: for a file that holds none.
    """
    try:
        return load_file(path)["rows"].to(torch.int32)
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{path} holds no rows of tokens ({error}); make it with --rows-only"
        ) from error
