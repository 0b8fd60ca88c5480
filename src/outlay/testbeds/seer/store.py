"""Where the seers live, and how they are loaded: fp16 on disk, fp32 in use."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import DependencyError, ModelError

if TYPE_CHECKING:
    from outlay.testbeds.seer.model import Seer

MEASURED = "measured.json"
WEIGHTS = "model.safetensors"
_HERE = Path(__file__).parent


def checkpoint_path(size: str = "S") -> Path:
    """Folder of a shipped seer: a checkpoint of transformers, with its card and its figures.

    Raises:
        ModelError: if none of this size ships.
    """
    folder = _HERE / size.lower()
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"no seer of size {size!r} ships; train one with 'python -m outlay.testbeds.seer "
            f"--size {size} --out DIR'"
        )
    return folder


def load(size: str = "S", path: str | Path | None = None) -> Seer:
    """A seer in eval mode, in fp32 on the CPU.

    Args:
        size: `S`, `M`, `HR` or `V`.
        path: a folder that the training command wrote; None is the shipped one.

    Raises:
        InputError: for an unknown size.
        ModelError: if there is no such checkpoint, or it is of another size.
        DependencyError: without torch and transformers.
    """
    try:
        import torch
        from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration
    except ImportError as error:
        raise DependencyError("the seer needs torch: pip install 'outlay[local]'") from error
    from outlay.testbeds.seer.model import Seer, size_of

    wanted = size_of(size)
    folder = checkpoint_path(size) if path is None else Path(path)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {WEIGHTS}; train a seer with outlay.testbeds.seer")
    written = record(folder).get("config", {}).get("size")
    if written != size:
        raise ModelError(f"{folder} holds a seer of size {written}, not {size}; give its own size")
    kind: Any = LlavaNextForConditionalGeneration if wanted.tiled else LlavaForConditionalGeneration
    model = kind.from_pretrained(folder, dtype=torch.float32)
    return Seer(wanted, model.train(False))


def record(folder: Path) -> dict[str, Any]:
    """What the training command noted beside the weights.

    Raises:
        ModelError: if it is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads((folder / MEASURED).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / MEASURED} cannot be read ({error})") from error
    return found


def write(folder: Path, seer: Seer) -> str:
    """Save weights in fp16 and the configuration; returns the SHA-256 of the weights' file."""
    import copy

    import torch

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(seer.model).to(torch.float16).save_pretrained(folder)
    (folder / WEIGHTS).chmod(0o644)  # the writer makes it private; packages need it read
    return digest(folder)


def digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
