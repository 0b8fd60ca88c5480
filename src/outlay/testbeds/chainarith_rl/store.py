"""Where the starting policy lives, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from outlay.errors import ModelError
from outlay.testbeds.reasoner.store import checkpoint_path as checkpoint_of_reasoner
from outlay.testbeds.reasoner.store import load as load_reasoner

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ("sft", "reasoner")
_HERE = Path(__file__).parent


def checkpoint_path(name: str = "sft") -> Path:
    """Folder of a shipped checkpoint: usable wherever transformers takes a model path.

    "sft" is the starting policy; "reasoner" is the larger testbed (`outlay.testbeds.reasoner`),
    which speaks the same notation and was trained on other chains.

    Raises:
        ModelError: if no checkpoint has that name.
    """
    if name not in NAMES:
        raise ModelError(f"no ChainArith-RL checkpoint {name!r}; shipped are: {', '.join(NAMES)}")
    return checkpoint_of_reasoner() if name == "reasoner" else _HERE / name


def load(name: str | Path = "sft") -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The starting policy in eval mode and its tokenizer, as `trl.GRPOTrainer` takes them.

    Args:
        name: of a shipped checkpoint, or a folder that the training command wrote.

    Raises:
        ModelError: if there is no such checkpoint.
        DependencyError: without torch and transformers.
    """
    path = name if isinstance(name, Path) else checkpoint_path(name)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} holds no checkpoint; train one with "
            f"python -m outlay.testbeds.chainarith_rl --out {path}"
        )
    return load_reasoner(path)
