"""QuoTA: a fixed number of video tokens, spent on the frames that the question needs.

"QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video Comprehension",
arXiv 2503.08689. Nothing is trained. A text model says which objects a question is about; a small
vision-language model says of every frame whether it shows one; frames get tokens by the square of
that probability, their maps are resized to what they got, and the model sees the same number of
tokens as with an even split. It works before the decoder, so a later pruner composes with it.

Differs from the paper:

- The budget is spent to the last token (`rounding="largest"`), and what a full frame cannot hold
  goes to the others exactly (`spill="water"`); `rounding="floor"`, `spill="sweep"`, `eps=0` are the
  release's.
- `cap_upsample` never gives a frame more tokens than its map has; `min_tokens` gives every frame
  some.
- The budget counts features, as in the paper. What newlines add is in `Allocation.total`.
- A frame that gets nothing is gone, and is not spoken of either.
- `merge` starts from the full map, not from a pooled one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from outlay.vision.quota import allocation as allocations
from outlay.vision.quota.allocation import (
    ASSIGNERS,
    FLAT,
    GROWS,
    MAX_SHARPNESS,
    MAX_TOKENS,
    Allocation,
    Assigner,
    Grid,
    Newline,
    Rounding,
    Spill,
    shape_of,
)
from outlay.vision.quota.checks import one_of, real, whole
from outlay.vision.quota.decoupling import Ask, Asked, Frames, Mode, Scorer, decouple
from outlay.vision.quota.sampling import MAX_FRAMES, Sampled, sample

if TYPE_CHECKING:
    from outlay.vision.quota.prompts import Prepared
    from outlay.vision.quota.pruner import QuotaPruner

Row = Sequence[float]


@dataclass(frozen=True)
class QuoTA:
    """A way of spending video tokens; the defaults are the paper's.

    Args:
        n_t: visual tokens of a video, newlines not counted.
        t_base: frames of a short video.
        alpha: frames that an hour of video adds.
        sharpness: exponent of scores; 0 is an even split.
        assigner: how a map becomes its quota: "bilinear" (resized; may grow), "avgpool",
            "linspace" (tokens at even distances), "merge" (alike tokens), "lines" (alike rows,
            then columns).
        decouple: what frames are asked: for the question's "entity" list, for its key "event", or
            the question itself ("none").
        ask: a text model for that; None reads entities by a template.
        frame_scorer: scores frames, see `outlay.vision.quota.scorers`; None where scores are given.
        score_batch: frames at once, of the scorer and of the tower.
        cap_upsample: never give a frame more tokens than its map has.
        min_tokens: that every frame gets.
        rounding: of quotas, "largest" remainders or "floor".
        spill: of what a full frame cannot hold, "water" or "sweep".
        eps: least score that counts.
        newline: tokens that end rows: "grid" (one a row), "one_token" (one at the end), "none", or
            "auto" for what the model does.
        max_score_pixels: of a frame that the scorer sees, where frames are pictures.
        cache: SQLite file of scores; None keeps none.

    Raises:
        InputError: for a knob out of its range.
    """

    n_t: int = 12_544
    t_base: int = 96
    alpha: int = 64
    sharpness: float = 2.0
    assigner: Assigner = "bilinear"
    decouple: Mode = "entity"
    ask: Ask | None = None
    frame_scorer: Scorer | None = None
    score_batch: int = 64
    cap_upsample: bool = False
    min_tokens: int = 0
    rounding: Rounding = "largest"
    spill: Spill = "water"
    eps: float = 1e-4
    newline: Newline | Literal["auto"] = "auto"
    max_score_pixels: int = 1280 * 28 * 28
    cache: str | Path | None = None

    def __post_init__(self) -> None:
        whole("n_t", self.n_t, 1, MAX_TOKENS)
        whole("t_base", self.t_base, 1, MAX_FRAMES)
        whole("alpha", self.alpha, 0, MAX_FRAMES)
        real("sharpness", self.sharpness, 0.0, MAX_SHARPNESS)
        real("eps", self.eps, 0.0, 1.0)
        whole("min_tokens", self.min_tokens, 0, self.n_t)
        whole("score_batch", self.score_batch, 1, 65_536)
        whole("max_score_pixels", self.max_score_pixels, 1, 2**31)
        one_of("assigner", self.assigner, ASSIGNERS)
        one_of("decouple", self.decouple, get_args(Mode))
        one_of("rounding", self.rounding, get_args(Rounding))
        one_of("spill", self.spill, get_args(Spill))
        one_of("newline", self.newline, ("auto", *get_args(Newline)))
        if self.newline == "grid" and self.assigner in FLAT:
            raise InputError(
                f"newline='grid' ends the rows of a grid, and assigner={self.assigner!r} gives "
                "none; use newline='one_token'"
            )
        for name in ("frame_scorer", "ask"):
            if (value := getattr(self, name)) is not None and not callable(value):
                raise InputError(f"{name}={value!r} cannot be called; see outlay.vision.quota")

    # -- frames and scores ------------------------------------------------------------------------

    def sample(self, frames: int, *, fps: float = 1.0) -> Sampled:
        """Which frames of a video to look at."""
        return sample(frames, fps=fps, t_base=self.t_base, alpha=self.alpha)

    def asked(self, question: str) -> Asked:
        """What every frame is asked about a question."""
        return decouple(question, self.ask, self.decouple)

    def score(self, frames: Frames, question: str) -> list[float]:
        """One score >= 0 for every frame.

        Raises:
            InputError: without a scorer, without frames, or for scores that are no scores.
        """
        from outlay.vision.quota.scorers import score
        from outlay.vision.quota.stored import StoredScores

        if self.frame_scorer is None:
            raise InputError("no scorer; give frame_scorer= to QuoTA, or scores=")
        chosen = (
            self.frame_scorer if self.cache is None else StoredScores(self.frame_scorer, self.cache)
        )
        return score(
            chosen,
            frames,
            self.asked(question),
            batch=self.score_batch,
            max_pixels=self.max_score_pixels,
        )

    # -- allocation -------------------------------------------------------------------------------

    def allocate(
        self, scores: Row, budget: Budget | None = None, *, native: Grid | None = None
    ) -> Allocation:
        """Tokens of every frame of a video.

        Args:
            scores: of the frames.
            budget: tokens of the prompt (`counts="prompt"`) to use instead of `n_t`.
            native: rows and columns of a frame's map; needed unless frames may grow.

        Raises:
            InputError: for bad scores, or without `native` where it is needed.
            BudgetError: for a budget without tokens or of other tokens, or one that `min_tokens`
                exceeds.
        """
        n_t = self.n_t
        if budget is not None:
            if budget.tokens is None or budget.counts != "prompt":
                raise BudgetError(
                    f"the budget is {budget.label()}; video tokens are part of the prompt: give "
                    "Budget(tokens=..., counts='prompt')"
                )
            n_t = budget.tokens
        capped = self.cap_upsample or self.assigner not in GROWS
        if capped and native is None:
            raise InputError(
                f"assigner={self.assigner!r}, cap_upsample={self.cap_upsample}: a frame cannot get "
                "more tokens than its map has; give native=(rows, columns)"
            )
        if native is not None:
            for side in native:
                whole("native", side, 1, MAX_TOKENS)
        weights_F = allocations.weights(scores, sharpness=self.sharpness, eps=self.eps)
        found = allocations.quotas(
            weights_F,
            n_t,
            capacity=native[0] * native[1] if capped and native is not None else None,
            min_tokens=self.min_tokens,
            rounding=self.rounding,
            spill=self.spill,
        )
        map_size = native or (1, 1)
        return Allocation(
            found,
            tuple(shape_of(quota, self.assigner, map_size, capped=capped) for quota in found),
            "none" if self.newline == "auto" else self.newline,
        )

    # -- inputs -----------------------------------------------------------------------------------

    def prepare(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        question: str | Sequence[str] | None = None,
        *,
        scores: Row | Sequence[Row] | None = None,
        frames: Frames | Sequence[Frames] | None = None,
        marks: int = 0,
    ) -> Prepared:
        """Inputs whose videos have `n_t` tokens each, frames by their scores.

        What the inputs hold decides how: one image a frame (`pixel_values`, LLaVA), a video
        (`pixel_values_videos` as rows of frames, LLaVA-OneVision), or patches of a video
        (`pixel_values_videos` with `video_grid_thw`, Qwen2.5-VL: frames change their resolution).

        Args:
            model: answers.
            inputs: as its processor made them, with all placeholders; one video a row.
            question: of every row, or one text for all, for scoring; not needed with `scores`.
            scores: of every row's frames; of one row alone, as they are.
            frames: what the scorer sees, of every row; of one row and one text, as they are. None
                shows it the pixels of `inputs`.
            marks: tokens right before a frame's placeholders that go with it (one image a frame
                only).

        Raises:
            BudgetError: if budget or prompt do not fit the model's context.
            CapabilityError: for a model that has no part that is needed.
            InputError: for inputs, scores or marks that do not fit.
        """
        from outlay.vision.quota.preparing import prepare

        return prepare(self, model, inputs, question, scores=scores, frames=frames, marks=marks)

    def given(self, scores: Row | Sequence[Row]) -> QuotaPruner:
        """A pruner for prompts whose frames have these scores: `with quota.given(s)(model): ...`.

        One image a frame, all placeholders in place. Frames cannot grow in it.

        Args:
            scores: of every row's frames; of one row alone, as they are.

        Raises:
            InputError: for bad scores.
        """
        from outlay.vision.quota.pruner import QuotaPruner

        return QuotaPruner(self, rows_of(scores))

    def about(
        self,
        frames: Frames | Sequence[Frames],
        question: str | Sequence[str],
    ) -> QuotaPruner:
        """As `given`, with the scores that `frame_scorer` finds for these frames and questions.

        Args:
            frames: of one video; with a list of questions, of as many videos.
            question: about it, or about each.

        Raises:
            InputError: for unequal numbers, or as `score`.
        """
        if isinstance(question, str):
            return self.given(self.score(frames, question))
        if len(frames) != len(question):
            raise InputError(f"{len(frames)} videos and {len(question)} questions; need as many")
        pairs = zip(frames, question, strict=True)
        return self.given([self.score(video, text) for video, text in pairs])


def rows_of(scores: Row | Sequence[Row]) -> tuple[tuple[float, ...], ...]:
    """Scores of rows; those of one row may come without the list around them.

    Raises:
        InputError: for none, or bad ones; the message names the frame.
    """
    given = list(scores)
    if not given:
        raise InputError("no scores; give one for every frame")
    rows = given if hasattr(given[0], "__len__") else [given]
    checked = [allocations.check_scores(row).tolist() for row in rows]  # type: ignore[arg-type]
    return tuple(tuple(row) for row in checked)


__all__ = ["QuoTA", "rows_of"]
