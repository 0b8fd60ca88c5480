"""What produces tokens: local (transformers), embedded (the default) and endpoint models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from outlay.errors import DependencyError, InputError

if TYPE_CHECKING:
    from outlay.models.base import Model


def load(spec: str = "embedded", **options: Any) -> Model:
    """A model by name.

    Args:
        spec: "embedded" (SmolLM2-135M-Instruct), "reasoner" (the testbed that thinks;
            "reasoner/small" is its weaker sibling), "icl" (the testbed that learns in context),
            "searcher" (the testbed that searches trees), "seer" (the testbed that sees;
            "seer/M", "seer/HR" see more), a URL of an OpenAI-compatible server with
            the model's name after "#" ("http://127.0.0.1:8000/v1#qwen"), or whatever transformers
            loads (a folder or an id). A suffix "@fast" or "@exact" chooses a local model's mode.
        options: further arguments of `LocalModel.load` or `EndpointModel`.

    Raises:
        ModelError: if it cannot be loaded.
        DependencyError: if transformers is not installed.

    Example:
        >>> load("embedded@fast").mode
        'fast'
    """
    if not spec.strip():
        raise InputError("the model's name is empty; use 'embedded', a folder, an id or a URL")
    if spec.startswith(("http://", "https://")):
        from outlay.models.endpoint import EndpointModel

        url, _, name = spec.partition("#")
        return EndpointModel(url, name, **options)
    base, at, mode = spec.rpartition("@")
    if not at or "/" in mode:  # a path may hold an @ of its own
        base, mode = spec, ""
    mode = mode or options.pop("mode", "exact")
    try:
        from outlay.models import embedded
        from outlay.models.local import LocalModel
    except ImportError as error:
        raise DependencyError(
            f"local models need torch and transformers ({error}); pip install 'outlay[local]'"
        ) from error
    if base == "embedded":
        return embedded.load(cast(Any, mode), **options)
    if base == "reasoner" or base.startswith("reasoner/"):
        from outlay.testbeds.reasoner.store import DEFAULT, checkpoint_path

        path = checkpoint_path(base.partition("/")[2] or DEFAULT)
        return LocalModel.load(path, mode=cast(Any, mode), name=base, **options)
    if base == "searcher":
        from outlay.testbeds.searcher import checkpoint_path as searcher_path

        return LocalModel.load(searcher_path(), mode=cast(Any, mode), name=base, **options)
    if base == "icl":
        from outlay.testbeds.icl import checkpoint_path as icl_path

        return LocalModel.load(icl_path(), mode=cast(Any, mode), name=base, **options)
    if base == "seer" or base.startswith("seer/"):
        from outlay.testbeds.seer.sight import open_seer

        return cast("Model", open_seer(base))
    if _sees(base):
        from outlay.models.sight import SightModel

        return cast("Model", SightModel.load(base))
    return LocalModel.load(base, mode=cast(Any, mode), **options)


def _sees(path: str) -> bool:
    """Whether a folder holds a vision-language model."""
    import json
    from pathlib import Path

    try:
        config = json.loads((Path(path) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "vision_config" in config
