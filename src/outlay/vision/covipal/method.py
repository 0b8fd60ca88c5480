"""CoViPAL: a small trained module decides which visual tokens a question needs.

"CoViPAL: Layer-wise Contextualized Visual Token Pruning for Large Vision-Language Models", Tang et
al., arXiv 2508.17243 (Findings of EMNLP 2025). A pruning module (PPM) reads visual and text tokens
and keeps the best share of the visual ones before layer l_p, which may be 0. It is trained once for
a frozen model: to rank like a deeper layer's attention, then end to end under soft removal.

The paper's inference and the sum over heads of its guidance were known; where these were not, the
choices are ours: the module's architecture, both losses, query rows (question and answer), rates
and data. `gate="st_topk"`, `max_tokens`, `min_keep` and a ratio for each image are additions.
`log(p + eps (1 - p))` replaces `log(p + eps)`, so that p = 1 changes nothing at all.

>>> from outlay.vision.covipal import CoViPAL
>>> CoViPAL(ratio=0.125).stairs
((0, 0.125),)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args
from weakref import WeakKeyDictionary

from outlay.errors import InputError
from outlay.vision.base import Kept, Positions
from outlay.vision.costs import match_budget
from outlay.vision.counts import counts_of, staircase
from outlay.vision.covipal.losses import Gate, Stage1Loss, Teacher
from outlay.vision.covipal.ppm import PPM, Shape, Variant
from outlay.vision.covipal.pruning import Amount, Pruning, Ratio, amount, of_modules
from outlay.vision.covipal.shipped import NAME, shipped
from outlay.vision.covipal.store import Trained, load, save
from outlay.vision.parts import need_tower

if TYPE_CHECKING:
    from outlay.vision.covipal.lessons import Batch, Lessons
    from outlay.vision.covipal.training import Recipe

# Modules by model and folder, so that a method that is only a few knobs loads its weights once.
_loaded: WeakKeyDictionary[Any, dict[str, Trained]] = WeakKeyDictionary()


@dataclass(frozen=True)
class CoViPAL:
    """Prunes visual tokens by a trained module that knows the question.

    Args:
        ratio: reserve ratio, the share of visual tokens that stay, in (0, 1]; or one for each image
            of a row. All images of a row compete where it is one number.
        max_tokens: most visual tokens of a row, whatever the ratio; None is no limit.
        prune_layer: tokens go before this layer of the decoder; 0 is before the decoder.
        guidance_layer: layer whose attention teaches stage 1, deeper than `prune_layer`; None is
            two thirds of the way, or the best on validation data where `fit` has some.
        schedule: (layer, reserve ratio) of several modules, instead of `ratio` and `prune_layer`;
            ratios are of the original tokens.
        stage1_loss: "kl" to the attention's distribution, "bce" on its top tokens, or "kl+bce".
        stage2: whether training goes on end to end.
        gate: of stage 2, "soft" (chances and a budget loss) or "st_topk" (the exact top in the
            forward pass, a budgeted sigmoid in the backward).
        teacher: of stage 2, "ce" (labels), "kl" (the unpruned model), "both", or "auto": labels
            where there are some.
        d_p: width of the module.
        layers: its transformer layers.
        variant: "joint" attention over visual and text tokens, or "cross" from visual to text.
        text_context: whether the module sees the text.
        min_keep: least visual tokens of a row; 0 refuses a ratio that rounds to none.
        positions: tokens that enter keep their "original" positions, or "compact" ones.
        saved: folder of trained modules, for a method that was not fitted in this process; "seer"
            stands for those that ship for the package's own seers.
        fitted: set by `fit`; `saved` is not read then.

    Raises:
        InputError: for a knob out of its range.
    """

    ratio: Ratio = 0.25
    max_tokens: int | None = None
    prune_layer: int = 0
    guidance_layer: int | None = None
    schedule: tuple[tuple[int, float], ...] = ()
    stage1_loss: Stage1Loss = "kl+bce"
    stage2: bool = True
    gate: Gate = "soft"
    teacher: Teacher = "auto"
    d_p: int = 256
    layers: int = 2
    variant: Variant = "joint"
    text_context: bool = True
    min_keep: int = 1
    positions: Positions = "original"
    saved: str = "seer"
    fitted: Trained | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = {
            "stage1_loss": Stage1Loss,
            "gate": Gate,
            "teacher": Teacher,
            "positions": Positions,
        }
        for name, kind in words.items():
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(map(repr, get_args(kind)))
                raise InputError(f"{name}={getattr(self, name)!r}; use one of {known}")
        deepest = max(layer for layer, _ in self.amount().stairs)
        guide = self.guidance_layer
        if guide is not None and (isinstance(guide, bool) or not isinstance(guide, int)):
            raise InputError(f"guidance_layer={guide!r}; need a decoder layer")
        if guide is not None and guide <= deepest:
            raise InputError(
                f"guidance_layer={guide} is not deeper than prune_layer={deepest}; its attention "
                "would know no more than what is pruned"
            )
        self._shape(6)

    def amount(self) -> Amount:
        """How many tokens stay, checked."""
        return amount(self.ratio, self.schedule, self.prune_layer, self.max_tokens, self.min_keep)

    def _shape(self, hidden: int) -> Shape:
        return Shape(
            hidden,
            self.d_p,
            self.layers,
            variant=self.variant,
            text_context=self.text_context,
        )

    @property
    def stairs(self) -> tuple[tuple[int, float], ...]:
        """(layer, reserve ratio) of every removal."""
        return self.amount().stairs

    def trained(self, model: Any) -> Trained:
        """The modules for a model, loaded on first use.

        Raises:
            InputError: if they belong to another model, or to other layers, or there are none.
            ModelError: if the folder cannot be read.
        """
        found = self.fitted
        if found is None:
            known = _loaded.setdefault(model, {})
            if self.saved not in known:
                ready = self.saved == NAME
                known[self.saved] = shipped(model) if ready else load(self.saved)
            found = known[self.saved]
        found.check(model)
        if missing := [layer for layer, _ in self.stairs if layer not in found.ppms]:
            raise InputError(
                f"no module was trained for layer {missing[0]}; there are some for "
                f"{sorted(found.ppms)}: set prune_layer or schedule so, or fit again"
            )
        return found

    def __call__(self, model: Any) -> AbstractContextManager[Kept]:
        """A context in which `model` runs on fewer visual tokens.

        Args:
            model: a vision-language model of transformers.

        Raises:
            CapabilityError: for a model without vision tower or decoder layers, or one that another
                method is open on.
            InputError: for modules of another model, a layer that does not exist, or no modules;
                inside: for a prompt without images, per-image ratios of another number than the
                images of a row, or scores that are no numbers.
        """
        need_tower(model, "CoViPAL")
        trained = self.trained(model)
        ppms = {layer: ppm.to(model.device) for layer, ppm in trained.ppms.items()}
        return Pruning(model, self.amount(), of_modules(ppms), self.positions)

    def within(self, tokens: int, total: int, layers: int) -> CoViPAL:
        """See `outlay.vision.base.Budgeted`: ratios at which the layers' mean is the budget."""
        stairs = self.stairs

        def mean(scale: float) -> float:
            falls = {layer: scale * ratio / stairs[0][1] for layer, ratio in stairs}
            return sum(counts_of(staircase(falls, layers), total)) / layers

        if len(stairs) == 1 and stairs[0][0] == 0:
            return replace(self, ratio=min(1.0, tokens / total), max_tokens=None)
        if mean(1e-6) > tokens:
            raise InputError(
                f"{tokens} of {total} visual tokens: the layers before {stairs[0][0]} alone have a "
                f"mean of {mean(1e-6):.1f} over {layers}; raise the budget, or set prune_layer=0"
            )
        scale = match_budget(mean, tokens, lo=1e-6)
        if not self.schedule:
            return replace(self, ratio=scale, max_tokens=None)
        scaled = tuple((layer, scale * ratio / stairs[0][1]) for layer, ratio in stairs)
        return replace(self, schedule=scaled, max_tokens=None)

    def save(self, folder: str) -> CoViPAL:
        """Write the fitted modules to a folder; returns the same method that reads them there.

        Raises:
            InputError: if it is not fitted.
        """
        if self.fitted is None:
            raise InputError("nothing to save: call fit first")
        save(self.fitted, folder)
        return replace(self, saved=str(folder), fitted=None)

    def fit(
        self,
        model: Any,
        batches: Sequence[Batch] = (),
        recipe: Recipe | None = None,
        *,
        lessons: Lessons | None = None,
        validation: Sequence[Batch] = (),
    ) -> CoViPAL:
        """Train modules for a frozen model; returns this method with them.

        Args:
            model: a vision-language model in any mode; its weights are not touched.
            batches: its inputs, with text after the image; with the answer in them and `labels`
                (-100 off the answer) where it is known.
            recipe: of the training; None is the default.
            lessons: what `collect` made of batches before, to share between several fits.
            validation: labelled batches; choose `guidance_layer` where it is None, and give the
                calibration table.

        Raises:
            InputError: for data that cannot be learned from, or a layer out of range.
            CapabilityError: for a model that cannot be treated so.
        """
        from outlay.vision.covipal.fitting import fitted

        return replace(self, fitted=fitted(self, model, batches, recipe, lessons, validation))

    def new_modules(self, model: Any, seed: int) -> dict[int, PPM]:
        """Untrained modules, one for each removal.

        Args:
            model: whose hidden width they read.
            seed: of their weights.
        """
        import torch

        hidden = int(need_tower(model, "CoViPAL").text_config.hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {layer: PPM(self._shape(hidden)) for layer, _ in self.stairs}
