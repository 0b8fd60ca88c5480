"""HiRED: a budget of visual tokens of a high-resolution image, by the encoder's own attention.

"HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language
Models" (arXiv 2408.10945, AAAI 2025). The budget is split between the thumbnail and the tiles by
what the class token sees in an early layer; each partition keeps the patches that it sees most in
the layer that made the features. It needs no training and does not look at the question.

Where this differs from the paper (`compat="paper"` is the paper, `compat="official"` the released
code): regions of tiles follow the image into its padded canvas, padding is never ranked, rounding
loses no token, and newlines of rows that keep something stay and are paid for.

K tokens of an image, P partitions, N patches of one, D width, S text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Choice, Kept, Picture, Positions, Seen
from outlay.vision.counts import check_rate
from outlay.vision.dropper import Dropper
from outlay.vision.hired.allocation import (
    ContentScore,
    RegionMap,
    Rounding,
    content,
    filled,
    quotas,
)
from outlay.vision.hired.layout import Layout
from outlay.vision.hired.reading import HeadAgg, Looked, Query, Reader
from outlay.vision.hired.selection import Newline, padded_of, select, union_of

Compat = Literal["paper", "official"]
COMPAT: dict[str, dict[str, Any]] = {
    "paper": {
        "content_score": "mass",
        "region_map": "uniform",
        "rounding": "floor",
        "respect_unpad": False,
        "newline": "none",
    },
    "official": {
        "content_score": "topcount",
        "region_map": "chunks",
        "rounding": "floor",
        "respect_unpad": False,
        "newline": "none",
    },
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "content_score": get_args(ContentScore),
    "region_map": get_args(RegionMap),
    "rounding": get_args(Rounding),
    "newline": get_args(Newline),
    "query": get_args(Query),
    "head_agg": get_args(HeadAgg),
    "positions": get_args(Positions),
    "compat": (None, *get_args(Compat)),
}


@dataclass(frozen=True)
class Plan:
    """What one image got.

    Args:
        layout: of its tokens.
        budget: tokens that it might keep.
        quota: patches of each partition, the thumbnail first.
        content: visual content of each tile.
        keep_K: tokens that stay.
        mask_Pgg: patches that stay, by partition; None unless `return_masks`.
    """

    layout: Layout
    budget: int
    quota: tuple[int, ...]
    content: tuple[float, ...]
    keep_K: np.ndarray
    mask_Pgg: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """That stay, newlines included."""
        return int(self.keep_K.sum())


@dataclass
class HiredKept(Kept):
    """As `Kept`, and every image's plan in the last prefill.

    Args:
        plans: of each image.
    """

    plans: list[Plan] = field(default_factory=list)


@dataclass(frozen=True)
class HiRED:
    """Keep a budget of visual tokens, chosen by the vision tower's own attention.

    Args:
        rate: budget as a share of an image's patches before padding is removed (and of its
            newlines, unless they are dropped), rounded down.
        max_tokens: budget of a whole prompt, in the place of `rate`; several images share it by
            size.
        alpha: share of the thumbnail.
        init_layer: tower layer whose attention weighs the tiles.
        final_layer: tower layer whose attention ranks patches; None takes the one whose output is
            the visual feature.
        head_agg: `sum` or `max` over heads.
        content_score: of a tile: `mass` of attention in its region (paper), `topcount` of the
            thumbnail's largest entries there (released code), or `even` (a baseline).
        topcount_k: entries that `topcount` counts; None is N * (1 - alpha).
        region_map: which patches of the thumbnail a tile covers: `exact` follows the image into its
            padded canvas, `uniform` splits the thumbnail evenly (paper), `chunks` cuts its flat map
            (released code).
        rounding: `largest_remainder` spends the whole budget; `floor` loses what does not fit
            (paper).
        respect_unpad: padding is not ranked; False ranks it, and what it wins is lost (paper).
        newline: newlines that stay: `none` (paper), those of rows that keep a token
            (`keep_nonempty`), or `keep_all`; they count in the budget.
        floor_per_partition: least tokens of a tile.
        positions: of kept tokens: `compact` closes the gaps (paper), `original` leaves them.
        query: whose attention: `cls`, or, for towers without class token, `received` (mean over all
            patches) or `probe` (of SigLIP's pooling head; the initial layer is then `received`).
        text_share: share of every partition's tokens chosen by likeness to the question's
            embeddings instead (ours, off).
        compat: `paper` or `official` (the released code) sets the five modes of selection at once.
        return_masks: plans hold the mask of every partition, to draw.

    Raises:
        InputError: for a knob out of range, or a mode that contradicts `compat`.
    """

    rate: float = 0.2
    max_tokens: int | None = None
    alpha: float = 0.5
    init_layer: int = 0
    final_layer: int | None = None
    head_agg: HeadAgg = "sum"
    content_score: ContentScore = "mass"
    topcount_k: int | None = None
    region_map: RegionMap = "exact"
    rounding: Rounding = "largest_remainder"
    respect_unpad: bool = True
    newline: Newline = "keep_nonempty"
    floor_per_partition: int = 0
    positions: Positions = "compact"
    query: Query = "cls"
    text_share: float = 0.0
    compat: Compat | None = None
    return_masks: bool = False

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
        _share("alpha", self.alpha)
        _share("text_share", self.text_share)
        _whole("init_layer", self.init_layer, 0)
        _whole("floor_per_partition", self.floor_per_partition, 0)
        for name in ("final_layer", "topcount_k"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}; use one of {choices}")
        if self.compat is not None:
            self._take(COMPAT[self.compat])
        if self.query == "probe" and self.final_layer is not None:
            raise InputError(
                f"final_layer={self.final_layer} has no meaning with query='probe', which looks at "
                "the tower's output; leave it out"
            )
        if self.text_share and not self.respect_unpad:
            raise InputError("text_share ranks features, and padding has none; set respect_unpad")

    def _take(self, modes: dict[str, Any]) -> None:
        """Set the modes that `compat` stands for."""
        defaults = {f.name: f.default for f in fields(self)}
        for name, value in modes.items():
            now = getattr(self, name)
            if now not in (value, defaults[name]):
                raise InputError(
                    f"compat={self.compat!r} means {name}={value!r}, and {name}={now!r} was given; "
                    "leave one of them out"
                )
            object.__setattr__(self, name, value)

    def __call__(self, model: Any) -> AbstractContextManager[HiredKept]:
        """See `outlay.vision.base.Pruner`.

        Raises:
            CapabilityError: for a model without a vision tower, or a tower without the query.
            InputError: for a layer that the tower does not have.
        """
        return _Open(self, model)

    def within(self, tokens: int, total: int, layers: int) -> HiRED:
        """See `outlay.vision.base.Budgeted`; the tokens are those of a prompt with one image."""
        return replace(self, max_tokens=tokens)

    def budget(self, layout: Layout) -> int:
        """Tokens of an image under `rate`.

        Raises:
            InputError: if they are less than one.
        """
        total = layout.padded + (layout.newlines if self.newline != "none" else 0)
        # 0.29 * 100 must not be 28; the paper's rule is left as it is.
        found = math.floor(total * self.rate + (0.0 if self.rounding == "floor" else 1e-9))
        if found < 1:
            raise InputError(
                f"rate={self.rate:g} of {total} tokens is less than one token an image; raise it"
            )
        return found

    def budgets(self, layouts: Sequence[Layout]) -> list[int]:
        """Tokens of each image of one prompt.

        Raises:
            InputError: if an image would get less than one.
        """
        if self.max_tokens is None:
            return [self.budget(layout) for layout in layouts]
        if self.max_tokens < len(layouts):
            raise InputError(
                f"max_tokens={self.max_tokens} for a prompt with {len(layouts)} images; give at "
                "least one token an image"
            )
        room = [layout.tokens for layout in layouts]
        return filled(min(self.max_tokens, sum(room)), np.array(room), room, [1] * len(room))

    def plan(self, looked: Looked, budget: int, relevance_K: np.ndarray | None = None) -> Plan:
        """Choose the tokens of one image.

        Args:
            looked: what the tower saw of it.
            budget: tokens, newlines included.
            relevance_K: likeness of its tokens to the question, for `text_share`.

        Raises:
            InputError: for modes that this image does not allow.
        """
        layout = looked.layout
        found_k = np.zeros(0)
        if layout.tiles:
            found_k = self._content(looked)
        room = [layout.patches] * (layout.tiles + 1)
        if self.respect_unpad:
            room = layout.counts().tolist()

        def split(patches: int) -> list[int]:
            return quotas(
                patches, found_k, room, self.alpha, self.rounding, self.floor_per_partition
            )

        scores_K = layout.spread(looked.final_PN).cpu().numpy()
        pick = None
        if not self.respect_unpad:
            pick = padded_of(looked.final_PN.cpu().numpy(), layout)
        elif self.text_share and relevance_K is not None:
            pick = union_of(scores_K, relevance_K, self.text_share, layout)
        exact = self.respect_unpad and self.rounding == "largest_remainder"
        keep_K, quota = select(
            scores_K, layout, budget, split, self.newline, exact=exact, pick=pick
        )
        mask = layout.mask(keep_K) if self.return_masks else None
        return Plan(layout, budget, tuple(quota), tuple(found_k.tolist()), keep_K, mask)

    def _content(self, looked: Looked) -> np.ndarray:
        top = self.topcount_k
        if top is None:
            top = math.floor(looked.layout.patches * (1 - self.alpha))
        map_N = looked.initial_N.double().cpu().numpy()
        return content(map_N, looked.layout, self.content_score, self.region_map, top)


class _Open:
    """HiRED on one model."""

    def __init__(self, method: HiRED, model: Any) -> None:
        self.method = method
        self.reader = Reader(
            model,
            query=method.query,
            init_layer=method.init_layer,
            final_layer=method.final_layer,
            head_agg=method.head_agg,
        )
        self.dropper = Dropper(model, choose=self._choose, positions=method.positions)
        self.kept = HiredKept()
        self.dropper.kept = self.kept
        self._stack = ExitStack()

    def __enter__(self) -> HiredKept:
        self._stack.enter_context(self.dropper)
        self.reader.open()
        self._stack.callback(self.reader.close)
        return self.kept

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _choose(self, seen: Seen) -> Choice:
        found = self.reader.looked
        if len(found) != len(seen.pictures) or any(looked is None for looked in found):
            raise CapabilityError(
                f"the prompt has {len(seen.pictures)} images or videos, and the tower was read for "
                f"{sum(looked is not None for looked in found)} images; give pixel_values inside "
                "this context, or features that were encoded in it or in one with the same query, "
                "layers and head_agg (videos are not supported)"
            )
        looked_at = [looked for looked in found if looked is not None]
        budgets = self._budgets(seen, looked_at)
        plans = [
            self.method.plan(looked, budget, self._relevance(seen, picture))
            for looked, picture, budget in zip(looked_at, seen.pictures, budgets, strict=True)
        ]
        self.kept.plans = plans
        self.kept.seconds += self.reader.seconds
        self.reader.seconds = 0.0
        return Choice.of(
            seen,
            [torch.from_numpy(np.flatnonzero(plan.keep_K)) for plan in plans],
            [looked.layout.spread(looked.final_PN) for looked in looked_at],
        )

    def _budgets(self, seen: Seen, looked: Sequence[Looked]) -> list[int]:
        """Of each image; a prompt's images share its budget."""
        found: list[int] = []
        for row in range(len(seen.visual_BT)):
            own = [i for i, picture in enumerate(seen.pictures) if picture.row == row]
            if own:
                found += self.method.budgets([looked[i].layout for i in own])
        return found

    def _relevance(self, seen: Seen, picture: Picture) -> np.ndarray | None:
        """(K,): largest cosine between a token and the text that follows the image."""
        if not self.method.text_share:
            return None
        text_T = seen.text[picture.row].clone()
        text_T[: int(picture.at_K[-1])] = False
        if not bool(text_T.any()):
            text_T = seen.text[picture.row]
        text_SD = torch.nn.functional.normalize(
            seen.embeds_BTD[picture.row, text_T].float(), dim=-1
        )
        feature_KD = torch.nn.functional.normalize(seen.features(picture).float(), dim=-1)
        likeness_K: Tensor = (feature_KD @ text_SD.T).amax(-1)
        return likeness_K.detach().cpu().numpy()


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}; need an int >= {least}")


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{name}={value!r}; need a number in [0, 1]")
