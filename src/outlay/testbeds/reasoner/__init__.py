"""The reasoner: a tiny model that thinks before it answers, and the worlds that it thinks about.

Proofs and tests of thinking budgets, search, step verifiers and budget-aware RL need a model whose
accuracy depends on how long it thinks, whose steps can be judged exactly, and which runs on a
laptop. This is it: a Llama of about a third of a million parameters trained from scratch in minutes
by `python -m outlay.testbeds.reasoner`, shipped with the package.

>>> from outlay.testbeds.reasoner import checkpoint_path, load, ChainArith
"""

from outlay.testbeds.reasoner.chains import (
    MODULUS,
    Chain,
    ChainProblem,
    StepLabel,
    label_steps,
    parse_question,
    sample_chain,
    sample_problem,
)
from outlay.testbeds.reasoner.corpus import Mix, examples
from outlay.testbeds.reasoner.facts import FactWorld, RecallProblem
from outlay.testbeds.reasoner.store import checkpoint_path, load, shipped
from outlay.testbeds.reasoner.tasks import ChainArith, ChainRecall
from outlay.testbeds.reasoner.tokenizer import build_tokenizer, render_prompt
from outlay.testbeds.reasoner.traces import Noise, render_trace

__all__ = [
    "MODULUS",
    "Chain",
    "ChainArith",
    "ChainProblem",
    "ChainRecall",
    "FactWorld",
    "Mix",
    "Noise",
    "RecallProblem",
    "StepLabel",
    "build_tokenizer",
    "checkpoint_path",
    "examples",
    "label_steps",
    "load",
    "parse_question",
    "render_prompt",
    "render_trace",
    "sample_chain",
    "sample_problem",
    "shipped",
]
