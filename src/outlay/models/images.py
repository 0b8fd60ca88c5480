"""Reading image files that users hand over: checked, decoded by Pillow, as (H, W, 3) bytes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from outlay.errors import DependencyError, InputError

MAX_BYTES = 50_000_000
MAX_PIXELS = 64_000_000
"""Of one image, and of all images of a call."""


def read_image(path: str | Path) -> Any:
    """An image file as an (H, W, 3) array of bytes, turned upright as its EXIF data says.

    Raises:
        InputError: for a file that is missing, too large, or no image.
        DependencyError: without Pillow.
    """
    try:
        import numpy as np
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise DependencyError("images need Pillow: pip install 'outlay[vision]'") from error
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; give the path of an image")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"{path} is {image.width} x {image.height}; at most {MAX_PIXELS:,} pixels"
                    )
                upright = ImageOps.exif_transpose(image)
                return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no image that Pillow reads; give a PNG or JPEG") from error
    except (OSError, ValueError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} cannot be read as an image ({error})") from error
