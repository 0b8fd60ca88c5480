"""Where the searcher lives, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import DependencyError, ModelError
from outlay.testbeds.checkpoints import check_folder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_HERE = Path(__file__).parent


def checkpoint_path() -> Path:
    """Folder of the shipped model: usable wherever transformers takes a model path."""
    return _HERE / "base"


def load(path: str | Path | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The searcher in eval mode and its tokenizer.

    Args:
        path: a folder that the training command wrote; None is the shipped one.

    Raises:
        ModelError: if there is no such checkpoint, or it is not the searcher's.
        DependencyError: without torch and transformers.
    """
    folder = checkpoint_path() if path is None else Path(path)
    check_folder(folder, "searcher")
    try:
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, LlamaForCausalLM
    except ImportError as error:
        raise DependencyError("the searcher needs torch: pip install 'outlay[local]'") from error
    from outlay.testbeds.searcher.tokenizer import vocabulary

    try:
        model, found = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded ({error}); train the searcher anew") from error
    lacking = [*found["missing_keys"], *found["unexpected_keys"]]
    if lacking or tokenizer.get_vocab() != vocabulary():
        what = f"weights {', '.join(map(str, lacking))}" if lacking else "the vocabulary"
        raise ModelError(
            f"{folder} is no searcher: {what} differ from what this version expects; "
            "train one with outlay.testbeds.searcher"
        )
    model.train(False)
    return model, tokenizer
