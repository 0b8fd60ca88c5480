"""HiRED: a fixed number of visual tokens of a high-resolution image, before the decoder."""

from outlay.vision.hired.layout import Layout
from outlay.vision.hired.method import COMPAT, HiRED, HiredKept, Plan

__all__ = ["COMPAT", "HiRED", "HiredKept", "Layout", "Plan"]
