"""ThinkPRM: a verifier that writes a critique of every step (arXiv 2504.16828).

`ThinkPRM` verifies; `ChainFilter` and `ModelTeacher` make its training data; the module `train`
trains it, through trl; `discriminative` holds the baseline without critiques.
"""

from outlay.reason.think_prm.data import (
    Chain,
    ModelTeacher,
    Source,
    Teacher,
    cut_prefixes,
    fix_labels,
    sample,
)
from outlay.reason.think_prm.filters import ChainFilter, Kept, collect
from outlay.reason.think_prm.format import BOXED, COMPACT, Decision, Layout, layout_of
from outlay.reason.think_prm.verifier import Judgement, ThinkPRM

__all__ = [
    "BOXED",
    "COMPACT",
    "Chain",
    "ChainFilter",
    "Decision",
    "Judgement",
    "Kept",
    "Layout",
    "ModelTeacher",
    "Source",
    "Teacher",
    "ThinkPRM",
    "collect",
    "cut_prefixes",
    "fix_labels",
    "layout_of",
    "sample",
]
