"""ARM's inference modes: a model with several formats of answering (arXiv 2505.20258)."""

from outlay.reason.adaptive.formats import UNKNOWN, Block, Format, Formats, Parsed
from outlay.reason.adaptive.method import Adaptive
from outlay.reason.adaptive.presets import ARM, PRESETS, PROMPTED, REASONER

__all__ = [
    "ARM",
    "PRESETS",
    "PROMPTED",
    "REASONER",
    "UNKNOWN",
    "Adaptive",
    "Block",
    "Format",
    "Formats",
    "Parsed",
]
