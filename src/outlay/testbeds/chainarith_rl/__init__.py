"""ChainArith-RL: where budget-aware RL is tried out on a laptop.

Chains of 1 to 8 operations on one-digit numbers, a starting policy of a third of a million
parameters that thinks in four styles whatever the difficulty, budget tags that move its length
weakly, and an exact verifier. `python -m outlay.testbeds.chainarith_rl --out DIR` trains the
policy.

>>> from outlay.testbeds.chainarith_rl import correct, dataset, load, verify
"""

from outlay.testbeds.chainarith_rl.corpus import (
    FORCED_END,
    FORCED_TEXT,
    MAX_OPS,
    MODULUS,
    STYLE_OF,
    Mix,
    examples,
    render_trace,
)
from outlay.testbeds.chainarith_rl.problems import dataset, problems
from outlay.testbeds.chainarith_rl.store import checkpoint_path, load
from outlay.testbeds.chainarith_rl.verify import Verdict, correct, verify
from outlay.testbeds.reasoner.tokenizer import (
    ANSWER,
    BUDGET_TAGS,
    END_THINK,
    EOS,
    FORMATS,
    THINK,
    build_tokenizer,
    render_prompt,
)

__all__ = [
    "ANSWER",
    "BUDGET_TAGS",
    "END_THINK",
    "EOS",
    "FORCED_END",
    "FORCED_TEXT",
    "FORMATS",
    "MAX_OPS",
    "MODULUS",
    "STYLE_OF",
    "THINK",
    "Mix",
    "Verdict",
    "build_tokenizer",
    "checkpoint_path",
    "correct",
    "dataset",
    "examples",
    "load",
    "problems",
    "render_prompt",
    "render_trace",
    "verify",
]
