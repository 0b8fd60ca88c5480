"""Budget-aware RL: models that think as long as the problem needs, on TRL's GRPO.

>>> from outlay.rl import BudgetGRPOTrainer, Plain, make_config  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlay.rl.base import (
    Context,
    Judgement,
    Method,
    Plain,
    Prefix,
    RewardFunction,
    Row,
    Sampler,
    Segment,
    Verifier,
)

if TYPE_CHECKING:
    from outlay.rl.evaluate import evaluate_policy
    from outlay.rl.presets import cpu_preset, make_config
    from outlay.rl.trainer import BudgetGRPOTrainer

__all__ = [
    "BudgetGRPOTrainer",
    "Context",
    "Judgement",
    "Method",
    "Plain",
    "Prefix",
    "RewardFunction",
    "Row",
    "Sampler",
    "Segment",
    "Verifier",
    "cpu_preset",
    "evaluate_policy",
    "make_config",
]

_LATER = {
    "BudgetGRPOTrainer": "outlay.rl.trainer",
    "cpu_preset": "outlay.rl.presets",
    "evaluate_policy": "outlay.rl.evaluate",
    "make_config": "outlay.rl.presets",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch and trl on first use."""
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
