"""A tiny transformer that really learns in context, and the rules that it learns.

Proofs and tests of how many demonstrations an input needs want a model for which the answer is
known: three families of rules need 0, 1 and about 4 examples. Trained from scratch in minutes by
`python -m outlay.testbeds.icl`, shipped with the package.

>>> from outlay.testbeds.icl import InContext, checkpoint_path, load, workload
"""

from outlay.testbeds.icl.store import checkpoint_path, controller_path, load
from outlay.testbeds.icl.tasks import Batch, InContext, workload
from outlay.testbeds.icl.tokenizer import build_tokenizer, vocabulary
from outlay.testbeds.icl.world import (
    FAMILIES,
    Family,
    Instance,
    Item,
    Rule,
    draw_instance,
    families,
)

__all__ = [
    "FAMILIES",
    "Batch",
    "Family",
    "InContext",
    "Instance",
    "Item",
    "Rule",
    "build_tokenizer",
    "checkpoint_path",
    "controller_path",
    "draw_instance",
    "families",
    "load",
    "vocabulary",
    "workload",
]
