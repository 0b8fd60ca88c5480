"""Where a vision-language model keeps its tower, its decoder and its image tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from outlay.errors import CapabilityError


@dataclass(frozen=True)
class Parts:
    """The pieces of a transformers model that the room touches.

    Args:
        outer: what `generate` was called on.
        inner: the module that merges features into the prompt; `outer` for a plain decoder.
        tower: the vision tower, None for a plain decoder.
        decoder: the decoder; has `layers`, `norm`, `rotary_emb`.
        image_ids: placeholder token ids, image before video; none for a plain decoder.
    """

    outer: Any
    inner: Any
    tower: Any
    decoder: Any
    image_ids: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.decoder.layers)

    @property
    def text_config(self) -> Any:
        """Config of the decoder."""
        return self.decoder.config


def parts(model: Any) -> Parts:
    """The pieces of `model`: a VLM of transformers, or a plain decoder-only model.

    Raises:
        CapabilityError: for a model without a list of decoder layers.
    """
    inner = getattr(model, "model", model)
    decoder = getattr(inner, "language_model", inner)
    decoder = getattr(decoder, "model", decoder) if not hasattr(decoder, "layers") else decoder
    if not hasattr(decoder, "layers") or not hasattr(decoder, "norm"):
        raise CapabilityError(
            f"{type(model).__name__} has no list of decoder layers with a final norm; vision "
            "methods need a decoder like Llama, Mistral or Qwen2, plain or inside a LLaVA"
        )
    tower = getattr(inner, "vision_tower", None)
    tower = getattr(inner, "visual", None) if tower is None else tower
    config = model.config
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found: list[int] = []
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value not in found:
            found.append(value)
    return Parts(model, inner, tower, decoder, tuple(found) if tower is not None else ())


def need_tower(model: Any, method: str) -> Parts:
    """As `parts`, for methods that look at the tower.

    Raises:
        CapabilityError: if the model has no vision tower.
    """
    found = parts(model)
    if found.tower is None:
        raise CapabilityError(
            f"{method} reads the vision tower, and {type(model).__name__} has none; give a "
            "vision-language model such as LlavaForConditionalGeneration"
        )
    return found
