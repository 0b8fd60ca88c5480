"""The room's context manager over prompts with one image a frame.

Shapes: B rows, T tokens, K tokens of a frame in a map of side S, D width.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Choice, Kept, Picture, Seen
from outlay.vision.dropper import Dropper
from outlay.vision.quota.assigners import assign

if TYPE_CHECKING:
    from outlay.vision.quota.method import QuoTA


@dataclass(frozen=True)
class QuotaPruner:
    """Frames by scores that are known; made by `QuoTA.given` and `QuoTA.about`.

    A frame's new tokens take the first of its places; text is never dropped, so marks of frames
    without tokens stay (`QuoTA.prepare` drops them). Frames do not grow.

    Args:
        method: the knobs.
        scores: of every row's frames.
    """

    method: QuoTA
    scores: tuple[tuple[float, ...], ...]

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """A context in which `model` runs on fewer visual tokens.

        Raises:
            CapabilityError: for a model that cannot be treated so, or newlines.
        """
        if self.method.newline in ("grid", "one_token"):
            raise CapabilityError(
                f"newline={self.method.newline!r} adds tokens, which a pruner cannot; use "
                "QuoTA.prepare"
            )
        return Dropper(model, choose=self.choose, positions="compact")

    def choose(self, seen: Seen) -> Choice:
        """What enters the decoder.

        Raises:
            InputError: for other frames than scores, or features that are no square map.
        """
        rows: dict[int, list[Picture]] = {}
        for picture in seen.pictures:
            rows.setdefault(picture.row, []).append(picture)
        found = [len(rows.get(row, ())) for row in range(len(seen.visual_BT))]
        given = [len(row) for row in self.scores]
        if found != given:
            raise InputError(f"rows of {found} frames, and scores for {given}; need as many")
        capped = replace(self.method, cap_upsample=True)
        embeds_BTD = seen.embeds_BTD.clone()
        keep_BT = ~seen.visual_BT
        for row, scores in enumerate(self.scores):
            sides = {math.isqrt(len(picture.at_K)) for picture in rows[row]}
            side = sides.pop()
            if sides or any(len(picture.at_K) != side * side for picture in rows[row]):
                raise InputError(f"row {row}: frames are no square maps of one size")
            plan = capped.allocate(scores, native=(side, side))
            for at in plan.kept:
                picture = rows[row][at]
                map_SSD = seen.features(picture).unflatten(0, (side, side))
                tokens_nD = assign(map_SSD, plan.grids[at], capped.assigner).flatten(0, 1)
                places = picture.at_K[: len(tokens_nD)]
                embeds_BTD[row, places] = tokens_nD
                keep_BT[row, places] = True
        return Choice(keep_BT, embeds_BTD)
