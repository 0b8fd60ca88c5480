"""TokenFLEX: one model whose images may have any number of visual tokens."""

from outlay.vision.tokenflex.draws import CountDraw
from outlay.vision.tokenflex.grids import Count, Grid, bins, grid_of
from outlay.vision.tokenflex.inputs import prepare, using
from outlay.vision.tokenflex.method import TokenFlex
from outlay.vision.tokenflex.models import (
    FlexLlavaForConditionalGeneration,
    FlexLlavaNextForConditionalGeneration,
    convert,
)
from outlay.vision.tokenflex.projector import FlexProjector, ProjectorConfig, matched_width
from outlay.vision.tokenflex.routing import Routed, Router
from outlay.vision.tokenflex.training import (
    FlexCollator,
    TokenFlexTrainer,
    freeze_for,
    stage_arguments,
)

__all__ = [
    "Count",
    "CountDraw",
    "FlexCollator",
    "FlexLlavaForConditionalGeneration",
    "FlexLlavaNextForConditionalGeneration",
    "FlexProjector",
    "Grid",
    "ProjectorConfig",
    "Routed",
    "Router",
    "TokenFlex",
    "TokenFlexTrainer",
    "bins",
    "convert",
    "freeze_for",
    "grid_of",
    "matched_width",
    "prepare",
    "stage_arguments",
    "using",
]
