"""Latent-trajectory signals: good and bad traces told apart by how the hidden state moves."""

from outlay.reason.latent_trajectory.calibration import (
    Replay,
    Table,
    Weights,
    partial_correlation,
    replay,
    split,
)
from outlay.reason.latent_trajectory.early import LTEarly, Selection, Selector, leave_one_out
from outlay.reason.latent_trajectory.scorer import LTScorer, Output, forced
from outlay.reason.latent_trajectory.sequential import LTSequential
from outlay.reason.latent_trajectory.signals import (
    Signals,
    Stream,
    nearest_to_centroid,
    signals,
)
from outlay.reason.latent_trajectory.traces import Drawn, Trace, collect

__all__ = [
    "Drawn",
    "LTEarly",
    "LTScorer",
    "LTSequential",
    "Output",
    "Replay",
    "Selection",
    "Selector",
    "Signals",
    "Stream",
    "Table",
    "Trace",
    "Weights",
    "collect",
    "forced",
    "leave_one_out",
    "nearest_to_centroid",
    "partial_correlation",
    "replay",
    "signals",
    "split",
]
