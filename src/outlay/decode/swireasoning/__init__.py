"""SwiReasoning: switching between latent and explicit thinking, and its baselines. No torch.

>>> from outlay.decode.swireasoning import SwiReasoning, SoftThinking, RandomSwitching
"""

from outlay.decode.swireasoning.controller import Decision, Mode, Rules, SwiController
from outlay.decode.swireasoning.method import (
    CachedSwi,
    RandomSwitching,
    SoftThinking,
    SwiReasoning,
    SwiResult,
)

__all__ = [
    "CachedSwi",
    "Decision",
    "Mode",
    "RandomSwitching",
    "Rules",
    "SoftThinking",
    "SwiController",
    "SwiReasoning",
    "SwiResult",
]
