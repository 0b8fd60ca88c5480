"""What the training commands write: weights, what was measured, and the model card beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from outlay.testbeds.tiny_llama import Progress, Recipe

MEASURED = "measured.json"
WEIGHTS = "model.safetensors"


class Part(Protocol):
    """A network or a tokenizer."""

    def save_pretrained(self, save_directory: Path) -> Any:
        """Write it into a folder."""


def save_parts(out: Path, *parts: Part) -> None:
    """Write a network, and its tokenizer if it has one, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for part in parts:
        part.save_pretrained(out)
    (out / WEIGHTS).chmod(0o644)  # the writer makes it private; packages need it read


def save_card(out: Path, record: Any, card: str) -> None:
    """Write `measured.json` and README.md into `out`."""
    (out / MEASURED).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card, encoding="utf-8")


def facts(model: LlamaForCausalLM, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """What every card of a Llama says: its recipe, its parameters, and how the training went."""
    return {
        **vars(recipe),
        "parameters": model.num_parameters(),
        "tokens": progress.tokens,
        "minutes": progress.seconds / 60,
        "loss": progress.loss,
    }
