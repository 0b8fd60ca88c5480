"""Where the in-context model and its controller live, and how they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from outlay.testbeds.checkpoints import load_llama

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_HERE = Path(__file__).parent


def checkpoint_path() -> Path:
    """Folder of the shipped model: usable wherever transformers takes a model path."""
    return _HERE / "base"


def controller_path() -> Path:
    """Folder of the shipped DynaICL controller, trained on this model's labels."""
    return _HERE / "controller"


def load(path: str | Path | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model in eval mode and its tokenizer.

    Args:
        path: a folder that the training command wrote; None is the shipped one.

    Raises:
        ModelError: if there is no such checkpoint.
        DependencyError: without torch and transformers.
    """
    folder = checkpoint_path() if path is None else Path(path)
    return load_llama(folder, "icl", "this model")
