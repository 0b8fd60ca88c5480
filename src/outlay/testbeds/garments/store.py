"""Where the garment classifier lives, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from outlay.errors import DependencyError, ModelError
from outlay.testbeds.checkpoints import check_folder

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

DEFAULT = "base"
NAMES = ("base",)
_HERE = Path(__file__).parent


def checkpoint_path(name: str = DEFAULT) -> Path:
    """Folder of a shipped checkpoint: usable wherever transformers takes a model path.

    Raises:
        ModelError: if no checkpoint has that name.
    """
    if name not in NAMES:
        raise ModelError(f"no garment classifier {name!r}; shipped are: {', '.join(NAMES)}")
    return _HERE / name


def load(name: str | Path = DEFAULT) -> ViTForImageClassification:
    """A classifier in eval mode, in float32.

    Args:
        name: of a shipped checkpoint, or a folder that the training command wrote.

    Raises:
        ModelError: if there is no such checkpoint.
        DependencyError: without torch and transformers.
    """
    path = name if isinstance(name, Path) else checkpoint_path(name)
    check_folder(path, "garments")
    try:
        import torch
        from transformers import ViTForImageClassification
    except ImportError as error:
        raise DependencyError("the classifier needs torch: pip install 'outlay[local]'") from error
    model = ViTForImageClassification.from_pretrained(path, dtype=torch.float32)
    model.train(False)
    return model
