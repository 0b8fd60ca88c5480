"""The runs behind the RSD proof: tables of a toy world, tree shapes, and what is measured.

Shapes: V vocabulary, N samples, B sequences, T tokens.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import torch

from outlay.decode.plain import PlainDecoder
from outlay.decode.rsd import RSD, RSDResult
from outlay.decode.rsd.structure import choose_shape
from outlay.decode.rsd.trees import Beam, Mode, Shape, Tree, grow
from outlay.decode.rsd.verify import walk
from outlay.models.base import FloatArray, Prompt, SamplingParams
from outlay.models.local import LocalModel
from outlay.proofs.rsd_pairs import Pair

MODES: tuple[Mode, ...] = ("chain", "iid_tree", "rsd_c", "rsd_s")
NAMES: Mapping[Mode, str] = {
    "chain": "one chain",
    "iid_tree": "independent siblings",
    "rsd_c": "RSD-C",
    "rsd_s": "RSD-S",
}
FIRST = 3  # emitted tokens whose joint law is tested


# -- toy world ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tables:
    """A target and a draft given by random tables over histories of tokens.

    Args:
        vocabulary: V.
        seed: of the tables.
    """

    vocabulary: int = 5
    seed: int = 0

    def _table(self, draft: bool) -> dict[tuple[int, ...], FloatArray]:
        rng = np.random.default_rng([self.seed, int(draft)])
        histories = [
            history
            for size in range(FIRST + 3)
            for history in product(range(self.vocabulary), repeat=size)
        ]
        laws_NV = rng.dirichlet(np.full(self.vocabulary, 0.6), size=len(histories))
        return dict(zip(histories, laws_NV, strict=True))

    @cached_property
    def target(self) -> dict[tuple[int, ...], FloatArray]:
        """History to the target's law of the next token."""
        return self._table(draft=False)

    @cached_property
    def draft(self) -> dict[tuple[int, ...], torch.Tensor]:
        """History to log-probabilities of the draft, which knows half of the target's law."""
        own = self._table(draft=True)
        return {
            history: torch.from_numpy(np.log(0.5 * own[history] + 0.5 * law_V))
            for history, law_V in self.target.items()
        }

    def exact(self) -> FloatArray:
        """The joint law of the first tokens, V^FIRST probabilities in the order of `product`."""
        return np.array(
            [
                np.prod([self.target[word[:i]][token] for i, token in enumerate(word)])
                for word in product(range(self.vocabulary), repeat=FIRST)
            ]
        )

    def sample(self, shape: Shape, n: int, seed: int, *, by_id: bool = False) -> FloatArray:
        """How often each word was written first in `n` runs of draft, walk, draft, ...

        Args:
            shape: of the trees.
            n: runs.
            seed: of everything.
            by_id: visit children in the order of their tokens, which is wrong.
        """
        noise = torch.Generator().manual_seed(seed)
        uniforms = np.random.default_rng(seed + 1)
        counts: Counter[tuple[int, ...]] = Counter()
        for _ in range(n):
            said: tuple[int, ...] = ()
            while len(said) < FIRST:
                said += self._pass(said, shape, noise, uniforms, by_id)
            counts[said[:FIRST]] += 1
        words = product(range(self.vocabulary), repeat=FIRST)
        return np.array([float(counts[word]) for word in words])

    def _pass(
        self,
        said: tuple[int, ...],
        shape: Shape,
        noise: torch.Generator,
        uniforms: np.random.Generator,
        by_id: bool,
    ) -> tuple[int, ...]:
        tree, frontier = Tree([0]), [Beam()]
        for level in range(shape.levels):
            logp_NV = torch.stack(
                [self.draft[(*said, *tree.words(beam.node))] for beam in frontier]
            )
            frontier = grow(tree, frontier, logp_NV, shape, level, noise)
        if by_id:
            for children in tree.children:
                children.sort(key=lambda node: tree.tokens[node])
        path, last = walk(
            tree,
            lambda node: self.target[(*said, *tree.words(node))],
            lambda: float(uniforms.random()),
            shape.draw,
        )
        return (*(tree.tokens[node] for node in path), last)


def chi_square(counts_N: FloatArray, law_N: FloatArray) -> float:
    """p of counts under a law; cells that expect fewer than 5 are pooled."""
    from scipy.stats import chi2

    expected_N = law_N * counts_N.sum()
    rare_N = expected_N < 5
    seen, wanted = list(counts_N[~rare_N]), list(expected_N[~rare_N])
    if rare_N.any():
        seen.append(counts_N[rare_N].sum())
        wanted.append(expected_N[rare_N].sum())
    statistic = float(sum((a - b) ** 2 / b for a, b in zip(seen, wanted, strict=True) if b > 0))
    return float(chi2.sf(statistic, len(seen) - 1))


# -- measures --------------------------------------------------------------------------------------


def efficiency(results: Sequence[RSDResult]) -> FloatArray:
    """Block efficiency of every text; the last pass is left out, which the end may have cut."""
    kept = [one.stats.emitted[:-1] or one.stats.emitted for one in results]
    return np.array([np.mean(each) if each else 1.0 for each in kept])


def at_length(levels: int) -> dict[Mode, Shape]:
    """Every method with trees of so many levels."""
    return {
        "chain": Shape("chain", depth=levels),
        "iid_tree": Shape("iid_tree", (2,) * levels),
        "rsd_c": Shape("rsd_c", (2,) * levels),
        "rsd_s": Shape("rsd_s", beam=4, depth=levels),
    }


def at_budget(nodes: int, profile: Sequence[float]) -> dict[Mode, Shape]:
    """Every method with at most so many nodes, in the shape that its profile favours.

    Independent siblings take the shape of RSD-C, whose place they would take.
    """
    found: dict[Mode, Shape] = {"chain": Shape("chain", depth=nodes)}
    found["rsd_c"] = choose_shape(Shape("rsd_c"), nodes, profile)
    found["iid_tree"] = replace(found["rsd_c"], mode="iid_tree")
    found["rsd_s"] = choose_shape(Shape("rsd_s"), nodes, profile)
    return found


def greedy_mismatches(pair: Pair, shape: Shape) -> tuple[int, int]:
    """Texts whose greedy tokens differ from plain decoding: beyond a tie, and at one.

    A tie: the two best logits, where the texts part, lie within 1e-3 of each other; then the order
    in which sums are rounded decides.
    """
    sampling = SamplingParams(max_tokens=pair.tokens)
    plain = PlainDecoder().generate_many(pair.target, pair.prompts, None, sampling)
    ours = pair.run(shape, 0.0, 0)
    wrong = ties = 0
    for prompt, a, b in zip(pair.prompts, plain, ours, strict=True):
        if a.token_ids == b.token_ids:
            continue
        at = next(
            (i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y),
            None,
        )
        if at is None:
            wrong += 1
            continue
        ids = [*pair.target.prompt_ids(prompt), *a.token_ids[:at]]
        with torch.inference_mode():
            logits_V = pair.target.model(torch.tensor([ids], device=pair.target.device)).logits[
                0, -1
            ]
        first, second = logits_V.topk(2).values.tolist()
        ties, wrong = (ties + 1, wrong) if first - second < 1e-3 else (ties, wrong + 1)
    return wrong, ties


def exact_start(model: LocalModel, prompt: Prompt, length: int) -> dict[tuple[int, ...], float]:
    """The law of the first tokens after a prompt, words of probability below 1e-6 left out."""
    words: dict[tuple[int, ...], float] = {(): 1.0}
    ids = model.prompt_ids(prompt)
    ended: dict[tuple[int, ...], float] = {}
    for _ in range(length):
        rows = [[*ids, *word] for word in words]
        with torch.inference_mode():
            logits_BV = model.model(torch.tensor(rows, device=model.device)).logits[:, -1]
        laws_BV = logits_BV.double().softmax(-1).cpu().numpy()
        longer: dict[tuple[int, ...], float] = {}
        for (word, chance), law_V in zip(words.items(), laws_BV, strict=True):
            for token in np.flatnonzero(law_V * chance > 1e-6):
                found = (*word, int(token))
                into = ended if int(token) in model.eos_ids else longer
                into[found] = chance * float(law_V[token])
        words = longer
    return {**words, **ended}


def sampled_start(
    pair: Pair, prompt: Prompt, shape: Shape, length: int, n: int, seed: int
) -> Counter[tuple[int, ...]]:
    """How often each beginning was written, through the whole decoder with its caches."""
    decoder = RSD(shape.mode, shape.branching, shape.beam, shape.depth, draft=pair.draft)
    sampling = [
        SamplingParams(max_tokens=length, temperature=1.0, seed=seed * n + i) for i in range(n)
    ]
    made = decoder.generate_many(pair.target, [prompt] * n, sampling=sampling)
    return Counter(one.token_ids for one in made)


def clock(device: torch.device) -> Callable[[], float]:
    """Process time on a CPU with one thread, which other work hardly moves; else wall clock."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def row_costs(
    model: LocalModel, rows: Sequence[int], past: int, repeats: int
) -> Mapping[int, float]:
    """Median seconds (see `clock`) of a pass by its rows, fed behind `past` cached tokens."""
    from outlay.decode.rsd.attention import TreeCache

    found, read = {}, clock(model.device)
    with torch.inference_mode():
        cache = TreeCache(model.model, 1)
        cache.read([[1] * past])
        for count in rows:
            ids_1R = torch.ones((1, count), dtype=torch.long)
            parents = [list(range(-1, count - 1))]
            seconds = []
            for _ in range(repeats + 1):
                start = read()
                float(cache.feed(ids_1R, parents)[0, -1, 0])
                seconds.append(read() - start)
                cache.commit([[]])
            found[count] = float(np.median(seconds[1:]))
    return found
