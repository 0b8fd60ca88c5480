"""Models that see: any vision-language model of transformers, under any vision method.

Visual tokens are booked under the stage "vision" (the mean over the decoder's layers, rounded half
up), text and answer under "answer". FLOPs are those of tower, projector and decoder in closed form;
seconds are the clock's, with the method's own work under "vision".
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from outlay.errors import CapabilityError, InputError, ModelError
from outlay.ledger import Ledger
from outlay.models.base import Account, Capabilities, Finish, Gauges, Generation, SamplingParams
from outlay.models.images import MAX_PIXELS

if TYPE_CHECKING:
    import torch

    from outlay.vision.base import Kept

MAX_IMAGES = 256


def checked(images: Sequence[Any]) -> list[Any]:
    """Images as (H, W, 3) arrays of bytes.

    Raises:
        InputError: for none, too many, too large ones, or another shape or type.
    """
    import numpy as np

    if not 1 <= len(images) <= MAX_IMAGES:
        raise InputError(f"{len(images)} images; give 1 to {MAX_IMAGES}")
    found = [np.asarray(image) for image in images]
    for number, image in enumerate(found):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"image {number} is {image.dtype} of shape {image.shape}; need (H, W, 3) of uint8"
            )
        if not image.size:
            raise InputError(f"image {number} has no pixels (shape {image.shape})")
    if (pixels := sum(image.shape[0] * image.shape[1] for image in found)) > MAX_PIXELS:
        raise InputError(f"{pixels:,} pixels; at most {MAX_PIXELS:,} in a call")
    return found


class SightModel:
    """A vision-language model with a way to make its inputs.

    Args:
        model: of transformers.
        encode: images and a question -> the model's inputs, one row, all placeholders there.
        decode: token ids -> text.
        name: of the model.
        eos: token ids that end an answer; None takes the generation config's.
    """

    capabilities = Capabilities(seed=True)

    def __init__(
        self,
        model: Any,
        encode: Callable[[Sequence[Any], str], Mapping[str, Any]],
        decode: Callable[[Sequence[int]], str],
        name: str,
        *,
        eos: Sequence[int] | None = None,
    ) -> None:
        from outlay.vision.parts import need_tower

        self.parts = need_tower(model, "a model that sees")
        self.model = model.eval()
        self.encode = encode
        self.decode = decode
        self.name = name
        self.decoder_layers = self.parts.num_layers
        own = model.generation_config.eos_token_id
        self.eos = tuple(eos) if eos is not None else _ids(own)

    @classmethod
    def load(cls, path: str | Path, *, name: str | None = None) -> SightModel:
        """A model and its processor from a folder or an id.

        Raises:
            ModelError: if either cannot be loaded.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            model = AutoModelForImageTextToText.from_pretrained(
                path, dtype="float32", use_safetensors=True
            )
            processor = AutoProcessor.from_pretrained(path)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(
                f"{path} cannot be loaded as a vision-language model ({error}); give a folder with "
                "safetensors and a processor"
            ) from error

        def encode(images: Sequence[Any], question: str) -> Mapping[str, Any]:
            if getattr(processor, "chat_template", None):
                content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
                content.append({"type": "text", "text": question})
                text = processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
            else:
                mark = getattr(processor, "image_token", "<image>")
                text = f"{mark * len(images)}\n{question}"
            from PIL import Image

            pictures = [Image.fromarray(image) for image in images]
            made = processor(images=pictures, text=text, return_tensors="pt")
            return {key: value.to(model.device) for key, value in made.items()}

        def decode(ids: Sequence[int]) -> str:
            return str(processor.decode(ids, skip_special_tokens=True))

        return cls(model, encode, decode, name or str(path))

    def visual_tokens(self, image: Any) -> int:
        """See `outlay.models.base.Sees`."""
        import torch

        ids = self.encode(checked([image]), "")["input_ids"]
        known = torch.tensor(self.parts.image_ids, device=ids.device)
        return int(torch.isin(ids, known).sum())

    def see(
        self,
        images: Sequence[Any],
        question: str,
        sampling: SamplingParams,
        *,
        pruner: Any = None,
        account: Account | None = None,
    ) -> Generation:
        """See `outlay.models.base.Sees`."""
        import torch

        account = account or Account(ledger=Ledger())
        if sampling.max_tokens < 1:
            raise InputError(f"max_tokens={sampling.max_tokens}; an answer needs at least 1")
        inputs = dict(self.encode(checked(images), question))
        hold = account.hold([sampling.max_tokens], prompt=inputs["input_ids"].shape[1])
        clock = _Clock()
        left = None if hold.deadline is None else max(0.0, hold.deadline - time.monotonic())
        with torch.no_grad(), torch.random.fork_rng(), self._watched(pruner) as kept:
            torch.manual_seed(sampling.seed)
            started = time.perf_counter()
            ids = self.model.generate(
                **inputs,
                max_new_tokens=hold.limits[0],
                max_time=left,
                min_new_tokens=sampling.min_tokens or None,
                eos_token_id=list(self.eos) or None,
                logits_processor=[clock],
                **_sampling(sampling),
            )
            seconds = time.perf_counter() - started
        new = ids[0, inputs["input_ids"].shape[1] :].tolist()
        account.settle(hold, len(new))
        cut = hold.truncated or len(new) < hold.limits[0]  # by the budget, or by its clock
        return self._booked(
            kept, new, seconds, clock.first - started, account, _squares(inputs), cut
        )

    def _watched(self, pruner: Any) -> AbstractContextManager[Kept]:
        if pruner is not None:
            return cast("AbstractContextManager[Kept]", pruner(self.model))
        from outlay.vision.dropper import Dropper

        return Dropper(self.model)

    def _booked(
        self,
        kept: Kept,
        new: list[int],
        seconds: float,
        ttft: float,
        account: Account,
        squares: int,
        cut: bool,
    ) -> Generation:
        from outlay.vision import costs
        from outlay.vision.counts import half_up

        config = self.model.config
        counts = [layer[0] for layer in kept.counts()]
        text, itemsize = kept.text[0], self.model.dtype.itemsize
        cost = costs.prefill(config, text, counts, ranked=kept.ranked, itemsize=itemsize)
        steps = sum(costs.decode_flops(config, text, counts, k) for k in range(len(new) - 1))
        try:
            seeing = costs.seeing(config, squares, kept)
        except CapabilityError:
            seeing = 0
        ledger = account.ledger
        ledger.record(
            "vision",
            "target",
            prompt_new=half_up(cost.tokens),
            method=account.method,
            seconds=kept.seconds,
            flops=float(seeing),
        )
        ledger.record(
            account.stage,
            account.role,
            prompt_new=text,
            generated=len(new),
            branch="answer",
            method=account.method,
            seconds=max(0.0, seconds - kept.seconds),
            flops=float(cost.flops + steps),
        )
        ledger.deliver(["answer"])
        ended = bool(new) and new[-1] in self.eos
        finish: Finish = "eos" if ended else "budget" if cut else "length"
        written = new[:-1] if ended else new
        return Generation(
            self.decode(written),
            tuple(new),
            finish,
            ledger,
            gauges=Gauges(
                ttft=ttft,
                tbt=(seconds - ttft) / (len(new) - 1) if len(new) > 1 else None,
                kv_bytes=float(cost.kv_bytes),
            ),
        )


class _Clock:
    """A logits processor that notes when the first token's logits were there."""

    first = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.first = self.first or time.perf_counter()
        return scores


def _squares(inputs: Mapping[str, Any]) -> int:
    """Pictures that the tower encodes: images, or tiles of images."""
    pixels = inputs.get("pixel_values")
    return 0 if pixels is None else math.prod(pixels.shape[:-3])


def _sampling(sampling: SamplingParams) -> dict[str, Any]:
    if sampling.stop:
        raise InputError("models that see take no stop strings; use max_tokens")
    if sampling.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
