"""How the process reward model reads: batched passes behind what it has read before.

Per ledger (one question's books) a tree of what was read is kept: the keys and values of paths that
may go on, and the scores of all. So what a question costs does not depend on other questions.

A step is judged by how the network expected its tokens. Its features, in nats: the log-probability
of the least likely token so far, that of the least likely token of the step, the step's mean, and
whether the step answers. A logistic head turns them into P(all right so far).

Shapes: B rows, T time, C hidden size, V vocabulary, N steps of all rows, F features.
"""

from __future__ import annotations

import json
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from outlay.errors import InputError, ModelError
from outlay.ledger import Ledger
from outlay.models.base import Branch
from outlay.models.kv import Segment, columns, gather, probe_layout
from outlay.shape import ModelShape
from outlay.testbeds.reasoner.tokenizer import CONTEXT, END_THINK, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CONFIG, WEIGHTS = "prm.json", "model.safetensors"
HEAD = "head"  # prefix of the head's tensors among the weights
FEATURES = ("least so far", "least of the step", "mean of the step", "answers")
LEAST = -30.0  # log-probabilities are cut off here
Key = tuple[str, ...]  # the prompt, then steps


def load_network(folder: Path) -> tuple[LlamaForCausalLM, torch.nn.Linear]:
    """The network and the head in a folder that the training command wrote, in eval mode.

    Raises:
        ModelError: if there is none, or its files do not fit together.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder} holds no process reward model ({CONFIG} and {WEIGHTS}); "
            "train one with python -m outlay.testbeds.reasoner.prm"
        )
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architecture"]
        network = LlamaForCausalLM(LlamaConfig(**settings))
        state = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        head = torch.nn.Linear(len(FEATURES), 2)
        head.load_state_dict({name: state.pop(f"{HEAD}.{name}") for name in ("weight", "bias")})
        network.load_state_dict(state, strict=False)  # the output shares the embeddings' weights
        network.tie_weights()
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded ({error}); train it again") from error
    network.train(False)
    network.requires_grad_(False)
    head.requires_grad_(False)
    return network, head


def features(
    logprobs: Sequence[float], ends: Sequence[int], least: float, answers: Sequence[bool]
) -> list[list[float]]:
    """The features of every step.

    Args:
        logprobs: of all tokens of the steps, one after another.
        ends: position of each step's last token.
        least: of all tokens before.
        answers: whether each step answers.
    """
    found, start = [], 0
    for end, final in zip(ends, answers, strict=True):
        step = [max(LEAST, value) for value in logprobs[start : end + 1]]
        least = min(least, *step)
        found.append([least, min(step), sum(step) / len(step), float(final)])
        start = end + 1
    return found


def is_answer(step: str) -> bool:
    """Whether a step ends the thinking."""
    return END_THINK in step


@dataclass(frozen=True)
class Read:
    """A path that was read.

    Args:
        scores: P(all right so far) after each of its steps.
        tokens: of the whole path, prompt included.
        branch: holds its KV; None for a path that cannot go on.
        least: log-probability of its least likely token.
        next_V: log-probabilities of the token after it.
    """

    scores: tuple[float, ...]
    tokens: int
    branch: Branch | None
    least: float = 0.0
    next_V: torch.Tensor | None = None


@dataclass
class Books:
    """What was read for one ledger."""

    ledger: weakref.ref[Ledger]
    reads: dict[Key, Read] = field(default_factory=dict)
    tokens: int = 0  # whose KV is held

    def deepest(self, key: Key) -> tuple[int, Read | None]:
        """The longest part of `key` that can be gone on from, and its length."""
        for size in range(len(key), 0, -1):
            read = self.reads.get(key[:size])
            if read is not None and read.branch is not None:
                return size, read
        return 0, None


@dataclass(frozen=True)
class Job:
    """Tokens to read.

    Args:
        books: that they belong to.
        key: the whole path.
        behind: how much of `key` was read before.
        pieces: ids of every further part of `key`.
        keep: whether the path may go on.
    """

    books: Books
    key: Key
    behind: int
    pieces: tuple[tuple[int, ...], ...]
    keep: bool

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens to read."""
        return tuple(token for piece in self.pieces for token in piece)

    @property
    def parent(self) -> Read | None:
        """What was read before."""
        return self.books.reads[self.key[: self.behind]] if self.behind else None

    @property
    def ends(self) -> list[int]:
        """Positions in `ids` where steps end; the prompt is no step."""
        ends = [end - 1 for end in accumulate(map(len, self.pieces))]
        return ends if self.behind else ends[1:]


class Reader:
    """The network, and what it has read lately.

    Args:
        folder: that the training command wrote.
    """

    def __init__(self, folder: Path) -> None:
        network, self._head = load_network(folder)
        self._network: Any = network
        self._tokenizer: PreTrainedTokenizerFast = build_tokenizer()
        self._books: OrderedDict[int, Books] = OrderedDict()
        with torch.inference_mode():
            self._layout = probe_layout(self._network.model, self._network.device, "the verifier")
        self.shape = ModelShape.from_config(self._network.config)
        self.passes = 0  # batched passes so far

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids.

        Raises:
            InputError: for a character that the reasoner does not know.
        """
        try:
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:  # the tokenizers library raises no narrower type
            raise InputError(
                f"{text[:60]!r} is not in the reasoner's alphabet; this verifier judges its "
                "chain problems only"
            ) from error

    def books(self, ledger: Ledger) -> Books:
        """The memory of one ledger."""
        found = self._books.get(id(ledger))
        if found is None or found.ledger() is not ledger:
            found = self._books[id(ledger)] = Books(weakref.ref(ledger))
        self._books.move_to_end(id(ledger))
        return found

    def forget(self, keep: int) -> None:
        """Drop what belongs to closed books, then the least recently used beyond `keep` tokens."""
        for name in [name for name, books in self._books.items() if books.ledger() is None]:
            del self._books[name]
        total = sum(books.tokens for books in self._books.values())
        while total > keep and self._books:
            total -= self._books.popitem(last=False)[1].tokens

    def read(self, jobs: Sequence[Job], batch_tokens: int) -> None:
        """Read all jobs in batches of similar length; each leaves a `Read` under its key.

        Raises:
            InputError: for a path beyond the network's window.
        """
        sized = sorted(((_past(job) + len(job.ids), i) for i, job in enumerate(jobs)))
        if sized and sized[-1][0] > CONTEXT:
            raise InputError(
                f"a solution of {sized[-1][0]} tokens exceeds the verifier's window of {CONTEXT}"
            )
        batch: list[Job] = []
        for size, index in sized:
            if batch and (len(batch) + 1) * size > batch_tokens:
                self._pass(batch)
                batch = []
            batch.append(jobs[index])
        if batch:
            self._pass(batch)

    @torch.inference_mode()
    def _pass(self, jobs: Sequence[Job]) -> None:
        self.passes += 1
        device = self._network.device
        ids, past = [job.ids for job in jobs], [_past(job) for job in jobs]
        width, filled = max(map(len, ids)), max(past)
        ids_BT = torch.zeros((len(jobs), width), dtype=torch.long)
        for row, line in enumerate(ids):
            ids_BT[row, : len(line)] = torch.tensor(line)
        mask_BT = None
        if min(past) < filled:  # shorter rows are padded on the left of what they know
            mask_BT = torch.ones((len(jobs), filled + width), dtype=torch.long, device=device)
            for row, real in enumerate(past):
                mask_BT[row, : filled - real] = 0
        position_BT = torch.tensor(past)[:, None] + torch.arange(width)
        cache, _ = gather(list(map(_path, jobs)), width, layout=self._layout, device=device)
        hidden_BTC = self._network.model(
            ids_BT.to(device),
            cache=cache,
            use_cache=True,
            attention_mask=mask_BT,
            position_ids=position_BT.to(device),
        ).last_hidden_state
        expected_BTV = self._network.lm_head(hidden_BTC).log_softmax(-1)
        picked_BT = expected_BTV[:, :-1].gather(2, ids_BT[:, 1:, None].to(device))[..., 0].tolist()
        for row, job in enumerate(jobs):
            parent, branch, size = job.parent, None, len(ids[row])
            scores, least = (), 0.0
            if parent is not None:
                assert parent.next_V is not None
                first = float(parent.next_V[ids[row][0]])
                answers = [is_answer(step) for step in job.key[job.behind :]]
                rows_NF = features(
                    [first, *picked_BT[row][: size - 1]], job.ends, parent.least, answers
                )
                right_N = self._head(torch.tensor(rows_NF)).softmax(-1)[:, 1].tolist()
                scores, least = (*parent.scores, *right_N), rows_NF[-1][0]
            if job.keep:
                kv = Segment()
                kv.append(*columns(cache, row, filled, filled + size))
                above = parent.branch if parent else None
                branch = Branch("", above, ids[row], "", "forced", handle=kv)
                job.books.tokens += size
            next_V = expected_BTV[row, size - 1].clone() if job.keep else None
            job.books.reads[job.key] = Read(scores, past[row] + size, branch, least, next_V)


def _path(job: Job) -> list[Branch]:
    parent = job.parent
    return parent.branch.lineage() if parent and parent.branch else []


def _past(job: Job) -> int:
    parent = job.parent
    return parent.tokens if parent else 0
