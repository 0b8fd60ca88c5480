"""Where drafts are stored, and the draft that belongs to a model."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

    from outlay.models.local import LocalModel

WEIGHTS = "draft.safetensors"
KEEP = (0, 1, 2, 3, 8, 13, 18, 23, 28, 29)  # of 30: the first four, every fifth, the last two
_SHAPE = ("llama", 30, 576, 49152)  # of the target: type, layers, width, vocabulary
_made: weakref.WeakKeyDictionary[Any, LocalModel] = weakref.WeakKeyDictionary()


def shipped_path() -> Path:
    """Folder of the shipped draft: the updates, what was measured, and the model card."""
    return Path(__file__).parent / "smollm2"


def read(folder: Path) -> tuple[tuple[int, ...], dict[str, torch.Tensor]]:
    """The kept layers and the updates that a folder holds.

    Raises:
        ModelError: if they are missing or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{path} is missing; train a draft with outlay.testbeds.drafts --out DIR")
    try:
        with safe_open(path, framework="pt") as file:
            keep = tuple(int(i) for i in json.loads((file.metadata() or {})["keep"]))
            return keep, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ModelError(
            f"{path} is no stored draft ({error}); train one with outlay.testbeds.drafts --out DIR"
        ) from error


def smollm2_draft(target: LocalModel, folder: Path | None = None) -> LocalModel:
    """The distilled shallow copy of SmolLM2-135M (or of a fine-tuned one), on the target's device.

    Embedding and head are the target's own tensors; the draft adds its ten layers only.

    Args:
        target: a SmolLM2-135M.
        folder: what the training command wrote; None is the shipped one.

    Raises:
        InputError: for a model of another shape.
        ModelError: if the stored draft is missing or does not fit.
    """
    from outlay.models import embedded
    from outlay.models.local import LocalModel
    from outlay.models.quantise import quantise_linears
    from outlay.models.truncated import truncated
    from outlay.testbeds.drafts.lowrank import merge

    if _shape(target) != _SHAPE:
        raise InputError(f"{target.name} is no SmolLM2-135M, for which this draft was trained")
    keep, state = read(folder or shipped_path())
    quantised = target.mode == "fast" and target.device.type == "cpu"
    source = embedded.load(device="cpu").model if quantised else target.model
    network = truncated(source, keep)
    merge(network, state)
    if quantised:
        quantise_linears(network)
    # In half precision the copy's angles of positions would be rounded; the target's are not.
    network.model.rotary_emb = target.model.model.rotary_emb
    network.set_input_embeddings(target.model.get_input_embeddings())
    network.set_output_embeddings(target.model.get_output_embeddings())
    network.requires_grad_(False)
    return LocalModel(network, target.tokenizer, f"{target.name}/draft", mode=target.mode)


def _shape(model: LocalModel) -> tuple[str, int, int, int]:
    config = model.model.config.get_text_config()
    return (
        str(config.model_type),
        int(config.num_hidden_layers),
        int(config.hidden_size),
        int(config.vocab_size),
    )


def draft_for(model: LocalModel) -> LocalModel:
    """The draft that the package has for `model`, built once per model.

    SmolLM2-135M (the embedded model) has its distilled shallow copy, the reasoner its small
    sibling.

    Raises:
        InputError: if there is none.
    """
    if model in _made:
        return _made[model]
    if _shape(model) == _SHAPE:
        draft = smollm2_draft(model)
    elif sibling := _sibling(model):
        draft = sibling
    else:
        raise InputError(
            f"there is no draft for {model.name}; give draft= a smaller model with the same "
            "tokenizer, 'ngram', or 'truncated'"
        )
    _made[model] = draft
    return draft


def _sibling(model: LocalModel) -> LocalModel | None:
    """The small reasoner, for a larger one."""
    from outlay.models.local import LocalModel
    from outlay.testbeds.reasoner import build_tokenizer, checkpoint_path

    if model.tokenizer.get_vocab() != build_tokenizer().get_vocab():
        return None
    small = LocalModel.load(
        checkpoint_path("small"),
        mode=model.mode,
        device=str(model.device),
        name="reasoner/small",
    )
    size = model.model.num_parameters()
    return small if small.model.num_parameters() < size else None
