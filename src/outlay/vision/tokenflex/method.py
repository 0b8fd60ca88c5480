"""TokenFlex: the number of visual tokens is chosen when a model is used.

"TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference", arXiv 2504.03154. A model
that was trained with random counts (`training.py`) answers from as many visual tokens as a request
is worth: the encoder's patches are pooled to that many, and projected. Nothing is ranked or
dropped, so this is for models that have the flexible projector; others need a pruning method.

What the paper does not say and this package chose is listed with the projector and the draws.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Kept
from outlay.vision.dropper import Dropper
from outlay.vision.parts import need_tower
from outlay.vision.tokenflex.filling import chosen, fill
from outlay.vision.tokenflex.grids import Count, grid_of
from outlay.vision.tokenflex.inputs import prepare, using
from outlay.vision.tokenflex.models import encoder_grid, flexible, need_flexible
from outlay.vision.tokenflex.places import Side


@dataclass(frozen=True)
class TokenFlex:
    """A number of visual tokens for every image.

        with TokenFlex(n=64)(model) as kept:
            model.generate(**inputs)

    The inputs may have all placeholders, as a processor makes them, or exactly the `n` (see
    `prepare`); both give the same answers. Text after an image moves up, as in training.

    Args:
        n: tokens of an image (of each of its tiles): a square number, or (rows, columns).

    Raises:
        InputError: for a number that is not a square.
    """

    n: Count = 64

    def __post_init__(self) -> None:
        grid_of(self.n)

    def within(self, tokens: int, total: int, layers: int) -> TokenFlex:
        """See `outlay.vision.base.Budgeted`: the largest square grid that the budget pays for."""
        if tokens < 1:
            raise InputError(f"tokens={tokens}; an image needs at least 1")
        return replace(self, n=math.isqrt(min(tokens, total)) ** 2)

    def prepare(
        self, model: Any, inputs: Mapping[str, Any], *, padding: Side = "left"
    ) -> dict[str, Any]:
        """Inputs with exactly `n` placeholders an image; shorter prompts than with all.

        Args:
            model: that will run them, within this method's context.
            inputs: of the processor.
            padding: side on which rows are filled up.

        Raises:
            CapabilityError: for a model without a flexible projector.
            InputError: if placeholders do not fit the images, or `n` the encoder.
        """
        return prepare(model, inputs, self.n, padding=padding)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[Kept]:
        """A context in which every image of `model` has `n` visual tokens.

        Raises:
            CapabilityError: for a model without a tower, or without a flexible projector if `n` is
                not its own number.
            InputError: if the encoder has fewer tokens.
        """
        inner = need_tower(model, "TokenFlex").inner
        projector = flexible(model)
        if projector is None:
            self._check_plain(model)
            with Dropper(model) as kept:
                yield kept
            return
        grid_of(self.n, projector.grid)
        trained = {grid_of(count).count for count in projector.settings.counts}
        if grid_of(self.n).count not in trained:
            warnings.warn(
                f"n={self.n} is none of the counts that the model was trained with "
                f"({', '.join(map(str, sorted(trained)))}); answers may be worse than those of "
                "both neighbours",
                stacklevel=3,
            )
        with using(model, self.n) as request:
            request.fill = True

            def before(
                inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                cache = kwargs.get("cache")
                if request.generating or (cache is not None and cache.get_seq_length() > 0):
                    return args, kwargs
                kwargs, request.rows = dict(kwargs), []
                fill(inner, request, kwargs.get("input_ids", args[0] if args else None), kwargs)
                return args, kwargs

            handle = inner.register_forward_pre_hook(before, with_kwargs=True)
            try:
                choose = partial(chosen, request)
                with Dropper(model, choose=choose, positions="compact") as kept:
                    yield kept
            finally:
                handle.remove()

    def _check_plain(self, model: Any) -> None:
        native = getattr(model.config, "image_seq_length", None)
        with suppress(CapabilityError):
            native = encoder_grid(model.config).count
        if native is None or grid_of(self.n).count != native:
            need_flexible(model)  # says what to do
