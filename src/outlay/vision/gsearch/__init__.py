"""G-Search and the P-Sigmoid: how many visual tokens each decoder layer keeps."""

from outlay.vision.gsearch.calibration import Batch, Calibration, accuracy
from outlay.vision.gsearch.measure import Perf
from outlay.vision.gsearch.method import GSearch
from outlay.vision.gsearch.schedule import KeepSchedule
from outlay.vision.gsearch.search import Found, greedy, steepness
from outlay.vision.gsearch.sigmoid import Curve, p_sigmoid

__all__ = [
    "Batch",
    "Calibration",
    "Curve",
    "Found",
    "GSearch",
    "KeepSchedule",
    "Perf",
    "accuracy",
    "greedy",
    "p_sigmoid",
    "steepness",
]
