"""How the testbeds' checkpoints are found on disk and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import DependencyError, ModelError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def check_folder(folder: Path, testbed: str) -> None:
    """Raise `ModelError` unless the folder holds a checkpoint; `testbed` is what trains one."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no checkpoint; train one with outlay.testbeds.{testbed}")


def load_llama(
    folder: Path, testbed: str, who: str
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model in eval mode and its tokenizer.

    Args:
        folder: of the checkpoint.
        testbed: whose training command writes such folders.
        who: the model, in error messages.

    Raises:
        ModelError: if there is no checkpoint.
        DependencyError: without torch and transformers.
    """
    check_folder(folder, testbed)
    try:
        from transformers import AutoTokenizer, LlamaForCausalLM
    except ImportError as error:
        raise DependencyError(f"{who} needs torch: pip install 'outlay[local]'") from error
    model = LlamaForCausalLM.from_pretrained(folder)
    model.train(False)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return model, tokenizer
