"""What the vision tower looks at, read while it runs, and kept on the features that it makes.

`generate` encodes images before it calls the model, `forward` while it runs; both go through
`get_image_features`. While `Reader` is open, that method of the one model also reads the attention
of two layers and marks every image's features with it, so that features may be repeated (beams) or
used for many questions.

P encoded partitions, H heads, N patches, Q queries.
"""

from __future__ import annotations

import functools
import inspect
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.attention import Tap, tower_rows
from outlay.vision.cls_attention import (
    ClassToken,
    feature_layer,
    tower_layers,
    tower_tap,
    warn_if_blind,
)
from outlay.vision.hired.layout import Layout, layouts_of
from outlay.vision.parts import need_tower

Query = Literal["cls", "probe", "received"]
HeadAgg = Literal["sum", "max"]
_MARK = "_outlay_hired"  # on an image's features


class Attention(Protocol):
    """Attention to patches, of the tower's last run."""

    layer: int

    def open(self) -> None:
        """Start listening."""

    def close(self) -> None:
        """Stop listening."""

    def rows(self) -> Tensor:
        """(P, H, N)."""


class Received:
    """Attention that each patch receives, mean over all patches: for towers without class token.

    Args:
        model: a vision-language model.
        layer: of the tower; None takes the one whose output is the visual feature.

    Raises:
        InputError: for a layer out of range.
    """

    def __init__(self, model: Any, layer: int | None) -> None:
        tower = need_tower(model, "received attention").tower
        blocks = tower_layers(tower)
        self.layer = feature_layer(model) if layer is None else layer
        if not 0 <= self.layer < len(blocks):
            raise InputError(f"layer {self.layer}; the tower has layers 0..{len(blocks) - 1}")
        self.tap = tower_tap(blocks[self.layer], self.layer)
        config = getattr(tower, "config", None)
        self.patches = (config.image_size // config.patch_size) ** 2 if config is not None else 0
        self.open, self.close = self.tap.open, self.tap.close

    def rows(self) -> Tensor:
        """(P, H, N): one partition at a time, as all rows of all partitions may not fit."""
        query, key = self.tap.heads()
        first = query.shape[2] - self.patches  # a class token is no patch
        one = _Part(self.tap)
        found = []
        for partition in range(len(query)):
            one.only = (query[partition : partition + 1], key[partition : partition + 1])
            found.append(tower_rows(one)[:, :, first:, first:].mean(2))
        return torch.cat(found)


class _Part(Tap):
    """Some partitions of a tap."""

    def __init__(self, whole: Tap) -> None:
        super().__init__(whole.attention, whole.where)
        self.only: tuple[Tensor, Tensor] | None = None

    def heads(self) -> tuple[Tensor, Tensor]:
        assert self.only is not None
        return self.only


class Probe:
    """Attention of the learnt query that pools SigLIP's last layer.

    Args:
        model: a vision-language model.

    Raises:
        CapabilityError: for a tower without that head.
    """

    def __init__(self, model: Any) -> None:
        tower = need_tower(model, "the pooling probe").tower
        self.head = getattr(tower, "head", None)
        if not hasattr(self.head, "probe"):
            raise CapabilityError(
                f"{type(tower).__name__} has no attention-pooling head (vision_use_head=False in "
                "its config drops it); use query='received'"
            )
        self.layer = len(tower_layers(tower)) - 1
        self._hidden: Tensor | None = None
        self._handle: Any = None

    def open(self) -> None:
        """Start listening."""
        assert self.head is not None

        def keep(module: Any, args: tuple[Any, ...]) -> None:
            self._hidden = args[0]

        self._handle = self.head.register_forward_pre_hook(keep)

    def close(self) -> None:
        """Stop listening and forget."""
        self._handle.remove()
        self._hidden = None

    def rows(self) -> Tensor:
        """(P, H, N)."""
        assert self.head is not None
        if self._hidden is None:
            raise CapabilityError("the tower's pooling head has not run; its probe is not known")
        hidden_PND, attention = self._hidden.float(), self.head.attention
        width = attention.embed_dim
        weight, bias = attention.in_proj_weight.float(), attention.in_proj_bias.float()
        query_D = self.head.probe[0, 0].float() @ weight[:width].T + bias[:width]
        key_PND = hidden_PND @ weight[width : 2 * width].T + bias[width : 2 * width]
        query_Hd = query_D.unflatten(-1, (attention.num_heads, -1)) * attention.head_dim**-0.5
        key_PNHd = key_PND.unflatten(-1, (attention.num_heads, -1))
        return torch.einsum("hd,pnhd->phn", query_Hd, key_PNHd).softmax(-1)


@dataclass(frozen=True)
class Looked:
    """What the tower saw of one image.

    Args:
        layout: of the image.
        initial_N: the thumbnail's map in the initial layer, heads aggregated.
        final_PN: of every partition in the final layer, heads aggregated.
        how: it was read: query, both layers, aggregation of heads.
    """

    layout: Layout
    initial_N: Tensor
    final_PN: Tensor
    how: tuple[str | int, ...] = ()


class Reader:
    """While open, features of a model's images carry what the tower saw.

    Args:
        model: a vision-language model.
        query: whose attention: the class token's, the pooling probe's (last layer; the initial one
            is `received`), or the mean over all patches.
        init_layer, final_layer: of the tower; None takes the one whose output is the feature.
        head_agg: `sum` or `max` over heads.

    Raises:
        CapabilityError: if the tower has no such query.
        InputError: for a layer out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        query: Query,
        init_layer: int,
        final_layer: int | None,
        head_agg: HeadAgg,
    ) -> None:
        self.inner = need_tower(model, "HiRED").inner
        if not hasattr(self.inner, "get_image_features"):
            raise CapabilityError(f"{type(model).__name__} has no get_image_features")
        self.initial: Attention
        self.final: Attention
        if query == "cls":
            self.initial, self.final = ClassToken(model, init_layer), ClassToken(model, final_layer)
        else:
            self.initial = Received(model, init_layer)
            self.final = Probe(model) if query == "probe" else Received(model, final_layer)
        self.head_agg = head_agg
        self.how = (query, self.initial.layer, self.final.layer, head_agg)
        if final_layer is not None:
            self._warn_of_layer(model)
        self.seconds = 0.0
        self.looked: list[Looked | None] = []
        self._handle: Any = None

    def _warn_of_layer(self, model: Any) -> None:
        try:
            made = feature_layer(model)
        except CapabilityError:  # features of several layers: any of them is right
            return
        if self.final.layer != made:
            warnings.warn(
                f"final_layer={self.final.layer} ranks patches, and layer {made} makes the visual "
                "features (vision_feature_layer); the ranking may not fit them",
                stacklevel=4,
            )

    def open(self) -> None:
        """Start reading. Comes after a dropper's own hooks on the model."""
        self.initial.open()
        self.final.open()
        self.inner.get_image_features = self._wrapped(self.inner.get_image_features)
        self._handle = self.inner.register_forward_pre_hook(self._watch, with_kwargs=True)

    def close(self) -> None:
        """Stop reading, and leave the model as it was."""
        self._handle.remove()
        del self.inner.get_image_features
        self.initial.close()
        self.final.close()
        self.looked = []

    def _wrapped(self, encode: Any) -> Any:
        known = inspect.signature(encode)

        @functools.wraps(encode)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = known.bind(*args, **kwargs).arguments
            more = given.get("kwargs", {})
            layouts = layouts_of(
                self.inner,
                given["pixel_values"].shape,
                given.get("image_sizes"),
                given.get("batch_num_images", more.get("batch_num_images")),
            )
            for attention in (self.initial, self.final):  # of an earlier run
                attention.close()
                attention.open()
            output = encode(*args, **kwargs)
            started = time.perf_counter()
            self._mark(output.pooler_output, layouts)
            self.seconds += time.perf_counter() - started
            return output

        return wrapper

    def _mark(self, features: Sequence[Tensor], layouts: Sequence[Layout]) -> None:
        initial_PHN, final_PHN = self.initial.rows().detach(), self.final.rows().detach()
        start = 0
        for number, (feature, layout) in enumerate(zip(features, layouts, strict=True)):
            if len(feature) != layout.tokens or final_PHN.shape[2] != layout.patches:
                raise CapabilityError(
                    f"image {number} has {len(feature)} features of {final_PHN.shape[2]} patches, "
                    f"and its layout {layout.tokens} of {layout.patches}; HiRED needs one feature "
                    "a patch (vision_feature_select_strategy='default' with a class token, 'full' "
                    "without)"
                )
            own = final_PHN[start : start + layout.tiles + 1]
            initial_N = self._over_heads(initial_PHN[start])
            looked = Looked(layout, initial_N, self._over_heads(own), self.how)
            if not bool(looked.final_PN.isfinite().all() & looked.initial_N.isfinite().all()):
                raise InputError(
                    f"the tower's attention for image {number} holds NaN; check its pixel_values, "
                    "and that the tower's precision does not overflow"
                )
            setattr(feature, _MARK, looked)
            start += layout.tiles + 1
        if self.how[0] == "cls":
            warn_if_blind(final_PHN)

    def _over_heads(self, rows_HN: Tensor) -> Tensor:
        return rows_HN.sum(-2) if self.head_agg == "sum" else rows_HN.amax(-2)

    def _watch(self, inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the features merge: whose they are, and that they have their places."""
        output = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        features = output.pooler_output if output is not None else ()
        marks = [getattr(feature, _MARK, None) for feature in features]
        self.looked = [
            mark if mark is not None and mark.how == self.how else None for mark in marks
        ]
        ids = kwargs.get("input_ids", args[0] if args else None)
        if output is None or ids is None:
            return
        there = int((ids == inner.config.image_token_id).sum())
        needed = sum(len(feature) for feature in features)
        if there != needed:
            raise InputError(
                f"the prompt has {there} image placeholders, and its images need {needed}; give "
                "the full number, one a feature, and HiRED takes away what is dropped"
            )
