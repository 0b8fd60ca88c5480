"""HiRED's choice over the image: the thumbnail as the tower sees it, and the tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from outlay.errors import DependencyError, InputError
from outlay.vision.hired.method import Plan
from outlay.vision.pictures import Grid, Panel


def panels(plan: Plan, image: Any, title: str = "") -> list[Panel]:
    """Panels for `outlay.vision.pictures.draw`: one partition, or thumbnail and mosaic.

    Args:
        plan: made with `return_masks=True`.
        image: (H, W, 3) uint8 array or a Pillow image, as it was given to the processor.
        title: begins the titles.

    Raises:
        InputError: for a plan without masks, or an image of another size.
        DependencyError: without Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DependencyError("pictures of tiles need Pillow: pip install 'outlay[vision]'") from (
            error
        )
    if plan.mask_Pgg is None:
        raise InputError("the plan has no masks; choose with HiRED(return_masks=True)")
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    picture = picture.convert("RGB")
    layout = plan.layout
    mask_Pgg = plan.mask_Pgg
    begin = f"{title}: " if title else ""
    if not layout.tiles:
        kept = f"{begin}{int(mask_Pgg.sum())} of {layout.patches} patches"
        return [Panel(picture, [Grid(mask_Pgg[0])], kept)]
    if (picture.height, picture.width) != layout.size:
        raise InputError(
            f"an image of {picture.height} x {picture.width}, and the plan was made for "
            f"{layout.size[0]} x {layout.size[1]}; give the image that the model saw"
        )
    tall, wide = layout.canvas
    scale = min(tall / picture.height, wide / picture.width)
    fitted = picture.resize(
        (min(wide, round(picture.width * scale)), min(tall, round(picture.height * scale)))
    )
    canvas = Image.new("RGB", (wide, tall))
    canvas.paste(fitted, ((wide - fitted.width) // 2, (tall - fitted.height) // 2))
    side = (tall / layout.rows, wide / layout.columns)
    grids = [
        Grid(mask_Pgg[1 + index], (side[0] * r, side[1] * c, *side))
        for index, (r, c) in enumerate(np.ndindex(layout.rows, layout.columns))
    ]
    small = picture.resize((round(side[1]), round(side[0])))
    return [
        Panel(small, [Grid(mask_Pgg[0])], f"{begin}thumbnail, {int(mask_Pgg[0].sum())} tokens"),
        Panel(canvas, grids, f"tiles, {' + '.join(str(n) for n in mask_Pgg[1:].sum((1, 2)))}"),
    ]
