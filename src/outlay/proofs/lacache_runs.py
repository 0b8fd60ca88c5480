"""The runs behind the LaCache proof: needles in real text, perplexity, and what a stream costs.

A needle is a sentence with a secret word, put into library documentation at a given depth. The
question comes only after the cache was compacted, so that nothing but the rows left can answer it;
the answer is the most likely of ten words of one token each. All prompts of a task have the same
number of tokens, so that a batch shares one cache and one prompt pass serves every policy.

Shapes: B prompts of a batch, T tokens, Q tokens of the question, V vocabulary.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from outlay.cache.baselines import RandomRetention, SlidingWindow, StreamingLLM, UniformStride
from outlay.cache.compacted import CompactedCache, Retention
from outlay.cache.lacache import LaCache
from outlay.cache.loop import FullCache, forward, kv_bytes
from outlay.cache.streaming import Block, stream_text
from outlay.models import embedded
from outlay.models.local import LocalModel
from outlay.stats import FloatArray
from outlay.testbeds import text

Kind = Literal["single", "multikey", "tracking"]
KEYS = ("harbour", "garden", "library", "museum", "station", "castle", "bakery", "theatre")
WORDS = (
    "apple",
    "river",
    "stone",
    "cloud",
    "tiger",
    "piano",
    "bread",
    "silver",
    "window",
    "forest",
    "ocean",
    "candle",
    "mountain",
    "pencil",
    "bridge",
    "camera",
    "flower",
    "hammer",
    "island",
    "jacket",
    "lemon",
    "mirror",
    "rabbit",
    "orange",
    "paper",
    "rocket",
    "spoon",
    "table",
    "train",
    "water",
)
OPTIONS = 10
JITTER = 0.08  # a needle lies at most this much before its nominal depth
START = 4  # protected rows of every policy, so that all have the same sinks
FULL, STREAMING, RANDOM = "full cache", "StreamingLLM", "random per layer"
SHUFFLED = "shuffled ladder S=15 O=0"


@dataclass(frozen=True)
class Needles:
    """Prompts with a hidden word, the question, and ten words to choose from."""

    ids_BT: torch.Tensor
    question_BQ: torch.Tensor
    options_BO: torch.Tensor
    answer_B: torch.Tensor
    depths: tuple[float, ...]

    def batches(self, size: int) -> Iterator[Needles]:
        """The same in groups of `size`."""
        for at in range(0, len(self.depths), size):
            rows = slice(at, at + size)
            yield Needles(
                self.ids_BT[rows],
                self.question_BQ[rows],
                self.options_BO[rows],
                self.answer_B[rows],
                self.depths[rows],
            )


def needles(
    model: LocalModel,
    tokens: int,
    depths: Sequence[float],
    each: int,
    *,
    kind: Kind = "single",
    seed: int = 0,
) -> Needles:
    """`each` prompts of `tokens` tokens at every depth.

    "single" hides one word; "multikey" four words under four keys and asks for one, the others
    being among the options; "tracking" names the key of the word by another name.
    """
    rng = random.Random(f"{seed}:{kind}:{tokens}")
    words = [word for word in WORDS if len(model.encode(f" {word}")) == 1]
    keys = [key for key in KEYS if len(model.encode(f" {key}")) == 1]
    stream = text.rows(
        model.tokenizer, length=min(tokens, 512), seed=seed, split="heldout", kinds=("english",)
    )
    made: dict[str, list[Any]] = {"ids": [], "question": [], "options": [], "answer": []}
    order = [depth for _ in range(each) for depth in depths]
    for nominal in order:
        # Not on a grid: else all needles of a depth would meet the same rung of the ladder.
        depth = nominal - rng.uniform(0, JITTER)
        chosen, names = rng.sample(words, OPTIONS), rng.sample(keys, 4)
        facts = [(depth, f"\nThe secret word of the {names[0]} is {chosen[0]}.\n")]
        asked = names[0]
        if kind == "multikey":
            for name, word in zip(names[1:], chosen[1:4], strict=True):
                facts.append((rng.random(), f"\nThe secret word of the {name} is {word}.\n"))
        elif kind == "tracking":
            asked = names[1]
            link = f"\nThe {asked} has the same secret word as the {names[0]}.\n"
            facts.append((rng.random(), link))
        question = model.encode(
            f"\nQuestion: What is the secret word of the {asked}?\n"
            f"Answer: The secret word of the {asked} is"
        )
        pieces = [(place, model.encode(fact)) for place, fact in facts]
        room = tokens - sum(len(ids) for _, ids in pieces)
        hay: list[int] = []
        while len(hay) < room:
            hay += next(stream).tolist()
        hay = hay[:room]
        for place, ids in sorted(pieces, key=lambda piece: piece[0], reverse=True):
            at = round(place * room)
            hay[at:at] = ids
        options = [model.encode(f" {word}")[0] for word in chosen]
        rng.shuffle(options)
        made["ids"].append(hay)
        made["question"].append(question)
        made["options"].append(options)
        made["answer"].append(options.index(model.encode(f" {chosen[0]}")[0]))
    tensors = {name: torch.tensor(rows) for name, rows in made.items()}
    return Needles(
        tensors["ids"], tensors["question"], tensors["options"], tensors["answer"], tuple(order)
    )


def ladders(layers: int, span: int, overlap: int, **knobs: Any) -> LaCache:
    """The sheet's ladder for 30 layers, scaled to `layers`."""
    scaled = max(1, round(span * layers / 30))
    return LaCache(
        span=scaled, overlap=min(scaled - 1, round(overlap * layers / 30)), start=START, **knobs
    )


def policies(layers: int) -> dict[str, Retention]:
    """Every policy of the needle task; a capacity is given later."""
    plain: dict[str, Any] = {"mode": "prefill_once"}
    once: dict[str, Any] = {"start": START, **plain}
    return {
        "ladder S=15 O=7": ladders(layers, 15, 7, **plain),
        "ladder S=15 O=0": ladders(layers, 15, 0, **plain),
        "ladder S=8 O=4": ladders(layers, 8, 4, **plain),
        SHUFFLED: ladders(layers, 15, 0, ladder="shuffled", **plain),
        "staircase S=15 O=7": ladders(layers, 15, 7, ladder="staircase", **plain),
        STREAMING: StreamingLLM(start=START, mode="prefill_once"),
        "sliding window": SlidingWindow(mode="prefill_once"),
        RANDOM: RandomRetention(**once),
        "random shared": RandomRetention(per_layer=False, **once),
        "uniform stride": UniformStride(**once),
    }


@dataclass
class Outcome:
    """Right answers (1) and wrong ones (0) per needle, and the rows held while answering."""

    right: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)

    @property
    def marks(self) -> FloatArray:
        """(N,) 1 where the answer is right."""
        return np.array(self.right)


def half_precision(device: str) -> LocalModel:
    """The embedded model in bf16, its rotary table in fp32."""
    exact = embedded.load(device="cpu")
    network: Any = type(exact.model)(exact.model.config)
    network.load_state_dict(exact.model.state_dict())
    table_F = network.base_model.rotary_emb.inv_freq
    network = network.to(torch.bfloat16).requires_grad_(False)
    network.base_model.rotary_emb.inv_freq = table_F
    return LocalModel(network.to(device).eval(), exact.tokenizer, embedded.NAME)


def read(model: LocalModel, ids_BT: torch.Tensor) -> Any:
    """The full cache of a batch of prompts."""
    return FullCache().prefill(model, ids_BT.to(model.device)).cache


def compacted(model: LocalModel, method: Retention, full: Any) -> CompactedCache:
    """A copy of a full cache, compacted once by a method."""
    cache = method.open(model.model, full.get_seq_length())
    for mine, layer in zip(cache.layers, full.layers, strict=True):
        mine.update(layer.keys, layer.values)
    cache.compact()
    cache.active = False
    return cache


def answer(model: LocalModel, task: Needles, cache: Any, outcome: Outcome) -> None:
    """Ask the question behind a cache and book the answers."""
    device = model.device
    outcome.rows += [float(cache.layers[0].get_seq_length())] * len(task.depths)
    logits_BV = forward(model, task.question_BQ.to(device), cache)
    picked_B = logits_BV.gather(1, task.options_BO.to(device)).argmax(-1).cpu()
    outcome.right += (picked_B == task.answer_B).float().tolist()


def ask_all(
    model: LocalModel,
    task: Needles,
    methods: Mapping[float, Mapping[str, Retention]],
    *,
    batch: int,
) -> dict[float, dict[str, Outcome]]:
    """Every method of every share on every needle; prompts are read once, by full attention.

    The full cache is asked, too, and stands with the first share.
    """
    found = {share: {name: Outcome() for name in row} for share, row in methods.items()}
    whole = found[next(iter(found))][FULL] = Outcome()
    for index, part in enumerate(task.batches(batch)):
        read_once = read(model, part.ids_BT)
        for share, row in methods.items():
            for name, method in row.items():
                if isinstance(method, RandomRetention):  # a new draw for every batch
                    method = replace(method, seed=method.seed + index)
                answer(model, part, compacted(model, method, read_once), found[share][name])
        answer(model, part, read_once, whole)
    return found


def ask_streaming(
    model: LocalModel, task: Needles, methods: Mapping[str, Retention], *, batch: int
) -> dict[str, Outcome]:
    """Every method on every needle, prompts read in chunks with compaction in between."""
    found = {name: Outcome() for name in methods}
    for index, part in enumerate(task.batches(batch)):
        for name, method in methods.items():
            if isinstance(method, RandomRetention):
                method = replace(method, seed=method.seed + index)
            cache = method.prefill(model, part.ids_BT.to(model.device)).cache
            cache.active = False
            answer(model, part, cache, found[name])
    return found


def losses(
    model: LocalModel,
    methods: Mapping[str, Retention | None],
    ids_BT: torch.Tensor,
    *,
    after: int,
    window: int,
) -> dict[str, FloatArray]:
    """Mean loss of every text from token `after` on, (B,) per method."""
    found = {}
    for name, method in methods.items():
        blocks = list(stream_text(model, method, ids_BT, window=window, block=after))
        weights = [block.tokens for block in blocks[1:]]
        found[name] = np.average([block.nll_texts for block in blocks[1:]], axis=0, weights=weights)
    return found


@dataclass(frozen=True)
class Pace:
    """A long stream, and single steps of one token near its beginning and at its end.

    Args:
        blocks: of the stream.
        near_S, far_S: seconds of the steps, taken in turns.
        near_rows, far_rows: rows of the caches at those places.
        near_bytes, far_bytes: bytes of their keys and values.
    """

    blocks: list[Block]
    near_S: FloatArray
    far_S: FloatArray
    near_rows: int
    far_rows: int
    near_bytes: int
    far_bytes: int


def pace(
    model: LocalModel,
    method: Retention,
    ids_BT: torch.Tensor,
    *,
    near: int,
    window: int,
    block: int,
    steps: int,
) -> Pace:
    """Stream a text, keep the cache as it was after `near` tokens, and time steps of both."""
    cache = method.open(model.model, ids_BT.shape[1])
    blocks = list(stream_text(model, cache, ids_BT[:, :near], window=window, block=block))
    early = copy.deepcopy(cache)
    blocks += stream_text(model, cache, ids_BT[:, near:], window=window, block=block)
    seconds: dict[str, list[float]] = {"near": [], "far": []}
    sizes = early.rows, cache.rows, kv_bytes(early), kv_bytes(cache)
    sides = {"near": early, "far": cache}
    warm = min(8, steps)
    for index in range(steps + warm):
        token_BT = ids_BT[:, index : index + 1].to(model.device)
        for name in ("near", "far") if index % 2 else ("far", "near"):
            began = _clock(model)
            forward(model, token_BT, sides[name])
            taken = _clock(model) - began
            if index >= warm:  # the first steps warm up
                seconds[name].append(taken)
    return Pace(blocks, np.array(seconds["near"]), np.array(seconds["far"]), *sizes)


def _clock(model: LocalModel) -> float:
    """Wall time on a GPU; the process's own time on a CPU, which other work does not inflate."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
        return time.perf_counter()
    return time.process_time()
