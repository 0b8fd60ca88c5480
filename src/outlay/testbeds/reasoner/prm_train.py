"""How the process reward model is made: sampled chains, exact labels, a head on what was expected.

The reasoner answers training problems at several temperatures. Every step of every sample gets the
oracle's label (is all right so far?). The network that reads is the reasoner itself, unchanged; a
logistic head learns the labels from the features of `prm_reader`, by L-BFGS, to convergence.
Weights are stored in half precision; what is measured is what is stored.

The usual way is a head of two classes on the hidden state where a step ends, with the whole network
fine-tuned. It was given up after a trial that no committed run repeats: what the network expected
is known before a token, not after it, and is hard to learn again from labels alone.

Shapes: N steps of all samples, F features.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from outlay.errors import InputError
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import Question, SelfConsistency, solve_many
from outlay.stats import FloatArray, auc
from outlay.testbeds.reasoner.chains import Split, parse_question, sample_problem
from outlay.testbeds.reasoner.evaluate import read_answer
from outlay.testbeds.reasoner.oracle import opened_by, verdicts
from outlay.testbeds.reasoner.prm_reader import (
    CONFIG,
    HEAD,
    WEIGHTS,
    features,
    is_answer,
    load_network,
)
from outlay.testbeds.reasoner.store import checkpoint_path
from outlay.testbeds.reasoner.tokenizer import build_tokenizer, render_prompt

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Say = Callable[[str], None]
LONGEST = 200  # tokens of a sample
SAMPLES = 4  # of one problem
_CARD = """---
license: apache-2.0
library_name: transformers
---

# A tiny process reward model

Judges the steps of chain problems modulo 20 as the tiny reasoner writes them. It is the reasoner
(`LlamaForCausalLM`, {parameters:,} parameters, weights `{source}`) with a logistic head on how
expected the tokens of a step were: the least likely token so far, the least likely one of the step,
the step's mean log-probability, and whether the step answers. `prm.json` holds the architecture,
the training configuration and the measurements.

## How it was made

    python -m outlay.testbeds.reasoner.prm --out DIR --chains {chains} --seed {seed}

{chains:,} chains of {low} to {high} operations, {samples} samples a problem, at temperatures
{temperatures}; {short:.0%} opened with `<short>`, the rest in the format that the reasoner chose.
Labels are exact: the result is right, the step continues the chain, the value is the true one, and
so was everything before (a step repeated right after `Wait` is forgiven). The last step is right if
the answer is. Problems of training and measurement come from different splits. Only the head was
trained.

## Measured

On {n:,} steps of {held:,} held-out chains, {positive:.0%} of them right:

| | |
|---|---:|
| AUC, all steps | {auc:.3f} |
| AUC, steps before which all is right | {auc_first:.3f} |
| accuracy at 0.5 | {accuracy:.3f} |
| mean score of right steps | {mean_right:.3f} |
| mean score of wrong steps | {mean_wrong:.3f} |

## Limits

It sees what sampling did against the reasoner's own expectation. An error that the reasoner
believes in looks right to it.
"""


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained.

    Args:
        chains: samples to train on.
        seed: of problems, samples and order.
        reasoner: checkpoint that is sampled and started from, by name or folder.
        operations: fewest and most operations of a problem.
        temperatures: of the samples, in turn.
        short: share of samples opened with `<short>`.
        held: held-out chains that it is measured on.

    Raises:
        InputError: for values out of range.
    """

    chains: int = 1000
    seed: int = 0
    reasoner: str = "base"
    operations: tuple[int, int] = (4, 12)
    temperatures: tuple[float, ...] = (1.2, 1.5, 1.8)
    short: float = 0.8
    held: int = 250

    def __post_init__(self) -> None:
        if self.chains < 1 or self.held < 1:
            raise InputError(f"chains={self.chains}, held={self.held}; at least 1 each")
        if not self.temperatures or not 0 <= self.short <= 1:
            raise InputError("temperatures must not be empty, and short must lie in [0, 1]")


@dataclass(frozen=True)
class Sample:
    """A labelled chain.

    Args:
        ids: prompt and completion.
        ends: where its steps end.
        labels: whether all is right there.
        answers: whether the step answers.
        start: tokens of the prompt.
    """

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    labels: tuple[bool, ...]
    answers: tuple[bool, ...]
    start: int


def sample_chains(config: TrainConfig, model: LocalModel, count: int, split: Split) -> list[Sample]:
    """`count` labelled samples of the reasoner on problems of one split."""
    tokenizer = build_tokenizer()
    rng = random.Random(f"prm:{config.seed}:{split}")
    low, high = config.operations
    questions = []
    for _ in range(-(-count // SAMPLES)):
        problem = sample_problem(rng, [rng.randint(low, high)], split=split)
        opened = "short" if rng.random() < config.short else None
        prompt = render_prompt(problem.question, opened)
        questions.append(
            Question(prompt, problem.question, "custom", read=read_answer, delimiter=";")
        )
    samples: list[Sample] = []
    turns = len(config.temperatures)
    for turn, temperature in enumerate(config.temperatures):
        part = questions[turn::turns]
        sampling = SamplingParams(temperature=temperature, max_tokens=LONGEST, seed=config.seed)
        method = SelfConsistency(n=SAMPLES, early_stop=False)
        answers = solve_many(method, model, part, sampling=sampling, together=128)
        for question, answer in zip(part, answers, strict=True):
            texts = dict.fromkeys(branch.completion() for branch in answer.branches)
            samples += [label(question, text, tokenizer) for text in texts]
    rng.shuffle(samples)
    return samples[:count]


def label(question: Question, completion: str, tokenizer: PreTrainedTokenizerFast) -> Sample:
    """One completion with its exact labels."""
    steps = question.steps(completion)
    right = verdicts(parse_question(question.text), steps, opened_by(question))
    encode = partial(tokenizer, add_special_tokens=False)
    ids = list(encode(question.prompt)["input_ids"])
    start, ends = len(ids), []
    for step in steps:
        ids += encode(step)["input_ids"]
        ends.append(len(ids) - 1)
    answers = tuple(map(is_answer, steps))
    return Sample(tuple(ids), tuple(ends), tuple(right), answers, start)


@torch.no_grad()
def features_of(network: LlamaForCausalLM, samples: Sequence[Sample]) -> torch.Tensor:
    """(N, F) of all steps of all samples."""
    rows: list[list[float]] = []
    for sample in samples:
        ids_1T = torch.tensor([sample.ids])
        expected_TV = network(input_ids=ids_1T, use_cache=False).logits[0].log_softmax(-1)
        picked_T = expected_TV[:-1].gather(1, ids_1T[0, 1:, None])[:, 0].tolist()
        ends = [end - sample.start for end in sample.ends]
        rows += features(picked_T[sample.start - 1 :], ends, 0.0, sample.answers)
    return torch.tensor(rows)


def train(features_NF: torch.Tensor, labels: Sequence[bool]) -> torch.nn.Linear:
    """A logistic head, fitted to convergence."""
    head = torch.nn.Linear(features_NF.shape[1], 2)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    right_N = torch.tensor(labels, dtype=torch.long)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(features_NF), right_N)
        loss = loss + 1e-4 * head.weight.square().sum()  # separable data have no finite optimum
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    return head


@torch.inference_mode()
def measure(
    network: LlamaForCausalLM, head: torch.nn.Linear, samples: Sequence[Sample]
) -> dict[str, float]:
    """How well scores tell right from wrong."""
    scores = head(features_of(network, samples)).softmax(-1)[:, 1].tolist()
    labels = [right for sample in samples for right in sample.labels]
    first = [all(s.labels[:at]) for s in samples for at in range(len(s.labels))]
    score_N, right_N, first_N = np.array(scores), np.array(labels), np.array(first)
    return {
        "n": len(score_N),
        "held": len(samples),
        "positive": float(right_N.mean()),
        "auc": _auc(score_N, right_N),
        "auc_first": _auc(score_N[first_N], right_N[first_N]),
        "accuracy": float(((score_N > 0.5) == right_N).mean()),
        "mean_right": float(score_N[right_N].mean()),
        "mean_wrong": float(score_N[~right_N].mean()),
    }


def make(config: TrainConfig, out: Path, say: Say) -> dict[str, float]:
    """Sample, train, save and measure; returns the measurements."""
    from safetensors.torch import save_file

    folder = Path(config.reasoner)
    source = folder if folder.is_dir() else checkpoint_path(config.reasoner)
    model = LocalModel.load(source)
    say(f"sampling {config.chains} chains and {config.held} held-out ones ...")
    samples = sample_chains(config, model, config.chains, "train")
    held = sample_chains(config, model, config.held, "heldout")
    network = model.model
    labels = [right for sample in samples for right in sample.labels]
    head = train(features_of(network, samples), labels)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        **{k: v for k, v in network.state_dict().items() if k != "lm_head.weight"},
        **{f"{HEAD}.{k}": v for k, v in head.state_dict().items()},
    }
    state = {k: v.detach().half().contiguous() for k, v in tensors.items()}
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)
    digest = sha256((source / "model.safetensors").read_bytes()).hexdigest()[:16]
    architecture = network.config.to_diff_dict()
    del architecture["transformers_version"]
    record = {
        "architecture": architecture,
        "training": asdict(config),
        "reasoner_sha256": digest,
    }
    (out / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    found = measure(*load_network(out), held)
    record["measured"] = found
    (out / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    card = _CARD.format(
        parameters=network.num_parameters(),
        source=digest,
        chains=config.chains,
        seed=config.seed,
        low=config.operations[0],
        high=config.operations[1],
        samples=SAMPLES,
        temperatures=", ".join(map(str, config.temperatures)),
        short=config.short,
        **found,
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    say(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def _auc(score_N: FloatArray, right_N: np.ndarray) -> float:
    found = auc(score_N, right_N)
    if math.isnan(found):
        raise InputError("the AUC needs right and wrong steps; measure on more chains")
    return found
