"""Zero-TPrune: patches of a trained ViT leave by a PageRank on attention, without training."""

from outlay.vision.zero_tprune.baselines import PatchRanking
from outlay.vision.zero_tprune.method import ZeroTPrune
from outlay.vision.zero_tprune.pruning import Alive, KeptPatches, Pruning
from outlay.vision.zero_tprune.schedule import PRESETS, Stage
from outlay.vision.zero_tprune.search import Found, Trial, search_schedule

__all__ = [
    "PRESETS",
    "Alive",
    "Found",
    "KeptPatches",
    "PatchRanking",
    "Pruning",
    "Stage",
    "Trial",
    "ZeroTPrune",
    "search_schedule",
]
