"""How well a reasoner answers: greedy accuracy and thinking length by difficulty and format.

Formats are forced by opening their tag; `natural` lets the model choose, `none` closes the thinking
at once, as a budget of zero does. All problems are held out: no training stream contains them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from outlay.errors import InputError
from outlay.testbeds.reasoner.chains import ChainProblem, label_steps, sample_problem
from outlay.testbeds.reasoner.facts import FactWorld
from outlay.testbeds.reasoner.tokenizer import ANSWER, END_THINK, EOS, FORMATS, THINK, render_prompt
from outlay.testbeds.reasoner.traces import AnyProblem

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MODES = ("natural", "none", *FORMATS)
COMPUTE = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)  # the last two are longer than any in training
PARTS = {2: (3, 2), 3: (4, 2, 5), 4: (2, 5, 3, 4)}  # operations of each chain of joined problems


def read_answer(completion: str) -> str | None:
    """The answer in a completion: what follows the last answer tag, None without one."""
    if ANSWER not in completion:
        return None
    return completion.rsplit(ANSWER, 1)[1].split(EOS)[0].strip()


def read_thinking(text: str) -> str:
    """The thinking in a prompt and completion: from the last think tag to its end tag."""
    return text.rsplit(THINK, 1)[-1].split(END_THINK)[0]


@dataclass(frozen=True)
class Row:
    """Results of one group of problems in one mode.

    Args:
        family: "compute", "joined", "recall known" or "recall unseen".
        difficulty: operations, chains or hops.
        mode: see `MODES`.
        n: number of problems.
        accuracy: share answered right by greedy decoding.
        thinking: mean tokens between the think tags, format tag included.
        step_accuracy: share of right steps among all written ones; None without steps.
        ended: share that gave an answer and the end tag.
    """

    family: str
    difficulty: int
    mode: str
    n: int
    accuracy: float
    thinking: float
    step_accuracy: float | None
    ended: float


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_new_tokens: int = 360,
    batch_size: int = 128,
) -> list[str]:
    """Greedy completions of `prompts`, tags kept, cut after the end-of-text tag."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs = tokenizer([prompts[i] for i in rows], return_tensors="pt", padding=True)
        output_BT = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new_BT = output_BT[:, inputs["input_ids"].shape[1] :]
        for i, text in zip(rows, tokenizer.batch_decode(new_BT), strict=True):
            head, ended, _ = text.partition(EOS)
            texts[i] = head + ended
    return texts


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[AnyProblem],
    mode: str,
    family: str = "compute",
    difficulty: int = 0,
) -> Row:
    """Results of one group of problems in one mode.

    Raises:
        InputError: for an unknown mode or no problems.
    """
    if mode not in MODES:
        raise InputError(f"mode {mode!r}; known are {', '.join(MODES)}")
    if not problems:
        raise InputError("no problems to measure; give at least one")
    format = mode if mode in FORMATS else None
    prompts = [render_prompt(p.question, format, thinking=mode != "none") for p in problems]
    completions = complete(model, tokenizer, prompts)
    right = tokens = ended = steps_right = steps = 0
    for problem, prompt, completion in zip(problems, prompts, completions, strict=True):
        thinking = read_thinking(prompt + completion)
        tokens += len(tokenizer(thinking)["input_ids"])
        answer = read_answer(prompt + completion)
        right += answer == problem.answer
        ended += completion.endswith(EOS)
        if isinstance(problem, ChainProblem):
            labels = label_steps(problem, thinking)
            steps += len(labels)
            steps_right += sum(label.right for label in labels)
    n = len(problems)
    step_accuracy = steps_right / steps if steps else None
    return Row(family, difficulty, mode, n, right / n, tokens / n, step_accuracy, ended / n)


def held_out(
    family: str, difficulty: int, n: int, modulus: int, world: FactWorld, seed: int = 0
) -> list[AnyProblem]:
    """Problems of one family and difficulty that were never trained on.

    Unknown facts were never trained on; known ones were, or there would be nothing to remember, but
    their two-hop combinations here were not.
    """
    rng = random.Random(f"held out:{family}:{difficulty}:{seed}")
    problems: list[AnyProblem] = []
    for _ in range(n):
        if family.startswith("recall"):
            known = family == "recall known"
            problem: AnyProblem = world.sample(rng, difficulty, known, "heldout")
        else:
            counts = PARTS[difficulty] if family == "joined" else (difficulty,)
            problem = sample_problem(rng, counts, modulus, split="heldout")
        problems.append(problem)
    return problems


def table(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: FactWorld,
    modulus: int,
    n: int = 100,
    modes: Sequence[str] = MODES,
) -> list[Row]:
    """Accuracy over all families, difficulties and the modes that exist for them."""
    groups = [("compute", d) for d in COMPUTE]
    groups += [("joined", d) for d in PARTS]
    groups += [("recall known", 1), ("recall known", 2), ("recall unseen", 1), ("recall unseen", 2)]
    rows = []
    for family, difficulty in groups:
        problems = held_out(family, difficulty, n, modulus, world)
        for mode in modes:
            if mode == "code" and family != "compute":
                continue
            rows.append(measure(model, tokenizer, problems, mode, family, difficulty))
    return rows


def as_records(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows as JSON-ready records."""
    return [asdict(row) for row in rows]
