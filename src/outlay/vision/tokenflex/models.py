"""LLaVA and LLaVA-NeXT with TokenFLEX's projector, as classes of transformers.

They load and save like any model (`from_pretrained`, `save_pretrained`): the projector's knobs are
`config.tokenflex`, and a saved folder names this file as its code, so that
`AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)` finds the class where
outlay is installed. `convert` makes one of a plain model, with shared weights.

Shapes: N tokens of a picture or tile, D width of the decoder.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextModel,
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from outlay.errors import CapabilityError, InputError
from outlay.vision.tokenflex.filling import fill
from outlay.vision.tokenflex.grids import Grid
from outlay.vision.tokenflex.projector import FlexProjector, ProjectorConfig

AUTO_CLASS = "AutoModelForImageTextToText"


def encoder_grid(config: Any) -> Grid:
    """Patches of one picture (or tile).

    Raises:
        CapabilityError: if the config does not say.
    """
    vision = getattr(config, "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int):
        raise CapabilityError(
            "TokenFlex needs a tower of square pictures; its config must have image_size and "
            "patch_size as numbers"
        )
    return Grid(size // patch, size // patch)


def make_projector(config: Any) -> FlexProjector:
    """The projector that a model's config describes."""
    layers = config.vision_feature_layer
    return FlexProjector(
        config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers)),
        config.text_config.hidden_size,
        encoder_grid(config),
        ProjectorConfig.from_dict(getattr(config, "tokenflex", None) or {}),
        bias=config.multimodal_projector_bias,
    )


class _Flexible:
    """What both classes do in their own way."""

    def save_pretrained(self, save_directory: Any, **more: Any) -> None:
        """As `PreTrainedModel.save_pretrained`, with the names that `state_dict` has.

        Old LLaVA checkpoints have other names; a Trainer that resumes would not find those.
        """
        whole: Any = super()
        whole.save_pretrained(save_directory, **{"save_original_format": False, **more})

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `GenerationMixin.generate`; within TokenFlex, prompts may have all placeholders.

        Images are then encoded here, because transformers repeats features for beams by what
        placeholders there are.
        """
        whole: Any = super()
        inner = self.model  # type: ignore[attr-defined]
        request = inner.multi_modal_projector.request
        if request is None or not request.fill:
            return whole.generate(inputs, *args, **kwargs)
        request.rows = []
        fill(inner, request, kwargs.get("input_ids") if inputs is None else inputs, kwargs)
        request.generating = True
        try:
            return whole.generate(inputs, *args, **kwargs)
        finally:
            request.generating = False


class FlexLlavaForConditionalGeneration(_Flexible, LlavaForConditionalGeneration):
    """LLaVA whose images may have any number of tokens.

    Args:
        config: of LLaVA; `config.tokenflex` holds the projector's knobs.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = make_projector(config)
        self.post_init()


class FlexLlavaNextModel(LlavaNextModel):
    """LLaVA-NeXT without its head: tiles are pooled before they are put together.

    Args:
        config: of LLaVA-NeXT.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.multi_modal_projector = make_projector(config)
        self.post_init()

    def pack_image_features(
        self,
        image_features: Any,
        image_sizes: Any,
        vision_feature_select_strategy: str,
        image_newline: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """The base picture, then the mosaic of tiles without its padding, row by row.

        Args:
            image_features: of every image, (tiles, N, D), the base picture first.
            image_sizes: of every image, height and width.
            vision_feature_select_strategy: the projector has refused tokens that are no patches.
            image_newline: (D,) ends every row of the mosaic.

        Raises:
            InputError: for an image of several tiles where only single ones were trained.
        """
        projector = self.multi_modal_projector
        grid, request = projector.asked(1)[0], projector.request
        packed = []
        for tiles_TND, size in zip(image_features, image_sizes, strict=True):
            size = _pair(size)
            check_tiles(projector.settings, len(tiles_TND))
            mosaic_DHW = _mosaic(tiles_TND[1:], size, grid, self.config)
            if image_newline is not None:
                line = image_newline[:, None, None].to(mosaic_DHW)
                mosaic_DHW = torch.cat([mosaic_DHW, line.expand(-1, mosaic_DHW.shape[1], 1)], -1)
            packed.append(torch.cat([tiles_TND[0], mosaic_DHW.flatten(1).transpose(0, 1)]))
        if request is not None:
            request.full = [
                tiled_tokens(self.config, _pair(size), projector.grid) for size in image_sizes
            ]
        lengths = torch.tensor([len(features) for features in packed], device=packed[0].device)
        return packed, lengths


class FlexLlavaNextForConditionalGeneration(_Flexible, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT whose pictures and tiles may have any number of tokens.

    Args:
        config: of LLaVA-NeXT; `config.tokenflex` holds the projector's knobs.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = FlexLlavaNextModel(config)
        self.post_init()


FlexLlavaForConditionalGeneration.register_for_auto_class(AUTO_CLASS)
FlexLlavaNextForConditionalGeneration.register_for_auto_class(AUTO_CLASS)


def convert(model: Any, settings: ProjectorConfig | None = None) -> Any:
    """A flexible model that shares tower and decoder with a plain one.

    The projector is new (drawn from torch's global generator), and needs training; with
    `projector="mlp"` it has the weights of the one that it replaces, so that a pre-trained model
    can be pooled without training.

    Args:
        model: `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`; not changed,
            and not to be used further if the result is trained.
        settings: of the projector.

    Raises:
        CapabilityError: for another class, or a tower without a square grid.
        InputError: for counts that the encoder's grid cannot give.
    """
    known: dict[type, Any] = {
        LlavaForConditionalGeneration: FlexLlavaForConditionalGeneration,
        LlavaNextForConditionalGeneration: FlexLlavaNextForConditionalGeneration,
    }
    if type(model) not in known:
        raise CapabilityError(
            f"convert takes {' or '.join(kind.__name__ for kind in known)}, not "
            f"{type(model).__name__}"
        )
    settings = ProjectorConfig() if settings is None else settings
    config = copy.deepcopy(model.config)
    config.tokenflex = settings.to_dict()
    projector = make_projector(config)
    _initialise(projector, config)
    old = model.model.multi_modal_projector
    if settings.projector == "mlp":
        projector.load_state_dict(old.state_dict())
    with torch.device("meta"):
        made = known[type(model)](config)
    for name, child in model.model.named_children():
        setattr(made.model, name, child)
    for name, parameter in model.model.named_parameters(recurse=False):
        setattr(made.model, name, parameter)
    first = next(old.parameters())
    made.model.multi_modal_projector = projector.to(first.device, first.dtype)
    made.lm_head = model.lm_head
    made.generation_config = copy.deepcopy(model.generation_config)
    # Each part has its own configuration, and the whole must know those very ones.
    made.config.vision_config = made.model.vision_tower.config
    made.config.text_config = made.model.language_model.config
    made.config._attn_implementation = model.config._attn_implementation
    return made.train(model.training)


def flexible(model: Any) -> FlexProjector | None:
    """The flexible projector of a model (also inside an adapter's wrapper), None without one."""
    inner = getattr(model, "model", model)
    projector = getattr(inner, "multi_modal_projector", None)
    if isinstance(projector, FlexProjector):
        return projector
    return next((part for part in model.modules() if isinstance(part, FlexProjector)), None)


def need_flexible(model: Any) -> FlexProjector:
    """The flexible projector of a model.

    Raises:
        CapabilityError: if it has another one.
    """
    projector = flexible(model)
    if projector is None:
        raise CapabilityError(
            f"{type(model).__name__} has no flexible projector, and gives every image its native "
            "number of tokens; train one (`convert`, `TokenFlexTrainer`), or drop tokens of a "
            "model as it is with a pruning method such as hired or covipal"
        )
    return projector


def check_tiles(settings: ProjectorConfig, partitions: int) -> None:
    """Raise `InputError` for a picture of several tiles where single ones were trained."""
    if not settings.tiles and partitions > 2:
        raise InputError(
            f"an image has {partitions - 1} tiles, and this model was trained with one "
            "(config.tokenflex['tiles'] is False); give images of one tile, or train with several"
        )


def tiled_tokens(config: Any, size: tuple[int, int], grid: Grid) -> int:
    """Visual tokens of a LLaVA-NeXT image at a grid, its newlines included.

    Args:
        config: of LLaVA-NeXT.
        size: height and width of the image.
        grid: of every tile.
    """
    partitions = image_size_to_num_patches(
        size, config.image_grid_pinpoints, config.vision_config.image_size
    )
    tiles_TND = torch.empty(partitions - 1, grid.count, 1, device="meta")
    _, rows, columns = _mosaic(tiles_TND, size, grid, config).shape
    return grid.count + rows * (columns + 1)


def _mosaic(tiles_TND: Tensor, size: tuple[int, int], grid: Grid, config: Any) -> Tensor:
    """Tiles side by side, without what padding was added to the image: (D, rows, columns)."""
    side = config.vision_config.image_size
    down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, side)
    whole = tiles_TND.reshape(down, across, grid.rows, grid.columns, -1).permute(4, 0, 2, 1, 3)
    return unpad_image(whole.flatten(1, 2).flatten(2, 3), size)


def _pair(size: Any) -> tuple[int, int]:
    height, width = size.tolist() if hasattr(size, "tolist") else size
    return int(height), int(width)


def _initialise(projector: FlexProjector, config: Any) -> None:
    """As transformers initialises such layers."""
    std = getattr(config.get_text_config(), "initializer_range", 0.02)
    for module in projector.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
