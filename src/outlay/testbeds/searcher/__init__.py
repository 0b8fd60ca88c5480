"""The searcher: a tiny model whose thinking branches, and the trees that it searches.

Proofs of latent and explicit thinking need a model that is truly unsure where its thinking forks,
sure everywhere else, and whose answers and steps can be judged. This is it: a Llama of less than a
million parameters trained from scratch by `python -m outlay.testbeds.searcher`, shipped with the
package.

>>> from outlay.testbeds.searcher import HiddenLeaf, checkpoint_path, load
"""

from outlay.testbeds.searcher.store import checkpoint_path, load
from outlay.testbeds.searcher.tasks import HiddenLeaf
from outlay.testbeds.searcher.tokenizer import build_tokenizer, render_prompt
from outlay.testbeds.searcher.trees import (
    Puzzle,
    Steps,
    parse_question,
    read_steps,
    sample_puzzle,
    walks,
)

__all__ = [
    "HiddenLeaf",
    "Puzzle",
    "Steps",
    "build_tokenizer",
    "checkpoint_path",
    "load",
    "parse_question",
    "read_steps",
    "render_prompt",
    "sample_puzzle",
    "walks",
]
