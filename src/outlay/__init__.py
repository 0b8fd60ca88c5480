"""outlay: spend language-model tokens well.

Measures what each token of a budget bought, finds the best way to spend it on your model and data,
and enforces it. Names are imported when they are first used, so that `import outlay` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlay.api import ask, compress
    from outlay.budget import Budget, Meter
    from outlay.comparison import Comparison, Plan, Plans, compare, plan
    from outlay.cost import ModelShape, Price
    from outlay.errors import OutlayError
    from outlay.frontier import Point, Record
    from outlay.ledger import Entry, Ledger
    from outlay.models import load as load_model
    from outlay.stack import Stack

_HOMES = {
    "Budget": "outlay.budget",
    "Comparison": "outlay.comparison",
    "Entry": "outlay.ledger",
    "Ledger": "outlay.ledger",
    "Meter": "outlay.budget",
    "ModelShape": "outlay.cost",
    "OutlayError": "outlay.errors",
    "Plan": "outlay.comparison",
    "Plans": "outlay.comparison",
    "Point": "outlay.frontier",
    "Price": "outlay.cost",
    "Record": "outlay.frontier",
    "Stack": "outlay.stack",
    "ask": "outlay.api",
    "compare": "outlay.comparison",
    "compress": "outlay.api",
    "load_model": "outlay.models:load",
    "plan": "outlay.comparison",
}

__all__ = [
    "Budget",
    "Comparison",
    "Entry",
    "Ledger",
    "Meter",
    "ModelShape",
    "OutlayError",
    "Plan",
    "Plans",
    "Point",
    "Price",
    "Record",
    "Stack",
    "ask",
    "compare",
    "compress",
    "load_model",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'outlay' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(home), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
