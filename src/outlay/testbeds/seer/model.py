"""The seer's architecture, and the inputs that it takes.

Four sizes of one design: a CLIP tower, LLaVA's projector and a Llama, all tiny, built from
transformers' own configurations. There is no processor and no tokenizer: words are looked up, and a
pixel x becomes x / 127.5 - 1.

| size | pictures | visual tokens | class |
|---|---|---|---|
| S | 64 x 64 | 64 | `LlavaForConditionalGeneration` |
| M | 96 x 96 | 144 | `LlavaForConditionalGeneration` |
| HR | 48 to 96 a side, as a thumbnail and up to four tiles of 48 | 36 + mosaic + newlines, to 192 |
`LlavaNextForConditionalGeneration` |
| V | frames of 64 x 64, several in a prompt | 64 each | `LlavaForConditionalGeneration` |

Shapes: B rows, T tokens, H height, W width, C width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from outlay.errors import InputError
from outlay.testbeds.seer.clips import Clips
from outlay.testbeds.seer.questions import BOS, EOS, FRAME, IMG, PAD, VOCABULARY, Question, encode
from outlay.testbeds.seer.questions import decode as decode_words
from outlay.testbeds.seer.scenes import Scenes

SizeName = Literal["S", "M", "HR", "V"]
MAX_VISUAL = 16_384
"""Most visual tokens of one prompt."""


@dataclass(frozen=True)
class Size:
    """One architecture.

    Args:
        name: of the size.
        side: of the square picture that the tower sees.
        patch: side of a patch.
        layers: of the language model.
        max_objects: most objects of the scenes that it was trained on.
        tower_layers: of the tower.
        width: of tower and language model.
        heads: attention heads of both.
        kv_heads: key and value heads of the language model.
        inner: width of every MLP, in widths.
    """

    name: str
    side: int
    patch: int = 8
    layers: int = 4
    max_objects: int = 3
    tower_layers: int = 3
    width: int = 96
    heads: int = 4
    kv_heads: int = 2
    inner: int = 3

    def __post_init__(self) -> None:
        if self.side < 1 or self.patch < 1 or self.side % self.patch:
            raise InputError(f"patch={self.patch} does not divide side={self.side}")
        if self.width % (2 * self.heads):
            raise InputError(f"width={self.width} is no multiple of 2 x heads={self.heads}")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // self.patch

    @property
    def tokens(self) -> int:
        """Visual tokens of one picture of the tower."""
        return self.grid**2

    @property
    def tiled(self) -> bool:
        """Whether pictures are cut into tiles, as LLaVA-NeXT does."""
        return self.name == "HR"

    @property
    def pinpoints(self) -> list[list[int]]:
        """Resolutions (height, width) that a tiled size knows."""
        return [[self.side, 2 * self.side], [2 * self.side, self.side], [2 * self.side] * 2]


SIZES: dict[str, Size] = {
    "S": Size("S", 64),
    "M": Size("M", 96, layers=6, max_objects=6),
    "HR": Size("HR", 48, max_objects=5),
    "V": Size("V", 64, max_objects=5),
}


def size_of(name: str) -> Size:
    """A size by its name.

    Raises:
        InputError: for an unknown one.
    """
    if name not in SIZES:
        raise InputError(f"size={name!r}; must be one of {', '.join(SIZES)}")
    return SIZES[name]


def build(size: Size, seed: int = 0) -> Any:
    """A freshly initialised model, seeded by `seed`, in eval mode.

    Returns:
        `LlavaForConditionalGeneration`, or `LlavaNextForConditionalGeneration` for a tiled size.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        image_size=size.side,
        patch_size=size.patch,
        hidden_size=size.width,
        intermediate_size=size.inner * size.width,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=size.heads,
        projection_dim=size.width,
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=size.width,
        intermediate_size=size.inner * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=2048,
        initializer_range=size.width**-0.5,  # 0.02 starves attention at this width
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    shared: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": IMG,
        "image_seq_length": size.tokens,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any
        if size.tiled:
            model = LlavaNextForConditionalGeneration(
                LlavaNextConfig(image_grid_pinpoints=size.pinpoints, **shared)
            )
        else:
            model = LlavaForConditionalGeneration(LlavaConfig(**shared))
    model.generation_config.bos_token_id = BOS
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    model.generation_config.do_sample = False
    return model.train(False)


def normalised(pictures: np.ndarray) -> torch.Tensor:
    """Pictures (..., H, W, 3) uint8 as the tower takes them, (..., 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, -1, -3)))
    return pixels.float() / 127.5 - 1


def tiles(pixels_B3HW: torch.Tensor, size: Size) -> torch.Tensor:
    """Thumbnail and tiles of pictures of one size, (B, 1 + tiles, 3, side, side).

    The thumbnail is the whole picture squeezed into a square. Tiles are cut, row by row, from the
    picture scaled into the best resolution that the model knows and padded evenly.
    """
    from transformers.image_processing_utils import select_best_resolution

    height, width = pixels_B3HW.shape[-2:]
    tall, wide = select_best_resolution((height, width), size.pinpoints)
    scale = min(tall / height, wide / width)
    fitted = pixels_B3HW
    if scale != 1:
        fitted = _resize(pixels_B3HW, round(height * scale), round(width * scale))
    spare_h, spare_w = tall - fitted.shape[-2], wide - fitted.shape[-1]
    pad = (spare_w // 2, spare_w - spare_w // 2, spare_h // 2, spare_h - spare_h // 2)
    canvas = torch.nn.functional.pad(fitted, pad, value=-1.0)
    cut = canvas.unflatten(-2, (-1, size.side)).unflatten(-1, (-1, size.side))
    parts = cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return torch.cat([_resize(pixels_B3HW, size.side, size.side)[:, None], parts], 1)


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(
        pixels, (height, width), mode="bilinear", align_corners=False, antialias=True
    )


def tiled_tokens(height: int, width: int, size: Size) -> int:
    """Visual tokens of a picture that is cut into tiles, newlines included."""
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    tall, wide = select_best_resolution((height, width), size.pinpoints)
    mosaic = torch.zeros(1, tall // size.patch, wide // size.patch)
    rows, columns = unpad_image(mosaic, (height, width)).shape[1:]
    return size.tokens + rows * columns + rows


@torch.no_grad()
def look(tower: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a tower sees: last hidden states of patches, (B, n, C), and their saliency, (B, n): how
    much the CLS token attends to each in the last layer, averaged over heads."""
    output = tower(pixels, output_hidden_states=True)
    layer = tower.encoder.layers[-1]
    before = layer.layer_norm1(output.hidden_states[-2])
    attention = layer.self_attn
    heads = (attention.num_heads, attention.head_dim)
    query_BHD = attention.q_proj(before[:, 0]).unflatten(-1, heads).float()
    keys_BnHD = attention.k_proj(before).unflatten(-1, heads).float()
    scores_BHn = torch.einsum("bhd,bnhd->bhn", query_BHD, keys_BnHD) * attention.scale
    return output.last_hidden_state[:, 1:], scores_BHn.softmax(-1)[..., 1:].mean(1)


@dataclass(frozen=True)
class Seer:
    """A model with its language.

    Args:
        size: its architecture.
        model: in eval mode.
    """

    size: Size
    model: Any

    def inputs(self, seen: Scenes | Clips, questions: Sequence[Question]) -> dict[str, Any]:
        """What `model.generate` and `model.forward` take: question i about scene or clip i.

        Every placeholder is there, and rows of unequal length are padded on the left.

        Args:
            seen: pictures; clips for size V, scenes for all others (a scene is a clip of one frame
                to size V).
            questions: one for each.

        Raises:
            InputError: for pictures that this size does not see, unequal numbers, or a word that is
                not in the vocabulary.
        """
        if len(seen) != len(questions):
            raise InputError(f"{len(seen)} pictures and {len(questions)} questions; need as many")
        if self.size.name == "V":
            frames = seen.frames if isinstance(seen, Clips) else seen.images[:, None]
            self._check(frames.shape[2:4], seen.patch)
            prefix = ([FRAME] + [IMG] * self.size.tokens) * frames.shape[1]
            pixels = normalised(frames).flatten(0, 1)
            extra: dict[str, Any] = {}
        elif isinstance(seen, Clips):
            raise InputError(f"size {self.size.name} sees scenes; clips need size V")
        elif self.size.tiled:
            height, width = seen.size
            limit = 2 * self.size.side
            patch = self.size.patch
            if max(height, width) > limit or height % patch or width % patch:
                raise InputError(
                    f"pictures of {height}x{width}; size HR sees sides that are multiples of "
                    f"{patch}, up to {limit}"
                )
            prefix = [IMG] * tiled_tokens(height, width, self.size)
            pixels = tiles(normalised(seen.images), self.size)
            extra = {"image_sizes": torch.tensor([[height, width]] * len(seen))}
        else:
            self._check(seen.size, seen.patch)
            prefix = [IMG] * self.size.tokens
            pixels, extra = normalised(seen.images), {}
        if len(prefix) > MAX_VISUAL:
            raise InputError(f"{len(prefix)} visual tokens in a prompt; at most {MAX_VISUAL}")
        rows = [[BOS, *prefix, *encode(question.words)] for question in questions]
        device = self.model.device
        made = {**self._padded(rows), "pixel_values": pixels, **extra}
        return {name: value.to(device) for name, value in made.items()}

    def blind_inputs(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Inputs without any picture: what the questions alone give away."""
        padded = self._padded([[BOS, *encode(question.words)] for question in questions])
        return {name: value.to(self.model.device) for name, value in padded.items()}

    def _check(self, found: Sequence[int], patch: int) -> None:
        side = self.size.side
        if tuple(found) != (side, side) or patch != self.size.patch:
            raise InputError(
                f"pictures of {found[0]}x{found[1]} with patch {patch}; size {self.size.name} sees "
                f"{side}x{side} with patch {self.size.patch}"
            )

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        width = max(len(row) for row in rows)
        ids_BT = torch.full((len(rows), width), PAD)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for b, row in enumerate(rows):
            ids_BT[b, width - len(row) :] = torch.tensor(row)
            mask_BT[b, width - len(row) :] = 1
        return {"input_ids": ids_BT, "attention_mask": mask_BT}

    @torch.no_grad()
    def features(self, seen: Scenes | Clips) -> torch.Tensor:
        """Projected features before any packing: (B, pictures of a row, tokens, C).

        Pictures are one scene, a thumbnail and its tiles, or the frames of a clip.
        """
        if isinstance(seen, Clips):
            pixels = normalised(seen.frames)
        elif self.size.tiled:
            pixels = tiles(normalised(seen.images), self.size)
        else:
            pixels = normalised(seen.images)[:, None]
        tower, projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        flat = pixels.flatten(0, 1).to(self.model.device)
        hidden = tower(flat).last_hidden_state[:, 1:]
        return torch.unflatten(projector(hidden), 0, pixels.shape[:2])

    def inputs_of_features(
        self, features: Sequence[Sequence[torch.Tensor]], questions: Sequence[Question]
    ) -> dict[str, Any]:
        """Inputs from features that a method has made: any number of tokens for every picture.

        Args:
            features: for every row, a list of (n, C) tensors: one a picture, or a frame of a clip.
                An empty one stands for no picture, and its frame mark is left out, too.
            questions: one for each row.

        Raises:
            InputError: for unequal numbers, features of another width, or no feature at all.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if len(features) != len(questions):
            raise InputError(f"{len(features)} rows and {len(questions)} questions; need as many")
        mark = [FRAME] if self.size.name == "V" else []
        rows, flat = [], []
        for parts, question in zip(features, questions, strict=True):
            row = [BOS]
            for part in parts:
                if part.ndim != 2 or part.shape[1] != self.size.width:
                    raise InputError(
                        f"features of shape {tuple(part.shape)}; need (n, {self.size.width})"
                    )
                if len(part):
                    row += mark + [IMG] * len(part)
                    flat.append(part)
            if len(row) > MAX_VISUAL:
                raise InputError(f"{len(row)} visual tokens in a prompt; at most {MAX_VISUAL}")
            rows.append(row + encode(question.words))
        if not flat:
            raise InputError("no features in any row; keep at least one token")
        padded = {k: v.to(self.model.device) for k, v in self._padded(rows).items()}
        return {
            **padded,
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=flat)},
        }

    def answers(self, output_ids: torch.Tensor, prompt: int) -> list[tuple[str, ...]]:
        """Words that `generate` wrote after a prompt of `prompt` tokens."""
        return [decode_words(row) for row in output_ids[:, prompt:].tolist()]


__all__ = [
    "MAX_VISUAL",
    "SIZES",
    "Seer",
    "Size",
    "SizeName",
    "build",
    "look",
    "normalised",
    "size_of",
    "tiled_tokens",
    "tiles",
]
