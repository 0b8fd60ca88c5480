"""Zero-TPrune: patches of a trained ViT leave without any training.

"Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained
Transformers", arXiv 2305.17328. After some blocks a pruning layer ranks patches by a weighted
PageRank on the block's attention, drops near copies among the less important half, ranks what is
left, and keeps the best. Queries and keys are read at the projections of those blocks alone, so the
model stays on SDPA. Another budget is another schedule, nothing else.

Where it differs from the paper, which leaves these open or disagrees with itself: a vote conserves
the sum of scores (no factor 1 / N); the head filter's variances are those of scores with mean 1;
where no head passes the filter, all do; attention among the survivors is renormalised; keys of all
heads are compared side by side; `vhf="auto"` applies the published range with a published schedule
only, and `fit` decides it by layer. Towers of vision-language models are an extension.

Shapes: B images, H heads, N tokens, K kept tokens, P patches, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from outlay.errors import InputError
from outlay.vision.base import Positions, top, true_places
from outlay.vision.towers import Feature, Reduce
from outlay.vision.zero_tprune.graph import (
    PUBLISHED,
    Bounds,
    HeadAgg,
    aggregate,
    checked,
    cut,
    page_rank,
    passing,
    start,
)
from outlay.vision.zero_tprune.pruning import Alive, Pruning
from outlay.vision.zero_tprune.schedule import PRESETS, Order, Stage, as_stages, stages_for
from outlay.vision.zero_tprune.similar import Metric, Partition, near_copies

if TYPE_CHECKING:
    from torch import Tensor

Preset = Literal["deit_s_3g", "last"]


@dataclass(frozen=True)
class ZeroTPrune:
    """Pruning layers for a vision tower.

        with ZeroTPrune(schedule=[(3, 0.8, 4, 2), (4, 0.7, 0, 1)])(model) as kept:
            logits = model(pixel_values=pixels).logits
        kept.indices  # (images, patches) that reached the head

    Args:
        schedule: stages, or tuples (block, rate, r, T): after block `block` (counted from 1), drop
            `r` near copies, then keep `rate` of the rest by `T` votes; block -1 is the last place.
            Empty takes the preset.
        preset: used where `schedule` is empty: "deit_s_3g" is published; "last" (ours) keeps a
            quarter before the last block, for towers of vision-language models.
        cls_boost: the class token starts with sqrt(N) times a patch's score, "uni" otherwise. Has
            no effect in towers whose class token is absent or not used by the decoder.
        vhf: bounds of a head's variance; heads outside do not count. None counts all. "auto" is the
            published (0.01, 0.7) with the published preset, else None, until `fit` decides.
        head_agg: how heads make one score: "eir" (root of the mean of squares), "mean" or "max".
        s_partition: which patches may be dropped as copies: the less ("seq_u") or more ("seq_i")
            important half, every other ("alt"), a "random" half, or any ("full").
        s_feature: what is compared: "key", "query", "value" or the block's output "x".
        s_metric: "cos", "dot", "l1" or "l2".
        key_reduce: heads side by side ("concat") or their "mean".
        order: "i-s-i" (a first ranking with one vote, copies, ranking), "s-i" (no first ranking, so
            a partition by importance becomes "alt"), or "i-s" (ranking, then copies).
        wpr_tol: a head's votes stop once no score moves by more; 0 takes all T.
        protect: numbers of tokens that never go, beside class, distillation and register tokens,
            which never do.
        positions: of the decoder's visual tokens in a vision-language model: as before
            ("original"), or without gaps ("compact").
        seed: of the "random" partition.
        ranges: the filter's bounds stage by stage; made by `fit`.

    Raises:
        InputError: for values out of range; see `Stage` for the schedule's.
    """

    schedule: Sequence[Stage | Sequence[float]] = ()
    preset: Preset = "deit_s_3g"
    cls_boost: bool = True
    vhf: Literal["auto"] | Bounds | None = "auto"
    head_agg: HeadAgg = "eir"
    s_partition: Partition = "seq_u"
    s_feature: Feature = "key"
    s_metric: Metric = "cos"
    key_reduce: Reduce = "concat"
    order: Order = "i-s-i"
    wpr_tol: float = 0.0
    protect: tuple[int, ...] = ()
    positions: Positions = "original"
    seed: int = 0
    ranges: tuple[Bounds | None, ...] | None = None

    def __post_init__(self) -> None:
        choices: dict[str, Any] = {
            "head_agg": HeadAgg,
            "s_partition": Partition,
            "s_feature": Feature,
            "s_metric": Metric,
            "key_reduce": Reduce,
            "order": Order,
            "positions": Positions,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name}={getattr(self, name)!r}; choose one of {get_args(kind)}")
        if self.preset not in PRESETS:
            raise InputError(f"preset={self.preset!r}; known are {sorted(PRESETS)}")
        if isinstance(self.vhf, str) and self.vhf != "auto":
            raise InputError(f"vhf={self.vhf!r}; give 'auto', (lo, hi) or None")
        if not self.wpr_tol >= 0:
            raise InputError(f"wpr_tol={self.wpr_tol}; must be at least 0")
        object.__setattr__(self, "schedule", as_stages(self.schedule))
        for bounds in (self.vhf, *(self.ranges or ())):
            if bounds is not None and not isinstance(bounds, str):
                _check_bounds(bounds)
        if self.ranges is not None and len(self.ranges) != len(self.stages):
            raise InputError(
                f"{len(self.ranges)} ranges for {len(self.stages)} stages; call fit again after "
                "changing the schedule"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The schedule, or the preset's."""
        return as_stages(self.schedule) or PRESETS[self.preset]

    def bounds(self, stage: Stage) -> Bounds | None:
        """Of the head filter at a stage."""
        if self.ranges is not None:
            return self.ranges[[other.block for other in self.stages].index(stage.block)]
        if self.vhf == "auto":
            return None if self.schedule or self.preset != "deit_s_3g" else PUBLISHED
        return self.vhf

    def __call__(self, model: Any) -> Pruning:
        """A context in which `model` runs on fewer patches; see `Pruning` for what it raises."""
        from outlay.vision.zero_tprune.cost import tower_flops

        pruning = Pruning(
            model,
            self.stages,
            self.choose,
            order=self.order,
            protect=self.protect,
            values=self.s_feature == "value",
            positions=self.positions,
        )
        pruning.kept.tower_flops = lambda: tower_flops(model, self)
        return pruning

    def within(self, tokens: int, total: int, layers: int) -> ZeroTPrune:
        """See `outlay.vision.base.Budgeted`: the schedule, scaled so that `tokens` leave the tower.

        Raises:
            InputError: for a schedule in which nothing goes.
        """
        stages = stages_for(self.stages, tokens, total)
        # A schedule of nothing, rather than none, which would mean the preset.
        first = self.stages[0]
        return replace(self, schedule=stages or (Stage(first.block),), order="i-s-i", ranges=None)

    @property
    def ranks_first(self) -> bool:
        """Whether copies are split by a first ranking."""
        return self.order == "i-s-i" and self.s_partition in ("seq_u", "seq_i")

    def choose(self, stage: Stage, alive: Alive) -> tuple[Tensor, Tensor]:
        """Patches that stay after a stage: positions (B, k) ascending, and scores (B, P)."""
        attention_BHNN = checked(alive.reader.rows())
        patches_BP = alive.patches_BP
        if self.order == "i-s":
            return self._rank_first(stage, alive, attention_BHNN)
        count = stage.similar(patches_BP.shape[1])
        wanted = stage.left(patches_BP.shape[1])
        if not count:
            scores_BP = self._scores(stage, alive, attention_BHNN, patches_BP, stage.votes)
            return top(scores_BP, wanted), scores_BP
        if self.ranks_first:
            first_BP = self._scores(stage, alive, attention_BHNN, patches_BP, 1)
        else:  # nothing looks at it
            first_BP = torch.zeros(patches_BP.shape, device=patches_BP.device)
        every_BP = torch.arange(patches_BP.shape[1], device=patches_BP.device).expand(
            len(patches_BP), -1
        )
        left_BQ = _without(self._copies(alive, first_BP, every_BP, count), patches_BP.shape[1])
        stay_BK = _with_others(patches_BP.gather(1, left_BQ), patches_BP, alive.tokens)
        places_BQ = torch.searchsorted(stay_BK, patches_BP.gather(1, left_BQ))
        smaller_BHKK = cut(attention_BHNN, stay_BK)
        final_BQ = self._scores(stage, alive, smaller_BHKK, places_BQ, stage.votes)
        scores_BP = torch.zeros_like(first_BP).scatter(1, left_BQ, final_BQ)
        return left_BQ.gather(1, top(final_BQ, wanted)), scores_BP

    def _rank_first(
        self, stage: Stage, alive: Alive, attention_BHNN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Order "i-s": the rate applies to all patches, then copies go."""
        patches = alive.patches_BP.shape[1]
        scores_BP = self._scores(stage, alive, attention_BHNN, alive.patches_BP, stage.votes)
        kept = replace(stage, r=0).left(patches)
        best_Bk = top(scores_BP, kept)
        if count := stage.similar(kept):
            copies = self._copies(alive, scores_BP.gather(1, best_Bk), best_Bk, count)
            best_Bk = best_Bk.gather(1, _without(copies, kept))
        return best_Bk, scores_BP

    def _scores(
        self, stage: Stage, alive: Alive, attention_BHNN: Tensor, places_BP: Tensor, votes: int
    ) -> Tensor:
        """Importance of the tokens at some places, (B, P)."""
        heads, tokens = attention_BHNN.shape[1:3]
        boosted = alive.boosted if self.cls_boost else 0
        first_N = start(tokens, boosted, attention_BHNN)
        ranks_BHN = page_rank(attention_BHNN, first_N, votes, self.wpr_tol)
        ranks_BHP = ranks_BHN.gather(2, places_BP[:, None].expand(-1, heads, -1))
        return aggregate(ranks_BHP, passing(ranks_BHP, self.bounds(stage)), self.head_agg)

    def _copies(self, alive: Alive, scores_BP: Tensor, among_BP: Tensor, count: int) -> Tensor:
        """Positions within `among_BP` of near copies, (B, count)."""
        if self.s_feature == "x":
            every_BNF = alive.hidden_BND
        else:
            every_BNF = alive.reader.feature(self.s_feature, self.key_reduce)
        places_BP = alive.patches_BP.gather(1, among_BP)
        features_BPF = every_BNF.gather(1, places_BP[..., None].expand(-1, -1, every_BNF.shape[-1]))
        partition = self.s_partition
        if self.order == "s-i" and partition in ("seq_u", "seq_i"):
            partition = "alt"
        return near_copies(
            features_BPF,
            scores_BP,
            count,
            partition=partition,
            metric=self.s_metric,
            seed=self.seed,
        )

    def fit(self, model: Any, pixel_values: Tensor, *, batch: int = 64) -> ZeroTPrune:
        """Decide the head filter stage by stage: the published range, or none.

        Whichever keeps more predictions as the unpruned classifier makes them is taken; equal ones
        go without. Forward passes only; labels are not needed.

        Args:
            model: a classifier.
            pixel_values: calibration images.
            batch: images at once.

        Raises:
            InputError: for no images.
            CapabilityError: for a model without logits.
        """
        from outlay.vision.zero_tprune.search import agreement, predictions

        wanted_B = predictions(model, pixel_values, batch)
        method = replace(self, ranges=(None,) * len(self.stages))
        best = agreement(method, model, pixel_values, wanted_B, batch)
        for index, stage in enumerate(self.stages):
            if stage.idle or method.ranges is None:
                continue
            tried = (*method.ranges[:index], PUBLISHED, *method.ranges[index + 1 :])
            other = replace(method, ranges=tried)
            if (found := agreement(other, model, pixel_values, wanted_B, batch)) > best:
                method, best = other, found
        return method


def _check_bounds(bounds: Any) -> None:
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2 or not 0 <= bounds[0] < bounds[1]:
        raise InputError(f"vhf={bounds!r}; need (v_min, v_max) with 0 <= v_min < v_max")


def _without(gone_BG: Tensor, count: int) -> Tensor:
    """(B, count - G): positions that are not in `gone_BG`, ascending."""
    stay_BP = torch.ones(len(gone_BG), count, dtype=torch.bool, device=gone_BG.device)
    stay_BP.scatter_(1, gone_BG, False)
    return true_places(stay_BP, count - gone_BG.shape[1])


def _with_others(left_BQ: Tensor, patches_BP: Tensor, tokens: int) -> Tensor:
    """(B, K): places of the patches that are left and of every token that is no patch."""
    stay_BN = torch.ones(len(left_BQ), tokens, dtype=torch.bool, device=left_BQ.device)
    stay_BN.scatter_(1, patches_BP, False)
    stay_BN.scatter_(1, left_BQ, True)
    return true_places(stay_BN, tokens - patches_BP.shape[1] + left_BQ.shape[1])
