"""QuoTA: video tokens by how much each frame matters for the question."""

from outlay.vision.quota.allocation import Allocation
from outlay.vision.quota.decoupling import Asked, asker, decouple, parse_entities, templated
from outlay.vision.quota.method import QuoTA
from outlay.vision.quota.sampling import Sampled, frame_count, sample

__all__ = [
    "Allocation",
    "Asked",
    "QuoTA",
    "Sampled",
    "asker",
    "decouple",
    "frame_count",
    "parse_entities",
    "sample",
    "templated",
]
