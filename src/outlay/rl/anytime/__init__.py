"""Anytime reasoning: models that may be cut at any token, trained by budget-relative policy
optimisation (BRPO).

"Optimizing Anytime Reasoning via Budget Relative Policy Optimization" (arXiv 2505.13438). Every
thinking is cut at several budgets, a short answer is forced at each cut and verified, and the sum
of these rewards is maximised.

- `method`: `AnytimeBRPO`, the method and its knobs.
- `outcomes`: a thinking, its cuts and its answers, as data.
- `cuts`, `advantages`: where thinking is cut, and what each part of it earns.
- `templates`: the texts that end the thinking and ask for the answer.
- `forking`: answers at several cuts of a thinking without a second pass over it.
- `packing`: one training row a thinking (a tree), or one row an answer.
- `trainer`: `AnytimeTrainer`, which brings both to TRL.
- `inference`: think, cut anywhere, answer, go on thinking.
- `measure`: accuracy over budgets, and how much variance a baseline removes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlay.rl.anytime.method import AnytimeBRPO

if TYPE_CHECKING:
    from outlay.rl.anytime.inference import AnytimeReasoner
    from outlay.rl.anytime.trainer import AnytimeTrainer

__all__ = ["AnytimeBRPO", "AnytimeReasoner", "AnytimeTrainer"]

_LATER = {
    "AnytimeReasoner": "outlay.rl.anytime.inference",
    "AnytimeTrainer": "outlay.rl.anytime.trainer",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch and trl on first use."""
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
