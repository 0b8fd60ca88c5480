"""Where reasoner checkpoints live, and how they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from outlay.errors import ModelError
from outlay.testbeds.checkpoints import load_llama

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DEFAULT = "base"
NAMES = ("base", "small")  # the smaller one makes more mistakes; same tokenizer
_HERE = Path(__file__).parent


def shipped() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return list(NAMES)


def checkpoint_path(name: str = DEFAULT) -> Path:
    """Folder of a shipped checkpoint: usable wherever transformers takes a model path.

    Raises:
        ModelError: if no checkpoint has that name.
    """
    path = _HERE / name
    if name not in shipped():
        known = ", ".join(shipped()) or "none"
        raise ModelError(f"no reasoner checkpoint {name!r}; shipped are: {known}")
    return path


def load(name: str | Path = DEFAULT) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A reasoner in eval mode and its tokenizer.

    Args:
        name: of a shipped checkpoint, or a folder that the training command wrote.

    Raises:
        ModelError: if there is no such checkpoint.
        DependencyError: without torch and transformers.
    """
    path = name if isinstance(name, Path) else checkpoint_path(name)
    return load_llama(path, "reasoner", "the reasoner")
